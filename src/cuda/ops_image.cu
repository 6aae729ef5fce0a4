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

struct patches_task {
    gpu_patches of;
    int64_t rows, columns; // of patches
    int pieces;            // of TILE_ACROSS pixels, that a patch's line has
};

// blockIdx: patches of an image; piece of channel, line and pixels; image.
template <class FROM, class TO>
__global__ void __launch_bounds__(THREADS) patches_kernel(const __grid_constant__ patches_task task)
{
    __shared__ float tile[TILE_ACROSS][TILE_PATCHES + 1];
    const gpu_patches &p = task.of;
    int64_t patch0 = (int64_t)blockIdx.x * TILE_PATCHES, patches = task.rows * task.columns;
    int64_t line = blockIdx.y / task.pieces; // channel * patch + down
    int64_t right0 = blockIdx.y % task.pieces * TILE_ACROSS;
    int64_t channel = line / p.patch, down = line % p.patch;
    int here = (int)min((int64_t)TILE_PATCHES, p.pitch - patch0);
    int across = (int)min((int64_t)TILE_ACROSS, p.patch - right0);
    ops::begin();
    for (int64_t image = blockIdx.z; image < p.images; image += gridDim.z) {
        const FROM *plane =
            (const FROM *)p.pixels + (image * p.channels + channel) * p.height * p.width;
        for (int i = threadIdx.x; i < here * across; i += THREADS) {
            int64_t patch = patch0 + i / across;
            int64_t y = patch / task.columns * p.patch + down;
            int64_t x = patch % task.columns * p.patch + right0 + i % across;
            bool there = patch < patches;
            tile[i % across][i / across] = there ? ops::widen(plane[y * p.width + x]) : 0.0f;
        }
        __syncthreads();
        TO *to = (TO *)p.y + (line * p.patch + right0) * p.y_stride + image * p.pitch + patch0;
        for (int i = threadIdx.x; i < here * across; i += THREADS) {
            to[i / here * p.y_stride + i % here] = ops::narrow<TO>(tile[i / here][i % here]);
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
    dim3 grid((unsigned)across, (unsigned)lines, ops::at_most(task.of.images, ops::MOST_BLOCKS_Y));
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
    int64_t tokens = u.height * u.width, first = (blockIdx.x * (int64_t)THREADS + threadIdx.x) * 2;
    int left = (int)max((int64_t)0, min((int64_t)2, tokens - first));
    int64_t row[2], column[2], half = u.side / 2;
    for (int i = 0; i < 2; i++) {
        row[i] = (first + i) / u.width, column[i] = (first + i) % u.width;
    }
    ops::begin();
    for (int64_t grid = blockIdx.z; grid < u.grids; grid += gridDim.z) {
        bool paired = task.paired && grid * u.pitch % 2 == 0;
        for (int64_t f = blockIdx.y; f < u.features; f += gridDim.y) {
            const T *x = (const T *)u.x + f * u.x_stride + grid * u.pitch + first;
            T *y = (T *)u.y + f * u.side * u.side * u.y_stride + grid * u.pitch + first;
            for (int64_t i = -half; i <= half; i++) {
                for (int64_t j = -half; j <= half; j++, y += u.y_stride) {
                    T v[2];
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        bool inside = k < left && row[k] + i >= 0 && row[k] + i < u.height &&
                                      column[k] + j >= 0 && column[k] + j < u.width;
                        v[k] = inside ? x[i * u.width + j + k] : ops::narrow<T>(0.0f);
                    }
                    ops::store_pair(y, v[0], v[1], left, paired);
                }
            }
        }
    }
}

template <class T> int unfold(const gpu_unfold &u, void *stream)
{
    int64_t across = ops::divide_up(u.height * u.width, 2 * THREADS);
    unfold_task task = {u, ops::aligned_to(u.y, u.y_stride, 2, 4)};
    if (across > INT32_MAX) {
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
    patches_task task = {p, p.height / p.patch, p.width / p.patch,
                         (int)ops::divide_up(p.patch, TILE_ACROSS)};
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
