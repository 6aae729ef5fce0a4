/* The door of src/cuda: plain C functions; CUDA's own headers stay inside the room. */
#ifndef ESP_SRC_CUDA_H
#define ESP_SRC_CUDA_H

#include <espalier/device.h>

/* GPUs that the CUDA runtime shows, as esp_device_info; writes at most `capacity`, returns how many
 * there are, 0 without a driver. */
int esp_cuda_device_list(esp_device_info *infos, int capacity);

#endif
