// Attention of a block of queries of one head, on any GPU from compute capability 8.0 on: its warps share the keys and
// values, which come in tiles by cp.async, one tile ahead of the products where shared memory has room for two.
//
//   queries -> room of the second tile -> registers of the warps
//   keys, values -> tile 0, tile 1, tile 0 ...  one barrier of the block a tile
//   y <- room of the queries <- registers
#ifndef ESP_CUDA_ATTENTION_BLOCK_CUH
#define ESP_CUDA_ATTENTION_BLOCK_CUH

#include "cuda/attention_warp.cuh"

namespace attention {

// One compiled kernel. M: times 16 queries of a warp; CAUSAL: query i sees keys 0 .. past + i only.
template <bool IS_BF16, layout KEYS_AS, int FEATURES, int M_, bool IS_CAUSAL, bool HAS_GRID>
struct block_of {
    static constexpr bool BF16 = IS_BF16, CAUSAL = IS_CAUSAL, GRID = HAS_GRID;
    static constexpr layout L = KEYS_AS;
    static constexpr int D = FEATURES, M = M_;
    static constexpr int WARPS = 4, THREADS = WARPS * 32, QUERIES = WARPS * 16 * M;
    static constexpr int KEYS = D > 128 || D * M > 160 ? 32 : 64;
    static constexpr int STAGES = D > 128 ? 1 : 2;
    using tile = attention::tile<L, D, KEYS>;
    static constexpr int QUERY_ROW = QUERIES + GAP;
    static constexpr uint32_t QUERY_BYTES = D * QUERY_ROW * 2, STAGE_BYTES = 2 * tile::BYTES;
    static constexpr uint32_t FIRST_STAGES = (STAGES - 1) * STAGE_BYTES;
    // Queries lie where the last stage will be, or behind the only one.
    static constexpr uint32_t QUERIES_AT = STAGES == 1 ? STAGE_BYTES : FIRST_STAGES;
    static constexpr uint32_t LAST = QUERY_BYTES > STAGE_BYTES || STAGES == 1 ? QUERY_BYTES : STAGE_BYTES;
    static constexpr uint32_t BIAS_AT = QUERIES_AT + LAST;
    static constexpr int REGISTERS = D * M / 2 + KEYS * M / 2 + D * M / 4; // of sums, scores and queries
    static constexpr int BLOCKS = REGISTERS > 170 ? 1 : REGISTERS > 110 ? 2 : REGISTERS > 85 ? 3 : 4;
};

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
};

// ---- loading ----

// COLUMNS wide pieces of rows of memory: `valid` columns hold something, rows from `features` on nothing.
template <int THREADS, int D, int WIDE, int ROW>
__device__ __forceinline__ void load_columns(uint32_t to, const uint16_t *from, int64_t stride,
                                             int features, int valid)
{
    constexpr int PIECES = WIDE / 8;
    bool whole = features == D && valid >= WIDE;
#pragma unroll
    for (int step = 0; step < D * PIECES; step += THREADS) {
        int i = step + threadIdx.x, row = i / PIECES, column = i % PIECES * 8;
        if (D * PIECES % THREADS != 0 && i >= D * PIECES) {
            break;
        }
        uint32_t at = to + (uint32_t)(row * ROW + column) * 2;
        if (whole) {
            ptx::copy_16(at, from + row * stride + column);
            continue;
        }
        int bytes = row < features ? min(max(valid - column, 0), 8) * 2 : 0;
        ptx::copy_16(at, bytes > 0 ? from + row * stride + column : from, (uint32_t)bytes);
    }
}

// Rows of a cache, `features` long.
template <int THREADS, int D, int HIGH, int ROW>
__device__ __forceinline__ void load_rows(uint32_t to, const uint16_t *from, int features, int valid)
{
    constexpr int PIECES = D / 8;
    bool whole = features == D && valid >= HIGH;
#pragma unroll
    for (int step = 0; step < HIGH * PIECES; step += THREADS) {
        int i = step + threadIdx.x, row = i / PIECES, column = i % PIECES * 8;
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

template <class C>
__device__ __forceinline__ void load_stage(const piece &p, uint32_t stage, int key)
{
    using tile = typename C::tile;
    int valid = p.keys_count - key;
    if constexpr (C::L == COLUMNS) {
        load_columns<C::THREADS, C::D, C::KEYS, tile::ROW>(stage, p.keys + key, p.key_stride,
                                                           p.features, valid);
        load_columns<C::THREADS, C::D, C::KEYS, tile::ROW>(stage + tile::BYTES, p.values + key,
                                                           p.key_stride, p.features, valid);
    } else {
        int64_t offset = (int64_t)key * p.features;
        load_rows<C::THREADS, C::D, C::KEYS, tile::ROW>(stage, p.keys + offset, p.features, valid);
        load_rows<C::THREADS, C::D, C::KEYS, tile::ROW>(stage + tile::BYTES, p.values + offset,
                                                        p.features, valid);
    }
    ptx::copy_commit();
}

// ---- relative positions ----

// For each query of the block, what each row and each column of the grid adds to its scores, over scale: f32
// [QUERIES][row_pitch] and [QUERIES][column_pitch].
struct grid_bias {
    uint32_t rows, columns; // shared memory
    int row_pitch, column_pitch;
    int high, wide;
    uint32_t inverse; // of wide: __umulhi divides numbers up to 65535
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

// Two neighbouring numbers of row n of a table, rounded; zero outside.
template <bool BF16>
__device__ __forceinline__ uint32_t table_pair(const float *table, int rows, int features, int n, int d)
{
    float low = 0, high = 0;
    if (n < rows) {
        const float *at = table + n * features + d;
        low = d < features ? at[0] : 0;
        high = d + 1 < features ? at[1] : 0;
    }
    return ptx::pack<BF16>(low, high);
}

// Every query times every row of the table; what belongs to key row (column) k of the query's own row (column)
// `place` is entry place - k + size - 1.
template <class C>
__device__ __forceinline__ void relate(const piece &p, const uint32_t (&q)[C::M][C::D / 16][4],
                                       const float *table, int size, bool by_row, uint32_t to,
                                       int pitch)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float factor = 1 / p.scale;
    int rows = 2 * size - 1;
    for (int n = 0; n < rows; n += 8) {
        float sums[C::M][4] = {};
#pragma unroll
        for (int k = 0; k < C::D / 16; k++) {
            int d = k * 16 + lane % 4 * 2;
            uint32_t b0 = table_pair<C::BF16>(table, rows, p.features, n + lane / 4, d);
            uint32_t b1 = table_pair<C::BF16>(table, rows, p.features, n + lane / 4, d + 8);
#pragma unroll
            for (int m = 0; m < C::M; m++) {
                const uint32_t(&a)[4] = q[m][k];
                ptx::product_16x8<C::BF16>(sums[m], a[0], a[1], a[2], a[3], b0, b1);
            }
        }
#pragma unroll
        for (int m = 0; m < C::M; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int query = (warp * C::M + m) * 16 + lane / 4 + i / 2 * 8, token = p.first + query;
                int place = by_row ? token / p.width : token % p.width;
                int k = place - (n + lane % 4 * 2 + i % 2) + size - 1;
                if (k >= 0 && k < size) {
                    ptx::store_shared_f32(to + (uint32_t)(query * pitch + k) * 4, sums[m][i] * factor);
                }
            }
        }
    }
}

// Scores begin as what the grid adds.
template <class C>
__device__ __forceinline__ void begin_with_bias(const grid_bias &b, int key0, int last_key,
                                                float (&s)[C::M][C::KEYS / 8][4])
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    bool even = b.wide % 2 == 0;
#pragma unroll
    for (int n = 0; n < C::KEYS / 8; n++) {
        int key = key0 + n * 8 + lane % 4 * 2;
        int first = min(key, even ? last_key - 1 : last_key), second = min(key + 1, last_key);
        int row = (int)__umulhi((uint32_t)first, b.inverse), column = first - row * b.wide;
        int row2 = (int)__umulhi((uint32_t)second, b.inverse), column2 = second - row2 * b.wide;
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

// ---- one tile ----

template <class C>
__device__ __forceinline__ void hide_keys(const piece &p, int key0, float (&s)[C::M][C::KEYS / 8][4])
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < C::M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int query = p.first + (warp * C::M + m) * 16 + lane / 4 + half * 8;
            int seen = C::CAUSAL ? min(p.keys_count, p.past + query + 1) : p.keys_count;
#pragma unroll
            for (int n = 0; n < C::KEYS / 8; n++) {
                int key = key0 + n * 8 + lane % 4 * 2;
                s[m][n][2 * half] = key < seen ? s[m][n][2 * half] : -INFINITY;
                s[m][n][2 * half + 1] = key + 1 < seen ? s[m][n][2 * half + 1] : -INFINITY;
            }
        }
    }
}

template <class C>
__device__ __forceinline__ void take_tile(const piece &p, const grid_bias &bias,
                                          const uint32_t (&q)[C::M][C::D / 16][4], uint32_t stage,
                                          int key0, running<C::M, C::D> *r)
{
    using tile = typename C::tile;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int first = p.first + warp * C::M * 16;
    int fully = C::CAUSAL ? min(p.keys_count, p.past + first + 1) : p.keys_count; // seen by all
    int partly = C::CAUSAL ? p.past + first + C::M * 16 : p.keys_count;           // seen by any
    if (key0 >= partly || first >= p.queries) {
        return;
    }
    float s[C::M][C::KEYS / 8][4] = {};
    if constexpr (C::GRID) {
        begin_with_bias<C>(bias, key0, p.keys_count - 1, s);
    }
    add_scores<C::BF16, C::L, C::M, C::D, C::KEYS>(
        q, stage + right_lane<C::L == COLUMNS>(lane, tile::ROW), s);
    if (key0 + C::KEYS > fully) {
        hide_keys<C>(p, key0, s);
    }
    take_powers<C::M, C::D, C::KEYS>(s, p.scale * LOG2_E, r);
    add_values<C::BF16, C::L, C::M, C::D, C::KEYS>(
        s, stage + tile::BYTES + right_lane<C::L == ROWS>(lane, tile::ROW), r);
}

// ---- leaving ----

// A warp's queries to shared memory, features below one another, and from there to y in pieces of 16 bytes. Queries
// that are not there leave as zeros up to the next multiple of 8.
template <class C>
__device__ __forceinline__ void leave(const piece &p, uint32_t room, running<C::M, C::D> *r)
{
    int lane = threadIdx.x % 32, first = threadIdx.x / 32 * C::M * 16;
#pragma unroll
    for (int m = 0; m < C::M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int query = first + m * 16 + half * 8;
            float total = of_row_sum(r->total[m][half]);
            bool there = p.first + query + lane / 4 < p.queries;
            float factor = 1 / total;
            uint32_t to = room + (uint32_t)(lane / 4 * C::QUERY_ROW + query + lane % 4 * 2) * 2;
#pragma unroll
            for (int n = 0; n < C::D / 8; n++) {
                uint32_t pair = there ? finished<C::BF16>(*r, m, n, half, factor) : 0;
                ptx::store_shared_u32(to + (uint32_t)(n * 8 * C::QUERY_ROW) * 2, ptx::turn_matrix(pair));
            }
        }
    }
    __syncwarp();
    constexpr int PIECES = C::M * 2;
    for (int i = lane; i < p.features * PIECES; i += 32) {
        int row = i / PIECES, query = first + i % PIECES * 8;
        if (p.first + query < p.queries) {
            uint4 v = ptx::load_shared_16(room + (uint32_t)(row * C::QUERY_ROW + query) * 2);
            *reinterpret_cast<uint4 *>(p.y + row * p.y_stride + query) = v;
        }
    }
}

// ---- the block ----

template <class C> __device__ __forceinline__ void attend(const piece &p, uint32_t shared)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t room = shared + C::QUERIES_AT;
    load_columns<C::THREADS, C::D, C::QUERIES, C::QUERY_ROW>(room, p.q, p.stride, p.features,
                                                             p.queries - p.first);
    ptx::copy_commit();
    load_stage<C>(p, shared, 0);
    ptx::copy_wait<1>();
    __syncthreads();
    uint32_t q[C::M][C::D / 16][4];
#pragma unroll
    for (int m = 0; m < C::M; m++) {
        load_queries<C::D>(room + (uint32_t)((warp * C::M + m) * 16) * 2, C::QUERY_ROW, lane, q[m]);
    }
    grid_bias bias = {};
    if constexpr (C::GRID) {
        bias = bias_of<C>(p, shared);
        relate<C>(p, q, p.row_table, bias.high, true, bias.rows, bias.row_pitch);
        relate<C>(p, q, p.column_table, bias.wide, false, bias.columns, bias.column_pitch);
        __syncwarp();
    }
    running<C::M, C::D> r;
    r.begin();
    int end = C::CAUSAL ? min(p.keys_count, p.past + p.first + C::QUERIES) : p.keys_count;
    int tiles = (end + C::KEYS - 1) / C::KEYS;
    for (int j = 0; j < tiles; j++) {
        ptx::copy_wait<0>();
        __syncthreads(); // the tile is there for all, and nobody reads the one before
        if (C::STAGES == 2 && j + 1 < tiles) {
            load_stage<C>(p, shared + (uint32_t)((j + 1) % 2) * C::STAGE_BYTES, (j + 1) * C::KEYS);
        }
        take_tile<C>(p, bias, q, shared + (uint32_t)(j % C::STAGES) * C::STAGE_BYTES, j * C::KEYS, &r);
        if (C::STAGES == 1 && j + 1 < tiles) {
            __syncthreads();
            load_stage<C>(p, shared, (j + 1) * C::KEYS);
        }
    }
    __syncthreads();
    leave<C>(p, room, &r);
}

} // namespace attention

#endif
