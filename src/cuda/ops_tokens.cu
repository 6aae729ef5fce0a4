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
    bool tables_vector, x_vector; // 16-byte accesses are in order
};

// Where token t finds its rows, < 0: nowhere.
struct found_rows {
    int64_t row[GPU_MOST_LOOKUPS];

    __device__ __forceinline__ void find(const embed_task &e, int64_t token)
    {
#pragma unroll
        for (int i = 0; i < GPU_MOST_LOOKUPS; i++) {
            const gpu_lookup &from = e.lookups[i];
            bool there = i < e.count && token < e.tokens;
            row[i] = !there ? -1 : from.rows != nullptr ? from.rows[token] : 0;
            row[i] = row[i] < from.count ? row[i] : -1;
        }
    }
    // Features feature .. feature + 7, of which `left` are there.
    template <class T>
    __device__ __forceinline__ void add_up(const embed_task &e, int64_t feature, int left, float (&sum)[8]) const
    {
#pragma unroll
        for (int i = 0; i < GPU_MOST_LOOKUPS; i++) {
            if (row[i] >= 0) {
                float v[8];
                const T *from = (const T *)e.lookups[i].table + row[i] * e.features + feature;
                ops::widen_eight<T>(ops::load_eight(from, left, e.tables_vector), v);
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    sum[j] += v[j];
                }
            }
        }
    }
};

// Eight threads have 64 features of a token; then eight others have 64 tokens of a feature.
template <class T> __global__ void __launch_bounds__(THREADS) embed_kernel(const __grid_constant__ embed_task e)
{
    __shared__ uint32_t tile[TILE][TILE / 2 + 1]; // [token][pair of features]
    constexpr int EACH = TILE * 8 / THREADS;      // tokens, then features, of a thread
    int64_t feature0 = (int64_t)blockIdx.x * TILE;
    int eight = threadIdx.x % 8, line = threadIdx.x / 8;
    int left = (int)max((int64_t)0, min((int64_t)8, e.features - feature0 - eight * 8));
    ops::begin();
    for (int64_t token0 = (int64_t)blockIdx.y * TILE; token0 < e.tokens;
         token0 += (int64_t)gridDim.y * TILE) {
        found_rows rows[EACH];
        float sums[EACH][8] = {};
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            rows[k].find(e, token0 + line + k * (THREADS / 8));
        }
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            rows[k].template add_up<T>(e, feature0 + eight * 8, left, sums[k]);
        }
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            uint32_t *to = &tile[line + k * (THREADS / 8)][eight * 4];
            uint4 v = ops::narrow_eight<T>(sums[k]);
            to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
        }
        __syncthreads();
        int tokens = (int)max((int64_t)0, min((int64_t)8, e.tokens - token0 - eight * 8));
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            int f = line + k * (THREADS / 8);
            uint32_t words[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                uint32_t low = tile[eight * 8 + 2 * j][f / 2] >> f % 2 * 16 & 0xffff;
                words[j] = low | tile[eight * 8 + 2 * j + 1][f / 2] >> f % 2 * 16 << 16;
            }
            if (feature0 + f < e.features) {
                T *to = (T *)e.x + (feature0 + f) * e.x_stride + token0 + eight * 8;
                ops::store_eight(to, make_uint4(words[0], words[1], words[2], words[3]), tokens,
                                 e.x_vector);
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

constexpr int ROWS_AT_ONCE = 8; // of a warp: that many loads are under way

// Two neighbouring columns of y: where they come from, < 0: from nowhere.
struct two_columns {
    int64_t first; // of y
    int left;      // 0, 1 or 2 are there
    int64_t from[2];
    bool together; // they come from neighbours, which one access of 4 bytes may read

    template <class T> __device__ __forceinline__ void load(const T *row, T (&v)[2]) const
    {
        if (together) {
            uint32_t both = *(const uint32_t *)(row + from[0]);
            uint16_t low = (uint16_t)both, high = (uint16_t)(both >> 16);
            v[0] = *(const T *)&low, v[1] = *(const T *)&high;
            return;
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            v[i] = from[i] >= 0 ? row[from[i]] : ops::narrow<T>(0.0f);
        }
    }
    // paired: rows of what is read begin at multiples of 4 bytes.
    __device__ __forceinline__ void find_neighbours(bool paired)
    {
        together = paired && left == 2 && from[0] >= 0 && from[0] % 2 == 0 && from[1] == from[0] + 1;
    }
};

__device__ __forceinline__ two_columns my_columns(int64_t count)
{
    int64_t first = (int64_t)blockIdx.x * 64 + threadIdx.x % 32 * 2;
    return {first, (int)max((int64_t)0, min((int64_t)2, count - first)), {-1, -1}, false};
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
    bool add, x_paired, y_paired; // 4-byte accesses are in order
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
            at.load((const T *)g.x + (row + r * step) * g.x_stride, v[r]);
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
            ops::store_pair(y, v[r][0], v[r][1], at.left, g.y_paired);
        }
    }
};

template <class T> __global__ void __launch_bounds__(THREADS) gather_kernel(const __grid_constant__ gather_task g)
{
    ops::begin();
    two_columns at = my_columns(g.count);
#pragma unroll
    for (int i = 0; i < 2; i++) { // unrolled, or the places would lie in memory
        at.from[i] = i < at.left ? g.index[at.first + i] : -1;
    }
    at.find_neighbours(g.x_paired);
    for_rows(g.features, gather_rows<T>{g, at});
}

// A warp has the same 64 places of every image that is its turn, so positions are read once for them.
struct place_task {
    gpu_image_tokens of;
    bool paired, from_paired; // 4-byte accesses to x and from are in order
};

template <class T> struct place_rows {
    const place_task &task;
    two_columns at; // of an image; from: its column of `from`
    int64_t position[2];

    template <int ROWS> __device__ __forceinline__ void operator()(int64_t row, int64_t step) const
    {
        const gpu_image_tokens &p = task.of;
        float more[ROWS][2];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const float *positions = p.positions + (row + r * step) * p.positions_stride;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                more[r][i] = position[i] >= 0 ? positions[position[i]] : 0.0f;
            }
        }
        for (int64_t image = blockIdx.z; image < p.images; image += gridDim.z) {
            const T *from = (const T *)p.from + row * p.from_stride + image * p.from_pitch;
            T *x = (T *)p.x + row * p.x_stride + image * p.pitch + at.first, v[ROWS][2];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                at.load(from + r * step * p.from_stride, v[r]);
            }
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                ops::store_pair(x + r * step * p.x_stride,
                                ops::narrow<T>(ops::widen(v[r][0]) + more[r][0]),
                                ops::narrow<T>(ops::widen(v[r][1]) + more[r][1]), at.left,
                                task.paired);
            }
        }
    }
};

template <class T> __global__ void __launch_bounds__(THREADS) place_kernel(const __grid_constant__ place_task task)
{
    ops::begin();
    const gpu_image_tokens &p = task.of;
    place_rows<T> work = {task, my_columns(p.pitch), {-1, -1}};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int64_t token = work.at.first + i;
        bool there = i < work.at.left && token < p.specials + p.patches;
        work.position[i] = there ? token : -1;
        work.at.from[i] = there && token >= p.specials ? token - p.specials : -1;
    }
    work.at.find_neighbours(task.from_paired);
    for_rows(p.features, work);
}

constexpr int IMAGES_EACH = 8; // of a warp

// Enough warps to fill the GPU, and no fewer rows a warp than make its list worth reading.
int column_grid(int64_t columns, int64_t rows, dim3 *grid)
{
    int64_t across = ops::divide_up(columns, 64);
    int64_t down = ops::divide_up(rows, WARPS * ROWS_AT_ONCE);
    *grid = dim3((unsigned)across, ops::at_most(down, ops::MOST_BLOCKS_Y));
    return across <= INT32_MAX ? cudaSuccess : cudaErrorInvalidValue;
}

// Columns that lie apart are a request to the L2 each, which want all multiprocessors however few they are.
void spread_out(int64_t rows, dim3 *grid)
{
    constexpr int64_t ENOUGH_BLOCKS = 256;
    int64_t most = ops::divide_up(rows, WARPS), wanted = ops::divide_up(ENOUGH_BLOCKS, (int64_t)grid->x);
    if (wanted > (int64_t)grid->y) {
        grid->y = ops::at_most(wanted, most);
    }
}

} // namespace

extern "C" int gpu_embed(gpu_type type, const gpu_lookup *lookups, int count, int64_t features,
                         int64_t tokens, void *x, int64_t x_stride, void *stream)
{
    embed_task task = {{},   count, features, tokens, x_stride, x, true,
                       ops::aligned_to(x, x_stride, 2, 16)};
    if (count < 1 || count > GPU_MOST_LOOKUPS) {
        return cudaErrorInvalidValue;
    }
    if (features <= 0 || tokens <= 0) {
        return cudaSuccess;
    }
    for (int i = 0; i < count; i++) {
        task.lookups[i] = lookups[i];
        task.tables_vector =
            task.tables_vector && ops::aligned_to(lookups[i].table, features, 2, 16);
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
    gather_task task = {x,     x_stride, features,
                        count, index,    add,
                        ops::aligned_to(x, x_stride, 2, 4), ops::aligned_to(y, y_stride, 2, 4),
                        y,     y_stride};
    dim3 grid;
    if (features <= 0 || count <= 0) {
        return cudaSuccess;
    }
    int failed = column_grid(count, features, &grid);
    if (failed != 0) {
        return failed;
    }
    spread_out(features, &grid);
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
    place_task task = {*tokens,
                       ops::aligned_to(tokens->x, tokens->x_stride, 2, 4) && tokens->pitch % 2 == 0,
                       ops::aligned_to(tokens->from, tokens->from_stride, 2, 4) &&
                           tokens->from_pitch % 2 == 0};
    dim3 grid;
    if (tokens->pitch < tokens->specials + tokens->patches ||
        tokens->from_pitch < tokens->patches) {
        return cudaErrorInvalidValue;
    }
    if (tokens->features <= 0 || tokens->images <= 0 || tokens->pitch <= 0) {
        return cudaSuccess;
    }
    int failed = column_grid(tokens->pitch, tokens->features, &grid);
    grid.z = ops::at_most(ops::divide_up(tokens->images, IMAGES_EACH), ops::MOST_BLOCKS_Y);
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
