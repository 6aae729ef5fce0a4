// Moments of tokens (gpu_tiles.h) that products leave of Y as rounded, where a norm comes next: of
// the 64 rows that a warpgroup lays into its chunks by feature, a part of the moments.
//
// Idea. With Y for 64 rows of eight tokens, as they stand in a chunk, the product of [Y^T; ones],
// 16 x 64, with Y has the tokens' squares on its diagonal and their sums in each row of its lower
// half; and what ldmatrix makes of Y is the right operand and, once more, the upper half of the
// left one. So a warp takes eight of a chunk's tokens, by two loads and four products.
#ifndef ESP_CUDA_SM90_PANEL_MOMENTS_CUH
#define ESP_CUDA_SM90_PANEL_MOMENTS_CUH

#include "cuda/gpu_tiles.h"
#include "cuda/mma_ptx.cuh"
#include "cuda/sm90_panel_parts.cuh"

namespace panel
{

// Of a chunk that all threads of the warpgroup have written: its rows are part `part`, its tokens
// begin at `token`.
template <bool BF16>
__device__ __forceinline__ void leave_moments(const gpu_tiled &tiled, uint32_t chunk, int part,
                                              int token, int thread)
{
    constexpr uint32_t ONES = BF16 ? 0x3f803f80 : 0x3c003c00;
    int warp = thread / 32, lane = thread % 32;
    float found[4] = {};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t y[4], line = half * 32 + lane;
        ptx::load_matrices_transposed(chunk + line * 64 + ((warp ^ lane / 2 % 4) << 4), y);
        mma::product_16x8<BF16>(found, make_uint4(y[0], ONES, y[1], ONES), y[0], y[1]);
        mma::product_16x8<BF16>(found, make_uint4(y[2], ONES, y[3], ONES), y[2], y[3]);
    }
    // A lane has columns 2 (lane % 4) and the next one of rows lane / 4 and 8 more.
    token += warp * 8 + lane / 4;
    if (lane / 8 == lane % 4 && token < tiled.product.tokens) {
        bool second = lane / 4 % 2 != 0;
        float2 *to = (float2 *)tiled.moments + part * tiled.moments_stride + token;
        *to = {second ? found[3] : found[2], second ? found[1] : found[0]};
    }
}

} // namespace panel

#endif
