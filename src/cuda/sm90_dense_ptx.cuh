// Single instructions of Hopper that only dense products use: the warpgroup product with both
// operands in shared memory, and copies of four-dimensional boxes.
#ifndef ESP_CUDA_SM90_DENSE_PTX_CUH
#define ESP_CUDA_SM90_DENSE_PTX_CUH

#include "cuda/sm90_ptx.cuh"

namespace ptx
{

// d += A B for 64 rows, N tokens and 16 columns; A with columns side by side, B with tokens. d, of
// which the first N / 2 count, is overwritten when `accumulate` is 0.
template <int N, bool BF16> struct whole_product;

#define ESP_WHOLE_PRODUCT(TOKENS, IS_BF16, TYPE, LIST, OPERANDS, A, B, ACC)                        \
    template <> struct whole_product<TOKENS, IS_BF16> {                                            \
        template <int SUMS>                                                                        \
        static __device__ __forceinline__ void run(float (&d)[SUMS], uint64_t a, uint64_t b,       \
                                                   int accumulate)                                 \
        {                                                                                          \
            static_assert(SUMS >= TOKENS / 2, "room for all sums");                                \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" ACC ", 0;\n"                         \
                         "wgmma.mma_async.sync.aligned.m64n" #TOKENS "k16.f32." TYPE "." TYPE      \
                         " {" LIST "}, %" A ", %" B ", p, 1, 1, 0, 1;\n}"                          \
                         : OPERANDS                                                                \
                         : "l"(a), "l"(b), "r"(accumulate));                                       \
        }                                                                                          \
    };
ESP_WHOLE_PRODUCT(256, false, "f16", ESP_LIST_128, ESP_D128, "128", "129", "130")
ESP_WHOLE_PRODUCT(256, true, "bf16", ESP_LIST_128, ESP_D128, "128", "129", "130")
ESP_WHOLE_PRODUCT(128, false, "f16", ESP_LIST_64, ESP_D64_, "64", "65", "66")
ESP_WHOLE_PRODUCT(128, true, "bf16", ESP_LIST_64, ESP_D64_, "64", "65", "66")
ESP_WHOLE_PRODUCT(64, false, "f16", ESP_LIST_32, ESP_D32, "32", "33", "34")
ESP_WHOLE_PRODUCT(64, true, "bf16", ESP_LIST_32, ESP_D32, "32", "33", "34")

__device__ __forceinline__ void tensor_copy(uint32_t to, const CUtensorMap *map, int x, int y,
                                            int z, int w, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier)
                 : "memory");
}

// What a product in flight writes, named after the wait for it: nothing that reads it may be moved
// before.
template <int SUMS> __device__ __forceinline__ void sums_arrive(float (&d)[SUMS])
{
#pragma unroll
    for (int i = 0; i < SUMS; i++) {
        asm volatile("" : "+f"(d[i]));
    }
}

} // namespace ptx

#endif
