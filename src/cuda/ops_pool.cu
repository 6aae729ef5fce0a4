// One vector for each text from the vectors of its tokens. Reference: src/model/embedder.c.
//
// A warp has a feature of a text, whose tokens lie side by side; vectors are brought to length 1 by a second launch,
// since a text's features are spread over blocks.
//
// Limit: memory bandwidth.
#include "cuda/ops.cuh"

namespace {

constexpr int THREADS = 256, WARPS = THREADS / 32, FEATURES = 32; // of a block
constexpr float LEAST_LENGTH = 1e-12f;

__device__ __forceinline__ float sum_of_warp(float v)
{
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        v += __shfl_xor_sync(~0u, v, mask);
    }
    return v;
}

__device__ __forceinline__ float most_of_warp(float v)
{
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        v = fmaxf(v, __shfl_xor_sync(~0u, v, mask)); // skips NaN
    }
    return v;
}

template <class T>
__device__ __forceinline__ float pool_row(gpu_pooling pooling, const T *row, int32_t tokens)
{
    int lane = threadIdx.x % 32;
    float first = ops::widen(row[0]), sum = 0, most = first;
    if (pooling == GPU_POOL_FIRST) {
        return first;
    }
    for (int32_t t = lane; t < tokens; t += 32) {
        float v = ops::widen(row[t]);
        sum += v;
        most = fmaxf(most, v);
    }
    if (pooling == GPU_POOL_MEAN) {
        return sum_of_warp(sum) / (float)tokens;
    }
    most = most_of_warp(most);
    return isnan(first) ? first : most;
}

template <class T> __global__ void __launch_bounds__(THREADS) pool_kernel(const __grid_constant__ gpu_pool p)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    ops::begin();
    for (int64_t text = blockIdx.y; text < p.texts; text += gridDim.y) {
        int32_t tokens = p.lengths[text], first = p.first[text];
        for (int i = warp; i < FEATURES; i += WARPS) {
            int64_t feature = (int64_t)blockIdx.x * FEATURES + i;
            if (feature < p.features) {
                const T *row = (const T *)p.x + feature * p.x_stride + first;
                float v = tokens > 0 ? pool_row(p.pooling, row, tokens) : 0.0f;
                if (lane == 0) {
                    p.vectors[text * p.features + feature] = v;
                }
            }
        }
    }
}

__global__ void __launch_bounds__(THREADS) normalize_kernel(float *vectors, int64_t features)
{
    __shared__ float warps[WARPS];
    float *vector = vectors + (int64_t)blockIdx.x * features, squares = 0;
    ops::begin();
    for (int64_t i = threadIdx.x; i < features; i += THREADS) {
        squares = fmaf(vector[i], vector[i], squares);
    }
    squares = sum_of_warp(squares);
    if (threadIdx.x % 32 == 0) {
        warps[threadIdx.x / 32] = squares;
    }
    __syncthreads();
    squares = sum_of_warp(threadIdx.x % 32 < WARPS ? warps[threadIdx.x % 32] : 0.0f);
    float length = fmaxf(sqrtf(squares), LEAST_LENGTH);
    for (int64_t i = threadIdx.x; i < features; i += THREADS) {
        vector[i] /= length;
    }
}

template <class T> int pool(const gpu_pool &p, void *stream)
{
    dim3 grid(ops::at_most(ops::divide_up(p.features, FEATURES), INT32_MAX),
              ops::at_most(p.texts, ops::MOST_BLOCKS_Y));
    int failed = ops::launch(pool_kernel<T>, grid, THREADS, 1, stream, p);
    if (failed != 0 || !p.normalize) {
        return failed;
    }
    return ops::launch(normalize_kernel, dim3((unsigned)p.texts), THREADS, 1, stream, p.vectors,
                       p.features);
}

} // namespace

extern "C" int gpu_pool_texts(const gpu_pool *pool_, void *stream)
{
    const gpu_pool &p = *pool_;
    if (p.texts > INT32_MAX) {
        return cudaErrorInvalidValue;
    }
    if (p.texts <= 0 || p.features <= 0) {
        return cudaSuccess;
    }
    switch (p.type) {
    case GPU_F16:
        return pool<__half>(p, stream);
    case GPU_BF16:
        return pool<__nv_bfloat16>(p, stream);
    default:
        return cudaErrorInvalidValue;
    }
}
