// What is left of a norm that the weights hold (gpu_tiles.h), for sums of the panel and dense
// kernels on their way out: s - row_sum mean, over the deviation.
//
// A warpgroup finds mean and 1 / deviation of its tile's tokens once, a token or two a thread, and
// leaves them in shared memory for the threads that have those tokens' sums. Moments that come in
// one part, as for many tokens, are under way while the tile is multiplied. Of several parts a step
// of products adds some and asks for the next ones. Barriers of leaving lie between one tile's
// terms and the next ones': before chunks are written, and behind.
//
// Strips do not norm: panel_norms (panel_call.c) says whose sums leave by the engine. There, behind
// 128 sums a thread, it cost registers that products need.
//
// Variance is E[x^2] - mean^2 in f32: relative errors of sums grow by 1 + mean^2 / variance.
#ifndef ESP_CUDA_SM90_PANEL_NORMED_CUH
#define ESP_CUDA_SM90_PANEL_NORMED_CUH

#include "cuda/gpu_tiles.h"
#include "cuda/sm90_panel_parts.cuh"

namespace panel
{

// Mean (0 where it does not count) and 1 / deviation, of sum and sum of squares.
__device__ __forceinline__ float2 norm_of(const gpu_normed &n, float2 moments)
{
    float share = 1.0f / n.features, mean = n.row_sums != nullptr ? moments.x * share : 0.0f;
    float variance = fmaf(-mean, mean, moments.y * share);
    return {mean, rsqrtf((variance < 0.0f ? 0.0f : variance) + n.eps)}; // NaN stays
}

// From the L2, which a launch before this one may have written.
__device__ __forceinline__ float2 load_moments(const gpu_normed &n, int part, int64_t token)
{
    return __ldcg((const float2 *)n.moments + part * n.stride + token);
}

template <class C> struct moments_ahead {
    static constexpr int EACH = C::N / 128;  // tokens of a thread
    static constexpr int AT_ONCE = 4 / EACH; // parts; more would cost others registers
    int token, count;                        // the first one; of a thread's that there are
    int next;                                // `coming` is from this part on
    float2 sums[EACH], coming[AT_ONCE][EACH];

    // Of `width` tokens from `first` on.
    __device__ __forceinline__ void begin(const gpu_normed &n, int first, int width, int tokens,
                                          int thread)
    {
        width = min(width, tokens - first);
        token = first + thread, next = 0;
        count = EACH == 2 && thread + 128 < width ? 2 : thread < width ? 1 : 0;
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            sums[j] = {0.0f, 0.0f};
        }
        load(n);
    }
    __device__ __forceinline__ void load(const gpu_normed &n)
    {
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
#pragma unroll
            for (int j = 0; j < EACH; j++) {
                bool there = next + i < n.parts && j < count;
                coming[i][j] =
                    there ? load_moments(n, next + i, token + j * 128) : float2{0.0f, 0.0f};
            }
        }
    }
    // What is under way from the beginning on is waited for at the end.
    __device__ __forceinline__ void step(const gpu_normed &n)
    {
        if (n.parts > AT_ONCE) {
            add(n);
        }
    }
    __device__ __forceinline__ void add(const gpu_normed &n)
    {
        if (next < n.parts) {
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
#pragma unroll
                for (int j = 0; j < EACH; j++) {
                    sums[j].x += coming[i][j].x, sums[j].y += coming[i][j].y;
                }
            }
            next += AT_ONCE;
            if (next < n.parts) {
                load(n);
            }
        }
    }
    __device__ __forceinline__ void finish(const gpu_normed &n, uint32_t terms, int thread)
    {
        while (next < n.parts) {
            add(n);
        }
        if (n.parts > 0) {
#pragma unroll
            for (int j = 0; j < EACH; j++) {
                float2 norm = norm_of(n, sums[j]);
                ptx::store_shared_2(terms + (thread + j * 128) * 8, norm.x, norm.y);
            }
        }
    }
};

} // namespace panel

#endif
