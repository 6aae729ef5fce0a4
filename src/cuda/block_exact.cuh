// Sums of one strip of 16 rows from the strip's own fragments, read straight from memory: slow, and right
// whatever X holds and however it lies.
#ifndef ESP_CUDA_BLOCK_EXACT_CUH
#define ESP_CUDA_BLOCK_EXACT_CUH

#include "cuda/gpu_blocks.h"
#include "cuda/mma_ptx.cuh"

namespace exact {

// Two neighbouring columns of one token, zero past the end.
__device__ __forceinline__ uint32_t two_columns(const gpu_block_product &p, int64_t column,
                                                int token)
{
    const uint16_t *x = (const uint16_t *)p.x;
    int64_t column_step = p.x_by_token ? 1 : p.x_stride, token_step = p.x_by_token ? p.x_stride : 1;
    int64_t at = column * column_step + token * token_step;
    if (token >= p.tokens || column >= p.weight.in) {
        return 0;
    }
    uint32_t low = __ldg(x + at), high = column + 1 < p.weight.in ? __ldg(x + at + column_step) : 0;
    return low | high << 16;
}

// 32 tokens from `token` on; sums as the tensor cores keep them, [4 eights of tokens][4].
template <bool BF16>
__device__ __forceinline__ void add_strip(const gpu_block_product &p, int band, int strip,
                                          int token, int lane, float (&sums)[16])
{
    const gpu_blocks &w = p.weight;
    int half = strip / 4;
#pragma unroll 1
    for (int i = w.band_steps[band]; i < w.band_steps[band + 1]; i++) {
        gpu_block_step step = w.steps[i];
        uint32_t mask = step.present >> (16 * half) & 0xffff;
#pragma unroll 1
        for (int k = 0; k < 4; k++) {
            uint32_t bit = 1u << (4 * k + strip % 4);
            if ((mask & bit) == 0) {
                continue;
            }
            int64_t fragment = (int64_t)step.first[half] + __popc(mask & (bit - 1));
            uint4 a = __ldg((const uint4 *)w.fragments + fragment * 32 + lane);
            int64_t column = (k == 0   ? step.column[0]
                              : k == 1 ? step.column[1]
                              : k == 2 ? step.column[2]
                                       : step.column[3]) +
                             lane % 4 * 2;
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int t = token + e * 8 + lane / 4;
                uint32_t b[2] = {two_columns(p, column, t), two_columns(p, column + 8, t)};
                mma::product_16x8<BF16>(sums + e * 4, a, b[0], b[1]);
            }
        }
    }
}

} // namespace exact

#endif
