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

// Of COUNT chunks that all threads of the warpgroup have written: their rows are part `part`, the
// first one's tokens begin at `token`, and those from `end` on are not there. Several at a time, or
// each product waits for the one before it.
template <bool BF16, int COUNT>
__device__ __forceinline__ void leave_moments(const gpu_tiled &tiled,
                                              const uint32_t (&chunks)[COUNT], int part, int token,
                                              int end, int thread)
{
    constexpr uint32_t ONES = BF16 ? 0x3f803f80 : 0x3c003c00;
    int warp = thread / 32, lane = thread % 32;
    uint32_t mine = lane * 64 + ((warp ^ lane / 2 % 4) << 4), y[COUNT][2][4];
    float found[COUNT][4] = {};
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        ptx::load_matrices_transposed(chunks[i] + mine, y[i][0]);
        ptx::load_matrices_transposed(chunks[i] + mine + 2048, y[i][1]);
    }
#pragma unroll
    for (int k = 0; k < 4; k++) { // of 16 rows
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            uint32_t low = y[i][k / 2][k % 2 * 2], high = y[i][k / 2][k % 2 * 2 + 1];
            mma::product_16x8<BF16>(found[i], make_uint4(low, ONES, high, ONES), low, high);
        }
    }
    // A lane has columns 2 (lane % 4) and the next one of rows lane / 4 and 8 more.
    token += warp * 8 + lane / 4;
    end = min(end, tiled.product.tokens);
    bool second = lane / 4 % 2 != 0;
    float2 *to = (float2 *)tiled.moments + part * tiled.moments_stride + token;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        if (lane / 8 == lane % 4 && token + i * 32 < end) {
            to[i * 32] = {second ? found[i][3] : found[i][2], second ? found[i][1] : found[i][0]};
        }
    }
}

} // namespace panel

#endif
