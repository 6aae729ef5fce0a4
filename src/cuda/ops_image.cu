// Images into patches, and neighbourhoods of grids: rows of what a product then multiplies. Reference: src/nn/patches.c
// and src/ref/ops.c (unfold).
//
// A patch's pixels of one line go to as many rows of y, one column each, so lines are turned in shared memory: a
// block reads pieces of pixel lines as they lie and writes rows of neighbouring patches.
//
// Limit: memory bandwidth.
#include "cuda/ops.cuh"

namespace {

constexpr int THREADS = 256;

// ---- patches ----

constexpr int TILE_PATCHES = 128, TILE_ACROSS = 16; // patches, and pixels of each, that a block turns
constexpr int FOURS = TILE_ACROSS / 4, LINES = THREADS / FOURS, LOADS = TILE_PATCHES / LINES;
constexpr int PAIRS = TILE_PATCHES / 2, STORES = TILE_ACROSS * PAIRS / THREADS;

struct patches_task {
    gpu_patches of;
    int64_t rows, columns; // of patches
    int pieces;            // of TILE_ACROSS pixels, that a patch's line has
    bool fours, paired;    // pixels may be read four by four; numbers of y be written two by two
};

template <class FROM> struct alignas(4 * sizeof(FROM)) four_pixels {
    FROM at[4];
};

// This thread's pixels of a plane: four of a line of each of LOADS patches.
struct my_pixels {
    int64_t offset[LOADS];
    int left[LOADS]; // how many are there

    __device__ __forceinline__ my_pixels(const patches_task &task, int64_t patch0, int64_t down,
                                         int64_t right0)
    {
        const gpu_patches &p = task.of;
        int64_t right = right0 + threadIdx.x % FOURS * 4;
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            int64_t patch = patch0 + threadIdx.x / FOURS + i * LINES;
            offset[i] = (patch / task.columns * p.patch + down) * p.width +
                        patch % task.columns * p.patch + right;
            bool there = patch < task.rows * task.columns;
            left[i] = there ? (int)max((int64_t)0, min((int64_t)4, p.patch - right)) : 0;
        }
    }
    template <class FROM>
    __device__ __forceinline__ void load(const FROM *plane, bool fours, four_pixels<FROM> (&v)[LOADS]) const
    {
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            if (fours && left[i] == 4) {
                v[i] = *(const four_pixels<FROM> *)(plane + offset[i]);
                continue;
            }
#pragma unroll
            for (int k = 0; k < 4; k++) {
                v[i].at[k] = k < left[i] ? plane[offset[i] + k] : ops::narrow<FROM>(0.0f);
            }
        }
    }
};

// blockIdx: patches of an image; piece of channel, line and pixels; image.
template <class FROM, class TO>
__global__ void __launch_bounds__(THREADS) patches_kernel(const __grid_constant__ patches_task task)
{
    __shared__ float2 tile[TILE_ACROSS][PAIRS + 1]; // + 1: what a warp writes lies in 32 banks
    const gpu_patches &p = task.of;
    int64_t patch0 = (int64_t)blockIdx.x * TILE_PATCHES;
    int64_t line = blockIdx.y / task.pieces; // channel * patch + down
    int64_t right0 = blockIdx.y % task.pieces * TILE_ACROSS;
    int across = (int)min((int64_t)TILE_ACROSS, p.patch - right0);
    int pair = threadIdx.x % PAIRS, left = (int)(p.pitch - patch0) - pair * 2;
    my_pixels mine(task, patch0, line % p.patch, right0);
    ops::begin();
    for (int64_t image = blockIdx.z; image < p.images; image += gridDim.z) {
        four_pixels<FROM> pixels[LOADS];
        mine.load((const FROM *)p.pixels +
                      (image * p.channels + line / p.patch) * p.height * p.width,
                  task.fours, pixels);
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float *row = (float *)tile[threadIdx.x % FOURS * 4 + k];
                row[threadIdx.x / FOURS + i * LINES] = ops::widen(pixels[i].at[k]);
            }
        }
        __syncthreads();
        TO *to = (TO *)p.y + (line * p.patch + right0) * p.y_stride + image * p.pitch + patch0;
#pragma unroll
        for (int i = 0; i < STORES; i++) {
            int right = threadIdx.x / PAIRS + i * (THREADS / PAIRS);
            if (right < across && left > 0) {
                float2 v = tile[right][pair];
                ops::store_pair(to + right * p.y_stride + pair * 2, ops::narrow<TO>(v.x),
                                ops::narrow<TO>(v.y), left, task.paired);
            }
        }
        __syncthreads();
    }
}

template <class FROM, class TO> int cut(const patches_task &task, void *stream)
{
    int64_t across = ops::divide_up(task.of.pitch, TILE_PATCHES);
    int64_t lines = task.of.channels * task.of.patch * task.pieces;
    if (across > INT32_MAX || lines > ops::MOST_BLOCKS_Y) {
        return cudaErrorInvalidValue;
    }
    dim3 grid((unsigned)across, (unsigned)lines, ops::at_most(task.of.images, 64));
    return ops::launch(patches_kernel<FROM, TO>, grid, THREADS, 1, stream, task);
}

template <class TO> int cut_to(const patches_task &task, void *stream)
{
    if (task.of.pixel_type == GPU_F32) {
        return cut<float, TO>(task, stream);
    }
    return task.of.pixel_type == task.of.type ? cut<TO, TO>(task, stream) : cudaErrorInvalidValue;
}

// ---- neighbourhoods ----

struct unfold_task {
    gpu_unfold of;
    bool paired; // 4-byte accesses to y are in order
};

// A thread has two neighbouring tokens of a grid, and all their neighbours of one feature after the other. blockIdx:
// tokens of a grid; features; grid.
template <class T> __global__ void __launch_bounds__(THREADS) unfold_kernel(const __grid_constant__ unfold_task task)
{
    const gpu_unfold &u = task.of;
    int height = (int)u.height, width = (int)u.width, half = (int)u.side / 2;
    int first = (int)(blockIdx.x * THREADS + threadIdx.x) * 2;
    int left = max(0, min(2, height * width - first));
    int row[2] = {first / width, (first + 1) / width};
    int column[2] = {first - row[0] * width, first + 1 - row[1] * width};
    ops::begin();
    for (int64_t grid = blockIdx.z; grid < u.grids; grid += gridDim.z) {
        for (int64_t f = blockIdx.y; f < u.features; f += gridDim.y) {
            const T *x = (const T *)u.x + f * u.x_stride + grid * u.pitch + first;
            T *y = (T *)u.y + f * u.side * u.side * u.y_stride + grid * u.pitch + first;
            for (int i = -half; i <= half; i++) {
#pragma unroll 3
                for (int j = -half; j <= half; j++, y += u.y_stride) {
                    T v[2];
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        bool inside = k < left && (unsigned)(row[k] + i) < (unsigned)height &&
                                      (unsigned)(column[k] + j) < (unsigned)width;
                        v[k] = inside ? x[i * width + j + k] : ops::narrow<T>(0.0f);
                    }
                    ops::store_pair(y, v[0], v[1], left, task.paired);
                }
            }
        }
    }
}

template <class T> int unfold(const gpu_unfold &u, void *stream)
{
    int64_t across = ops::divide_up(u.height * u.width, 2 * THREADS);
    unfold_task task = {u, ops::aligned_to(u.y, u.y_stride, 2, 4) && u.pitch % 2 == 0};
    if (u.height * u.width > INT32_MAX / 4 || u.side > INT32_MAX / 2) {
        return cudaErrorInvalidValue;
    }
    dim3 grid((unsigned)across, ops::at_most(u.features, ops::MOST_BLOCKS_Y),
              ops::at_most(u.grids, ops::MOST_BLOCKS_Y));
    return ops::launch(unfold_kernel<T>, grid, THREADS, 1, stream, task);
}

} // namespace

extern "C" int gpu_cut_patches(const gpu_patches *patches, void *stream)
{
    const gpu_patches &p = *patches;
    if (p.patch <= 0) {
        return cudaErrorInvalidValue;
    }
    int width = p.pixel_type == GPU_F32 ? 4 : 2;
    patches_task task = {p, p.height / p.patch, p.width / p.patch,
                         (int)ops::divide_up(p.patch, TILE_ACROSS),
                         p.patch % 4 == 0 && p.width % 4 == 0 &&
                             (uintptr_t)p.pixels % (uintptr_t)(4 * width) == 0 &&
                             p.height * p.width % 4 == 0,
                         ops::aligned_to(p.y, p.y_stride, 2, 4) && p.pitch % 2 == 0};
    if (p.pitch < task.rows * task.columns) {
        return cudaErrorInvalidValue;
    }
    if (p.images <= 0 || p.channels <= 0 || task.rows <= 0 || task.columns <= 0) {
        return cudaSuccess;
    }
    switch (p.type) {
    case GPU_F16:
        return cut_to<__half>(task, stream);
    case GPU_BF16:
        return cut_to<__nv_bfloat16>(task, stream);
    default:
        return cudaErrorInvalidValue;
    }
}

extern "C" int gpu_unfold_grids(const gpu_unfold *unfold_, void *stream)
{
    const gpu_unfold &u = *unfold_;
    if (u.side % 2 != 1 || u.pitch < u.height * u.width) {
        return cudaErrorInvalidValue;
    }
    if (u.features <= 0 || u.grids <= 0 || u.height <= 0 || u.width <= 0) {
        return cudaSuccess;
    }
    switch (u.type) {
    case GPU_F16:
        return unfold<__half>(u, stream);
    case GPU_BF16:
        return unfold<__nv_bfloat16>(u, stream);
    default:
        return cudaErrorInvalidValue;
    }
}
