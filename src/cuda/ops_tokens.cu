// Columns brought together: rows of tables as columns, columns of other matrices, special tokens and positions of
// images. Reference: src/ref/ops.c (embed, gather_tokens, add).
//
// Tables are row-major and activations feature-major, so rows are turned in shared memory. Columns that move go two
// by two: a warp has 64 neighbouring columns of what it writes, whose places it knows, and takes row after row.
//
// Limit: memory bandwidth.
#include "cuda/ops.cuh"

namespace {

constexpr int THREADS = 256, WARPS = THREADS / 32;

// ---- rows of tables ----

constexpr int TILE = 64; // features, and tokens

struct embed_task {
    gpu_lookup lookups[GPU_MOST_LOOKUPS];
    int count;
    int64_t features, tokens, x_stride;
    void *x;
};

template <class T>
__device__ __forceinline__ float sum_of_rows(const embed_task &e, const int64_t (&rows)[GPU_MOST_LOOKUPS],
                                             int64_t feature)
{
    float sum = 0;
#pragma unroll
    for (int i = 0; i < GPU_MOST_LOOKUPS; i++) {
        if (rows[i] >= 0) {
            sum += ops::widen(((const T *)e.lookups[i].table)[rows[i] * e.features + feature]);
        }
    }
    return sum;
}

template <class T> __global__ void __launch_bounds__(THREADS) embed_kernel(const __grid_constant__ embed_task e)
{
    __shared__ T tile[TILE][TILE + 2]; // [token][feature]
    int64_t feature0 = (int64_t)blockIdx.x * TILE;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    ops::begin();
    for (int64_t token0 = (int64_t)blockIdx.y * TILE; token0 < e.tokens;
         token0 += (int64_t)gridDim.y * TILE) {
        int tokens = (int)min((int64_t)TILE, e.tokens - token0);
        for (int t = warp; t < tokens; t += WARPS) {
            int64_t rows[GPU_MOST_LOOKUPS];
#pragma unroll
            for (int i = 0; i < GPU_MOST_LOOKUPS; i++) {
                const gpu_lookup &from = e.lookups[i];
                rows[i] = i >= e.count ? -1 : from.rows != nullptr ? from.rows[token0 + t] : 0;
                rows[i] = rows[i] < from.count ? rows[i] : -1;
            }
#pragma unroll
            for (int i = 0; i < TILE; i += 32) {
                if (feature0 + lane + i < e.features) {
                    tile[t][lane + i] =
                        ops::narrow<T>(sum_of_rows<T>(e, rows, feature0 + lane + i));
                }
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < TILE * tokens; i += THREADS) {
            int f = i / tokens, t = i % tokens;
            if (feature0 + f < e.features) {
                ((T *)e.x)[(feature0 + f) * e.x_stride + token0 + t] = tile[t][f];
            }
        }
        __syncthreads();
    }
}

template <class T> int embed(const embed_task &e, void *stream)
{
    dim3 grid(ops::at_most(ops::divide_up(e.features, TILE), INT32_MAX),
              ops::at_most(ops::divide_up(e.tokens, TILE), ops::MOST_BLOCKS_Y));
    return ops::launch(embed_kernel<T>, grid, THREADS, 1, stream, e);
}

// ---- columns ----

constexpr int ROWS_AT_ONCE = 4; // of a warp: that many loads are under way

// Two neighbouring columns of y: where they come from, < 0: from nowhere.
struct two_columns {
    int64_t first; // of y
    int left;      // 0, 1 or 2 are there
    int64_t from[2];
};

__device__ __forceinline__ two_columns my_columns(int64_t count)
{
    int64_t first = (int64_t)blockIdx.x * 64 + threadIdx.x % 32 * 2;
    return {first, (int)max((int64_t)0, min((int64_t)2, count - first)), {-1, -1}};
}

// Calls work(row) for the rows of this warp.
template <class WORK> __device__ __forceinline__ void for_rows(int64_t rows, const WORK &work)
{
    int64_t step = (int64_t)gridDim.y * WARPS;
    int64_t row = (int64_t)blockIdx.y * WARPS + threadIdx.x / 32;
    for (; row + (ROWS_AT_ONCE - 1) * step < rows; row += ROWS_AT_ONCE * step) {
        work.template operator()<ROWS_AT_ONCE>(row, step);
    }
    for (; row < rows; row += step) {
        work.template operator()<1>(row, step);
    }
}

struct gather_task {
    const void *x;
    int64_t x_stride, features, count;
    const int32_t *index;
    bool add, paired;
    void *y;
    int64_t y_stride;
};

template <class T> struct gather_rows {
    const gather_task &g;
    two_columns at;

    template <int ROWS> __device__ __forceinline__ void operator()(int64_t row, int64_t step) const
    {
        T v[ROWS][2];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const T *x = (const T *)g.x + (row + r * step) * g.x_stride;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                v[r][i] = at.from[i] >= 0 ? x[at.from[i]] : ops::narrow<T>(0.0f);
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            T *y = (T *)g.y + (row + r * step) * g.y_stride + at.first;
#pragma unroll
            for (int i = 0; g.add && i < 2; i++) {
                if (i < at.left) {
                    v[r][i] = ops::narrow<T>(ops::widen(y[i]) + ops::widen(v[r][i]));
                }
            }
            ops::store_pair(y, v[r][0], v[r][1], at.left, g.paired);
        }
    }
};

template <class T> __global__ void __launch_bounds__(THREADS) gather_kernel(const __grid_constant__ gather_task g)
{
    ops::begin();
    two_columns at = my_columns(g.count);
    for (int i = 0; i < at.left; i++) {
        at.from[i] = g.index[at.first + i];
    }
    for_rows(g.features, gather_rows<T>{g, at});
}

struct place_task {
    gpu_image_tokens of;
    bool paired;
};

template <class T> struct place_rows {
    const gpu_image_tokens &p;
    bool paired;
    two_columns at; // from: of `from`
    int64_t position[2];

    template <int ROWS> __device__ __forceinline__ void operator()(int64_t row, int64_t step) const
    {
        float v[ROWS][2];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const T *from = (const T *)p.from + (row + r * step) * p.from_stride;
            const float *positions = p.positions + (row + r * step) * p.positions_stride;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                v[r][i] = at.from[i] >= 0 ? ops::widen(from[at.from[i]]) : 0.0f;
                v[r][i] += position[i] >= 0 ? positions[position[i]] : 0.0f;
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            T *x = (T *)p.x + (row + r * step) * p.x_stride + at.first;
            ops::store_pair(x, ops::narrow<T>(v[r][0]), ops::narrow<T>(v[r][1]), at.left, paired);
        }
    }
};

template <class T> __global__ void __launch_bounds__(THREADS) place_kernel(const __grid_constant__ place_task task)
{
    ops::begin();
    const gpu_image_tokens &p = task.of;
    place_rows<T> work = {p, task.paired, my_columns(p.images * p.pitch), {-1, -1}};
    for (int i = 0; i < work.at.left; i++) {
        int64_t image = (work.at.first + i) / p.pitch, token = (work.at.first + i) % p.pitch;
        bool there = token < p.specials + p.patches;
        work.position[i] = there ? token : -1;
        work.at.from[i] =
            there && token >= p.specials ? image * p.from_pitch + token - p.specials : -1;
    }
    for_rows(p.features, work);
}

// Enough warps to fill the GPU, and no fewer rows a warp than make its list worth reading.
int column_grid(int64_t columns, int64_t rows, dim3 *grid)
{
    int64_t across = ops::divide_up(columns, 64);
    int64_t down = ops::divide_up(rows, WARPS * ROWS_AT_ONCE);
    *grid = dim3((unsigned)across, ops::at_most(down, ops::MOST_BLOCKS_Y));
    return across <= INT32_MAX ? cudaSuccess : cudaErrorInvalidValue;
}

} // namespace

extern "C" int gpu_embed(gpu_type type, const gpu_lookup *lookups, int count, int64_t features,
                         int64_t tokens, void *x, int64_t x_stride, void *stream)
{
    embed_task task = {{}, count, features, tokens, x_stride, x};
    if (count < 1 || count > GPU_MOST_LOOKUPS) {
        return cudaErrorInvalidValue;
    }
    if (features <= 0 || tokens <= 0) {
        return cudaSuccess;
    }
    for (int i = 0; i < count; i++) {
        task.lookups[i] = lookups[i];
    }
    switch (type) {
    case GPU_F16:
        return embed<__half>(task, stream);
    case GPU_BF16:
        return embed<__nv_bfloat16>(task, stream);
    default:
        return cudaErrorInvalidValue;
    }
}

extern "C" int gpu_gather_columns(gpu_type type, const void *x, int64_t x_stride, int64_t features,
                                  const int32_t *index, int64_t count, bool add, void *y,
                                  int64_t y_stride, void *stream)
{
    gather_task task = {x,   x_stride, features, count,
                        index, add, ops::aligned_to(y, y_stride, 2, 4), y, y_stride};
    dim3 grid;
    if (features <= 0 || count <= 0) {
        return cudaSuccess;
    }
    int failed = column_grid(count, features, &grid);
    if (failed != 0) {
        return failed;
    }
    switch (type) {
    case GPU_F16:
        return ops::launch(gather_kernel<__half>, grid, THREADS, 1, stream, task);
    case GPU_BF16:
        return ops::launch(gather_kernel<__nv_bfloat16>, grid, THREADS, 1, stream, task);
    default:
        return cudaErrorInvalidValue;
    }
}

extern "C" int gpu_place_image_tokens(const gpu_image_tokens *tokens, void *stream)
{
    place_task task = {*tokens, ops::aligned_to(tokens->x, tokens->x_stride, 2, 4)};
    dim3 grid;
    if (tokens->pitch < tokens->specials + tokens->patches ||
        tokens->from_pitch < tokens->patches) {
        return cudaErrorInvalidValue;
    }
    if (tokens->features <= 0 || tokens->images <= 0 || tokens->pitch <= 0) {
        return cudaSuccess;
    }
    int failed = column_grid(tokens->images * tokens->pitch, tokens->features, &grid);
    if (failed != 0) {
        return failed;
    }
    switch (tokens->type) {
    case GPU_F16:
        return ops::launch(place_kernel<__half>, grid, THREADS, 1, stream, task);
    case GPU_BF16:
        return ops::launch(place_kernel<__nv_bfloat16>, grid, THREADS, 1, stream, task);
    default:
        return cudaErrorInvalidValue;
    }
}
