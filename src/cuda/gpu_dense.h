/* What dense products of many tokens on Hopper offer to the C files (sm90_dense.cuh); manners as in
 * gpu.h. */
#ifndef ESP_CUDA_GPU_DENSE_H
#define ESP_CUDA_GPU_DENSE_H

#include "cuda/gpu_tiles.h"

#ifdef __cplusplus
extern "C" {
#endif

/* X by feature; `weight` is one panel whose data are [out][in], out a multiple of 16, in of 8.
 * Tiles: 128x256, 128x128. */
int gpu_sm90_dense_f16(const gpu_tiled *tiled, gpu_tile tile, void *stream);
int gpu_sm90_dense_bf16(const gpu_tiled *tiled, gpu_tile tile, void *stream);
/* The same for some hundred tokens, in tiles of 128 rows x 64 or 128 tokens; x_aligned;
 * deal.multiprocessors clusters of deal.split blocks, one for each tile. */
int gpu_sm90_dense_split(const gpu_product *product, int tile_tokens, void *stream);

#ifdef __cplusplus
}
#endif
#endif
