// The parts of a Cholesky factorization of many matrices that are no products: corners of up to
// GPU_LEAF columns, A = U^T U, with the inverse of U^T, so that the rows right of a corner are a
// product, too. A block of threads to a matrix.
#include <cuda_runtime.h>

#include "cuda/calibrate_block.cuh"
#include "cuda/gpu_calibrate.h"

using namespace calibrate;

namespace {

constexpr int LEAF = GPU_LEAF;

struct leaf_room {
    double u[LEAF][LEAF + 1], inverse[LEAF][LEAF + 1];
};

// Row k of U from what is left of the matrix, and what is left behind it. False: no such row.
__device__ bool eliminate(leaf_room &room, int k, int n)
{
    double pivot = room.u[k][k];
    bool positive = pivot > 0;
    double by_root = positive ? 1 / sqrt(pivot) : 0;
    __syncthreads();
    for (int j = k + threadIdx.x; j < n; j += THREADS) {
        room.u[k][j] *= by_root;
    }
    __syncthreads();
    for (int at = threadIdx.x; at < LEAF * LEAF; at += THREADS) {
        int i = at / LEAF, j = at % LEAF;
        if (i > k && j >= i && j < n) {
            room.u[i][j] -= room.u[k][i] * room.u[k][j];
        }
    }
    __syncthreads();
    return positive;
}

// Column c of U^-T by a thread.
__device__ void invert_column(leaf_room &room, int c, int n)
{
    for (int i = 0; i < n; i++) {
        double sum = i == c ? 1 : 0;
        for (int m = c; m < i; m++) {
            sum -= room.u[m][i] * room.inverse[m][c];
        }
        room.inverse[i][c] = i >= c ? sum / room.u[i][i] : 0;
    }
}

__global__ void __launch_bounds__(THREADS)
    leaf(double *matrix, int64_t stride, int64_t step, int n, double *inverse, int64_t inverse_step,
         int32_t *faults)
{
    extern __shared__ double shared[];
    leaf_room &room = *(leaf_room *)shared;
    double *own = matrix + blockIdx.x * step, *to = inverse + blockIdx.x * inverse_step;
    for (int at = threadIdx.x; at < LEAF * LEAF; at += THREADS) {
        int i = at / LEAF, j = at % LEAF;
        room.u[i][j] = i <= j && j < n ? own[i * stride + j] : 0;
    }
    __syncthreads();
    bool positive = true;
    for (int k = 0; k < n && positive; k++) {
        positive = eliminate(room, k, n);
    }
    if (!positive) {
        if (threadIdx.x == 0) {
            faults[blockIdx.x] = 1;
        }
        return;
    }
    if (threadIdx.x < n) {
        invert_column(room, threadIdx.x, n);
    }
    __syncthreads();
    for (int at = threadIdx.x; at < LEAF * LEAF; at += THREADS) {
        int i = at / LEAF, j = at % LEAF;
        if (i < n && j < n) {
            to[i * LEAF + j] = room.inverse[i][j];
        }
        if (i <= j && j < n) {
            own[i * stride + j] = room.u[i][j];
        }
    }
}

__global__ void copy_rows(const double *from, int64_t from_stride, int64_t from_step,
                          int64_t columns, double *to, int64_t to_stride, int64_t to_step)
{
    int64_t row = blockIdx.x, j = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    if (j < columns) {
        to[blockIdx.z * to_step + row * to_stride + j] =
            from[blockIdx.z * from_step + row * from_stride + j];
    }
}

} // namespace

extern "C" int gpu_cholesky_leaf(double *matrix, int64_t stride, int64_t step, int64_t n,
                                 int64_t count, double *inverse, int64_t inverse_step,
                                 int32_t *faults, void *stream)
{
    cudaError_t error = cudaFuncSetAttribute(leaf, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             (int)sizeof(leaf_room));
    if (error == cudaSuccess) {
        leaf<<<(unsigned)count, THREADS, sizeof(leaf_room), (cudaStream_t)stream>>>(
            matrix, stride, step, (int)n, inverse, inverse_step, faults);
        error = cudaGetLastError();
    }
    return error;
}

extern "C" int gpu_cholesky_copy(const double *from, int64_t from_stride, int64_t from_step,
                             int64_t rows, int64_t columns, int64_t count, double *to,
                             int64_t to_stride, int64_t to_step, void *stream)
{
    dim3 grid((unsigned)rows, (unsigned)((columns + THREADS - 1) / THREADS), (unsigned)count);
    copy_rows<<<grid, THREADS, 0, (cudaStream_t)stream>>>(from, from_stride, from_step, columns, to,
                                                         to_stride, to_step);
    return cudaGetLastError();
}
