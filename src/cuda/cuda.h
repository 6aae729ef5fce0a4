/* The door of src/cuda: the GPU back end. CUDA's own headers stay inside the room. */
#ifndef ESP_SRC_CUDA_H
#define ESP_SRC_CUDA_H

#include "op/op.h"

extern const esp_backend esp_cuda_backend;

#endif
