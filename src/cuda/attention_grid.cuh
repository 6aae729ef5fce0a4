// Relative positions of a grid of tokens (SAM): what each row and each column of the grid adds to a query's scores is
// the query times a table, which a block computes on the tensor cores before its first tile and keeps in shared memory.
#ifndef ESP_CUDA_ATTENTION_GRID_CUH
#define ESP_CUDA_ATTENTION_GRID_CUH

#include "cuda/attention_warp.cuh"

namespace attention {

// What one block works on.
struct piece {
    const uint16_t *q, *keys, *values; // of the first query, key and feature of the head
    uint16_t *y;
    int64_t stride, key_stride, y_stride;
    int features;      // real ones; D or fewer
    int first;         // query of the block
    int queries, keys_count, past;
    float scale;
    // of the grid
    const float *row_table, *column_table;
    int width;
    int rounds; // blocks of queries, one after the other over the same keys; 1 or 2
    int column, head;      // of the first key; of keys and values
    const void *key_map, *value_map; // CUtensorMap, where the engine copies
};

// For each query of the block, what each row and each column of the grid adds to its scores, over scale: f32
// [QUERIES][row_pitch] and [QUERIES][column_pitch].
struct grid_bias {
    uint32_t rows, columns; // shared memory
    int row_pitch, column_pitch;
    int high, wide;
    uint32_t inverse; // of wide, for __umulhi

    // Of tokens up to 65535.
    __device__ __forceinline__ int row_of(int token) const
    {
        return wide == 1 ? token : (int)__umulhi((uint32_t)token, inverse);
    }
};

__host__ __device__ inline int bias_pitch(int size)
{
    return (size + 7) / 8 * 8 + 8;
}

template <class C>
__device__ __forceinline__ grid_bias bias_of(const piece &p, uint32_t shared)
{
    grid_bias b = {};
    b.wide = p.width;
    b.high = p.keys_count / p.width;
    b.row_pitch = bias_pitch(b.high);
    b.column_pitch = bias_pitch(b.wide);
    b.rows = shared + C::BIAS_AT;
    b.columns = b.rows + (uint32_t)(C::QUERIES * b.row_pitch) * 4;
    b.inverse = (uint32_t)(((1ull << 32) + b.wide - 1) / b.wide);
    return b;
}

constexpr int TABLE_ROWS = 64; // at a time in shared memory

// Rows first .. first + 63 of a table, rounded; zeros behind its end and its features.
template <class C>
__device__ __forceinline__ void load_table(uint32_t to, const float *table, int first, int rows, int features)
{
    for (int i = threadIdx.x; i < TABLE_ROWS * C::D / 2; i += C::THREADS) {
        int row = i / (C::D / 2), d = i % (C::D / 2) * 2;
        const float *at = table + (first + row) * features + d;
        bool there = first + row < rows;
        float low = there && d < features ? at[0] : 0, high = there && d + 1 < features ? at[1] : 0;
        ptx::store_shared_u32(to + (uint32_t)(row * (C::D + GAP) + d) * 2, ptx::pack<C::BF16>(low, high));
    }
}

// Every query times every row of the table, by way of `room`; what belongs to key row (column) k of the query's own
// row (column) `place` is entry place - k + size - 1.
template <class C>
__device__ __forceinline__ void relate(const piece &p, const uint32_t (&q)[C::M][C::D / 16][4],
                                       const grid_bias &bias, const float *table, bool by_row,
                                       uint32_t room)
{
    static_assert(TABLE_ROWS * (C::D + GAP) * 2 <= C::BIAS_AT - C::QUERIES_AT, "rows fit the queries' room");
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int size = by_row ? bias.high : bias.wide, rows = 2 * size - 1;
    int pitch = by_row ? bias.row_pitch : bias.column_pitch;
    uint32_t to = by_row ? bias.rows : bias.columns;
    float factor = 1 / p.scale;
    uint32_t mine = room + right_lane<false>(lane, C::D + GAP);
    for (int first = 0; first < rows; first += TABLE_ROWS) {
        __syncthreads();
        load_table<C>(room, table, first, rows, p.features);
        __syncthreads();
        for (int n = first; n < min(rows, first + TABLE_ROWS); n += 16) {
            float sums[C::M][2][4] = {};
#pragma unroll
            for (int k = 0; k < C::D / 16; k++) {
                uint32_t b[4];
                load_right<false>(mine, C::D + GAP, k * 16, n - first, b);
#pragma unroll
                for (int m = 0; m < C::M; m++) {
                    const uint32_t(&a)[4] = q[m][k];
                    ptx::product_16x8<C::BF16>(sums[m][0], a[0], a[1], a[2], a[3], b[0], b[1]);
                    ptx::product_16x8<C::BF16>(sums[m][1], a[0], a[1], a[2], a[3], b[2], b[3]);
                }
            }
#pragma unroll
            for (int i = 0; i < C::M * 8; i++) {
                int m = i / 8, query = (warp * C::M + m) * 16 + lane / 4 + i / 2 % 2 * 8;
                int token = p.first + query, row = bias.row_of(token);
                int place = by_row ? row : token - row * p.width;
                int k = place - (n + i / 4 % 2 * 8 + lane % 4 * 2 + i % 2) + size - 1;
                if (k >= 0 && k < size) {
                    ptx::store_shared_f32(to + (uint32_t)(query * pitch + k) * 4,
                                          sums[m][i / 4 % 2][i % 4] * factor);
                }
            }
        }
    }
}

// Scores begin as what the grid adds; here where a tile is a row of the grid.
template <class C, int WIDE>
__device__ __forceinline__ void begin_with_row(const grid_bias &b, int row,
                                               float (&s)[C::M][WIDE][4])
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < C::M * 2; i++) {
        int m = i / 2, half = i % 2, query = (warp * C::M + m) * 16 + lane / 4 + half * 8;
        float of_row = ptx::load_shared_f32(b.rows + (uint32_t)(query * b.row_pitch + row) * 4);
        uint32_t columns = b.columns + (uint32_t)(query * b.column_pitch + lane % 4 * 2) * 4;
#pragma unroll
        for (int n = 0; n < WIDE; n++) {
            float2 pair = ptx::load_shared_2(columns + (uint32_t)(n * 8) * 4);
            s[m][n][2 * half] = of_row + pair.x;
            s[m][n][2 * half + 1] = of_row + pair.y;
        }
    }
}

// In general.
template <class C, int WIDE>
__device__ __forceinline__ void begin_with_bias(const grid_bias &b, int key0, int last_key,
                                                float (&s)[C::M][WIDE][4])
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    bool even = b.wide % 2 == 0;
    if (WIDE * 8 == C::KEYS && b.wide == C::KEYS) {
        begin_with_row<C>(b, key0 / C::KEYS, s);
        return;
    }
#pragma unroll
    for (int n = 0; n < WIDE; n++) {
        int key = key0 + n * 8 + lane % 4 * 2;
        int first = min(key, even ? last_key - 1 : last_key), second = min(key + 1, last_key);
        int row = b.row_of(first), column = first - row * b.wide;
        int row2 = b.row_of(second), column2 = second - row2 * b.wide;
#pragma unroll
        for (int m = 0; m < C::M; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int query = (warp * C::M + m) * 16 + lane / 4 + half * 8;
                uint32_t rows = b.rows + (uint32_t)(query * b.row_pitch) * 4;
                uint32_t columns = b.columns + (uint32_t)(query * b.column_pitch) * 4;
                float of_row = ptx::load_shared_f32(rows + (uint32_t)row * 4);
                if (even) { // neighbours are in one row of the grid
                    float2 pair = ptx::load_shared_2(columns + (uint32_t)column * 4);
                    s[m][n][2 * half] = of_row + pair.x;
                    s[m][n][2 * half + 1] = of_row + pair.y;
                } else {
                    s[m][n][2 * half] = of_row + ptx::load_shared_f32(columns + (uint32_t)column * 4);
                    s[m][n][2 * half + 1] = ptx::load_shared_f32(rows + (uint32_t)row2 * 4) +
                                            ptx::load_shared_f32(columns + (uint32_t)column2 * 4);
                }
            }
        }
    }
}

} // namespace attention

#endif
