// Attention inside square windows of grids of tokens (SAM's encoder), where they lie: nothing is gathered before or behind.
//
// One window of a head comes into shared memory as [row of the window][feature][16 columns], rows of 32 bytes, swizzled so: as
// wgmma reads keys and queries with tokens side by side, and values with keys along the depth. So 16 tokens of a product are
// one row of the window, whatever its width up to 16, and 64 queries are four rows. A block has eight rows of queries,
// a warp one of them. Tensor copies begin at multiples of 16 bytes, which windows of 14 do not, so threads copy 4 bytes each.
//
//   q, k, v of the image ---- cp.async ----> shared memory; columns and rows that the window does not have: zeros,
//        |                                   tokens outside of the image: what a product makes of no token, its bias
//   what the grid adds: queries x tables, each warp its own row; to scores it is one number a row and four a lane
//        |
//   scores of five rows of keys at a time -> powers -> values -> y, straight from the registers, turned
//
// Two blocks a multiprocessor: copies of one lie behind the products of the other.
#ifndef ESP_CUDA_SM90_ATTENTION_WINDOWS_CUH
#define ESP_CUDA_SM90_ATTENTION_WINDOWS_CUH

#include "cuda/gpu_windows.h"
#include "cuda/sm90_attention.cuh"
#include "cuda/sm90_score_ptx.cuh"

namespace attention {

// One compiled kernel.
template <bool IS_BF16, int FEATURES> struct windows_of {
    static constexpr bool BF16 = IS_BF16;
    static constexpr int D = FEATURES;
    static constexpr int WARPGROUPS = 2, WARPS = 4 * WARPGROUPS, THREADS = WARPS * 32;
    static constexpr int SIDE = GPU_WIDEST_WINDOW, WIDE = 16; // rows and columns in shared memory
    static constexpr int TOGETHER = 5;                        // rows of keys that are multiplied at a time
    static constexpr uint32_t FEATURE_BYTES = WIDE * 2, ROW_BYTES = D * FEATURE_BYTES;
    static constexpr uint32_t KEYS_AT = 0, VALUES_AT = SIDE * ROW_BYTES, QUERIES_AT = 2 * SIDE * ROW_BYTES;
    static constexpr uint32_t QUERY_BYTES = WARPS * ROW_BYTES;
    // Both tables, the rows' first; rows of D + GAP numbers.
    static constexpr int TABLE_ROWS = 2 * SIDE - 1, TABLE_ROW = D + GAP;
    static constexpr uint32_t TABLES_AT = QUERIES_AT + QUERY_BYTES;
    // Of each warp: 16 queries times 16 rows of a table, f32.
    static constexpr int STRIP_ROW = 17;
    static constexpr uint32_t STRIPS_AT = TABLES_AT + 2 * TABLE_ROWS * TABLE_ROW * 2;
    static constexpr uint32_t ALIGNMENT = 1024, BYTES = STRIPS_AT + WARPS * 16 * STRIP_ROW * 4 + ALIGNMENT;
};

struct windows_task {
    gpu_attention_windows of;
    int down, across; // windows of an image
};

// What a block works on.
struct window {
    int image, head;
    int row, column;  // in the image, of the window's first token
    int high, wide;   // of the window, that lie in the image
    int side;
    int first;        // row of the window that is this block's first of queries
};

// Blocks with fewer rows of queries come last.
template <class C> __device__ __forceinline__ window window_of(const windows_task &t)
{
    const gpu_attention_windows &a = t.of;
    uint32_t of_part = (uint32_t)(a.images * a.heads) * t.down * t.across, i = blockIdx.x % of_part;
    window w;
    w.first = (int)(blockIdx.x / of_part) * C::WARPS;
    w.side = (int)a.window;
    w.column = (int)(i % t.across) * w.side, i /= t.across;
    w.row = (int)(i % t.down) * w.side, i /= t.down;
    w.head = (int)(i % (uint32_t)a.heads), w.image = (int)(i / (uint32_t)a.heads);
    w.high = min(w.side, (int)a.rows - w.row);
    w.wide = min(w.side, (int)a.columns - w.column);
    return w;
}

// ---- coming ----

template <class C> __device__ __forceinline__ void load_tables(const gpu_attention_windows &a, uint32_t shared)
{
    if (a.row_table == nullptr) {
        return;
    }
    int rows = 2 * (int)a.window - 1, dim = (int)a.head_dim;
    for (int i = threadIdx.x; i < rows * C::D; i += C::THREADS) { // pairs, of both tables
        int row = i / (C::D / 2), d = i % (C::D / 2) * 2;
        const float *at = row < rows ? a.row_table + row * dim : a.column_table + (row - rows) * dim;
        float low = d < dim ? at[d] : 0, high = d + 1 < dim ? at[d + 1] : 0;
        ptx::store_shared_u32(shared + C::TABLES_AT + (uint32_t)(row * C::TABLE_ROW + d) * 2,
                              ptx::pack<C::BF16>(low, high));
    }
}

// This thread's two columns of features that are THREADS / 8 apart. What is not the window's becomes zeros, what is and lies
// outside of the image becomes `outside`.
template <class C> struct pair_copy {
    static constexpr int PAIRS = C::WIDE / 2, STEP = C::THREADS / PAIRS, EACH = (C::D + STEP - 1) / STEP;
    int feature, column;
    uint32_t to; // of the first feature, in a row

    __device__ __forceinline__ pair_copy()
    {
        feature = threadIdx.x / PAIRS, column = threadIdx.x % PAIRS * 2;
        to = (uint32_t)feature * C::FEATURE_BYTES + (uint32_t)(column / 8 ^ feature / 4 % 2) * 16 +
             (uint32_t)(column % 8) * 2;
        static_assert(STEP % 8 == 0, "features of a thread are swizzled alike");
    }
    // ROWS rows of the window from `first` on.
    template <int ROWS>
    __device__ __forceinline__ void copy(const gpu_attention_windows &a, const window &w, const void *base,
                                         const float *outside, int first, uint32_t shared) const
    {
        int own = column < w.side ? w.side : 0, real = column < w.wide ? w.high : 0; // rows
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int f = feature + i * STEP;
            if (C::D % STEP != 0 && f >= C::D) {
                break;
            }
            bool there = f < a.head_dim;
            const uint16_t *from = (const uint16_t *)base + (w.head * a.head_dim + f) * a.stride + w.image * a.pitch +
                                   (int64_t)(w.row + first) * a.columns + w.column + column;
            uint32_t at = shared + to + (uint32_t)(i * STEP) * C::FEATURE_BYTES, known = 0;
            if (there && outside != nullptr && own > real) {
                float v = outside[w.head * a.head_dim + f];
                known = ptx::pack<C::BF16>(v, v);
            }
#pragma unroll
            for (int row = 0; row < ROWS; row++) {
                if (there && first + row < real) {
                    ptx::copy_4(at + (uint32_t)row * C::ROW_BYTES, from + (int64_t)row * a.columns);
                } else {
                    ptx::store_shared_u32(at + (uint32_t)row * C::ROW_BYTES, first + row < own ? known : 0);
                }
            }
        }
    }
};

// ---- what the grid adds, over scale ----

// For queries lane / 4 and lane / 4 + 8 of the warp's row. Rows: of key rows 8 n + lane % 4 * 2 and the next one. Columns:
// of key columns likewise, -infinity where the window has none.
struct window_bias {
    float rows[2][4], columns[2][4];
};

// The warp's queries times 16 rows of a table, row `at(0)` to `at(15)`.
template <class C, class AT>
__device__ __forceinline__ void relate_row(uint32_t queries, uint32_t table, const AT &at, float (&sums)[2][4])
{
    int lane = threadIdx.x % 32;
    int feature = lane / 16 * 8 + lane % 8, half = lane / 8 % 2;
    uint32_t q = queries + (uint32_t)feature * C::FEATURE_BYTES + (uint32_t)(half ^ feature / 4 % 2) * 16;
    uint32_t row = table + (uint32_t)(at(lane / 16 * 8 + lane % 8) * C::TABLE_ROW + half * 8) * 2;
#pragma unroll
    for (int k = 0; k < C::D / 16; k++) {
        uint32_t a[4], b[4];
        ptx::load_matrices_transposed(q + (uint32_t)k * 16 * C::FEATURE_BYTES, a);
        ptx::load_matrices(row + (uint32_t)k * 32, b);
        ptx::product_16x8<C::BF16>(sums[0], a[0], a[1], a[2], a[3], b[0], b[1]);
        ptx::product_16x8<C::BF16>(sums[1], a[0], a[1], a[2], a[3], b[2], b[3]);
    }
}

// Of the column table's rows first .. first + 15 each query takes those of its own column's distances.
template <class C>
__device__ __forceinline__ void take_columns(uint32_t strip, int side, int first, const float (&sums)[2][4],
                                             window_bias *b)
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int query = lane / 4 + i / 2 % 2 * 8, row = i / 4 * 8 + lane % 4 * 2 + i % 2;
        ptx::store_shared_f32(strip + (uint32_t)(query * C::STRIP_ROW + row) * 4, sums[i / 4][i % 4]);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int query = lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        int row = query - column + side - 1 - first;
        if (row >= 0 && row < 16) {
            b->columns[i / 4][i % 4] = ptx::load_shared_f32(strip + (uint32_t)(query * C::STRIP_ROW + row) * 4);
        }
    }
    __syncwarp();
}

template <class C>
__device__ __forceinline__ window_bias relate_window(const gpu_attention_windows &a, const window &w,
                                                     uint32_t shared)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, last = 2 * w.side - 2;
    window_bias b = {};
    if (a.row_table != nullptr) {
        uint32_t queries = shared + C::QUERIES_AT + (uint32_t)warp * C::ROW_BYTES;
        uint32_t tables = shared + C::TABLES_AT, strip = shared + C::STRIPS_AT + (uint32_t)warp * 16 * C::STRIP_ROW * 4;
        int own = w.first + warp + w.side - 1;
        relate_row<C>(queries, tables, [=](int row) { return max(0, min(last, own - row)); }, b.rows);
        for (int first = 0; first <= last; first += 16) {
            float sums[2][4] = {};
            relate_row<C>(
                queries, tables, [=](int row) { return last + 1 + min(last, first + row); }, sums);
            take_columns<C>(strip, w.side, first, sums, &b);
        }
    }
    float factor = 1 / a.scale;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        b.rows[i / 4][i % 4] *= factor;
        b.columns[i / 4][i % 4] = column < w.side ? b.columns[i / 4][i % 4] * factor : -INFINITY;
    }
    return b;
}

// ---- rows of keys ----

// Scores of ROWS rows of keys from FIRST on begin as what the grid adds; rows that the window does not have are hidden.
template <int FIRST, int ROWS>
__device__ __forceinline__ void begin_scores(const window_bias &b, int side, float (&s)[1][2 * ROWS][4])
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        int row = FIRST + i;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float held = b.rows[row / 8][row % 2 + 2 * half];
            float of_row = __shfl_sync(~0u, held, lane / 4 * 4 + row % 8 / 2);
            of_row = row < side ? of_row : -INFINITY;
#pragma unroll
            for (int n = 0; n < 2; n++) {
                s[0][2 * i + n][2 * half] = of_row + b.columns[n][2 * half];
                s[0][2 * i + n][2 * half + 1] = of_row + b.columns[n][2 * half + 1];
            }
        }
    }
}

template <class C, int FIRST, int ROWS>
__device__ __forceinline__ void take_rows(uint32_t shared, const window_bias &b, int side, float scale,
                                          running<1, C::D> *r)
{
    constexpr uint64_t SWIZZLE_32 = 3;
    if (FIRST >= side) {
        return; // a tile of hidden keys alone has no largest score
    }
    uint32_t queries = shared + C::QUERIES_AT + (uint32_t)(threadIdx.x / 128 * 4) * C::ROW_BYTES;
    uint64_t q = ptx::descriptor(queries, C::ROW_BYTES, 256, SWIZZLE_32);
    uint64_t keys = ptx::descriptor(shared + C::KEYS_AT + FIRST * C::ROW_BYTES, C::ROW_BYTES, 256, SWIZZLE_32);
    uint64_t values = ptx::descriptor(shared + C::VALUES_AT + FIRST * C::ROW_BYTES, 0, 256, SWIZZLE_32);
    float s[1][2 * ROWS][4];
    begin_scores<FIRST, ROWS>(b, side, s);
    ptx::name_registers(s[0]);
    ptx::product_fence();
#pragma unroll
    for (int k = 0; k < C::D / 16; k++) {
        uint64_t step = (uint64_t)(k * 16 * C::FEATURE_BYTES / 16); // descriptors count 16 bytes
        ptx::score_product<ROWS * 16, C::BF16>::run(s[0], q + step, keys + step);
    }
    ptx::product_commit();
    ptx::product_wait<0>();
    ptx::name_registers(s[0]);
    take_powers(s, scale * LOG2_E, r);
    uint32_t a[ROWS][4];
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float *pair = &s[0][2 * k + i / 2][i % 2 * 2];
            a[k][i] = ptx::pack<C::BF16>(pair[0], pair[1]);
        }
    }
    ptx::name_registers(a);
    ptx::name_registers(r->o[0]);
    ptx::product_fence();
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
        ptx::attention_product<C::D, C::BF16, false>::run(r->o[0], a[k], values + (uint64_t)(k * C::ROW_BYTES / 16));
    }
    ptx::product_commit();
    ptx::product_wait<0>();
    ptx::name_registers(r->o[0]);
    ptx::name_registers(a);
}

// ---- leaving ----

// The warp's row of queries, 8 features times 8 queries at a time: turned, a lane has two neighbouring queries.
template <class C>
__device__ __forceinline__ void leave_row(const gpu_attention_windows &a, const window &w, const running<1, C::D> &r)
{
    int lane = threadIdx.x % 32, row = w.first + (int)threadIdx.x / 32;
    int64_t at = (w.head * a.head_dim + lane / 4) * a.y_stride + w.image * a.pitch + (w.row + row) * a.columns +
                 w.column + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float factor = 1 / of_row_sum(r.total[0][half]);
        bool there = row < w.high && half * 8 + lane % 4 * 2 < w.wide;
#pragma unroll
        for (int n = 0; n < C::D / 8; n++) {
            uint32_t pair = ptx::turn_matrix(finished<C::BF16>(r, 0, n, half, factor));
            if (there && n * 8 + lane / 4 < a.head_dim) {
                *(uint32_t *)((uint16_t *)a.y + at + n * 8 * a.y_stride + half * 8) = pair;
            }
        }
    }
}

// ---- the block ----

template <class C>
__global__ void __launch_bounds__(C::THREADS, 2) windows_kernel(const __grid_constant__ windows_task t)
{
    extern __shared__ uint4 memory[];
    uint32_t shared = (ptx::shared_address(memory) + C::ALIGNMENT - 1) / C::ALIGNMENT * C::ALIGNMENT;
    const gpu_attention_windows &a = t.of;
    window w = window_of<C>(t);
    mma::let_next_launch_begin();
    if (w.first >= w.high) {
        return; // no queries
    }
    load_tables<C>(a, shared);
    mma::wait_for_launch_before();
    pair_copy<C> mine;
    mine.template copy<C::WARPS>(a, w, a.q, nullptr, w.first, shared + C::QUERIES_AT);
    ptx::copy_commit();
    mine.template copy<C::SIDE>(a, w, a.k, a.outside_k, 0, shared + C::KEYS_AT);
    mine.template copy<C::SIDE>(a, w, a.v, a.outside_v, 0, shared + C::VALUES_AT);
    ptx::copy_commit();
    ptx::copy_wait<1>();
    __syncthreads();
    window_bias bias = relate_window<C>(a, w, shared);
    ptx::copy_wait<0>();
    ptx::async_fence();
    __syncthreads();
    int first = w.first + (int)threadIdx.x / 128 * 4; // row of the warpgroup's first queries
    if (first >= w.high) {
        return;
    }
    running<1, C::D> r;
    r.begin();
    take_rows<C, 0, C::TOGETHER>(shared, bias, w.side, a.scale, &r);
    take_rows<C, C::TOGETHER, C::TOGETHER>(shared, bias, w.side, a.scale, &r);
    take_rows<C, 2 * C::TOGETHER, C::SIDE - 2 * C::TOGETHER>(shared, bias, w.side, a.scale, &r);
    leave_row<C>(a, w, r);
}

// ---- launching ----

template <bool BF16, int D> int launch_windows(const gpu_attention_windows &a, void *stream)
{
    using C = windows_of<BF16, D>;
    static std::atomic<uint64_t> prepared;
    const auto kernel = windows_kernel<C>;
    int64_t down = (a.rows + a.window - 1) / a.window, across = (a.columns + a.window - 1) / a.window;
    int64_t blocks = a.images * a.heads * down * across * ((a.window + C::WARPS - 1) / C::WARPS);
    windows_task task = {a, (int)down, (int)across};
    if (blocks > INT32_MAX) {
        return cudaErrorInvalidValue;
    }
    int failed = gpu_prepare((const void *)kernel, C::BYTES, a.device, &prepared);
    return failed != 0 ? failed
                       : gpu_launch_overlapping(kernel, (unsigned)blocks, C::THREADS, C::BYTES, a.device, stream, task);
}

} // namespace attention

#endif
