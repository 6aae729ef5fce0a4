// Columns of panels by second order (src/prune/panel_obs.c), all panels in step: a turn drops the
// cheapest column of each. Its line of the inverse is made of the matrix as of the last flush and
// of what is owed to it since; diagonal, weights and costs are those of now. Two launches a turn:
// one block of threads chooses for a panel, then every column follows by itself. What is owed is
// paid by one product for GPU_PENDING turns.
#include <cuda_runtime.h>

#include "cuda/calibrate_block.cuh"
#include "cuda/gpu_calibrate.h"

using namespace calibrate;

namespace {

__device__ __forceinline__ double square_sum(const gpu_columns &c, int64_t panel, int64_t column)
{
    double sum = 0;
    for (int64_t r = 0; r < c.v; r++) {
        double w = c.weights[(panel * c.v + r) * c.in + column];
        sum += w * w;
    }
    return sum;
}

__global__ void begin(gpu_columns c)
{
    int64_t panel = blockIdx.y, column = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (column >= c.in) {
        return;
    }
    int64_t at = panel * c.in + column;
    c.diagonal[at] = c.matrix[at * c.in + column];
    c.costs[at] = square_sum(c, panel, column);
    c.alive[at] = 1;
    if (column * c.group < c.in) {
        c.left[at] = (int32_t)min(c.group, c.in - column * c.group);
    }
}

constexpr int CHOOSERS = 1024; // threads that look for a panel's cheapest column

// The cheapest column; its pivot and what each row owes it, before they change.
__global__ void __launch_bounds__(CHOOSERS) choose(gpu_columns c)
{
    __shared__ offer room[CHOOSERS / WARP];
    int64_t panel = blockIdx.x, base = panel * c.in;
    int32_t *left = c.left + base;
    offer best = {(double)INFINITY, INT32_MAX, 0};
    for (int64_t j = threadIdx.x; j < c.in; j += CHOOSERS) {
        if (c.alive[base + j] != 0 && left[j / c.group] > (c.free ? c.kept : 4)) {
            offer mine = {c.costs[base + j] / c.diagonal[base + j], (int32_t)j, 0};
            best = is_better(mine, best) ? mine : best;
        }
    }
    best = block_best<CHOOSERS / WARP>(best, room);
    bool found = best.of != INT32_MAX;
    if (found) {
        double pivot = c.diagonal[base + best.of];
        for (int64_t r = threadIdx.x; r < c.v; r += CHOOSERS) {
            c.times[panel * c.v + r] = c.weights[(panel * c.v + r) * c.in + best.of] / pivot;
        }
        if (threadIdx.x == 0) {
            c.pivots[panel] = pivot;
            c.alive[base + best.of] = 0;
            left[best.of / c.group]--;
        }
    }
    if (threadIdx.x == 0) {
        c.chosen[panel] = found ? best.of : -1;
    }
}

__global__ void follow(gpu_columns c, int turn)
{
    int64_t panel = blockIdx.y, j = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int64_t k = c.chosen[panel], base = panel * c.in;
    if (j >= c.in) {
        return;
    }
    double *pending = c.pending + panel * GPU_PENDING * c.in;
    double *scaled = c.scaled + panel * GPU_PENDING * c.in;
    if (k < 0 || (c.alive[base + j] == 0 && j != k)) { // nothing is dropped, or it is long since
        pending[turn * c.in + j] = scaled[turn * c.in + j] = 0;
        return;
    }
    double pivot = c.pivots[panel], line = c.matrix[(base + k) * c.in + j];
    for (int b = 0; b < turn; b++) {
        line -= pending[b * c.in + k] * scaled[b * c.in + j];
    }
    line = j == k ? pivot : line;
    double by_pivot = line / pivot, cost = 0;
    pending[turn * c.in + j] = line;
    scaled[turn * c.in + j] = by_pivot;
    c.diagonal[base + j] -= line * by_pivot;
    for (int64_t r = 0; r < c.v; r++) {
        double *w = c.weights + (panel * c.v + r) * c.in + j;
        double now = j == k ? 0 : *w - c.times[panel * c.v + r] * line;
        *w = now;
        cost += now * now;
    }
    c.costs[base + j] = cost;
}

__global__ void gather_matrix(gpu_columns c, const int32_t *listed, int64_t n, double *to)
{
    int64_t panel = blockIdx.z, i = blockIdx.y, j = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (j < n) {
        int64_t a = listed[panel * n + i], b = listed[panel * n + j];
        to[(panel * n + i) * n + j] = c.matrix[(panel * c.in + a) * c.in + b];
    }
}

__global__ void gather_values(gpu_columns c, const int32_t *listed, int64_t n, double *to)
{
    int64_t row = blockIdx.y, j = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (j < n) {
        to[row * n + j] = c.weights[row * c.in + listed[row / c.v * n + j]];
    }
}

unsigned blocks_of(int64_t count)
{
    return (unsigned)((count + THREADS - 1) / THREADS);
}

} // namespace

extern "C" int gpu_columns_begin(const gpu_columns *columns, void *stream)
{
    dim3 grid(blocks_of(columns->in), (unsigned)columns->panels);
    begin<<<grid, THREADS, 0, (cudaStream_t)stream>>>(*columns);
    return cudaGetLastError();
}

extern "C" int gpu_columns_drop(const gpu_columns *columns, int turn, void *stream)
{
    dim3 grid(blocks_of(columns->in), (unsigned)columns->panels);
    choose<<<(unsigned)columns->panels, CHOOSERS, 0, (cudaStream_t)stream>>>(*columns);
    follow<<<grid, THREADS, 0, (cudaStream_t)stream>>>(*columns, turn);
    return cudaGetLastError();
}

extern "C" int gpu_columns_gather(const gpu_columns *columns, const int32_t *listed, int64_t n,
                                  double *to, double *values, void *stream)
{
    cudaStream_t in = (cudaStream_t)stream;
    dim3 square(blocks_of(n), (unsigned)n, (unsigned)columns->panels);
    dim3 rows(blocks_of(n), (unsigned)(columns->panels * columns->v));
    gather_matrix<<<square, THREADS, 0, in>>>(*columns, listed, n, to);
    gather_values<<<rows, THREADS, 0, in>>>(*columns, listed, n, values);
    return cudaGetLastError();
}
