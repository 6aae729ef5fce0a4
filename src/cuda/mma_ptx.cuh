// What the kernels of blocks use of single instructions of Ampere and later, besides sm80_ptx.cuh: the warp's dense
// product with the left operand as it is stored, and launches that overlap. One function, one instruction.
#ifndef ESP_CUDA_MMA_PTX_CUH
#define ESP_CUDA_MMA_PTX_CUH

#include "cuda/sm80_ptx.cuh"

namespace mma {

// d += A B for 16 rows, 8 tokens and 16 columns, in one warp.
template <bool BF16>
__device__ __forceinline__ void product_16x8(float *d, const uint4 &a, uint32_t b0, uint32_t b1)
{
    if constexpr (BF16) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
    } else {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
    }
}

using ptx::copy_16;
using ptx::copy_commit;
using ptx::copy_wait;
using ptx::load_matrices;
using ptx::load_matrices_transposed;
using ptx::load_shared_16;
using ptx::shared_address;
using ptx::store_shared_u16;

// A launch may begin while the one before it in its stream ends (compute capability 9.0): this lets the next
// one begin, and this waits until all of the one before is done and seen.
__device__ __forceinline__ void let_next_launch_begin()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void wait_for_launch_before()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

} // namespace mma

#endif
