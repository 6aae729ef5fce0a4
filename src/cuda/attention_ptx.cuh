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

// 8 x 8 numbers, two a lane, row lane / 4; the result likewise of the transposed matrix.
__device__ __forceinline__ uint32_t turn_matrix(uint32_t pair)
{
    uint32_t turned;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(pair));
    return turned;
}

__device__ __forceinline__ void store_shared_u32(uint32_t address, uint32_t value)
{
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
__device__ __forceinline__ void store_shared_f32(uint32_t address, float value)
{
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}
__device__ __forceinline__ float2 load_shared_2(uint32_t address)
{
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
    return v;
}

} // namespace ptx

#endif
