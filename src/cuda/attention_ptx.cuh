// What attention uses of single instructions besides mma_ptx.cuh: powers of two, two numbers rounded at once, a
// matrix turned inside a warp. One function, one instruction.
#ifndef ESP_CUDA_ATTENTION_PTX_CUH
#define ESP_CUDA_ATTENTION_PTX_CUH

#include "cuda/mma_ptx.cuh"

namespace ptx {

// 2^x, 2^-infinity is 0.
__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Rounded to nearest; `low` in the low half.
template <bool BF16> __device__ __forceinline__ uint32_t pack(float low, float high)
{
    uint32_t both;
    if constexpr (BF16) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    }
    return both;
}

template <bool BF16> __device__ __forceinline__ float widened(uint16_t bits)
{
    if constexpr (BF16) {
        return __uint_as_float((uint32_t)bits << 16);
    } else {
        float v;
        asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
        return v;
    }
}

// 8 x 8 numbers, two a lane, row lane / 4; the result likewise of the transposed matrix.
__device__ __forceinline__ uint32_t turn_matrix(uint32_t pair)
{
    uint32_t turned;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(pair));
    return turned;
}

// A mask of the first `count` halves of a word.
__device__ __forceinline__ uint32_t first_halves(int count)
{
    return count >= 2 ? ~0u : count == 1 ? 0xffffu : 0;
}
__device__ __forceinline__ float2 load_shared_2(uint32_t address)
{
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
    return v;
}

__device__ __forceinline__ void prefetch_to_l2(const void *from)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}
// From the L2, whatever the L1 has.
__device__ __forceinline__ int32_t load_current(const int32_t *from)
{
    int32_t value;
    asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

} // namespace ptx

#endif
