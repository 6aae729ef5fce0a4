/* Between attention.c, which checks and chooses, and the files of kernels. Sizes are in range,
 * pointers and strides aligned, and there is work. */
#ifndef ESP_CUDA_ATTENTION_KERNELS_H
#define ESP_CUDA_ATTENTION_KERNELS_H

#include "cuda/gpu_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

/* On any GPU of compute capability 8.0 or later. */
int gpu_any_attend_groups_f16(const gpu_attention_groups *attention, void *stream);
int gpu_any_attend_groups_bf16(const gpu_attention_groups *attention, void *stream);
int gpu_any_attend_prefill_f16(const gpu_attention_prefill *attention, void *stream);
int gpu_any_attend_prefill_bf16(const gpu_attention_prefill *attention, void *stream);

/* On compute capability 9.0, by its own instructions; head_dim up to 128. */
#define GPU_SM90_MOST_HEAD_DIM 128
bool gpu_sm90_can_attend(int device);
int gpu_sm90_attend_groups_f16(const gpu_attention_groups *attention, void *stream);
int gpu_sm90_attend_groups_bf16(const gpu_attention_groups *attention, void *stream);
/* The fastest, each for some: head_dim up to 64, no grid; up to 80, a grid 64 wide; 97 to 128. */
int gpu_sm90_attend_ahead(const gpu_attention_groups *attention, void *stream);
int gpu_sm90_attend_rows(const gpu_attention_groups *attention, void *stream);
int gpu_sm90_attend_past(const gpu_attention_prefill *attention, void *stream);
int gpu_sm90_attend_prefill_f16(const gpu_attention_prefill *attention, void *stream);
int gpu_sm90_attend_prefill_bf16(const gpu_attention_prefill *attention, void *stream);

int gpu_any_attend_decode(const gpu_attention_decode *attention, void *stream);

#ifdef __cplusplus
}
#endif
#endif
