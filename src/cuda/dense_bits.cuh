// What lives of a dense 16-bit weight under a mask: an entry that the mask keeps and that is neither +0.0
// nor -0.0.
#ifndef ESP_CUDA_DENSE_BITS_CUH
#define ESP_CUDA_DENSE_BITS_CUH

#include <stdint.h>

#include "cuda/gpu.h"

// Eight entries of a row from `column` on, as they lie; zero past the end.
__device__ __forceinline__ uint4 eight_entries(const gpu_dense &from, int64_t row, int64_t column)
{
    const uint16_t *at = (const uint16_t *)from.data + row * from.stride + column;
    if (from.data == nullptr || column >= from.in) {
        return make_uint4(0, 0, 0, 0);
    }
    if (from.aligned && column % 8 == 0 && column + 8 <= from.in) {
        return *(const uint4 *)at;
    }
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t low = column + 2 * i < from.in ? at[2 * i] : 0;
        uint32_t high = column + 2 * i + 1 < from.in ? at[2 * i + 1] : 0;
        word[i] = low | high << 16;
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

// Bits of the mask; column is a multiple of eight.
__device__ __forceinline__ unsigned mask_of_eight(const gpu_dense &from, int64_t row, int64_t column)
{
    bool there = from.mask != nullptr && column < from.in;
    return there ? from.mask[row * from.mask_bytes + column / 8] : 0xff;
}

__device__ __forceinline__ unsigned nonzero_of_eight(uint4 eight)
{
    const uint32_t word[4] = {eight.x, eight.y, eight.z, eight.w};
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        bits |= (unsigned)((word[i] & 0x7fffu) != 0) << 2 * i;
        bits |= (unsigned)((word[i] & 0x7fff0000u) != 0) << (2 * i + 1);
    }
    return bits;
}

__device__ __forceinline__ unsigned live_of_eight(const gpu_dense &from, int64_t row, int64_t column)
{
    return nonzero_of_eight(eight_entries(from, row, column)) & mask_of_eight(from, row, column);
}

// The same entries, dead ones +0.0.
__device__ __forceinline__ uint4 live_entries_of_eight(const gpu_dense &from, int64_t row,
                                                       int64_t column)
{
    uint4 eight = eight_entries(from, row, column);
    unsigned mask = mask_of_eight(from, row, column);
    uint32_t word[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t kept = (mask >> 2 * i & 1) * 0xffffu | (mask >> (2 * i + 1) & 1) * 0xffff0000u;
        word[i] &= kept & __vcmpne2(word[i] & 0x7fff7fffu, 0);
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

// One entry; column is below `in`.
__device__ __forceinline__ uint16_t live_entry(const gpu_dense &from, int64_t row, int64_t column)
{
    if (from.data == nullptr ||
        (from.mask != nullptr &&
         (from.mask[row * from.mask_bytes + column / 8] >> column % 8 & 1) == 0)) {
        return 0;
    }
    uint16_t entry = ((const uint16_t *)from.data)[row * from.stride + column];
    return (entry & 0x7fff) != 0 ? entry : 0;
}

#endif
