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

namespace {

constexpr int FOUR = 4, KEEP = 2, PENDING = 24, TILE = 64;
constexpr double LEAST_GAIN = 1e-9; // of the row's error: less is rounding

// Rows of up to PLACES places, several at once on a multiprocessor where they are short.
template <int PLACES_> struct shape {
    static constexpr int PLACES = PLACES_, THREADS = PLACES / FOUR, WARPS = THREADS / WARP;
    static constexpr int BYTES = PENDING * PLACES * (int)sizeof(double);
    static constexpr int AT_ONCE = PLACES > GPU_SHORT_PLACES ? 1 : 2;
    // Of a tile a thread has FOUR rows and PAIRS times two neighbouring columns.
    static constexpr int ACROSS = THREADS / 16, PAIRS = TILE / (2 * ACROSS);
};

template <typename S> struct shared_room {
    offer offers[S::WARPS];
    double pivot, value; // of the place that is pivoted
    double by_pivots[PENDING];
};

// The row at work, as one thread has it.
template <typename S> struct tableau {
    int width;
    const double *from;     // the matrix as of the last flush
    double *room, *pending; // pending: [PENDING][PLACES], shared
    shared_room<S> *shared;
    int first, count, live; // of this thread's four
    double diagonal[FOUR], values[FOUR], near[FOUR][FOUR];
    int owed;
    double error;
};

// Entry (i, k) of the matrix.
template <typename S> __device__ __forceinline__ double entry(const tableau<S> &t, int i, int k)
{
    bool stored = k < (i / TILE + 1) * TILE;
    return t.from[(int64_t)(stored ? i : k) * t.width + (stored ? k : i)];
}

// Two neighbours of a row; of the second, which may lie outside, 0.
__device__ __forceinline__ double2 take_pair(const double *from, bool pairs, bool first,
                                             bool second)
{
    if (pairs && first) {
        return *(const double2 *)from;
    }
    return make_double2(first ? from[0] : 0, second ? from[1] : 0);
}

// A tile of room = from - what is owed. Where both are the same memory nothing tells the compiler
// that a store leaves later loads alone, so all loads come first.
template <typename S> __device__ __forceinline__ void flush_tile(tableau<S> &t, int row, int column)
{
    double2 now[FOUR][S::PAIRS];
    const double *from = t.from + (int64_t)row * t.width + column;
    double *to = t.room + (int64_t)row * t.width + column;
    bool pairs = t.width % 2 == 0; // then all of them are aligned
#pragma unroll
    for (int i = 0; i < FOUR; i++) {
#pragma unroll
        for (int m = 0; m < S::PAIRS; m++) {
            int off = m * 2 * S::ACROSS, at = column + off;
            bool there = row + i < t.width;
            now[i][m] = take_pair(from + (int64_t)i * t.width + off, pairs,
                                  there && at < t.width, there && at + 1 < t.width);
        }
    }
    for (int b = 0; b < t.owed; b++) {
        const double *pending = t.pending + b * S::PLACES;
        double by_pivot = t.shared->by_pivots[b];
        double2 upper = *(const double2 *)(pending + row);
        double2 lower = *(const double2 *)(pending + row + 2);
        const double left[FOUR] = {upper.x * by_pivot, upper.y * by_pivot, lower.x * by_pivot,
                                   lower.y * by_pivot};
#pragma unroll
        for (int m = 0; m < S::PAIRS; m++) {
            double2 right = *(const double2 *)(pending + column + m * 2 * S::ACROSS);
#pragma unroll
            for (int i = 0; i < FOUR; i++) {
                now[i][m].x -= left[i] * right.x;
                now[i][m].y -= left[i] * right.y;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < FOUR; i++) {
#pragma unroll
        for (int m = 0; m < S::PAIRS; m++) {
            int off = m * 2 * S::ACROSS, at = column + off;
            double *place = to + (int64_t)i * t.width + off;
            bool first = row + i < t.width && at < t.width;
            if (pairs && first) {
                *(double2 *)place = now[i][m];
            } else if (first) {
                place[0] = now[i][m].x;
                if (at + 1 < t.width) {
                    place[1] = now[i][m].y;
                }
            }
        }
    }
}

template <typename S> __device__ void flush(tableau<S> &t)
{
    int y = (int)threadIdx.x / S::ACROSS * FOUR, x = (int)threadIdx.x % S::ACROSS * 2;
    for (int row = 0; row < t.width; row += TILE) {
        for (int column = 0; column <= row; column += TILE) {
            flush_tile(t, row + y, column + x);
        }
    }
    __syncthreads();
    t.from = t.room;
    t.owed = 0;
}

template <typename S> __device__ void pivot(tableau<S> &t, int k)
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
        const double *pending = t.pending + b * S::PLACES;
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
        t.pending[t.owed * S::PLACES + t.first + q] = line[q];
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

template <typename S> __device__ bool drop_cheapest(tableau<S> &t)
{
    offer best = {(double)INFINITY, INT32_MAX, 0};
#pragma unroll
    for (int q = 0; q < FOUR; q++) {
        if (q < t.count && t.live > KEEP && t.diagonal[q] > 0) {
            offer mine = {t.values[q] * t.values[q] / t.diagonal[q], t.first + q, 0};
            best = is_better(mine, best) ? mine : best;
        }
    }
    best = block_best<S::WARPS>(best, t.shared->offers);
    if (best.of == INT32_MAX) {
        return false;
    }
    t.live -= best.of >= t.first && best.of < t.first + t.count;
    pivot(t, best.of);
    return true;
}

template <typename S> __device__ bool swap_best(tableau<S> &t)
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
    best = block_best<S::WARPS>(best, t.shared->offers);
    if (best.of == INT32_MAX) {
        return false;
    }
    pivot(t, best.with);
    pivot(t, best.of);
    return true;
}

template <typename S>
__device__ void load(tableau<S> &t, const double *corner, const double *values)
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

template <typename S>
__global__ void __launch_bounds__(S::THREADS, S::AT_ONCE) search(gpu_rows r)
{
    extern __shared__ double2 pending[];
    __shared__ shared_room<S> shared;
    tableau<S> t;
    t.width = (int)r.width;
    t.room = r.room + (int64_t)blockIdx.x * r.width * r.width;
    t.pending = (double *)pending;
    t.shared = &shared;
    for (int64_t row = blockIdx.x; row < r.rows; row += gridDim.x) {
        double *values = r.values + row * r.values_stride;
        load(t, r.corner + row / r.panel_rows * r.corner_step, values);
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

__global__ void mark(gpu_rows r, const int32_t *listed, int64_t listed_stride, uint64_t *mask,
                     int64_t mask_words)
{
    int64_t row = blockIdx.x, place = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    if (place < r.width && r.live[row * r.width + place] != 0) {
        int32_t column = listed[row / r.panel_rows * listed_stride + place];
        unsigned long long bit = 1ull << column % 64;
        atomicOr((unsigned long long *)mask + row * mask_words + column / 64, bit);
    }
}

__global__ void spread(const double *values, const int32_t *listed, int64_t panel_rows, int64_t n,
                       double *to, int64_t in)
{
    int64_t row = blockIdx.x, place = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    if (place < n) {
        to[row * in + listed[row / panel_rows * n + place]] = values[row * n + place];
    }
}

dim3 grid_of(int64_t rows, int64_t width)
{
    return dim3((unsigned)rows, (unsigned)((width + THREADS - 1) / THREADS));
}

__global__ void zero_lower(double *matrix, int64_t n, int64_t step)
{
    int64_t row = blockIdx.x, column = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    if (column < n && column < row) {
        matrix[blockIdx.z * step + row * n + column] = 0;
    }
}

template <typename S> int launch(const gpu_rows *rows, cudaStream_t stream)
{
    cudaError_t error = cudaFuncSetAttribute(
        search<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::BYTES);
    if (error == cudaSuccess) {
        search<S><<<(unsigned)rows->blocks, S::THREADS, S::BYTES, stream>>>(*rows);
        error = cudaGetLastError();
    }
    return error;
}

} // namespace

extern "C" int gpu_rows_at_once(int64_t width)
{
    return width > GPU_SHORT_PLACES ? shape<GPU_ROW_PLACES>::AT_ONCE
                                    : shape<GPU_SHORT_PLACES>::AT_ONCE;
}

extern "C" int gpu_rows_search(const gpu_rows *rows, void *stream)
{
    cudaStream_t in = (cudaStream_t)stream;
    return rows->width > GPU_SHORT_PLACES ? launch<shape<GPU_ROW_PLACES>>(rows, in)
                                          : launch<shape<GPU_SHORT_PLACES>>(rows, in);
}

extern "C" int gpu_rows_mark(const gpu_rows *rows, const int32_t *listed, int64_t listed_stride,
                             uint64_t *mask, int64_t mask_words, void *stream)
{
    mark<<<grid_of(rows->rows, rows->width), THREADS, 0, (cudaStream_t)stream>>>(
        *rows, listed, listed_stride, mask, mask_words);
    return cudaGetLastError();
}

extern "C" int gpu_rows_spread(const double *values, const int32_t *listed, int64_t rows,
                               int64_t panel_rows, int64_t n, double *to, int64_t in, void *stream)
{
    spread<<<grid_of(rows, n), THREADS, 0, (cudaStream_t)stream>>>(values, listed, panel_rows, n,
                                                                  to, in);
    return cudaGetLastError();
}

extern "C" int gpu_zero_lower(double *matrix, int64_t n, int64_t count, int64_t step, void *stream)
{
    dim3 grid((unsigned)n, (unsigned)((n + THREADS - 1) / THREADS), (unsigned)count);
    zero_lower<<<grid, THREADS, 0, (cudaStream_t)stream>>>(matrix, n, step);
    return cudaGetLastError();
}
