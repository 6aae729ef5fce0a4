// Norms of tokens over their features: x feature-major, so a token is a column, and 32 neighbouring columns are a
// 64-byte piece of each row. Reference: src/ref/ops.c.
//
// Idea. One read and one write: a block keeps its piece of x in registers, finds the mean and the sum of squares
// around it of each column, and writes what comes out. Where a column is too long for one block, or there are so
// few columns that most of the GPU would be idle, the blocks of a cluster share the rows and exchange what they
// found through each other's shared memory.
//
//   block    512 threads: ACROSS neighbours have 8 columns each of a row, the next ones the next row
//   thread   8 columns of rows r, r + 512 / ACROSS, ... (PASSES of them, kept as they came)
//
// Mean and squares of parts are merged pair by pair (Chan, Golub and LeVeque 1979), which is as exact for a large
// mean as two passes over the column are; the order is fixed, so results are too.
//
// Limit: memory bandwidth; for few columns the way to the L2 and back, a barrier of the block and one of the cluster.
#include "cuda/ops.cuh"
#include "cuda/sm90_ptx.cuh"

namespace {

constexpr int THREADS = 512, WARPS = THREADS / 32, MOST_CLUSTER = 8;

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
    return both > 0 ? b_count / both : 0.0f;
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
    bool vector;    // 16-byte accesses to x and y are in order
    int cluster;    // blocks that share a column
    int block_rows; // of each, the last one fewer
    int passes;     // where they are not compiled in
};

template <int ACROSS> struct norm_memory {
    static constexpr int TOKENS = 8 * ACROSS;
    spread warps[WARPS][TOKENS + 1]; // + 1: no bank conflict
    float counts[WARPS];
    spread blocks[MOST_CLUSTER][TOKENS]; // written by the blocks of the cluster
    float2 whole[TOKENS];                // mean, 1 / deviation
};

// Rows of block `rank`.
__device__ __forceinline__ float rows_of(const norm_task &n, int rank)
{
    int64_t first = (int64_t)rank * n.block_rows;
    return (float)max((int64_t)0, min((int64_t)n.block_rows, n.of.features - first));
}

__device__ __forceinline__ float2 finish(const norm_task &n, const spread &whole)
{
    return {whole.mean, 1.0f / sqrtf(whole.squares / (float)n.of.features + n.of.eps)};
}

// From what each warp found to mean and deviation of each column, which every thread may read afterwards.
template <bool MEAN, int ACROSS>
__device__ __forceinline__ void merge_block(const norm_task &n, norm_memory<ACROSS> &memory, int rank)
{
    constexpr int TOKENS = 8 * ACROSS;
    int i = threadIdx.x, token = i / WARPS, warp = i % WARPS;
    __syncthreads();
    spread mine = {0, 0};
    if (i < TOKENS * WARPS) { // whole warps
        float count = memory.counts[warp];
        mine = memory.warps[warp][token];
#pragma unroll
        for (int mask = WARPS / 2; mask > 0; mask /= 2) {
            merge_across<MEAN>(&mine, &count, mask);
        }
        if (n.cluster == 1 && warp == 0) {
            memory.whole[token] = finish(n, mine);
        }
    }
#if __CUDA_ARCH__ >= 900
    if (n.cluster > 1) {
        ptx::cluster_wait(); // the others have started
        if (i < TOKENS * WARPS && warp < n.cluster) {
            uint32_t to = ptx::in_cluster(ptx::shared_address(&memory.blocks[rank][token]), warp);
            asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(mine.mean),
                         "f"(mine.squares)
                         : "memory");
        }
        ptx::cluster_arrive();
        ptx::cluster_wait();
        if (i < TOKENS * MOST_CLUSTER) {
            int block = i % MOST_CLUSTER;
            token = i / MOST_CLUSTER;
            bool there = block < n.cluster;
            mine = there ? memory.blocks[block][token] : spread{0, 0};
            float count = there ? rows_of(n, block) : 0;
#pragma unroll
            for (int mask = MOST_CLUSTER / 2; mask > 0; mask /= 2) {
                merge_across<MEAN>(&mine, &count, mask);
            }
            if (block == 0) {
                memory.whole[token] = finish(n, mine);
            }
        }
    }
#endif
    __syncthreads();
}

// PASSES 0: as many as there are, and x is read again for each use.
template <class T, bool MEAN, int ACROSS, int PASSES> struct piece {
    static constexpr int ROWS = THREADS / ACROSS, KEPT = PASSES > 0 ? PASSES : 1;
    const norm_task &n;
    int64_t row, end, token; // first row, that behind the block's last, first column
    int left;                // columns that are there
    bool whole;              // all eight, by 16-byte accesses
    uint4 kept[KEPT];

    // Forgets what was made of what was kept: widened again it costs little, kept widened twice the registers.
    __device__ __forceinline__ void forget()
    {
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            asm volatile("" : "+r"(kept[i].x), "+r"(kept[i].y), "+r"(kept[i].z), "+r"(kept[i].w));
        }
    }
    __device__ __forceinline__ int passes() const
    {
        return PASSES > 0 ? PASSES : n.passes;
    }
    __device__ __forceinline__ bool has(int i) const
    {
        return row + i * ROWS < end;
    }
    __device__ __forceinline__ uint4 fetch(int i) const
    {
        const T *x = (const T *)n.of.x + (row + i * ROWS) * n.of.x_stride + token;
        return has(i) ? ops::load_eight(x, left, whole) : make_uint4(0, 0, 0, 0);
    }
    __device__ __forceinline__ void load()
    {
        if constexpr (PASSES > 0) {
#pragma unroll
            for (int i = 0; i < PASSES; i++) {
                kept[i] = fetch(i);
            }
        }
    }
    __device__ __forceinline__ void widen(int i, float (&v)[8]) const
    {
        if constexpr (PASSES > 0) {
            ops::widen_eight<T>(kept[i], v);
        } else {
            ops::widen_eight<T>(fetch(i), v);
        }
    }
    // Of this thread's rows; how many they are.
    __device__ __forceinline__ float describe(spread (&columns)[8])
    {
        float count = 0, v[8];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            columns[j] = {0, 0};
        }
#pragma unroll
        for (int i = 0; i < passes(); i++) {
            widen(i, v); // rows that are not there are 0
            count += has(i) ? 1.0f : 0.0f;
#pragma unroll
            for (int j = 0; MEAN && j < 8; j++) {
                columns[j].mean += v[j];
            }
        }
#pragma unroll
        for (int j = 0; MEAN && j < 8; j++) {
            columns[j].mean *= count > 0 ? 1.0f / count : 0.0f;
        }
        forget();
#pragma unroll
        for (int i = 0; i < passes(); i++) {
            widen(i, v);
            float weight = has(i) ? 1.0f : 0.0f;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float apart = (v[j] - columns[j].mean) * weight;
                columns[j].squares = fmaf(apart, apart, columns[j].squares);
            }
        }
        return count;
    }
    __device__ __forceinline__ void store(int i, const float2 (&whole)[8], float weight,
                                          float bias) const
    {
        float v[8];
        widen(i, v);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            v[j] = fmaf((v[j] - whole[j].x) * whole[j].y, weight, bias);
        }
        T *y = (T *)n.of.y + (row + i * ROWS) * n.of.y_stride + token;
        ops::store_eight(y, ops::narrow_eight<T>(v), left, whole);
    }
    __device__ __forceinline__ float weight(int i) const
    {
        return has(i) ? __ldg(n.of.weight + row + i * ROWS) : 0.0f;
    }
    __device__ __forceinline__ float bias(int i) const
    {
        return MEAN && n.of.bias != nullptr && has(i) ? __ldg(n.of.bias + row + i * ROWS) : 0.0f;
    }
};

template <class T, bool MEAN, int ACROSS, int PASSES>
__global__ void __launch_bounds__(THREADS, PASSES <= 8 ? 2 : 1)
    norm_kernel(const __grid_constant__ norm_task n)
{
    constexpr bool EARLY = PASSES == 1 || PASSES == 2; // few columns: weights come while others still work
    __shared__ norm_memory<ACROSS> memory;
    mma::let_next_launch_begin();
#if __CUDA_ARCH__ >= 900
    if (n.cluster > 1) {
        ptx::cluster_arrive();
    }
#endif
    int rank = (int)(blockIdx.x % n.cluster), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t first = (int64_t)rank * n.block_rows;
    int64_t token = blockIdx.x / n.cluster * (int64_t)(8 * ACROSS) + threadIdx.x % ACROSS * 8;
    piece<T, MEAN, ACROSS, PASSES> mine = {n, first + threadIdx.x / ACROSS,
                                           min(n.of.features, first + n.block_rows), token,
                                           (int)min((int64_t)8, n.of.tokens - token)};
    mine.whole = n.vector && mine.left == 8;
    float weights[EARLY ? PASSES : 1], biases[EARLY ? PASSES : 1];
    if constexpr (EARLY) {
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            weights[i] = mine.weight(i), biases[i] = mine.bias(i);
        }
    }
    mma::wait_for_launch_before();
    mine.load();
    spread columns[8];
    float count = mine.describe(columns);
    halve<MEAN, 8>(columns, &count, 16, (lane & 16) != 0);
    halve<MEAN, 4>(columns, &count, 8, (lane & 8) != 0);
    halve<MEAN, 2>(columns, &count, 4, (lane & 4) != 0);
#pragma unroll
    for (int mask = 2; mask >= ACROSS; mask /= 2) {
        merge_across<MEAN>(&columns[0], &count, mask);
    }
    if (lane % 4 < ACROSS) {
        int column = (lane >> 4 & 1) * 4 + (lane >> 3 & 1) * 2 + (lane >> 2 & 1);
        memory.warps[warp][lane % 4 * 8 + column] = columns[0];
        memory.counts[warp] = count;
    }
    merge_block<MEAN, ACROSS>(n, memory, rank);
    mine.forget();
    float2 whole[8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
        whole[j] = memory.whole[threadIdx.x % ACROSS * 8 + j];
    }
#pragma unroll
    for (int i = 0; i < mine.passes(); i++) {
        if (mine.has(i)) {
            mine.store(i, whole, EARLY ? weights[EARLY ? i : 0] : mine.weight(i),
                       EARLY ? biases[EARLY ? i : 0] : mine.bias(i));
        }
    }
}

// ---- launching ----

// How x is cut: ACROSS, and over how many blocks a column goes.
struct cut {
    int across, cluster, passes;
    int64_t blocks;
};

constexpr int MOST_PASSES = 8, ENOUGH_BLOCKS = 100;

cut cut_by(int64_t features, int64_t tokens, int across, int cluster)
{
    int64_t rows = ops::divide_up(features, cluster);
    return {across, cluster, (int)ops::divide_up(rows, THREADS / across),
            ops::divide_up(tokens, 8 * across) * cluster};
}

// Wide pieces, as long as every multiprocessor gets something to do; then as few blocks a column as keep the
// GPU busy, and where they cannot, as many as shorten the way through a block.
cut choose(const gpu_norm *norm)
{
    int most = ops::on_hopper() ? MOST_CLUSTER : 1;
    cut best = {};
    for (int across = norm->tokens > 16 ? 4 : norm->tokens > 8 ? 2 : 1; across >= 1; across /= 2) {
        for (int cluster = 1; cluster <= most; cluster *= 2) {
            best = cut_by(norm->features, norm->tokens, across, cluster);
            bool spread_out = best.blocks >= ENOUGH_BLOCKS || best.passes <= 2;
            if (best.passes <= MOST_PASSES && spread_out) {
                return best;
            }
        }
    }
    return best; // ACROSS 1: a few columns that are long
}

template <class T, bool MEAN, int ACROSS> int launch_across(const norm_task &task, const cut &how, void *stream)
{
    void (*kernel)(norm_task) = nullptr;
    if (how.passes > MOST_PASSES) {
        kernel = norm_kernel<T, MEAN, ACROSS, 0>;
    } else if (how.passes <= 1) {
        kernel = norm_kernel<T, MEAN, ACROSS, 1>;
    } else if (how.passes <= 2) {
        kernel = norm_kernel<T, MEAN, ACROSS, 2>;
    } else if (how.passes <= 4) {
        kernel = norm_kernel<T, MEAN, ACROSS, 4>;
    } else if (how.passes <= 6) {
        kernel = norm_kernel<T, MEAN, ACROSS, 6>;
    } else {
        kernel = norm_kernel<T, MEAN, ACROSS, 8>;
    }
    return ops::launch(kernel, dim3((unsigned)how.blocks), THREADS, how.cluster, stream, task);
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
                      how.cluster, (int)ops::divide_up(norm->features, how.cluster), how.passes};
    switch (how.across) {
    case 4:
        return launch_across<T, MEAN, 4>(task, how, stream);
    case 2:
        return launch_across<T, MEAN, 2>(task, how, stream);
    default:
        return launch_across<T, MEAN, 1>(task, how, stream);
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
