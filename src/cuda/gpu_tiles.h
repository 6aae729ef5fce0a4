/* What products of many tokens on Hopper do for the norms around them, and the operation that does
 * the same alone; manners as in gpu.h. */
#ifndef ESP_CUDA_GPU_TILES_H
#define ESP_CUDA_GPU_TILES_H

#include "cuda/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Moments of tokens, in parts of features: {sum, sum of squares} of token t in part p at
 * values[(p * stride + t) * 2]. */

/* What is left of a norm whose weight multiplies the product's columns: sums s become (s -
 * row_sums[row] mean) / sqrt(variance + eps) before scale and bias. Without row_sums the mean
 * counts as 0. */
typedef struct gpu_normed {
    const float *moments; /* of X, 8-byte aligned; NULL: no norm */
    int parts;
    int64_t stride;
    float features; /* of X */
    float eps;
    const float *row_sums; /* [out], CONSTANT */
} gpu_normed;

/* A product by tiles, and what is around it. */
typedef struct gpu_tiled {
    gpu_product product;
    gpu_normed normed;
    float *moments; /* of Y as rounded, in parts of 64 rows; 8-byte aligned; NULL: none */
    int64_t moments_stride;
} gpu_tiled;

/* By panels: all tiles that start with GPU_TILE_128X256 .. GPU_TILE_64X256, or are staggered. */
int gpu_sm90_tiles_f16(const gpu_tiled *tiled, gpu_tile tile, void *stream);
int gpu_sm90_tiles_bf16(const gpu_tiled *tiled, gpu_tile tile, void *stream);

/* Moments of x, [features][tokens] of 16 bits, in parts of `part_rows` features; stride: of the
 * moments. */
typedef struct gpu_moments {
    gpu_type type;
    const void *x;
    int64_t x_stride, features, tokens, part_rows;
    float *values; /* 8-byte aligned */
    int64_t stride;
} gpu_moments;
int gpu_take_moments(const gpu_moments *moments, void *stream);
/* Of `parts` one: to[t * 2] and behind it, the sums over parts of tokens 0 .. tokens - 1. */
int gpu_sum_moments(const float *values, int parts, int64_t tokens, float *to, void *stream);

#ifdef __cplusplus
}
#endif
#endif
