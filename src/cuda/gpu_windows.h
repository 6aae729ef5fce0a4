/* Attention in windows of images on the GPU: a plain C function over the kernels of
 * sm90_attention_windows.cuh. Meaning, order and alignment as gpu_attention.h has them for groups.
 */
#ifndef ESP_CUDA_GPU_WINDOWS_H
#define ESP_CUDA_GPU_WINDOWS_H

#include "cuda/gpu_attention.h"

#define GPU_WIDEST_WINDOW 14
#define GPU_WINDOWS_MOST_HEAD_DIM 80
#ifdef __cplusplus
extern "C" {
#endif

/* Every token of a window sees all of the window. An image is a grid of `rows` x `columns` tokens,
 * image i the columns i * pitch to i * pitch + rows * columns - 1 of q, k, v and y; windows begin
 * at multiples of `window` rows and columns. Where they reach beyond the image, the tokens that are
 * missing are keys all the same, each with the same key and value. Of y, the images' columns are
 * written, no others.
 *
 * For windows up to GPU_WIDEST_WINDOW, even as `columns` is, head_dim up to
 * GPU_WINDOWS_MOST_HEAD_DIM, pitches that are multiples of 8, and compute capability 9.0. */
typedef struct gpu_attention_windows {
    gpu_type type;
    const void *q, *k, *v; /* unscaled */
    void *y;               /* not q, k or v */
    int64_t stride;        /* of q, k, v */
    int64_t y_stride;
    int64_t heads, head_dim;
    int64_t images, pitch;
    int64_t rows, columns;
    int64_t window;
    const float *outside_k, *outside_v; /* [heads * head_dim] of missing tokens, rounded to `type`
                                         * first; NULL: zeros. CONSTANT */
    float scale;
    /* Relative positions, as for groups: [2 * window - 1][head_dim], or both NULL. CONSTANT */
    const float *row_table, *column_table;
    int device;
} gpu_attention_windows;
/* Whether the sizes are such. */
bool gpu_can_attend_windows(const gpu_attention_windows *attention);
int gpu_attend_windows(const gpu_attention_windows *attention, void *stream);

/* For gpu_attend_windows, which has checked it. */
int gpu_sm90_attend_windows(const gpu_attention_windows *attention, void *stream);

#ifdef __cplusplus
}
#endif
#endif
