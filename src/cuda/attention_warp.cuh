// Attention of a warp: 16 queries over a stretch of keys, by mma.sync m16n8k16, with the softmax as it goes (Milakov
// and Gimelshein, arXiv 1805.02867; Dao et al., FlashAttention, arXiv 2205.14135). Scores stay in registers: as the
// sums of one product lie, so do the rows of the left operand of the next.
//
// Keys and values stand in shared memory as they lie in memory: COLUMNS, a row for each feature with keys side by side
// (what a product writes), or ROWS, a row for each key with features side by side (a cache). The tensor cores want
// keys the one way and values the other; ldmatrix turns whichever is wrong. Rows are 16 bytes longer than an even
// multiple of 16, so that eight rows below one another meet eight different banks.
#ifndef ESP_CUDA_ATTENTION_WARP_CUH
#define ESP_CUDA_ATTENTION_WARP_CUH

#include <math.h>

#include "cuda/attention_ptx.cuh"

namespace attention {

enum layout { COLUMNS, ROWS };

constexpr float LOG2_E = 1.4426950408889634f;
constexpr int GAP = 8; // elements behind each row of shared memory

// Keys or values of a tile: KEYS x D numbers.
template <layout L, int D, int KEYS> struct tile {
    static constexpr int ROW = (L == COLUMNS ? KEYS : D) + GAP; // elements
    static constexpr int HEIGHT = L == COLUMNS ? D : KEYS;
    static constexpr uint32_t BYTES = HEIGHT * ROW * 2;
};

// ---- loading, by `thread` of THREADS ----

// COLUMNS wide pieces of rows of memory: `valid` columns hold something, rows from `features` on nothing.
template <int THREADS, int D, int WIDE, int ROW>
__device__ __forceinline__ void load_columns(int thread, uint32_t to, const uint16_t *from, int64_t stride,
                                             int features, int valid)
{
    constexpr int PIECES = WIDE / 8, ALL = D * PIECES, STEP = THREADS / PIECES; // STEP: rows
    if (THREADS % PIECES == 0 && features == D && valid >= WIDE) {
        int row = thread / PIECES, column = thread % PIECES * 8;
        uint32_t at = to + (uint32_t)(row * ROW + column) * 2;
        const uint16_t *piece = from + row * stride + column;
#pragma unroll
        for (int i = 0; i < (ALL + THREADS - 1) / THREADS; i++) {
            if (ALL % THREADS == 0 || row + i * STEP < D) {
                ptx::copy_16(at + i * STEP * ROW * 2, piece + i * STEP * stride);
            }
        }
        return;
    }
#pragma unroll 1
    for (int i = thread; i < ALL; i += THREADS) {
        int row = i / PIECES, column = i % PIECES * 8;
        int bytes = row < features ? min(max(valid - column, 0), 8) * 2 : 0;
        ptx::copy_16(to + (uint32_t)(row * ROW + column) * 2, bytes > 0 ? from + row * stride + column : from,
                     (uint32_t)bytes);
    }
}

// Rows of a cache, `features` long.
template <int THREADS, int D, int HIGH, int ROW>
__device__ __forceinline__ void load_rows(int thread, uint32_t to, const uint16_t *from, int features, int valid)
{
    constexpr int PIECES = D / 8;
    bool whole = features == D && valid >= HIGH;
#pragma unroll
    for (int step = 0; step < HIGH * PIECES; step += THREADS) {
        int i = step + thread, row = i / PIECES, column = i % PIECES * 8;
        if (HIGH * PIECES % THREADS != 0 && i >= HIGH * PIECES) {
            break;
        }
        uint32_t at = to + (uint32_t)(row * ROW + column) * 2;
        if (whole) {
            ptx::copy_16(at, from + (int64_t)row * D + column);
            continue;
        }
        bool there = row < valid && column < features;
        ptx::copy_16(at, there ? from + (int64_t)row * features + column : from, there ? 16u : 0u);
    }
}

// ---- products and the softmax ----

// The right operand of a product, 16 deep and 16 wide, by one ldmatrix: registers 0 and 1 are the left eight columns,
// 2 and 3 the right eight. DEPTH_IS_ROW: a row of shared memory is one step of depth. Where the lane reads:
template <bool DEPTH_IS_ROW> __device__ __forceinline__ uint32_t right_lane(int lane, int row)
{
    int deep = lane / 8 % 2 * 8, wide = lane / 16 * 8, i = lane % 8;
    return (uint32_t)(DEPTH_IS_ROW ? (deep + i) * row + wide : (wide + i) * row + deep) * 2;
}
template <bool DEPTH_IS_ROW>
__device__ __forceinline__ void load_right(uint32_t tile, int row, int deep, int wide,
                                           uint32_t (&b)[4])
{
    if constexpr (DEPTH_IS_ROW) {
        ptx::load_matrices_transposed(tile + (uint32_t)(deep * row + wide) * 2, b);
    } else {
        ptx::load_matrices(tile + (uint32_t)(wide * row + deep) * 2, b);
    }
}

// Queries of the warp from shared memory, [D][row] with queries side by side, as the left operand. `at`: of the
// warp's first query and feature 0.
template <int D>
__device__ __forceinline__ void load_queries(uint32_t at, int row, int lane, uint32_t (&q)[D / 16][4])
{
    uint32_t mine = at + (uint32_t)((lane / 16 * 8 + lane % 8) * row + lane / 8 % 2 * 8) * 2;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        ptx::load_matrices_transposed(mine + (uint32_t)(k * 16 * row) * 2, q[k]);
    }
}

// What a warp knows of its queries. Each lane has rows lane / 4 and lane / 4 + 8 of every 16; `total` is its own
// share until the end.
template <int M, int D> struct running {
    float most[M][2], total[M][2];
    float o[M][D / 8][4];

    __device__ __forceinline__ void begin()
    {
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                most[m][half] = -INFINITY;
                total[m][half] = 0;
            }
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                o[m][n][0] = o[m][n][1] = o[m][n][2] = o[m][n][3] = 0;
            }
        }
    }
};

// s += q . keys. `keys`: of the tile, with the lane's right_lane added.
template <bool BF16, layout L, int M, int D, int KEYS>
__device__ __forceinline__ void add_scores(const uint32_t (&q)[M][D / 16][4], uint32_t keys,
                                           float (&s)[M][KEYS / 8][4])
{
    constexpr int ROW = tile<L, D, KEYS>::ROW;
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t b[4];
            load_right<L == COLUMNS>(keys, ROW, k * 16, n * 16, b);
#pragma unroll
            for (int m = 0; m < M; m++) {
                const uint32_t(&a)[4] = q[m][k];
                ptx::product_16x8<BF16>(s[m][2 * n], a[0], a[1], a[2], a[3], b[0], b[1]);
                ptx::product_16x8<BF16>(s[m][2 * n + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
            }
        }
    }
}

__device__ __forceinline__ float of_row_most(float value)
{
    value = fmaxf(value, __shfl_xor_sync(~0u, value, 1));
    return fmaxf(value, __shfl_xor_sync(~0u, value, 2));
}
__device__ __forceinline__ float of_row_sum(float value)
{
    value += __shfl_xor_sync(~0u, value, 1);
    return value + __shfl_xor_sync(~0u, value, 2);
}

// Maxima and sums go in several chains: one would be waited for at every link.
template <int WIDE> __device__ __forceinline__ float most_of(const float (&s)[WIDE][4], int half)
{
    float most[2] = {s[0][2 * half], s[0][2 * half + 1]};
#pragma unroll
    for (int n = 1; n < WIDE; n++) {
        most[n % 2] = fmaxf(most[n % 2], fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    }
    return fmaxf(most[0], most[1]);
}

// Scores become numerators 2^((s - most) * scale), and what was summed before is brought to the new `most`. fmaxf
// passes NaN by; the power does not. A row of nothing but -infinity gives NaN, so tiles without any are not given.
template <int M, int D, int WIDE>
__device__ __forceinline__ void take_powers(float (&s)[M][WIDE][4], float scale, running<M, D> *r)
{
#pragma unroll
    for (int m = 0; m < M; m++) {
        float before[2], shift[2], total[4] = {};
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = fmaxf(r->most[m][half], of_row_most(most_of(s[m], half)));
            before[half] = ptx::exp2_fast((r->most[m][half] - most) * scale);
            shift[half] = -most * scale;
            r->most[m][half] = most;
        }
#pragma unroll
        for (int n = 0; n < WIDE; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[m][n][i] = ptx::exp2_fast(fmaf(s[m][n][i], scale, shift[i / 2]));
                total[i] += s[m][n][i];
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = total[2 * half] + total[2 * half + 1];
            r->total[m][half] = fmaf(r->total[m][half], before[half], sum);
        }
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                r->o[m][n][i] *= before[i / 2];
            }
        }
    }
}

// o += s . values. `values`: of the tile, with the lane's right_lane added.
template <bool BF16, layout L, int M, int D, int KEYS>
__device__ __forceinline__ void add_values(const float (&s)[M][KEYS / 8][4], uint32_t values,
                                           running<M, D> *r)
{
    constexpr int ROW = tile<L, D, KEYS>::ROW;
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *pair = &s[m][2 * k + i / 2][i % 2 * 2];
                a[m][i] = ptx::pack<BF16>(pair[0], pair[1]);
            }
        }
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            uint32_t b[4];
            load_right<L == ROWS>(values, ROW, k * 16, n * 16, b);
#pragma unroll
            for (int m = 0; m < M; m++) {
                ptx::product_16x8<BF16>(r->o[m][2 * n], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
                ptx::product_16x8<BF16>(r->o[m][2 * n + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2],
                                        b[3]);
            }
        }
    }
}

// The lane's 16 bits of y: rows lane / 4 + 8 half, features 8 n + lane % 4 * 2 and the next; `factor` is 1 / total.
template <bool BF16, int M, int D>
__device__ __forceinline__ uint32_t finished(const running<M, D> &r, int m, int n, int half,
                                             float factor)
{
    return ptx::pack<BF16>(r.o[m][n][2 * half] * factor, r.o[m][n][2 * half + 1] * factor);
}

} // namespace attention

#endif
