// Attention with relative positions on grids 64 tokens wide (SAM's layers that see the whole image): as
// sm90_attention_ahead.cuh, where a tile of keys is a row of the grid and a warpgroup's queries are another. So what the grid
// adds for columns is the same 64 x 64 numbers for all tiles, in shared memory, and for rows one number a query and tile: eight
// tiles' worth is a product of the queries and eight rows of the table, f32 as the scores are.
//
// One block a multiprocessor, of four warpgroups, which share keys, values and tables.
#ifndef ESP_CUDA_SM90_ATTENTION_ROWS_CUH
#define ESP_CUDA_SM90_ATTENTION_ROWS_CUH

#include "cuda/sm90_attention_ahead.cuh"

namespace attention {

// One compiled kernel.
template <bool IS_BF16, int FEATURES> struct rows_of {
    static constexpr bool BF16 = IS_BF16;
    static constexpr int D = FEATURES, KEYS = 64, FEW_KEYS = 0;
    static constexpr int WARPGROUPS = 4, THREADS = WARPGROUPS * 128, QUERIES = WARPGROUPS * 64, STAGES = 4;
    static constexpr uint32_t TILE_BYTES = D * 128, STAGE_BYTES = 2 * TILE_BYTES;
    static constexpr uint32_t QUERIES_AT = STAGES * STAGE_BYTES;
    // Tables of up to 2 * 64 - 1 rows of D + GAP numbers. The columns' is no longer needed when the third tile comes.
    static constexpr int TABLE_ROW = D + GAP, FIRST_TILES = 2;
    static constexpr uint32_t TABLE_BYTES = (2 * GPU_WIDEST_GRID - 1) * TABLE_ROW * 2;
    static constexpr uint32_t COLUMN_TABLE_AT = FIRST_TILES * STAGE_BYTES;
    static constexpr uint32_t ROW_TABLE_AT = QUERIES_AT + WARPGROUPS * TILE_BYTES;
    static constexpr int STRIP_ROW = 64 + 8; // eight queries of a warp in all banks
    static constexpr uint32_t STRIPS_AT = ROW_TABLE_AT + TABLE_BYTES, STRIP_BYTES = 16 * STRIP_ROW * 4;
    static constexpr uint32_t BARRIERS_AT = (STRIPS_AT + THREADS / 32 * STRIP_BYTES + 15) / 16 * 16;
    static constexpr uint32_t ALIGNMENT = 1024, BYTES = BARRIERS_AT + (2 * STAGES + 1) * 8 + ALIGNMENT;
    static constexpr float LEAD = 8;
    static_assert(TABLE_BYTES <= (STAGES - FIRST_TILES) * STAGE_BYTES, "the columns' table has room");
};

// ---- what the grid adds, over scale ----

// Rows first .. first + 7 of a table downwards, two steps of 16 features a load; `room`: of the table's row 0.
template <class C> struct table_walk {
    uint32_t queries; // of the warp's first query, with this lane's feature and half
    int half;

    __device__ __forceinline__ table_walk(uint32_t tile)
    {
        int lane = threadIdx.x % 32, feature = lane / 16 * 8 + lane % 8;
        half = (int)threadIdx.x % 128 / 32 * 2 + lane / 8 % 2;
        queries = tile + (uint32_t)(feature * 128 + (half ^ lane % 8) * 16);
    }
    // The warp's queries times table rows at(0) .. at(7).
    template <class AT> __device__ __forceinline__ void multiply(uint32_t table, const AT &at, float (&sums)[4]) const
    {
        int lane = threadIdx.x % 32;
        uint32_t row = table + (uint32_t)(at(lane % 8) * C::TABLE_ROW) * 2;
#pragma unroll
        for (int k = 0; k < C::D / 16; k += 2) {
            uint32_t b[4];
            bool both = k + 1 < C::D / 16;
            ptx::load_matrices(row + (uint32_t)(k * 16 + (both ? lane / 8 : lane / 8 % 2) * 8) * 2, b);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                if (j == 0 || both) {
                    uint32_t a[4];
                    ptx::load_matrices_transposed(queries + (uint32_t)(k + j) * 2048, a);
                    ptx::product_16x8<C::BF16>(sums, a[0], a[1], a[2], a[3], b[2 * j], b[2 * j + 1]);
                }
            }
        }
    }
};

template <class C> struct rows_bias {
    table_walk<C> walk;
    uint32_t strip, row_table; // of this warp; shared memory
    int row, high;             // of the grid: of its queries; how many there are
    float factor;
    float held[4];             // of queries lane / 4 and + 8: of rows 8 n + lane % 4 * 2 and the next one

    // What columns add: to the strip, [query][column of the key].
    __device__ __forceinline__ void take_columns(uint32_t table) const
    {
        int lane = threadIdx.x % 32, first = (int)threadIdx.x % 128 / 32 * 16; // the warp's queries are columns from there on
        for (int from = first; from < first + 79; from += 8) {
            float sums[4] = {};
            walk.multiply(table, [=](int i) { return min(from + i, 126); }, sums);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int query = lane / 4 + i / 2 * 8, column = first + query - (from + lane % 4 * 2 + i % 2) + 63;
                if (column >= 0 && column < 64) {
                    ptx::store_shared_f32(strip + (uint32_t)(query * C::STRIP_ROW + column) * 4, sums[i] * factor);
                }
            }
        }
        __syncwarp();
    }
    // Scores of the row of keys `key_row`.
    __device__ __forceinline__ void add(int key_row, float (&s)[8][4], float (&more)[2])
    {
        int lane = threadIdx.x % 32;
        if (key_row % 8 == 0 || key_row == high - 1) { // the last one comes first
            int first = row - key_row / 8 * 8 + high - 1;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                held[i] = 0;
            }
            walk.multiply(row_table, [=](int i) { return max(first - i, 0); }, held);
        }
        int from = lane / 4 * 4 + key_row % 8 / 2;
        more[0] = factor * __shfl_sync(~0u, key_row % 2 == 0 ? held[0] : held[1], from);
        more[1] = factor * __shfl_sync(~0u, key_row % 2 == 0 ? held[2] : held[3], from);
        uint32_t columns = strip + (uint32_t)(lane / 4 * C::STRIP_ROW + lane % 4 * 2) * 4;
#pragma unroll
        for (int n = 0; n < 8; n++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float2 pair = ptx::load_shared_2(columns + (uint32_t)(half * 8 * C::STRIP_ROW + n * 8) * 4);
                s[n][2 * half] += pair.x, s[n][2 * half + 1] += pair.y;
            }
        }
    }
};

template <class C>
__device__ __forceinline__ void load_rows_table(const gpu_attention_groups &a, const float *table, int rows, uint32_t to)
{
    int dim = (int)a.head_dim;
    for (int i = threadIdx.x; i < rows * (C::D / 2); i += C::THREADS) {
        int row = i / (C::D / 2), d = i % (C::D / 2) * 2;
        const float *at = table + row * dim + d;
        float low = d < dim ? at[0] : 0, high = d + 1 < dim ? at[1] : 0;
        ptx::store_shared_u32(to + (uint32_t)(row * C::TABLE_ROW + d) * 2, ptx::pack<C::BF16>(low, high));
    }
}

// ---- the block ----

template <class C>
__global__ void __launch_bounds__(C::THREADS, 1) rows_kernel(const __grid_constant__ ahead_task t)
{
    extern __shared__ uint4 memory[];
    const places<C> at = {(ptx::shared_address(memory) + C::ALIGNMENT - 1) / C::ALIGNMENT * C::ALIGNMENT};
    const gpu_attention_groups &a = t.of;
    stretch w = stretch_of<C>(t);
    int warp = threadIdx.x / 32, warpgroup = warp / 4, high = w.tiles;
    mma::let_next_launch_begin();
    load_rows_table<C>(a, a.row_table, 2 * high - 1, at.shared + C::ROW_TABLE_AT);
    load_rows_table<C>(a, a.column_table, 127, at.shared + C::COLUMN_TABLE_AT);
    mma::wait_for_launch_before();
    if (threadIdx.x == 0) {
        begin_copies<C>(t, w, at, C::FIRST_TILES);
    }
    __syncthreads();
    ptx::barrier_wait(at.queries_here(), 0);
    int first = w.first + warpgroup * 64;
    rows_bias<C> bias = {table_walk<C>(at.queries(0, warpgroup)),
                         at.shared + C::STRIPS_AT + (uint32_t)warp * C::STRIP_BYTES,
                         at.shared + C::ROW_TABLE_AT,
                         min(first / 64, high - 1),
                         high,
                         1 / a.scale,
                         {}};
    if (first < w.tokens) {
        bias.take_columns(at.shared + C::COLUMN_TABLE_AT);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::async_fence();
        for (int i = C::FIRST_TILES; i < min(w.tiles, C::STAGES); i++) {
            fetch_tile<C>(t, w, at, i);
        }
    }
    running<1, C::D> r;
    r.begin();
    at.await(0);
    walk<C, rows_bias<C>>{t, w, at, bias, at.queries(0, warpgroup), a.scale * LOG2_E, threadIdx.x == 0, first < w.tokens, &r}
        .run();
    if (first < w.tokens) {
        leave_block<C>(a, w, at.queries(0, warpgroup), first, r);
    }
}

template <bool BF16, int D> int launch_rows(const gpu_attention_groups &a, void *stream)
{
    using C = rows_of<BF16, D>;
    static std::atomic<uint64_t> prepared;
    ahead_task task;
    int failed = describe_task<C>(a, 1, &task);
    int64_t blocks = (queries_of(a) + C::QUERIES - 1) / C::QUERIES * a.groups * a.heads;
    failed = failed != 0 || blocks <= INT32_MAX ? failed : (int)cudaErrorInvalidValue;
    failed = failed != 0 ? failed : gpu_prepare((const void *)rows_kernel<C>, C::BYTES, a.device, &prepared);
    return failed != 0 ? failed
                       : gpu_launch_overlapping(rows_kernel<C>, (unsigned)blocks, C::THREADS, C::BYTES, a.device, stream, task);
}

} // namespace attention

#endif
