// Norms of tokens over their features: x feature-major, so a token is a column, and 64 neighbouring columns are a
// 128-byte piece of each row. Reference: src/ref/ops.c.
//
// Idea. One read and one write: a block keeps its piece of x in shared memory, finds the mean and the sum of squares
// around it of each column, and writes what comes out. Every thread copies there what it alone reads again, so all of
// a piece is under way at once, whatever registers there are, and two blocks or more of a multiprocessor keep memory
// busy while others add. Where a column is too long for one block, or there are so few columns that most of the GPU would be
// idle, the blocks of a cluster share the rows and exchange what they found through each other's shared memory.
//
//   block    256 threads: ACROSS neighbours have 8 columns each of a row, the next ones the next row
//   thread   8 columns of rows r, r + 256 / ACROSS, ..., 16 bytes each
//
// Mean and squares of parts are merged pair by pair (Chan, Golub and LeVeque 1979), which is as exact for a large
// mean as two passes over the column are; the order is fixed, so results are too.
//
// Limit: memory bandwidth; for few columns the way to the L2 and back, a barrier of the block and one of the cluster.
#include "cuda/launch.cuh"
#include "cuda/ops.cuh"
#include "cuda/sm90_ptx.cuh"

namespace {

constexpr int THREADS = 256, WARPS = THREADS / 32, MOST_CLUSTER = 8;

// Of `count` rows of one column. Without a mean to take off, mean stays 0 and squares are those of x itself.
struct spread {
    float mean, squares;
};

template <bool MEAN>
__device__ __forceinline__ spread merge(const spread &a, float a_count, const spread &b,
                                        float b_count, float share)
{
    if constexpr (!MEAN) {
        return {0.0f, a.squares + b.squares};
    }
    float apart = b.mean - a.mean; // share: of b in both
    return {fmaf(apart, share, a.mean), a.squares + b.squares + apart * apart * a_count * share};
}

__device__ __forceinline__ float share_of(float a_count, float b_count)
{
    float both = a_count + b_count;
    return both > 0 ? __fdividef(b_count, both) : 0.0f;
}

template <bool MEAN> __device__ __forceinline__ spread shuffle(const spread &mine, int mask)
{
    spread other = {0.0f, __shfl_xor_sync(~0u, mine.squares, mask)};
    if constexpr (MEAN) {
        other.mean = __shfl_xor_sync(~0u, mine.mean, mask);
    }
    return other;
}

// This lane's and the other lane's, of one column.
template <bool MEAN>
__device__ __forceinline__ void merge_across(spread *mine, float *count, int mask)
{
    float other_count = __shfl_xor_sync(~0u, *count, mask);
    float share = share_of(*count, other_count);
    *mine = merge<MEAN>(*mine, *count, shuffle<MEAN>(*mine, mask), other_count, share);
    *count += other_count;
}

// The lanes of a warp that have the same columns share them out while they merge: from KEPT columns to half.
template <bool MEAN, int KEPT>
__device__ __forceinline__ void halve(spread (&columns)[8], float *count, int mask, bool upper)
{
    float other_count = __shfl_xor_sync(~0u, *count, mask);
    float share = share_of(*count, other_count);
#pragma unroll
    for (int j = 0; j < KEPT / 2; j++) {
        spread give = upper ? columns[j] : columns[j + KEPT / 2];
        spread keep = upper ? columns[j + KEPT / 2] : columns[j];
        columns[j] = merge<MEAN>(keep, *count, shuffle<MEAN>(give, mask), other_count, share);
    }
    *count += other_count;
}

struct norm_task {
    gpu_norm of;
    bool vector;      // 16-byte accesses to x and y are in order
    int cluster;      // blocks that share a column
    int block_rows;   // of each, the last one fewer
    int kept;         // of a thread's rows; those behind them are read again
    bool terms_kept;  // weights and biases
};

template <int ACROSS> struct norm_memory {
    static constexpr int TOKENS = 8 * ACROSS;
    spread warps[WARPS][TOKENS + 1]; // + 1: fewer bank conflicts
    float counts[WARPS];
    spread blocks[MOST_CLUSTER][TOKENS]; // written by the blocks of the cluster
    float2 whole[TOKENS];                // see finish
    uint64_t arrived;                    // a barrier: all of `blocks` is there
};

// x times the second plus the first is x without mean, over the deviation.
__device__ __forceinline__ float2 finish(const norm_task &n, const spread &whole)
{
    float factor = 1.0f / sqrtf(whole.squares / (float)n.of.features + n.of.eps);
    return {-whole.mean * factor, factor};
}

#if __CUDA_ARCH__ >= 900
// Rows of block `rank`.
__device__ __forceinline__ float rows_of(const norm_task &n, int rank)
{
    int64_t first = (int64_t)rank * n.block_rows;
    return (float)max((int64_t)0, min((int64_t)n.block_rows, n.of.features - first));
}

// So that the others may send as soon as all blocks of the cluster have passed this: also before they are expected,
// since the barrier waits for this thread's arrival too. A uniform instruction of the whole warp initialises it, so
// the warp stands between that and the arrival of one lane.
template <int ACROSS>
__device__ __forceinline__ void expect_others(const norm_task &n, norm_memory<ACROSS> &memory)
{
    uint32_t barrier = ptx::shared_address(&memory.arrived);
    if (threadIdx.x == 0) {
        ptx::barrier_init(barrier, 1);
        ptx::barrier_init_fence();
    }
    __syncwarp();
    ptx::cluster_arrive();
    if (threadIdx.x == 0) {
        ptx::barrier_expect(barrier, n.cluster * 8 * ACROSS * (uint32_t)sizeof(spread));
    }
}

__device__ __forceinline__ void send(const spread &what, const spread *to, const uint64_t *arrived,
                                     int block)
{
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 "
                 "[%0], {%1, %2}, [%3];" ::"r"(ptx::in_cluster(ptx::shared_address(to), block)),
                 "f"(what.mean), "f"(what.squares),
                 "r"(ptx::in_cluster(ptx::shared_address(arrived), block))
                 : "memory");
}
#endif

// From what each warp found to what finish says of each column, which every thread may read afterwards.
template <bool MEAN, int ACROSS>
__device__ __forceinline__ void merge_block(const norm_task &n, norm_memory<ACROSS> &memory, int rank)
{
    constexpr int TOKENS = 8 * ACROSS;
    __syncthreads();
#if __CUDA_ARCH__ >= 900
    if (n.cluster > 1) {
        ptx::cluster_wait(); // the others have started
    }
#endif
#pragma unroll
    for (int i = threadIdx.x; i < TOKENS * WARPS; i += THREADS) { // whole warps
        int token = i / WARPS, warp = i % WARPS;
        float count = memory.counts[warp];
        spread mine = memory.warps[warp][token];
#pragma unroll
        for (int mask = WARPS / 2; mask > 0; mask /= 2) {
            merge_across<MEAN>(&mine, &count, mask);
        }
        if (n.cluster == 1 && warp == 0) {
            memory.whole[token] = finish(n, mine);
        }
#if __CUDA_ARCH__ >= 900
        if (n.cluster > 1 && warp < n.cluster) {
            send(mine, &memory.blocks[rank][token], &memory.arrived, warp);
        }
#endif
    }
#if __CUDA_ARCH__ >= 900
    for (int i = threadIdx.x; i < TOKENS * MOST_CLUSTER && n.cluster > 1; i += THREADS) {
        int block = i % MOST_CLUSTER, token = i / MOST_CLUSTER;
        bool there = block < n.cluster;
        ptx::barrier_wait(ptx::shared_address(&memory.arrived), 0);
        spread mine = there ? memory.blocks[block][token] : spread{0, 0};
        float count = there ? rows_of(n, block) : 0;
#pragma unroll
        for (int mask = MOST_CLUSTER / 2; mask > 0; mask /= 2) {
            merge_across<MEAN>(&mine, &count, mask);
        }
        if (block == 0) {
            memory.whole[token] = finish(n, mine);
        }
    }
#endif
    __syncthreads();
}

__device__ __forceinline__ void copy_4(float *to, const float *from)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(ptx::shared_address(to)), "l"(from)
                 : "memory");
}

// A thread's share of x. VECTOR: all eight columns are there, or none, and 16-byte accesses are in order.
template <class T, bool MEAN, int ACROSS, bool VECTOR> struct piece {
    static constexpr int ROWS = THREADS / ACROSS; // from one row of a thread to its next
    const T *x;                                   // of the first row, first column
    int64_t step;                                 // from row to row
    int left;                                     // columns that are there
    int rows, kept;                               // how many, and how many of them in shared memory
    uint4 *memory;                                // of them, THREADS apart

    __device__ __forceinline__ uint4 fetch(int i) const
    {
        return ops::load_eight(x + i * step, VECTOR ? 8 : left, VECTOR);
    }
    __device__ __forceinline__ void load()
    {
        for (int i = 0; i < kept; i++) {
            if constexpr (VECTOR) {
                mma::copy_16(ptx::shared_address(memory + i * THREADS), x + i * step);
            } else {
                memory[i * THREADS] = fetch(i);
            }
        }
        mma::copy_commit();
        mma::copy_wait<0>();
    }
    // work(row number, its eight numbers) for all rows.
    template <class WORK> __device__ __forceinline__ void for_rows(const WORK &work) const
    {
        float v[8];
#pragma unroll 4
        for (int i = 0; i < kept; i++) {
            ops::widen_eight<T>(memory[i * THREADS], v);
            work(i, v);
        }
        for (int i = kept; i < rows; i++) {
            ops::widen_eight<T>(fetch(i), v);
            work(i, v);
        }
    }
    // Sums are taken of what lies between a number and the first of its column, which is one of those that the spread
    // is of: so a mean far from 0 costs no places.
    __device__ __forceinline__ void describe(spread (&columns)[8]) const
    {
        float first[8] = {};
        if (MEAN && rows > 0) {
            ops::widen_eight<T>(memory[0], first);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            columns[j] = {0, 0};
        }
        for_rows([&](int, const float (&v)[8]) {
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float apart = MEAN ? v[j] - first[j] : v[j];
                columns[j].mean += MEAN ? apart : 0.0f;
                columns[j].squares = fmaf(apart, apart, columns[j].squares);
            }
        });
        if constexpr (MEAN) {
            float each = rows > 0 ? __fdividef(1.0f, (float)rows) : 0.0f;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float shift = columns[j].mean * each;
                float squares = fmaf(-columns[j].mean, shift, columns[j].squares);
                columns[j] = {first[j] + shift, squares < 0.0f ? 0.0f : squares}; // NaN stays
            }
        }
    }
    // weights, biases: of the thread's first row; no biases: NULL.
    __device__ __forceinline__ void store(T *y, int64_t y_step, const float2 (&whole)[8],
                                          const float *weights, const float *biases) const
    {
        for_rows([&](int i, float (&v)[8]) {
            float weight = weights[i * ROWS], bias = MEAN && biases != nullptr ? biases[i * ROWS] : 0.0f;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                v[j] = MEAN ? fmaf(fmaf(v[j], whole[j].y, whole[j].x), weight, bias)
                            : v[j] * whole[j].y * weight;
            }
            ops::store_eight(y + i * y_step, ops::narrow_eight<T>(v), VECTOR ? 8 : left, VECTOR);
        });
    }
};

// What a warp's lanes found of the same columns, merged and left in memory.
template <bool MEAN, int ACROSS>
__device__ __forceinline__ void merge_warp(spread (&columns)[8], float count, norm_memory<ACROSS> &memory)
{
    constexpr int KEPT = ACROSS > 16 ? 8 : ACROSS > 8 ? 4 : ACROSS > 4 ? 2 : 1; // columns of a lane at the end
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = lane % ACROSS * 8;
    if constexpr (KEPT <= 4) {
        halve<MEAN, 8>(columns, &count, 16, (lane & 16) != 0);
        column += (lane & 16) / 4;
    }
    if constexpr (KEPT <= 2) {
        halve<MEAN, 4>(columns, &count, 8, (lane & 8) != 0);
        column += (lane & 8) / 4;
    }
    if constexpr (KEPT <= 1) {
        halve<MEAN, 2>(columns, &count, 4, (lane & 4) != 0);
        column += (lane & 4) / 4;
    }
#pragma unroll
    for (int mask = 2; mask >= ACROSS; mask /= 2) {
        merge_across<MEAN>(&columns[0], &count, mask);
    }
    if (ACROSS >= 4 || lane % 4 < ACROSS) {
#pragma unroll
        for (int j = 0; j < KEPT; j++) {
            memory.warps[warp][column + j] = columns[j];
        }
    }
    if (lane == 0) {
        memory.counts[warp] = count;
    }
}

template <class T, bool MEAN, int ACROSS, bool VECTOR>
__device__ __forceinline__ void norm_piece(const norm_task &n, norm_memory<ACROSS> &memory, uint4 *kept,
                                           int64_t token)
{
    constexpr int ROWS = THREADS / ACROSS;
    int rank = (int)(blockIdx.x % n.cluster), row = threadIdx.x / ACROSS;
    int64_t first = (int64_t)rank * n.block_rows;
    int here = (int)max((int64_t)0, min((int64_t)n.block_rows, n.of.features - first));
    int left = (int)max((int64_t)0, min((int64_t)8, n.of.tokens - token));
    int rows = row < here && left > 0 ? (here - row + ROWS - 1) / ROWS : 0;
    const float *weights = n.of.weight + first, *biases = n.of.bias != nullptr ? n.of.bias + first : nullptr;
    if (n.terms_kept) { // they come while the launch before still works
        float *terms = (float *)(kept + n.kept * THREADS);
        for (int i = threadIdx.x; i < here; i += THREADS) {
            copy_4(terms + i, weights + i);
            if (MEAN && biases != nullptr) {
                copy_4(terms + n.block_rows + i, biases + i);
            }
        }
        weights = terms;
        biases = biases != nullptr ? terms + n.block_rows : nullptr;
    }
    piece<T, MEAN, ACROSS, VECTOR> mine = {
        (const T *)n.of.x + (first + row) * n.of.x_stride + token, ROWS * n.of.x_stride,
        left, rows, min(rows, n.kept), kept + threadIdx.x};
    mma::wait_for_launch_before();
    mine.load();
    spread columns[8];
    mine.describe(columns);
    merge_warp<MEAN, ACROSS>(columns, (float)rows, memory);
    merge_block<MEAN, ACROSS>(n, memory, rank);
    float2 whole[8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
        whole[j] = memory.whole[threadIdx.x % ACROSS * 8 + j];
    }
    mine.store((T *)n.of.y + (first + row) * n.of.y_stride + token, ROWS * n.of.y_stride, whole,
               weights + row, biases != nullptr ? biases + row : nullptr);
}

template <class T, bool MEAN, int ACROSS>
__global__ void __launch_bounds__(THREADS, 3) norm_kernel(const __grid_constant__ norm_task n)
{
    extern __shared__ uint4 kept[];
    __shared__ norm_memory<ACROSS> memory;
    mma::let_next_launch_begin();
#if __CUDA_ARCH__ >= 900
    if (n.cluster > 1) {
        expect_others(n, memory);
    }
#endif
    int64_t token0 = blockIdx.x / n.cluster * (int64_t)(8 * ACROSS);
    int64_t token = token0 + threadIdx.x % ACROSS * 8;
    if (n.vector && (n.of.tokens % 8 == 0 || token0 + 8 * ACROSS <= n.of.tokens)) {
        norm_piece<T, MEAN, ACROSS, true>(n, memory, kept, token);
    } else {
        norm_piece<T, MEAN, ACROSS, false>(n, memory, kept, token);
    }
}

// ---- launching ----

// How x is cut: ACROSS, and over how many blocks a column goes.
struct cut {
    int across, cluster, passes; // rows of a thread
    int64_t block_rows, blocks;
};

constexpr int PASS = THREADS * 16; // bytes
// Of a thread's rows as many are kept as leave room for two blocks a multiprocessor; other GPUs than Hopper have less.
constexpr int MOST_KEPT = 24, MOST_KEPT_ELSEWHERE = 14, ENOUGH_BLOCKS = 64, MOST_TERMS = 2048;
constexpr int FEW_TOKENS = 256, SHORT = 1024;

int most_kept()
{
    return ops::on_hopper() ? MOST_KEPT : MOST_KEPT_ELSEWHERE;
}

cut cut_by(int64_t features, int64_t tokens, int across, int cluster)
{
    int64_t rows = ops::divide_up(features, cluster);
    return {across, cluster, (int)ops::divide_up(rows, THREADS / across), rows,
            ops::divide_up(tokens, 8 * across) * cluster};
}

// Wide pieces: 128 bytes of a row are one request to the L2, 64 are another, and requests are what it has too few of.
// Then as few blocks a column as keep the GPU busy, since a cluster has to meet; where there are few columns, as many as
// shorten the way through a block; of short ones two with 8 columns. Microseconds, 4096 features of 128 columns, one H200:
// ACROSS 4, cluster 8 4.6; 8, 8 5.3; 1, 8 5.1; 2, 8 7.3; 768 of 200, one H100: 1, 2 3.05; 1, 1 3.3; 4, 8 3.7; 8, 8 4.4.
cut choose(const gpu_norm *norm)
{
    int most = ops::on_hopper() ? MOST_CLUSTER : 1;
    cut best = {};
    if (most > 1 && norm->tokens > 16 && norm->tokens <= FEW_TOKENS && norm->features <= SHORT) {
        return cut_by(norm->features, norm->tokens, 1, 2);
    }
    int widest = norm->tokens > 32 ? 8 : norm->tokens > 16 ? 4 : norm->tokens > 8 ? 2 : 1;
    for (int across = widest; across >= 1; across /= 2) {
        for (int cluster = 1; cluster <= most; cluster *= 2) {
            best = cut_by(norm->features, norm->tokens, across, cluster);
            bool wide = across == 4 && best.passes <= 8; // half as many do
            int enough = wide ? ENOUGH_BLOCKS / 2 : ENOUGH_BLOCKS;
            bool spread_out = best.blocks >= enough || best.passes <= 2;
            if (best.passes <= most_kept() && spread_out) {
                return best;
            }
        }
    }
    return best; // ACROSS 1: a few columns that are long
}

template <class T, bool MEAN, int ACROSS> int launch_across(const norm_task &task, int64_t blocks, void *stream)
{
    static std::atomic<uint64_t> prepared;
    const uint32_t most = (uint32_t)most_kept() * PASS + 2 * MOST_TERMS * sizeof(float);
    const auto kernel = norm_kernel<T, MEAN, ACROSS>;
    int device = 0, terms = task.terms_kept ? (MEAN ? 2 : 1) * task.block_rows : 0;
    int failed = cudaGetDevice(&device);
    failed = failed != 0 ? failed : gpu_prepare((const void *)kernel, most, device, &prepared);
    return failed != 0 ? failed
                       : ops::launch_with(kernel, dim3((unsigned)blocks), THREADS, task.cluster,
                                          (size_t)(task.kept * PASS) + (size_t)terms * sizeof(float),
                                          stream, task);
}

template <class T, bool MEAN> int launch_as(const gpu_norm *norm, void *stream)
{
    cut how = choose(norm);
    if (how.blocks > INT32_MAX || norm->features > INT32_MAX) {
        return cudaErrorInvalidValue;
    }
    norm_task task = {*norm,
                      ops::aligned_to(norm->x, norm->x_stride, 2, 16) &&
                          ops::aligned_to(norm->y, norm->y_stride, 2, 16),
                      how.cluster,
                      (int)how.block_rows,
                      how.passes < most_kept() ? how.passes : most_kept(),
                      how.block_rows <= MOST_TERMS};
    switch (how.across) {
    case 8:
        return launch_across<T, MEAN, 8>(task, how.blocks, stream);
    case 4:
        return launch_across<T, MEAN, 4>(task, how.blocks, stream);
    case 2:
        return launch_across<T, MEAN, 2>(task, how.blocks, stream);
    default:
        return launch_across<T, MEAN, 1>(task, how.blocks, stream);
    }
}

template <bool MEAN> int launch(const gpu_norm *norm, void *stream)
{
    if (norm->features <= 0 || norm->tokens <= 0) {
        return cudaSuccess;
    }
    switch (norm->type) {
    case GPU_F16:
        return launch_as<__half, MEAN>(norm, stream);
    case GPU_BF16:
        return launch_as<__nv_bfloat16, MEAN>(norm, stream);
    default:
        return cudaErrorInvalidValue;
    }
}

} // namespace

extern "C" int gpu_rms_norm(const gpu_norm *norm, void *stream)
{
    return launch<false>(norm, stream);
}

extern "C" int gpu_layer_norm(const gpu_norm *norm, void *stream)
{
    return launch<true>(norm, stream);
}
