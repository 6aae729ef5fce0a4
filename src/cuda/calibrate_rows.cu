// Two of each four places of a row by the least squares of all that live (src/prune/row_search.c,
// tableau.c): one block of threads to a row, one thread to each four places, whose diagonal, values
// and near entries it keeps in registers. A pivot's column is made of the matrix as of the last
// flush and of the PENDING pivots since, which lie in shared memory. Of the matrix only tiles on
// and left of the diagonal are kept, in memory of the block's own; until the first flush it is the
// corner that the panel's rows share.
#include <cuda_runtime.h>

#include "cuda/calibrate_block.cuh"
#include "cuda/gpu_calibrate.h"

using namespace calibrate;

namespace
{

constexpr int FOUR = 4, KEEP = 2, PENDING = 16, TILE = 64;
constexpr double LEAST_GAIN = 1e-9; // of the row's error: less is rounding

static_assert(GPU_ROW_PLACES == FOUR * THREADS, "a thread has four places");

struct shared_room {
    double sums[WARPS];
    offer offers[WARPS];
    double pivot, value; // of the place that is pivoted
    double by_pivots[PENDING];
};

// The row at work, as one thread has it.
struct tableau {
    int width, stride;      // places; stride of pending
    const double *from;     // the matrix as of the last flush
    double *room, *pending; // pending: [PENDING][stride], shared
    shared_room *shared;
    int first, count, live; // of this thread's four
    double diagonal[FOUR], values[FOUR], near[FOUR][FOUR];
    int owed;
    double error;
};

// Entry (i, k) of the matrix.
__device__ __forceinline__ double entry(const tableau &t, int i, int k)
{
    bool stored = k < (i / TILE + 1) * TILE;
    return t.from[(int64_t)(stored ? i : k) * t.width + (stored ? k : i)];
}

// room = from - what is owed; each thread has 4 x 4 entries of a tile.
__device__ void flush(tableau &t)
{
    int y = threadIdx.x / 16 * FOUR, x = threadIdx.x % 16 * FOUR;
    for (int tile_row = 0; tile_row < t.width; tile_row += TILE) {
        for (int tile_column = 0; tile_column <= tile_row; tile_column += TILE) {
            int row = tile_row + y, column = tile_column + x;
            double sums[FOUR][FOUR] = {};
            for (int b = 0; b < t.owed; b++) {
                const double *pending = t.pending + b * t.stride;
                double by_pivot = t.shared->by_pivots[b];
                double right[FOUR];
#pragma unroll
                for (int j = 0; j < FOUR; j++) {
                    right[j] = pending[column + j];
                }
#pragma unroll
                for (int i = 0; i < FOUR; i++) {
                    double left = pending[row + i] * by_pivot;
#pragma unroll
                    for (int j = 0; j < FOUR; j++) {
                        sums[i][j] += left * right[j];
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < FOUR; i++) {
#pragma unroll
                for (int j = 0; j < FOUR; j++) {
                    if (row + i < t.width && column + j < t.width) {
                        int64_t at = (int64_t)(row + i) * t.width + column + j;
                        t.room[at] = t.from[at] - sums[i][j];
                    }
                }
            }
        }
    }
    __syncthreads();
    t.from = t.room;
    t.owed = 0;
}

__device__ void pivot(tableau &t, int k)
{
    bool mine = k >= t.first && k < t.first + t.count;
#pragma unroll
    for (int q = 0; q < FOUR; q++) {
        if (mine && t.first + q == k) {
            t.shared->pivot = t.diagonal[q];
            t.shared->value = t.values[q];
        }
    }
    double line[FOUR] = {};
#pragma unroll
    for (int q = 0; q < FOUR; q++) {
        line[q] = q < t.count ? entry(t, t.first + q, k) : 0;
    }
    for (int b = 0; b < t.owed; b++) {
        const double *pending = t.pending + b * t.stride;
        double times = pending[k] * t.shared->by_pivots[b];
#pragma unroll
        for (int q = 0; q < FOUR; q++) {
            line[q] -= times * pending[t.first + q];
        }
    }
    __syncthreads();
    double p = t.shared->pivot, by_pivot = 1 / p, times = t.shared->value * by_pivot;
    t.error += t.shared->value * times;
#pragma unroll
    for (int q = 0; q < FOUR; q++) {
        bool is_k = mine && t.first + q == k;
        t.diagonal[q] = is_k ? -by_pivot : t.diagonal[q] - line[q] * line[q] * by_pivot;
        t.values[q] = is_k ? t.shared->value * fabs(by_pivot) : t.values[q] - line[q] * times;
        line[q] = is_k ? p - copysign(1.0, p) : line[q];
        line[q] = q < t.count ? line[q] : 0;
        t.pending[t.owed * t.stride + t.first + q] = line[q];
    }
#pragma unroll
    for (int i = 0; i < FOUR; i++) {
#pragma unroll
        for (int j = 0; j < FOUR; j++) {
            t.near[i][j] -= line[i] * line[j] * by_pivot;
        }
    }
    if (threadIdx.x == 0) {
        t.shared->by_pivots[t.owed] = by_pivot;
    }
    t.owed++;
    __syncthreads();
    if (t.owed == PENDING) {
        flush(t);
    }
}

__device__ bool drop_cheapest(tableau &t)
{
    offer best = {(double)INFINITY, INT32_MAX, 0};
#pragma unroll
    for (int q = 0; q < FOUR; q++) {
        if (q < t.count && t.live > KEEP && t.diagonal[q] > 0) {
            offer mine = {t.values[q] * t.values[q] / t.diagonal[q], t.first + q, 0};
            best = is_better(mine, best) ? mine : best;
        }
    }
    best = block_best(best, t.shared->offers);
    if (best.of == INT32_MAX) {
        return false;
    }
    t.live -= best.of >= t.first && best.of < t.first + t.count;
    pivot(t, best.of);
    return true;
}

__device__ bool swap_best(tableau &t)
{
    offer best = {-LEAST_GAIN * t.error, INT32_MAX, 0};
#pragma unroll
    for (int out = 0; out < FOUR; out++) {
#pragma unroll
        for (int back = 0; back < FOUR; back++) {
            bool pair =
                out < t.count && back < t.count && t.diagonal[out] > 0 && !(t.diagonal[back] > 0);
            if (pair) {
                double near = t.near[out][back];
                double gain = t.values[back] * t.values[back] / t.diagonal[back];
                double times = near / t.diagonal[back];
                double value = t.values[out] - times * t.values[back];
                double cost = gain + value * value / (t.diagonal[out] - times * near);
                if (cost < best.cost) {
                    best = {cost, t.first + out, t.first + back};
                }
            }
        }
    }
    best = block_best(best, t.shared->offers);
    if (best.of == INT32_MAX) {
        return false;
    }
    pivot(t, best.with);
    pivot(t, best.of);
    return true;
}

__device__ void load(tableau &t, const double *corner, const double *values)
{
    t.from = corner;
    t.owed = 0;
    t.error = 0;
    t.first = (int)threadIdx.x * FOUR;
    t.count = max(0, min(FOUR, t.width - t.first));
    t.live = t.count;
#pragma unroll
    for (int i = 0; i < FOUR; i++) {
        bool there = i < t.count;
        t.values[i] = there ? values[t.first + i] : 0;
        t.diagonal[i] = there ? corner[(int64_t)(t.first + i) * t.width + t.first + i] : 1;
#pragma unroll
        for (int j = 0; j < FOUR; j++) {
            t.near[i][j] =
                there && j < t.count ? corner[(int64_t)(t.first + i) * t.width + t.first + j] : 0;
        }
    }
}

__global__ void __launch_bounds__(THREADS) search(gpu_rows r)
{
    extern __shared__ double pending[];
    __shared__ shared_room shared;
    tableau t;
    t.width = (int)r.width;
    t.stride = GPU_ROW_PLACES;
    t.room = r.room + (int64_t)blockIdx.x * r.width * r.width;
    t.pending = pending;
    t.shared = &shared;
    for (int64_t row = blockIdx.x; row < r.rows; row += gridDim.x) {
        double *values = r.values + row * r.values_stride;
        load(t, r.corner + row / r.panel_rows * r.width * r.width, values);
        while (drop_cheapest(t)) {
        }
        for (int i = 0; i < 2 * t.width && swap_best(t); i++) {
        }
#pragma unroll
        for (int q = 0; q < FOUR; q++) {
            if (q < t.count) {
                bool lives = t.diagonal[q] > 0;
                int64_t at = row * r.width + t.first + q;
                values[t.first + q] = lives ? t.values[q] : 0;
                r.lost[at] = lives ? 0 : t.values[q];
                r.live[at] = lives;
            }
        }
        __syncthreads();
    }
}

__global__ void zero_lower(double *matrix, int64_t n)
{
    int64_t row = blockIdx.y, column = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (column < n && column < row) {
        matrix[(blockIdx.z * n + row) * n + column] = 0;
    }
}

} // namespace

extern "C" int gpu_rows_search(const gpu_rows *rows, void *stream)
{
    constexpr int BYTES = PENDING * GPU_ROW_PLACES * (int)sizeof(double);
    cudaError_t error =
        cudaFuncSetAttribute(search, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
    if (error == cudaSuccess) {
        search<<<(unsigned)rows->blocks, THREADS, BYTES, (cudaStream_t)stream>>>(*rows);
        error = cudaGetLastError();
    }
    return error;
}

extern "C" int gpu_zero_lower(double *matrix, int64_t n, int64_t count, void *stream)
{
    dim3 grid((unsigned)((n + THREADS - 1) / THREADS), (unsigned)n, (unsigned)count);
    zero_lower<<<grid, THREADS, 0, (cudaStream_t)stream>>>(matrix, n);
    return cudaGetLastError();
}
