// The largest logit of each row, of equals the first; NaN and -infinity are never chosen. Reference: src/nn/sample.c.
//
// Idea. A row is a few hundred thousand numbers at most and there are few rows, so the blocks of a cluster share one;
// what each found goes to the shared memory of the first, which decides. Which of two candidates wins does not
// depend on the order in which they meet, so neither do results.
//
// Limit: memory bandwidth of a few multiprocessors; for one row, the way to memory and two barriers.
#include "cuda/ops.cuh"
#include "cuda/sm90_ptx.cuh"

namespace {

constexpr int THREADS = 512, WARPS = THREADS / 32, CLUSTER = 8;

struct candidate {
    float value;
    int32_t index; // -1: none yet
};

__device__ __forceinline__ candidate better(const candidate &a, const candidate &b)
{
    bool second = b.value > a.value || (b.value == a.value && (uint32_t)b.index < (uint32_t)a.index);
    return second ? b : a;
}

__device__ __forceinline__ candidate of_warp(candidate mine)
{
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        candidate other = {__shfl_xor_sync(~0u, mine.value, mask),
                           __shfl_xor_sync(~0u, mine.index, mask)};
        mine = better(mine, other);
    }
    return mine;
}

__device__ __forceinline__ void consider(candidate *mine, float value, int64_t index)
{
    if (value > mine->value) { // no NaN; of a thread's own the first comes first
        *mine = {value, (int32_t)index};
    }
}

// Numbers of one 16-byte access.
template <class T> constexpr int WIDE = 16 / (int)sizeof(T);

template <class T>
__device__ __forceinline__ candidate search(const T *row, int64_t begin, int64_t end, bool vector)
{
    candidate mine = {-INFINITY, -1};
    int64_t i = begin + (vector ? threadIdx.x * WIDE<T> : threadIdx.x);
    if (!vector) {
        for (; i < end; i += THREADS) {
            consider(&mine, ops::widen(row[i]), i);
        }
        return mine;
    }
    for (; i < end; i += THREADS * WIDE<T>) {
        if (i + WIDE<T> <= end) {
            uint4 packed = *(const uint4 *)(row + i);
            const T *numbers = (const T *)&packed;
#pragma unroll
            for (int k = 0; k < WIDE<T>; k++) {
                consider(&mine, ops::widen(numbers[k]), i + k);
            }
        } else {
            for (int64_t k = i; k < end; k++) {
                consider(&mine, ops::widen(row[k]), k);
            }
        }
    }
    return mine;
}

template <class T>
__global__ void __launch_bounds__(THREADS)
    argmax_kernel(const T *logits, int64_t stride, int64_t size, int64_t part, bool vector,
                  int cluster, int32_t *ids)
{
    __shared__ candidate warps[WARPS], blocks[CLUSTER];
    mma::let_next_launch_begin();
#if __CUDA_ARCH__ >= 900
    if (cluster > 1) {
        ptx::cluster_arrive();
    }
#endif
    int rank = (int)(blockIdx.x % cluster), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t row = blockIdx.x / cluster, begin = rank * part, end = min(size, begin + part);
    mma::wait_for_launch_before();
    candidate mine = of_warp(search(logits + row * stride, begin, end, vector));
    if (lane == 0) {
        warps[warp] = mine;
    }
    __syncthreads();
    if (warp == 0) {
        mine = of_warp(lane < WARPS ? warps[lane] : candidate{-INFINITY, -1});
    }
#if __CUDA_ARCH__ >= 900
    if (cluster > 1) {
        ptx::cluster_wait(); // the others have started
        if (threadIdx.x == 0) {
            uint32_t to = ptx::in_cluster(ptx::shared_address(&blocks[rank]), 0);
            asm volatile("st.shared::cluster.v2.b32 [%0], {%1, %2};" ::"r"(to),
                         "r"(__float_as_int(mine.value)), "r"(mine.index)
                         : "memory");
        }
        ptx::cluster_arrive();
        ptx::cluster_wait();
        if (rank == 0 && warp == 0) {
            mine = of_warp(lane < cluster ? blocks[lane] : candidate{-INFINITY, -1});
        }
    }
#endif
    if (rank == 0 && threadIdx.x == 0) {
        ids[row] = mine.index;
    }
}

template <class T>
int launch(const void *logits, int64_t stride, int64_t count, int64_t size, int32_t *ids,
           void *stream)
{
    bool vector = ops::aligned_to(logits, stride, (int)sizeof(T), 16);
    int cluster = ops::on_hopper() && size >= 4096 ? CLUSTER : 1;
    int64_t part = ops::divide_up(ops::divide_up(size, cluster), 8) * 8; // begins aligned
    if (count * cluster > INT32_MAX || size > INT32_MAX) {
        return cudaErrorInvalidValue;
    }
    return ops::launch(argmax_kernel<T>, dim3((unsigned)(count * cluster)), THREADS, cluster, stream,
                       (const T *)logits, stride, size, part, vector, cluster, ids);
}

} // namespace

extern "C" int gpu_argmax(gpu_type type, const void *logits, int64_t stride, int64_t count,
                          int64_t size, int32_t *ids, void *stream)
{
    if (count <= 0) {
        return cudaSuccess;
    }
    switch (type) {
    case GPU_F32:
        return launch<float>(logits, stride, count, size, ids, stream);
    case GPU_F16:
        return launch<__half>(logits, stride, count, size, ids, stream);
    case GPU_BF16:
        return launch<__nv_bfloat16>(logits, stride, count, size, ids, stream);
    }
    return cudaErrorInvalidValue;
}
