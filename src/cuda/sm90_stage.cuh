// Sums of a warpgroup product on their way into a warp's strip of f32 (epilogue.cuh).
#ifndef ESP_CUDA_SM90_STAGE_CUH
#define ESP_CUDA_SM90_STAGE_CUH

#include "cuda/epilogue.cuh"
#include "cuda/sm80_ptx.cuh"

namespace epilogue
{

// Accumulators of 32 tokens to the warp's strip. A thread has rows 2 g and 2 g + 1 (dealt so by the
// packing) and two tokens of each eight.
template <int N>
__device__ __forceinline__ void stage_sums(const float (&sums)[N / 2], int part, uint32_t strip,
                                           int lane)
{
    uint32_t to = strip + (lane / 4 * 2 * PITCH + lane % 4 * 2) * 4;
#pragma unroll
    for (int i = 0; i < N / 32; i++) {
        if (i == part) {
#pragma unroll
            for (int j = 0; j < 8; j++) {
                uint32_t row = j % 2, token = j / 2 * 8;
                ptx::store_shared_2(to + (row * PITCH + token) * 4, sums[i * 16 + j * 2],
                                    sums[i * 16 + j * 2 + 1]);
            }
        }
    }
}

} // namespace epilogue

#endif
