// Scores of queries and keys that both stand in shared memory, and copies of 4 bytes. One function, one instruction.
#ifndef ESP_CUDA_SM90_SCORE_PTX_CUH
#define ESP_CUDA_SM90_SCORE_PTX_CUH

#include "cuda/sm90_attention_ptx.cuh"

namespace ptx {

__device__ __forceinline__ void copy_4(uint32_t to, const void *from)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}

// d += A B, 64 x N, 16 deep, both operands in shared memory with what is not the depth side by side.
template <int N, bool BF16> struct score_product;

#define ESP_SCORE_PRODUCT(WIDE, IS_BF16, TYPE, A, B)                                               \
    template <> struct score_product<WIDE, IS_BF16> {                                              \
        static __device__ __forceinline__ void run(float (&d)[WIDE / 8][4], uint64_t a, uint64_t b) \
        {                                                                                          \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #WIDE "k16.f32." TYPE "." TYPE        \
                         " {" ESP_LIST_N##WIDE "}, %" A ", %" B ", 1, 1, 1, 1, 1;"                 \
                         : ESP_SUMS_N##WIDE                                                        \
                         : "l"(a), "l"(b));                                                        \
        }                                                                                          \
    };
#define ESP_SCORE_PRODUCTS(WIDE, A, B)                                                             \
    ESP_SCORE_PRODUCT(WIDE, false, "f16", A, B)                                                    \
    ESP_SCORE_PRODUCT(WIDE, true, "bf16", A, B)
ESP_SCORE_PRODUCTS(64, "32", "33")
ESP_SCORE_PRODUCTS(80, "40", "41")

// The same; without `adds` what d held does not count.
template <int N, bool BF16> struct first_score_product;

#define ESP_FIRST_PRODUCT(WIDE, IS_BF16, TYPE, A, B, ADDS)                                         \
    template <> struct first_score_product<WIDE, IS_BF16> {                                        \
        static __device__ __forceinline__ void run(float (&d)[WIDE / 8][4], uint64_t a, uint64_t b, \
                                                   bool adds)                                      \
        {                                                                                          \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" ADDS ", 0;\n"                        \
                         "wgmma.mma_async.sync.aligned.m64n" #WIDE "k16.f32." TYPE "." TYPE        \
                         " {" ESP_LIST_N##WIDE "}, %" A ", %" B ", p, 1, 1, 1, 1;\n}"              \
                         : ESP_SUMS_N##WIDE                                                        \
                         : "l"(a), "l"(b), "r"((int)adds));                                        \
        }                                                                                          \
    };
#define ESP_FIRST_PRODUCTS(WIDE, A, B, ADDS)                                                       \
    ESP_FIRST_PRODUCT(WIDE, false, "f16", A, B, ADDS)                                              \
    ESP_FIRST_PRODUCT(WIDE, true, "bf16", A, B, ADDS)
ESP_FIRST_PRODUCTS(16, "8", "9", "10")
ESP_FIRST_PRODUCTS(64, "32", "33", "34")

// The same, 64 wide, where rows of the right operand are its columns, with the depth side by side.
template <bool BF16> struct past_score_product;

#define ESP_PAST_PRODUCT(IS_BF16, TYPE)                                                            \
    template <> struct past_score_product<IS_BF16> {                                               \
        static __device__ __forceinline__ void run(float (&d)[8][4], uint64_t a, uint64_t b,       \
                                                   bool adds)                                      \
        {                                                                                          \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                              \
                         "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE               \
                         " {" ESP_LIST_N64 "}, %32, %33, p, 1, 1, 1, 0;\n}"                        \
                         : ESP_SUMS_N64                                                            \
                         : "l"(a), "l"(b), "r"((int)adds));                                        \
        }                                                                                          \
    };
ESP_PAST_PRODUCT(false, "f16")
ESP_PAST_PRODUCT(true, "bf16")

} // namespace ptx

#endif
