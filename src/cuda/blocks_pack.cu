// Canonical blocks to fragments, on the device: one thread the 16 bytes of one lane, bound by memory.
//
// In a fragment the stored rows are dealt to the upper and the lower eight rows of the tensor cores in turn,
// so that rows 2 i and 2 i + 1 lie in one thread's sums: swiglu's gate and up.
#include "cuda/gpu_blocks.h"
#include <cuda_runtime.h>

namespace {

constexpr int THREADS = 256;

__global__ void pack_fragments(const uint16_t *values, int64_t block_rows, int64_t block_columns,
                               const uint32_t *sources, int64_t lanes, uint4 *to)
{
    int64_t stride = (int64_t)gridDim.x * THREADS, across = block_columns / 16;
    int64_t of_block = block_rows / 16 * across;
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < lanes; i += stride) {
        int64_t source = sources[i / 32], block = source / of_block, inside = source % of_block;
        int lane = (int)(i % 32);
        int64_t row = inside / across * 16 + lane / 4 * 2,
                column = inside % across * 16 + lane % 4 * 2;
        const uint16_t *from = values + (block * block_rows + row) * block_columns + column;
        const uint32_t *even = (const uint32_t *)from,
                       *odd = (const uint32_t *)(from + block_columns);
        to[i] = make_uint4(even[0], odd[0], even[4], odd[4]);
    }
}

} // namespace

extern "C" int gpu_pack_blocks(const void *values, int64_t block_rows, int64_t block_columns,
                               const uint32_t *sources, int64_t fragments, void *to, void *stream)
{
    int64_t blocks = (fragments * 32 + THREADS - 1) / THREADS;
    if (blocks == 0) {
        return cudaSuccess;
    }
    unsigned grid = (unsigned)(blocks < 1 << 20 ? blocks : 1 << 20);
    pack_fragments<<<grid, THREADS, 0, (cudaStream_t)stream>>>(
        (const uint16_t *)values, block_rows, block_columns, sources, fragments * 32, (uint4 *)to);
    return cudaGetLastError();
}
