// Moments of tokens: for each column of x its sum over features, and that of squares, in parts of
// some features each (gpu_tiles.h). Reference: what src/ref/ops.c's norms sum.
//
// Idea. One read at memory speed. A block has one part of some columns: ACROSS neighbours have 8
// columns each of a row, 16 bytes, the next ones the next row. Where columns are few, pieces are
// narrow, so that there are blocks for many multiprocessors and each thread has few rows.
//
// Sums are f32, of each thread's rows in order, then of pairs of threads: an error of some 2^-24
// (rows of a thread + 8) of the sum of magnitudes at most.
//
// Limit: memory bandwidth; for few columns the way to the L2 and back.
#include "cuda/gpu_tiles.h"
#include "cuda/ops.cuh"

namespace
{

constexpr int THREADS = 256, WARPS = THREADS / 32;

struct task {
    gpu_moments of;
    bool vector; // 16-byte accesses to x are in order
};

// A lane's eight columns.
struct columns {
    float sums[8], squares[8];

    template <class T> __device__ __forceinline__ void add(const uint4 &packed)
    {
        float v[8];
        ops::widen_eight<T>(packed, v);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            sums[j] += v[j], squares[j] = fmaf(v[j], v[j], squares[j]);
        }
    }
    __device__ __forceinline__ void add_lane(int mask)
    {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            sums[j] += __shfl_xor_sync(~0u, sums[j], mask);
            squares[j] += __shfl_xor_sync(~0u, squares[j], mask);
        }
    }
};

template <class T, int ACROSS> __global__ void __launch_bounds__(THREADS) moments_kernel(task t)
{
    constexpr int ROWS = THREADS / ACROSS, TOKENS = 8 * ACROSS, AT_ONCE = 8;
    __shared__ float2 found[WARPS][TOKENS + 1];
    const gpu_moments &m = t.of;
    int64_t token = (int64_t)blockIdx.x * TOKENS + threadIdx.x % ACROSS * 8;
    int64_t row = (int64_t)blockIdx.y * m.part_rows + threadIdx.x / ACROSS;
    int64_t end = min(m.features, (int64_t)(blockIdx.y + 1) * m.part_rows);
    int left = (int)max((int64_t)0, min((int64_t)8, m.tokens - token));
    const T *x = (const T *)m.x + token;
    columns mine = {};
    ops::begin();
    for (; row < end && left > 0; row += AT_ONCE * ROWS) {
        uint4 packed[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int64_t at = row + i * ROWS;
            packed[i] = at < end ? ops::load_eight(x + at * m.x_stride, left, t.vector)
                                 : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            mine.add<T>(packed[i]);
        }
    }
#pragma unroll
    for (int mask = 16; mask >= ACROSS; mask /= 2) {
        mine.add_lane(mask);
    }
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (lane < ACROSS) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            found[warp][lane * 8 + j] = {mine.sums[j], mine.squares[j]};
        }
    }
    __syncthreads();
    token = (int64_t)blockIdx.x * TOKENS + threadIdx.x;
    if (threadIdx.x < TOKENS && token < m.tokens) {
        float2 all = found[0][threadIdx.x];
#pragma unroll
        for (int i = 1; i < WARPS; i++) {
            float2 more = found[i][threadIdx.x];
            all.x += more.x, all.y += more.y;
        }
        ((float2 *)m.values)[blockIdx.y * m.stride + token] = all;
    }
}

constexpr int ENOUGH_BLOCKS = 100; // for a GPU of 132 multiprocessors to be busy

template <class T> int launch_as(const task &t, void *stream)
{
    int64_t parts = ops::divide_up(t.of.features, t.of.part_rows);
    if (parts > ops::MOST_BLOCKS_Y || t.of.tokens > INT32_MAX) {
        return cudaErrorInvalidValue;
    }
    int across = 8;
    while (across > 1 && ops::divide_up(t.of.tokens, 8 * across) * parts < ENOUGH_BLOCKS) {
        across /= 2;
    }
    dim3 grid((unsigned)ops::divide_up(t.of.tokens, 8 * across), (unsigned)parts);
    switch (across) {
    case 8:
        return ops::launch(moments_kernel<T, 8>, grid, THREADS, 1, stream, t);
    case 4:
        return ops::launch(moments_kernel<T, 4>, grid, THREADS, 1, stream, t);
    case 2:
        return ops::launch(moments_kernel<T, 2>, grid, THREADS, 1, stream, t);
    default:
        return ops::launch(moments_kernel<T, 1>, grid, THREADS, 1, stream, t);
    }
}

// A thread has a token.
__global__ void __launch_bounds__(THREADS)
    sum_kernel(const float2 *values, int parts, int64_t tokens, float2 *to)
{
    int64_t token = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    float2 sum = {0.0f, 0.0f};
    ops::begin();
    if (token < tokens) {
#pragma unroll 8
        for (int i = 0; i < parts; i++) {
            float2 more = __ldcg(values + i * tokens + token);
            sum.x += more.x, sum.y += more.y;
        }
        to[token] = sum;
    }
}

} // namespace

extern "C" int gpu_sum_moments(const float *values, int parts, int64_t tokens, float *to,
                               void *stream)
{
    int64_t blocks = ops::divide_up(tokens, THREADS);
    if (blocks == 0 || blocks > INT32_MAX) {
        return blocks == 0 ? cudaSuccess : cudaErrorInvalidValue;
    }
    return ops::launch(sum_kernel, dim3((unsigned)blocks), THREADS, 1, stream,
                       (const float2 *)values, parts, tokens, (float2 *)to);
}

extern "C" int gpu_take_moments(const gpu_moments *moments, void *stream)
{
    if (moments->features <= 0 || moments->tokens <= 0) {
        return cudaSuccess;
    }
    task t = {*moments, ops::aligned_to(moments->x, moments->x_stride, 2, 16)};
    switch (moments->type) {
    case GPU_F16:
        return launch_as<__half>(t, stream);
    case GPU_BF16:
        return launch_as<__nv_bfloat16>(t, stream);
    default:
        return cudaErrorInvalidValue;
    }
}
