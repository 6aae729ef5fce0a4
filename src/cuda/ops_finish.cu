// Bias and activation of a product that was written without them, in place: what a library's product needs
// behind it. One read and one write of the activations.
#include "cuda/epilogue.cuh"
#include "cuda/ops.cuh"

namespace {

constexpr int THREADS = 256;

struct finish_task {
    unsigned bits;
    const float *bias; // NULL: none
    int64_t features, tokens, stride;
    bool vector;
};

template <class T>
__global__ void __launch_bounds__(THREADS) finish_kernel(T *y, const __grid_constant__ finish_task task)
{
    ops::begin();
    int64_t step = (int64_t)gridDim.x * THREADS * 8;
    for (int64_t row = blockIdx.y; row < task.features; row += gridDim.y) {
        float bias = task.bias != nullptr ? task.bias[row] : 0.0f;
        for (int64_t t = (blockIdx.x * (int64_t)THREADS + threadIdx.x) * 8; t < task.tokens; t += step) {
            int left = (int)min((int64_t)8, task.tokens - t);
            T *at = y + row * task.stride + t;
            float v[8];
            ops::widen_eight<T>(ops::load_eight(at, left, task.vector), v);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                v[i] = epilogue::activate(task.bits, v[i] + bias);
            }
            ops::store_eight(at, ops::narrow_eight<T>(v), left, task.vector);
        }
    }
}

template <class T> int finish(void *y, const finish_task &task, void *stream)
{
    int64_t across = ops::divide_up(task.tokens, THREADS * 8);
    dim3 grid(ops::at_most(across, 64), ops::at_most(task.features, ops::MOST_BLOCKS_Y));
    return ops::launch(finish_kernel<T>, grid, THREADS, 1, stream, (T *)y, task);
}

} // namespace

extern "C" int gpu_finish_in_place(gpu_type type, unsigned bits, const float *bias, void *y,
                                   int64_t stride, int64_t features, int64_t tokens, void *stream)
{
    if (features <= 0 || tokens <= 0) {
        return 0;
    }
    const finish_task task = {bits,   bias,   features,
                              tokens, stride, ops::aligned_to(y, stride, 2, 16)};
    switch (type) {
    case GPU_F16:
        return finish<__half>(y, task, stream);
    case GPU_BF16:
        return finish<__nv_bfloat16>(y, task, stream);
    default:
        return cudaErrorInvalidValue;
    }
}
