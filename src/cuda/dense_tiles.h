/* Private to src/cuda: what the two families of dense kernels for many tokens share. */
#ifndef ESP_CUDA_DENSE_TILES_H
#define ESP_CUDA_DENSE_TILES_H

#include "cuda/panel_call.h"

/* esp_kernel.why_not of both. */
const char *dense_tiles_why_not(const esp_kernel *kernel, const esp_device *device,
                                const esp_matmul_problem *problem);
/* Takes every X. */
int dense_tiles_run_128x128(const cuda_state *state, gpu_tiled *tiled, void *stream);

#endif
