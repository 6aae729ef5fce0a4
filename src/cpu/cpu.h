/* The door of src/cpu: threaded, vectorised kernels for this machine's processor. */
#ifndef ESP_SRC_CPU_H
#define ESP_SRC_CPU_H

#include "op/op.h"

extern const esp_backend esp_cpu_backend;

#endif
