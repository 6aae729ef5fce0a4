/* Products of V:2:5 that is spread over all columns (src/format/spread.c): the packed form of 2:4,
 * whose 96 places stand for 80 columns of X. See gpu.h for what all functions have in common.
 * tiled->product.weight.in are X's features, not places; X is feature-major. */
#ifndef ESP_CUDA_GPU_SPREAD_H
#define ESP_CUDA_GPU_SPREAD_H

#include "cuda/gpu_tiles.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Tiles: 128x256 and 128x128. */
int gpu_sm90_panel_spread_f16(const gpu_tiled *tiled, gpu_tile tile, void *stream);
int gpu_sm90_panel_spread_bf16(const gpu_tiled *tiled, gpu_tile tile, void *stream);

#ifdef __cplusplus
}
#endif
#endif
