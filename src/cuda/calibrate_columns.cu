// Columns of panels by second order (src/prune/panel_obs.c), all panels in step: a turn drops the
// cheapest column of each, in two launches. `choose` finds it and what it costs each row; `follow`
// makes its line of the inverse from the matrix as of the last flush and from what is owed to it
// since, and brings diagonals and costs up to date.
//
// Weights are owed likewise, since all that a turn needs of them is sums of squares of columns. A
// column k that goes takes times[r] = w_rk / p off the rows, line l_j, so
//     cost_j becomes cost_j - 2 l_j sum_r times_r w_rj + l_j^2 sum_r times_r^2,
// in which w_rj = W_rj - sum_b times_br L_bj is made of the weights W as of the last flush and the
// lines L since. So each turn reads W and L once and writes a line; flushes sum costs anew.
//
// A flush pays the matrix by strips of columns, on and below the diagonal only.
#include <cuda_runtime.h>

#include "cuda/calibrate_block.cuh"
#include "cuda/gpu_calibrate.h"

using namespace calibrate;

namespace {

constexpr int SLICES = WARPS, ACROSS = GPU_COLUMNS_ACROSS; // of a block: shares of sums, columns
constexpr int AT_ONCE = 8; // loads of a thread that are on their way together, whatever is left
static_assert(ACROSS == 2 * WARP, "a thread has two neighbouring columns");

__device__ __forceinline__ double entry(const gpu_columns &c, int64_t panel, int64_t i, int64_t j)
{
    const double *matrix = c.matrix + panel * c.matrix_step;
    bool stored = j < (i / c.strip + 1) * c.strip;
    return matrix[(stored ? i : j) * c.width + (stored ? j : i)];
}

__device__ __forceinline__ bool may_go(const gpu_columns &c, int64_t panel, int64_t j)
{
    int64_t base = panel * c.stride;
    return c.alive[base + j] != 0 &&
           c.left[base + c.original[base + j] / c.group] > (c.free ? c.kept : 4);
}

__device__ __forceinline__ offer offer_of(bool may, double cost, double diagonal, int64_t j)
{
    double share = cost / diagonal;
    bool goes = may && share < (double)INFINITY;
    return {goes ? share : (double)INFINITY, goes ? (int32_t)j : INT32_MAX, 0};
}

// The cheapest of a warp's columns, for `choose`.
__device__ __forceinline__ void put_offer(const gpu_columns &c, int64_t panel, offer first,
                                          offer second)
{
    offer best = {(double)INFINITY, INT32_MAX, 0};
    best = is_better(first, best) ? first : best;
    best = is_better(second, best) ? second : best;
    best = warp_best(best);
    if (threadIdx.x % WARP == 0) {
        c.offers[panel * gridDim.x + blockIdx.x] = {best.cost, best.of};
    }
}

__global__ void begin(gpu_columns c, const double *weights)
{
    int64_t panel = blockIdx.y, j = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int64_t at = panel * c.stride + j;
    if (j >= c.width) {
        return;
    }
    for (int64_t r = panel * c.v; r < min((panel + 1) * c.v, c.rows); r++) {
        c.weights[r * c.stride + j] = weights[r * c.width + j];
    }
    c.alive[at] = 1;
    c.original[at] = (int32_t)j;
    c.left[at] = j * c.group < c.width ? (int32_t)min(c.group, c.width - j * c.group) : 0;
}

// Diagonals, costs and offers from matrix and weights with nothing owed.
__global__ void settle(gpu_columns c)
{
    __shared__ double2 sums[SLICES][WARP];
    int lane = threadIdx.x % WARP, slice = threadIdx.x / WARP;
    int64_t panel = blockIdx.y, j = (int64_t)blockIdx.x * ACROSS + lane * 2;
    double2 sum = {0, 0};
    for (int64_t r = slice; r < c.v && j < c.width; r += SLICES) {
        double2 w = *(const double2 *)(c.weights + (panel * c.v + r) * c.stride + j);
        sum.x += w.x * w.x;
        sum.y += w.y * w.y;
    }
    sums[slice][lane] = sum;
    __syncthreads();
    if (slice > 0) {
        return;
    }
    for (int s = 1; s < SLICES; s++) {
        sum.x += sums[s][lane].x;
        sum.y += sums[s][lane].y;
    }
    offer offers[2];
    for (int q = 0; q < 2; q++) {
        int64_t at = panel * c.stride + j + q;
        bool there = j + q < c.width;
        double cost = q == 0 ? sum.x : sum.y;
        double diagonal = there ? entry(c, panel, j + q, j + q) : 1;
        if (there) {
            c.costs[at] = cost;
            c.diagonal[at] = diagonal;
        }
        offers[q] = offer_of(there && may_go(c, panel, j + q), cost, diagonal, j + q);
    }
    put_offer(c, panel, offers[0], offers[1]);
}

constexpr int CHOOSERS = 1024, CHOOSING_WARPS = CHOOSERS / WARP;

struct choice_room {
    offer offers[CHOOSING_WARPS];
    double line[GPU_PENDING]; // of the turns before, at the chosen column
    double parts[CHOOSERS];
};

// What the turn takes off row r, `owed` being what its weight lacks since the flush.
__device__ __forceinline__ void set_times(const gpu_columns &c, int64_t panel, int turn, int64_t r,
                                          int64_t k, double owed, double pivot)
{
    double weight = c.weights[(panel * c.v + r) * c.stride + k] - owed;
    c.times[(panel * GPU_PENDING + turn) * c.v + r] = weight / pivot;
}

// A warp to 32 rows, or several that share the turns before between them.
__device__ __forceinline__ void find_times(const gpu_columns &c, int64_t panel, int turn, int64_t k,
                                           double pivot, choice_room &room)
{
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int chunks = (int)((c.v + WARP - 1) / WARP), shares = max(1, CHOOSING_WARPS / chunks);
    const double *times = c.times + panel * GPU_PENDING * c.v;
    for (int unit = warp; unit < chunks * shares; unit += CHOOSING_WARPS) {
        int64_t r = (int64_t)(unit / shares) * WARP + lane;
        double owed = 0;
        for (int from = unit % shares; from < turn && r < c.v; from += AT_ONCE * shares) {
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                int b = from + i * shares;
                owed += b < turn ? times[b * c.v + r] * room.line[b] : 0;
            }
        }
        if (shares > 1) {
            room.parts[threadIdx.x] = owed;
        } else if (r < c.v) {
            set_times(c, panel, turn, r, k, owed, pivot);
        }
    }
    __syncthreads();
    for (int64_t r = threadIdx.x; r < c.v && shares > 1; r += CHOOSERS) {
        double owed = 0;
        for (int s = 0; s < shares; s++) {
            owed += room.parts[(r / WARP * shares + s) * WARP + lane];
        }
        set_times(c, panel, turn, r, k, owed, pivot);
    }
    __syncthreads();
}

// by_gain: a warp to every so many turns.
__device__ __forceinline__ void find_gains(const gpu_columns &c, int64_t panel, int turn)
{
    constexpr int TURNS = GPU_PENDING / CHOOSING_WARPS;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const double *times = c.times + panel * GPU_PENDING * c.v;
    double sums[TURNS] = {};
    for (int64_t r = lane; r < c.v; r += WARP) {
        double own = times[turn * c.v + r];
#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            int b = warp + i * CHOOSING_WARPS;
            sums[i] += b <= turn ? own * times[b * c.v + r] : 0;
        }
    }
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        int b = warp + i * CHOOSING_WARPS;
        double sum = warp_sum(sums[i]);
        if (lane == 0 && b <= turn) {
            c.by_gain[panel * GPU_PENDING + b] = sum;
        }
    }
}

__global__ void __launch_bounds__(CHOOSERS) choose(gpu_columns c, int turn, int offers)
{
    __shared__ choice_room room;
    int64_t panel = blockIdx.x, owed = panel * GPU_PENDING;
    offer best = {(double)INFINITY, INT32_MAX, 0};
    for (int i = threadIdx.x; i < offers; i += CHOOSERS) {
        gpu_offer one = c.offers[panel * offers + i];
        offer mine = {one.cost, one.column, 0};
        best = is_better(mine, best) ? mine : best;
    }
    best = block_best<CHOOSING_WARPS>(best, room.offers);
    int64_t k = best.of;
    double *times = c.times + (owed + turn) * c.v;
    if (k == INT32_MAX) { // nothing can go: a turn that does nothing
        for (int64_t r = threadIdx.x; r < c.v; r += CHOOSERS) {
            times[r] = 0;
        }
        if (threadIdx.x == 0) {
            c.chosen[panel] = -1;
            c.pivots[owed + turn] = 1;
        }
        return;
    }
    double pivot = c.diagonal[panel * c.stride + k];
    if (threadIdx.x < turn) {
        double line = c.pending[(owed + threadIdx.x) * c.stride + k];
        room.line[threadIdx.x] = line;
        c.by_line[owed + threadIdx.x] = line / c.pivots[owed + threadIdx.x];
    }
    __syncthreads();
    find_times(c, panel, turn, k, pivot, room);
    find_gains(c, panel, turn);
    if (threadIdx.x == 0) {
        c.chosen[panel] = (int32_t)k;
        c.pivots[owed + turn] = pivot;
        c.alive[panel * c.stride + k] = 0;
        c.left[panel * c.stride + c.original[panel * c.stride + k] / c.group]--;
    }
}

struct shares {
    double2 lines[SLICES][WARP], gains[SLICES][WARP];
};

// What of a column the latest turn reads and changes.
struct column {
    bool there, alive, may_go;
    double now, diagonal, cost;
};

__device__ __forceinline__ column load_column(const gpu_columns &c, int64_t panel, int64_t k,
                                              int64_t j)
{
    column made = {j < c.width, false, false, 0, 1, 0};
    if (made.there) {
        int64_t at = panel * c.stride + j;
        made.alive = c.alive[at] != 0;
        made.may_go = may_go(c, panel, j);
        made.now = entry(c, panel, k, j);
        made.diagonal = c.diagonal[at];
        made.cost = c.costs[at];
    }
    return made;
}

// owed: what its line lacks since the flush.
__device__ __forceinline__ offer follow_column(const gpu_columns &c, int64_t panel, int turn,
                                               int64_t j, column &own, double owed, double gain,
                                               double pivot, double square)
{
    int64_t at = panel * c.stride + j;
    double line = own.alive ? own.now - owed : 0;
    own.diagonal -= line * (line / pivot);
    own.cost = fmax(own.cost + line * (line * square - 2 * gain), 0.0);
    if (own.there) {
        c.pending[(panel * GPU_PENDING + turn) * c.stride + j] = line;
        c.diagonal[at] = own.diagonal;
        c.costs[at] = own.cost;
    }
    return offer_of(own.may_go, own.cost, own.diagonal, j);
}

__global__ void __launch_bounds__(THREADS, 4) follow(gpu_columns c, int turn)
{
    __shared__ double by_line[GPU_PENDING], by_gain[GPU_PENDING];
    __shared__ shares room;
    int lane = threadIdx.x % WARP, slice = threadIdx.x / WARP;
    int64_t panel = blockIdx.y, j = (int64_t)blockIdx.x * ACROSS + lane * 2, k = c.chosen[panel];
    int64_t of = panel * GPU_PENDING;
    double *pending = c.pending + of * c.stride + j;
    bool there = j < c.width;
    if (k < 0) {
        for (int q = 0; q < 2 && slice == 0 && j + q < c.width; q++) {
            pending[turn * c.stride + q] = 0;
        }
        return;
    }
    if (threadIdx.x < GPU_PENDING) {
        by_line[threadIdx.x] = threadIdx.x < turn ? c.by_line[of + threadIdx.x] : 0;
        by_gain[threadIdx.x] = threadIdx.x < turn ? c.by_gain[of + threadIdx.x] : 0;
    }
    column own[2] = {};
    double pivot = 1, square = 0;
    if (slice == 0) { // before the sums, so that it arrives behind them
        own[0] = load_column(c, panel, k, j);
        own[1] = load_column(c, panel, k, j + 1);
        pivot = c.pivots[of + turn];
        square = c.by_gain[of + turn];
    }
    double2 line = {0, 0}, gain = {0, 0};
    const double *weights = c.weights + panel * c.v * c.stride + j;
    const double *times = c.times + (of + turn) * c.v;
    for (int64_t from = slice; from < c.v && there; from += AT_ONCE * SLICES) {
        double2 w[AT_ONCE];
        double by[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int64_t r = from + i * SLICES;
            w[i] = r < c.v ? *(const double2 *)(weights + r * c.stride) : make_double2(0, 0);
            by[i] = r < c.v ? times[r] : 0;
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            gain.x += by[i] * w[i].x;
            gain.y += by[i] * w[i].y;
        }
    }
    __syncthreads();
    for (int from = slice; from < turn && there; from += AT_ONCE * SLICES) {
        double2 l[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int b = from + i * SLICES;
            l[i] = b < turn ? *(const double2 *)(pending + b * c.stride) : make_double2(0, 0);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int b = min(from + i * SLICES, GPU_PENDING - 1);
            line.x += by_line[b] * l[i].x;
            line.y += by_line[b] * l[i].y;
            gain.x -= by_gain[b] * l[i].x;
            gain.y -= by_gain[b] * l[i].y;
        }
    }
    room.lines[slice][lane] = line;
    room.gains[slice][lane] = gain;
    __syncthreads();
    if (slice > 0) {
        return;
    }
    for (int s = 1; s < SLICES; s++) {
        line.x += room.lines[s][lane].x;
        line.y += room.lines[s][lane].y;
        gain.x += room.gains[s][lane].x;
        gain.y += room.gains[s][lane].y;
    }
    offer first =
        follow_column(c, panel, turn, j, own[0], line.x, gain.x, pivot, square);
    offer second =
        follow_column(c, panel, turn, j + 1, own[1], line.y, gain.y, pivot, square);
    put_offer(c, panel, first, second);
}

// scaled: lines by their pivots.
__global__ void scale(gpu_columns c, int turns)
{
    int64_t j = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int64_t at = (int64_t)blockIdx.z * GPU_PENDING + blockIdx.y;
    if (j < c.width) {
        c.scaled[at * c.stride + j] = c.pending[at * c.stride + j] / c.pivots[at];
    }
}

// The first n columns that are alive; a thread looks at a run of them.
__global__ void __launch_bounds__(CHOOSERS) list_alive(gpu_columns c, int64_t n)
{
    __shared__ int before[CHOOSERS];
    int64_t panel = blockIdx.x, base = panel * c.stride;
    int64_t run = (c.width + CHOOSERS - 1) / CHOOSERS, from = threadIdx.x * run;
    int64_t stop = min(from + run, c.width);
    int count = 0;
    for (int64_t j = from; j < stop; j++) {
        count += c.alive[base + j] != 0;
    }
    before[threadIdx.x] = count;
    __syncthreads();
    for (int reach = 1; reach < CHOOSERS; reach *= 2) {
        int more = threadIdx.x >= reach ? before[threadIdx.x - reach] : 0;
        __syncthreads();
        before[threadIdx.x] += more;
        __syncthreads();
    }
    int64_t at = before[threadIdx.x] - count;
    for (int64_t j = from; j < stop && at < n; j++) {
        if (c.alive[base + j] != 0) {
            c.listed[base + at++] = (int32_t)j;
        }
    }
}

__global__ void gather_matrix(gpu_columns c, int64_t panel, const int32_t *listed, int64_t n,
                              double *to)
{
    int64_t i = blockIdx.x, j = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    if (j < n) {
        to[i * n + j] = entry(c, panel, listed[i], listed[j]);
    }
}

__global__ void gather_values(gpu_columns c, const int32_t *listed, int64_t listed_stride,
                              int64_t n, double *to, int64_t to_stride)
{
    int64_t row = blockIdx.x, j = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    if (j < n) {
        int32_t from = listed[row / c.v * listed_stride + j];
        to[row * to_stride + j] = c.weights[row * c.stride + from];
    }
}

__global__ void renumber(gpu_columns c, int64_t n)
{
    int64_t base = blockIdx.y * c.stride, j = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (j < n) {
        c.renumbered[base + j] = c.original[base + c.listed[base + j]];
        c.alive[base + j] = 1;
    }
}

unsigned blocks_of(int64_t count, int64_t each)
{
    return (unsigned)((count + each - 1) / each);
}

dim3 grid_of(const gpu_columns *c)
{
    return dim3(blocks_of(c->width, ACROSS), (unsigned)c->panels);
}

} // namespace

extern "C" int gpu_columns_begin(const gpu_columns *columns, const double *weights, void *stream)
{
    dim3 grid(blocks_of(columns->width, THREADS), (unsigned)columns->panels);
    begin<<<grid, THREADS, 0, (cudaStream_t)stream>>>(*columns, weights);
    return cudaGetLastError();
}

extern "C" int gpu_columns_settle(const gpu_columns *columns, void *stream)
{
    settle<<<grid_of(columns), THREADS, 0, (cudaStream_t)stream>>>(*columns);
    return cudaGetLastError();
}

extern "C" int gpu_columns_drop(const gpu_columns *columns, int turn, void *stream)
{
    cudaStream_t in = (cudaStream_t)stream;
    dim3 grid = grid_of(columns);
    choose<<<(unsigned)columns->panels, CHOOSERS, 0, in>>>(*columns, turn, (int)grid.x);
    follow<<<grid, THREADS, 0, in>>>(*columns, turn);
    return cudaGetLastError();
}

extern "C" int gpu_columns_scale(const gpu_columns *columns, int turns, void *stream)
{
    dim3 grid(blocks_of(columns->width, THREADS), (unsigned)turns, (unsigned)columns->panels);
    scale<<<grid, THREADS, 0, (cudaStream_t)stream>>>(*columns, turns);
    return cudaGetLastError();
}

extern "C" int gpu_columns_list(const gpu_columns *columns, int64_t n, void *stream)
{
    list_alive<<<(unsigned)columns->panels, CHOOSERS, 0, (cudaStream_t)stream>>>(*columns, n);
    return cudaGetLastError();
}

extern "C" int gpu_columns_matrix(const gpu_columns *columns, int64_t panel, const int32_t *listed,
                                  int64_t n, double *to, void *stream)
{
    dim3 grid((unsigned)n, blocks_of(n, THREADS));
    gather_matrix<<<grid, THREADS, 0, (cudaStream_t)stream>>>(*columns, panel, listed, n, to);
    return cudaGetLastError();
}

extern "C" int gpu_columns_values(const gpu_columns *columns, const int32_t *listed,
                                  int64_t listed_stride, int64_t n, double *to, int64_t to_stride,
                                  void *stream)
{
    dim3 grid((unsigned)(columns->panels * columns->v), blocks_of(n, THREADS));
    gather_values<<<grid, THREADS, 0, (cudaStream_t)stream>>>(*columns, listed, listed_stride, n,
                                                             to, to_stride);
    return cudaGetLastError();
}

extern "C" int gpu_columns_renumber(const gpu_columns *columns, int64_t n, void *stream)
{
    dim3 grid(blocks_of(n, THREADS), (unsigned)columns->panels);
    renumber<<<grid, THREADS, 0, (cudaStream_t)stream>>>(*columns, n);
    return cudaGetLastError();
}
