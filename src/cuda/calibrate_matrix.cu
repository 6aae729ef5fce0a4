// What calibration does to whole matrices between the library's products: widening what layers
// read, triangles, differences.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda/calibrate_block.cuh"
#include "cuda/gpu_calibrate.h"

using namespace calibrate;

namespace {

constexpr int TILE = 32, TILE_ROWS = 8;

__device__ __forceinline__ double number(float x)
{
    return x;
}
__device__ __forceinline__ double number(__half x)
{
    return __half2float(x);
}
__device__ __forceinline__ double number(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}

template <typename T> __global__ void widen(gpu_activations a, double *to)
{
    int64_t row = blockIdx.x, column = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    if (column < a.columns) {
        int64_t at = row * a.stride + column / a.run * a.pitch + column % a.run;
        double value = number(((const T *)a.x)[at]);
        to[row * a.columns + column] =
            a.less != nullptr ? value - number(((const T *)a.less)[at]) : value;
    }
}

template <typename T>
void launch_widen(const gpu_activations &a, double *to, cudaStream_t stream)
{
    dim3 grid((unsigned)a.rows, (unsigned)((a.columns + THREADS - 1) / THREADS));
    widen<T><<<grid, THREADS, 0, stream>>>(a, to);
}

// Tiles of one triangle go through shared memory to the other, so that both are read along rows.
__global__ void mirror(double *matrix, int64_t n, bool down)
{
    __shared__ double tile[TILE][TILE + 1];
    int64_t row = (int64_t)blockIdx.y * TILE, column = (int64_t)blockIdx.x * TILE;
    if (down ? column < row : column > row) {
        return;
    }
    for (int i = threadIdx.y; i < TILE; i += TILE_ROWS) {
        if (row + i < n && column + threadIdx.x < n) {
            tile[i][threadIdx.x] = matrix[(row + i) * n + column + threadIdx.x];
        }
    }
    __syncthreads();
    for (int i = threadIdx.y; i < TILE; i += TILE_ROWS) {
        int64_t to_row = column + i, to_column = row + threadIdx.x;
        if (to_row < n && to_column < n && (down ? to_column < to_row : to_column > to_row)) {
            matrix[to_row * n + to_column] = tile[threadIdx.x][i];
        }
    }
}

__global__ void subtract(const double *a, const double *b, int64_t count, double *difference)
{
    int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += step) {
        difference[i] = a[i] - b[i];
    }
}

int launched()
{
    return cudaGetLastError();
}

} // namespace

extern "C" int gpu_widen_rows(const gpu_activations *activations, double *to, void *stream)
{
    cudaStream_t in = (cudaStream_t)stream;
    if (activations->type == GPU_F32) {
        launch_widen<float>(*activations, to, in);
    } else if (activations->type == GPU_F16) {
        launch_widen<__half>(*activations, to, in);
    } else {
        launch_widen<__nv_bfloat16>(*activations, to, in);
    }
    return launched();
}

extern "C" int gpu_mirror(double *matrix, int64_t n, bool down, void *stream)
{
    unsigned tiles = (unsigned)((n + TILE - 1) / TILE);
    mirror<<<dim3(tiles, tiles), dim3(TILE, TILE_ROWS), 0, (cudaStream_t)stream>>>(matrix, n, down);
    return launched();
}

extern "C" int gpu_subtract(const double *a, const double *b, int64_t count, double *difference,
                            void *stream)
{
    int64_t blocks = (count + THREADS - 1) / THREADS;
    subtract<<<(unsigned)(blocks < 4096 ? blocks : 4096), THREADS, 0, (cudaStream_t)stream>>>(
        a, b, count, difference);
    return launched();
}
