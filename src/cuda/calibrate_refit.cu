// Conjugate gradients of many rows at once (src/prune/refit.c), all but the products with H: one
// block of threads to a row, whose directions, residuals and step lengths are its own. A row that
// has converged is left alone.
#include <cuda_runtime.h>

#include "cuda/calibrate_block.cuh"
#include "cuda/gpu_calibrate.h"

using namespace calibrate;

namespace {

__device__ __forceinline__ bool is_live(const gpu_refit &r, int64_t row, int32_t column)
{
    return column >= 0 && (r.mask[row * r.mask_words + column / 64] >> column % 64 & 1) != 0;
}

__device__ __forceinline__ const int32_t *columns_of(const gpu_refit &r, int64_t row)
{
    return r.columns + row / r.slab_rows * r.width;
}

__global__ void gather(gpu_refit r, double *to)
{
    int64_t slab = blockIdx.z, i = blockIdx.x, j = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    if (j < r.width) {
        int32_t a = r.columns[slab * r.width + i], b = r.columns[slab * r.width + j];
        to[(slab * r.width + i) * r.width + j] = a >= 0 && b >= 0 ? r.gram[a * r.in + b] : 0;
    }
}

__global__ void start(gpu_refit r)
{
    int64_t row = blockIdx.x, slab = row / r.slab_rows;
    const int32_t *columns = columns_of(r, row);
    for (int64_t i = threadIdx.x; i < r.width; i += THREADS) {
        int32_t column = columns[i];
        r.x[row * r.width + i] = is_live(r, row, column) ? r.weights[row * r.in + column] : 0;
        if (row % r.slab_rows == 0) {
            double diagonal = column >= 0 ? r.gram[column * r.in + column] : 0;
            r.inverse[slab * r.width + i] = diagonal > 0 ? 1 / diagonal : 0;
        }
    }
}

// Whether the row stays at work, after `iteration` steps.
__device__ __forceinline__ void judge(const gpu_refit &r, int64_t row, double energy, int iteration)
{
    double all = r.goal_energy[row], residual = all > 0 ? sqrt(energy / all) : 0;
    bool works = residual > r.tolerance;
    r.energy[row] = energy;
    r.iterations[row] = works ? -1 : iteration;
    if (works) {
        atomicAdd(r.active, 1);
    }
}

__global__ void begin(gpu_refit r)
{
    __shared__ double room[WARPS];
    int64_t row = blockIdx.x, at = row * r.width;
    const int32_t *columns = columns_of(r, row);
    const double *inverse = r.inverse + row / r.slab_rows * r.width;
    double energy = 0, goal_energy = 0;
    for (int64_t i = threadIdx.x; i < r.width; i += THREADS) {
        bool live = is_live(r, row, columns[i]);
        double wanted = live ? r.goal[row * r.in + columns[i]] : 0;
        double left = live ? wanted - r.product[at + i] : 0;
        r.residual[at + i] = left;
        r.direction[at + i] = left * inverse[i];
        energy += left * left * inverse[i];
        goal_energy += wanted * wanted * inverse[i];
    }
    energy = block_sum(energy, room);
    goal_energy = block_sum(goal_energy, room);
    if (threadIdx.x == 0) {
        r.goal_energy[row] = goal_energy;
        judge(r, row, energy, 0);
    }
}

__global__ void step(gpu_refit r, int iteration)
{
    __shared__ double room[WARPS];
    int64_t row = blockIdx.x, at = row * r.width;
    if (r.iterations[row] >= 0) {
        return;
    }
    const int32_t *columns = columns_of(r, row);
    const double *inverse = r.inverse + row / r.slab_rows * r.width;
    double *x = r.x + at, *residual = r.residual + at, *direction = r.direction + at;
    const double *product = r.product + at;
    double before = r.energy[row], curvature = 0, energy = 0;
    for (int64_t i = threadIdx.x; i < r.width; i += THREADS) {
        curvature += direction[i] * product[i];
    }
    curvature = block_sum(curvature, room);
    double length = curvature > 0 ? before / curvature : 0;
    for (int64_t i = threadIdx.x; i < r.width; i += THREADS) {
        x[i] += length * direction[i];
        double left = is_live(r, row, columns[i]) ? residual[i] - length * product[i] : 0;
        residual[i] = left;
        energy += left * left * inverse[i];
    }
    energy = block_sum(energy, room);
    double keep = before > 0 ? energy / before : 0;
    for (int64_t i = threadIdx.x; i < r.width; i += THREADS) {
        direction[i] = residual[i] * inverse[i] + keep * direction[i];
    }
    if (threadIdx.x == 0) {
        judge(r, row, energy, iteration);
    }
}

__global__ void finish(gpu_refit r, double *weights)
{
    int64_t row = blockIdx.x;
    const int32_t *columns = columns_of(r, row);
    for (int64_t i = threadIdx.x; i < r.in; i += THREADS) {
        weights[row * r.in + i] = 0;
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < r.width; i += THREADS) {
        if (columns[i] >= 0) {
            weights[row * r.in + columns[i]] = r.x[row * r.width + i];
        }
    }
}

} // namespace

extern "C" int gpu_refit_gather(const gpu_refit *refit, double *to, void *stream)
{
    int64_t slabs = (refit->rows + refit->slab_rows - 1) / refit->slab_rows;
    dim3 grid((unsigned)refit->width, (unsigned)((refit->width + THREADS - 1) / THREADS),
              (unsigned)slabs);
    gather<<<grid, THREADS, 0, (cudaStream_t)stream>>>(*refit, to);
    return cudaGetLastError();
}

extern "C" int gpu_refit_start(const gpu_refit *refit, void *stream)
{
    start<<<(unsigned)refit->rows, THREADS, 0, (cudaStream_t)stream>>>(*refit);
    return cudaGetLastError();
}

extern "C" int gpu_refit_begin(const gpu_refit *refit, void *stream)
{
    begin<<<(unsigned)refit->rows, THREADS, 0, (cudaStream_t)stream>>>(*refit);
    return cudaGetLastError();
}

extern "C" int gpu_refit_step(const gpu_refit *refit, int iteration, void *stream)
{
    step<<<(unsigned)refit->rows, THREADS, 0, (cudaStream_t)stream>>>(*refit, iteration);
    return cudaGetLastError();
}

extern "C" int gpu_refit_finish(const gpu_refit *refit, double *weights, void *stream)
{
    finish<<<(unsigned)refit->rows, THREADS, 0, (cudaStream_t)stream>>>(*refit, weights);
    return cudaGetLastError();
}
