// Single instructions of Hopper that only the block-sparse kernels use: the dense warpgroup product with
// its left operand in registers, and the way of finished sums through shared memory to Y.
#ifndef ESP_CUDA_SM90_BLOCKS_PTX_CUH
#define ESP_CUDA_SM90_BLOCKS_PTX_CUH

#include "cuda/sm90_ptx.cuh"

namespace ptx {

// d += A B for 64 rows, N tokens and 16 columns; a warp's 16 rows of A in its registers, B in shared memory
// with tokens side by side (BY_TOKEN 0) or columns (1).
template <int N, bool BF16> struct dense_product;

#define ESP_DENSE_PRODUCT(TOKENS, IS_BF16, TYPE, LIST, OPERANDS, A0, A1, A2, A3, B, TRANS)         \
    template <> struct dense_product<TOKENS, IS_BF16> {                                            \
        template <int BY_TOKEN>                                                                    \
        static __device__ __forceinline__ void run(float (&d)[TOKENS / 2], const uint4 &a,         \
                                                   uint64_t b)                                     \
        {                                                                                          \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #TOKENS "k16.f32." TYPE "." TYPE      \
                         " {" LIST "}, {%" A0 ", %" A1 ", %" A2 ", %" A3 "}, %" B                  \
                         ", 1, 1, 1, %" TRANS ";"                                                  \
                         : OPERANDS                                                                \
                         : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "n"(BY_TOKEN ? 0 : 1)); \
        }                                                                                          \
    };
ESP_DENSE_PRODUCT(256, false, "f16", ESP_LIST_128, ESP_D128, "128", "129", "130", "131", "132",
                  "133")
ESP_DENSE_PRODUCT(256, true, "bf16", ESP_LIST_128, ESP_D128, "128", "129", "130", "131", "132",
                  "133")
ESP_DENSE_PRODUCT(128, false, "f16", ESP_LIST_64, ESP_D64_, "64", "65", "66", "67", "68", "69")
ESP_DENSE_PRODUCT(128, true, "bf16", ESP_LIST_64, ESP_D64_, "64", "65", "66", "67", "68", "69")

__device__ __forceinline__ void tensor_store(const CUtensorMap *map, int x, int y, uint32_t from)
{
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
        "r"(x), "r"(y), "r"(from)
        : "memory");
}
__device__ __forceinline__ void store_commit()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until at most PENDING stores have not yet been read from shared memory.
template <int PENDING> __device__ __forceinline__ void store_wait_read()
{
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

} // namespace ptx

#endif
