// Kernels that move bytes: the epilogue of products whose sums came out raw, and X laid out anew. Each is
// bound by memory; their reference is the loop that their comment in gpu.h states.
#include "cuda/epilogue.cuh"

namespace {

constexpr int THREADS = 256;

unsigned blocks_for(int64_t items)
{
    int64_t blocks = (items + THREADS - 1) / THREADS;
    return (unsigned)(blocks < 1 << 20 ? blocks : 1 << 20); // the kernels stride on
}

// Neighbouring threads take neighbouring elements of Y.
__global__ void finish_kernel(const float *raw, int64_t raw_feature, int64_t raw_token,
                              int64_t features, const gpu_epilogue e)
{
    bool along_tokens = e.token_step == 1, pairs = (e.bits & ESP_EP_SWIGLU) != 0;
    int64_t inner = along_tokens ? e.tokens : features, all = features * e.tokens;
    int64_t stride = (int64_t)gridDim.x * THREADS;
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < all; i += stride) {
        int64_t o = along_tokens ? i / inner : i % inner, t = along_tokens ? i % inner : i / inner;
        int64_t row = pairs ? 2 * o : o;
        const float *from = raw + row * raw_feature + t * raw_token;
        bool scaled = (e.bits & ESP_EP_SCALE) != 0, biased = (e.bits & ESP_EP_BIAS) != 0;
        float v = epilogue::linear(e, from[0], scaled ? e.scale[row] : 1, biased ? e.bias[row] : 0);
        if (pairs) {
            v = epilogue::silu(v) * epilogue::linear(e, from[raw_feature],
                                                     scaled ? e.scale[row + 1] : 1,
                                                     biased ? e.bias[row + 1] : 0);
        } else {
            v = epilogue::activate(e.bits, v);
        }
        epilogue::finish_one(e, o * e.feature_step + t * e.token_step, v);
    }
}

__global__ void copy_rows_kernel(const uint16_t *from, int64_t from_stride, uint16_t *to,
                                 int64_t to_stride, int64_t rows, int64_t columns)
{
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        int64_t step = (int64_t)gridDim.x * THREADS;
        for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < columns; i += step) {
            to[row * to_stride + i] = from[row * from_stride + i];
        }
    }
}

constexpr int SQUARE = 64; // of elements, turned in shared memory

__global__ void transpose_kernel(const uint16_t *from, int64_t from_stride, uint16_t *to,
                                 int64_t to_stride, int64_t rows, int64_t columns)
{
    __shared__ uint16_t square[SQUARE][SQUARE + 2];
    int64_t column0 = (int64_t)blockIdx.x * SQUARE;
    for (int64_t row0 = (int64_t)blockIdx.y * SQUARE; row0 < rows;
         row0 += (int64_t)gridDim.y * SQUARE) {
        for (int i = threadIdx.x; i < SQUARE * SQUARE; i += THREADS) {
            int r = i / SQUARE, c = i % SQUARE;
            if (row0 + r < rows && column0 + c < columns) {
                square[c][r] = from[(row0 + r) * from_stride + column0 + c];
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < SQUARE * SQUARE; i += THREADS) {
            int c = i / SQUARE, r = i % SQUARE;
            if (row0 + r < rows && column0 + c < columns) {
                to[(column0 + c) * to_stride + row0 + r] = square[c][r];
            }
        }
        __syncthreads();
    }
}

unsigned at_most(int64_t count, unsigned most)
{
    return count < most ? (unsigned)count : most;
}

} // namespace

extern "C" int gpu_finish(const float *raw, bool by_token, int64_t rows, const gpu_epilogue *e,
                          void *stream)
{
    int64_t features = (e->bits & ESP_EP_SWIGLU) != 0 ? rows / 2 : rows;
    finish_kernel<<<blocks_for(features * e->tokens), THREADS, 0, (cudaStream_t)stream>>>(
        raw, by_token ? 1 : e->tokens, by_token ? rows : 1, features, *e);
    return cudaGetLastError();
}

extern "C" int gpu_copy_rows(const void *from, int64_t from_stride, void *to, int64_t to_stride,
                             int64_t rows, int64_t columns, void *stream)
{
    dim3 grid(at_most((columns + THREADS - 1) / THREADS, 64), at_most(rows, 65535));
    copy_rows_kernel<<<grid, THREADS, 0, (cudaStream_t)stream>>>(
        (const uint16_t *)from, from_stride, (uint16_t *)to, to_stride, rows, columns);
    return cudaGetLastError();
}

extern "C" int gpu_transpose(const void *from, int64_t from_stride, void *to, int64_t to_stride,
                             int64_t rows, int64_t columns, void *stream)
{
    int64_t across = (columns + SQUARE - 1) / SQUARE;
    if (across > INT32_MAX) {
        return cudaErrorInvalidValue;
    }
    dim3 grid((unsigned)across, at_most((rows + SQUARE - 1) / SQUARE, 65535));
    transpose_kernel<<<grid, THREADS, 0, (cudaStream_t)stream>>>(
        (const uint16_t *)from, from_stride, (uint16_t *)to, to_stride, rows, columns);
    return cudaGetLastError();
}
