// Gates and conversions of activations: each number is read once and written once, by memory's speed.
// Reference: src/ref/ops.c.
#include "cuda/ops.cuh"
#include "cuda/quick_silu.cuh"

namespace {

constexpr int THREADS = 256;

// Rows whose numbers go by eights.
struct rows_of_eights {
    int64_t rows;
    int64_t columns;
    bool vector;
};

// blockIdx: eights of a row; rows. No number is divided: that would take longer than the rest.
template <class WORK> __device__ __forceinline__ void for_eights(const rows_of_eights &all, const WORK &work)
{
    int64_t step = (int64_t)gridDim.x * THREADS * 8;
    int64_t first = (blockIdx.x * (int64_t)THREADS + threadIdx.x) * 8;
    for (int64_t row = blockIdx.y; row < all.rows; row += gridDim.y) {
        for (int64_t column = first; column < all.columns; column += step) {
            work(row, column, (int)min((int64_t)8, all.columns - column));
        }
    }
}

template <class T>
__global__ void __launch_bounds__(THREADS)
    swiglu_kernel(const T *gate, int64_t gate_stride, const T *up, int64_t up_stride, T *y,
                  int64_t y_stride, const rows_of_eights all)
{
    ops::begin();
    for_eights(all, [&](int64_t row, int64_t column, int left) {
        float a[8], b[8];
        ops::widen_eight<T>(ops::load_eight(gate + row * gate_stride + column, left, all.vector),
                            a);
        ops::widen_eight<T>(ops::load_eight(up + row * up_stride + column, left, all.vector), b);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            a[i] = activate::quick_silu(a[i]) * b[i];
        }
        ops::store_eight(y + row * y_stride + column, ops::narrow_eight<T>(a), left, all.vector);
    });
}

// Rows as they are; neighbouring threads take neighbouring columns.
template <class FROM, class TO>
__global__ void __launch_bounds__(THREADS)
    convert_kernel(const FROM *from, int64_t from_stride, TO *to, int64_t to_stride, int64_t rows,
                   int64_t columns)
{
    ops::begin();
    int64_t step = (int64_t)gridDim.x * THREADS, first = blockIdx.x * (int64_t)THREADS + threadIdx.x;
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        for (int64_t i = first; i < columns; i += step) {
            to[row * to_stride + i] = ops::narrow<TO>(ops::widen(from[row * from_stride + i]));
        }
    }
}

constexpr int SIDE = 32; // of the squares that are turned in shared memory

template <class FROM, class TO>
__global__ void __launch_bounds__(THREADS)
    turn_kernel(const FROM *from, int64_t from_stride, TO *to, int64_t to_stride, int64_t rows,
                int64_t columns)
{
    __shared__ float square[SIDE][SIDE + 1];
    int64_t column0 = (int64_t)blockIdx.x * SIDE;
    int lane = threadIdx.x % SIDE, line = threadIdx.x / SIDE;
    ops::begin();
    for (int64_t row0 = (int64_t)blockIdx.y * SIDE; row0 < rows; row0 += (int64_t)gridDim.y * SIDE) {
        for (int i = line; i < SIDE; i += THREADS / SIDE) {
            if (row0 + i < rows && column0 + lane < columns) {
                square[i][lane] = ops::widen(from[(row0 + i) * from_stride + column0 + lane]);
            }
        }
        __syncthreads();
        for (int i = line; i < SIDE; i += THREADS / SIDE) {
            if (row0 + lane < rows && column0 + i < columns) {
                to[(column0 + i) * to_stride + row0 + lane] = ops::narrow<TO>(square[lane][i]);
            }
        }
        __syncthreads();
    }
}

// ---- launching ----

template <class T>
int swiglu(const void *gate, int64_t gate_stride, const void *up, int64_t up_stride,
           int64_t features, int64_t tokens, void *y, int64_t y_stride, void *stream)
{
    rows_of_eights all = {features, tokens,
                          ops::aligned_to(gate, gate_stride, 2, 16) &&
                              ops::aligned_to(up, up_stride, 2, 16) &&
                              ops::aligned_to(y, y_stride, 2, 16)};
    if (gate_stride == tokens && up_stride == tokens && y_stride == tokens) { // one long row
        all = {1, features * tokens,
               ops::aligned_to(gate, 8, 2, 16) && ops::aligned_to(up, 8, 2, 16) &&
                   ops::aligned_to(y, 8, 2, 16)};
    }
    dim3 grid(ops::at_most(ops::divide_up(all.columns, THREADS * 8), 1 << 16),
              ops::at_most(all.rows, ops::MOST_BLOCKS_Y));
    return ops::launch(swiglu_kernel<T>, grid, THREADS, 1, stream, (const T *)gate, gate_stride,
                       (const T *)up, up_stride, (T *)y, y_stride, all);
}

struct conversion {
    const void *from;
    int64_t from_stride;
    void *to;
    int64_t to_stride, rows, columns;
    bool turn;
};

template <class FROM, class TO> int convert(const conversion &c, void *stream)
{
    const FROM *from = (const FROM *)c.from;
    TO *to = (TO *)c.to;
    if (!c.turn) {
        dim3 grid(ops::at_most(ops::divide_up(c.columns, THREADS), 256),
                  ops::at_most(c.rows, ops::MOST_BLOCKS_Y));
        return ops::launch(convert_kernel<FROM, TO>, grid, THREADS, 1, stream, from, c.from_stride,
                           to, c.to_stride, c.rows, c.columns);
    }
    if (ops::divide_up(c.columns, SIDE) > INT32_MAX) {
        return cudaErrorInvalidValue;
    }
    dim3 grid((unsigned)ops::divide_up(c.columns, SIDE),
              ops::at_most(ops::divide_up(c.rows, SIDE), ops::MOST_BLOCKS_Y));
    return ops::launch(turn_kernel<FROM, TO>, grid, THREADS, 1, stream, from, c.from_stride, to,
                       c.to_stride, c.rows, c.columns);
}

template <class FROM> int convert_from(gpu_type to_type, const conversion &c, void *stream)
{
    switch (to_type) {
    case GPU_F32:
        return convert<FROM, float>(c, stream);
    case GPU_F16:
        return convert<FROM, __half>(c, stream);
    case GPU_BF16:
        return convert<FROM, __nv_bfloat16>(c, stream);
    }
    return cudaErrorInvalidValue;
}

} // namespace

extern "C" int gpu_swiglu(gpu_type type, const void *gate, int64_t gate_stride, const void *up,
                          int64_t up_stride, int64_t features, int64_t tokens, void *y,
                          int64_t y_stride, void *stream)
{
    if (features <= 0 || tokens <= 0) {
        return cudaSuccess;
    }
    switch (type) {
    case GPU_F16:
        return swiglu<__half>(gate, gate_stride, up, up_stride, features, tokens, y, y_stride,
                              stream);
    case GPU_BF16:
        return swiglu<__nv_bfloat16>(gate, gate_stride, up, up_stride, features, tokens, y,
                                     y_stride, stream);
    default:
        return cudaErrorInvalidValue;
    }
}

extern "C" int gpu_convert(gpu_type from_type, const void *from, int64_t from_stride,
                           gpu_type to_type, void *to, int64_t to_stride, int64_t rows,
                           int64_t columns, bool turn, void *stream)
{
    conversion c = {from, from_stride, to, to_stride, rows, columns, turn};
    if (rows <= 0 || columns <= 0) {
        return cudaSuccess;
    }
    switch (from_type) {
    case GPU_F32:
        return convert_from<float>(to_type, c, stream);
    case GPU_F16:
        return convert_from<__half>(to_type, c, stream);
    case GPU_BF16:
        return convert_from<__nv_bfloat16>(to_type, c, stream);
    }
    return cudaErrorInvalidValue;
}
