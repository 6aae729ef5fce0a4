// The dense warpgroup product as attention uses it: the left operand in registers, 64 rows of which each warp has
// 16, the right one in shared memory. One function, one instruction. Sums lie as those of mma.sync m16n8k16.
#ifndef ESP_CUDA_SM90_ATTENTION_PTX_CUH
#define ESP_CUDA_SM90_ATTENTION_PTX_CUH

#include "cuda/attention_ptx.cuh"
#include "cuda/sm90_ptx.cuh"

namespace ptx {

// Registers that a product writes or reads are named before it starts and after it is waited for: otherwise the
// compiler, which sees no difference between starting and having finished, takes sums too early and gives operands'
// registers away.
template <int N> __device__ __forceinline__ void name_registers(float (&d)[N][4])
{
#pragma unroll
    for (int i = 0; i < N; i++) {
        asm volatile("" : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])::"memory");
    }
}
template <int N> __device__ __forceinline__ void name_registers(const uint32_t (&a)[N][4])
{
#pragma unroll
    for (int i = 0; i < N; i++) {
        asm volatile("" ::"r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]) : "memory");
    }
}

// d += A B, 64 x N, 16 deep. DEPTH_IS_ROW: N numbers side by side in shared memory, else 16 of the depth.
template <int N, bool BF16, bool DEPTH_IS_ROW> struct attention_product;

#define ESP_S4(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define ESP_S16(i) ESP_S4(i), ESP_S4(i + 1), ESP_S4(i + 2), ESP_S4(i + 3)
#define ESP_ATTENTION_PRODUCT(WIDE, IS_BF16, BY_ROW, TYPE, A0, A1, A2, A3, B, TRANS)               \
    template <> struct attention_product<WIDE, IS_BF16, BY_ROW> {                                  \
        static __device__ __forceinline__ void run(float (&d)[WIDE / 8][4], const uint32_t (&a)[4], \
                                                   uint64_t b)                                     \
        {                                                                                          \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #WIDE "k16.f32." TYPE "." TYPE        \
                         " {" ESP_LIST_N##WIDE "}, {%" A0 ", %" A1 ", %" A2 ", %" A3 "}, %" B                  \
                         ", 1, 1, 1, " TRANS ";"                                                   \
                         : ESP_SUMS_N##WIDE                                                        \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                    \
        }                                                                                          \
    };
#define ESP_ATTENTION_PRODUCTS(WIDE, A0, A1, A2, A3, B)                                            \
    ESP_ATTENTION_PRODUCT(WIDE, false, false, "f16", A0, A1, A2, A3, B, "0")           \
    ESP_ATTENTION_PRODUCT(WIDE, false, true, "f16", A0, A1, A2, A3, B, "1")            \
    ESP_ATTENTION_PRODUCT(WIDE, true, false, "bf16", A0, A1, A2, A3, B, "0")           \
    ESP_ATTENTION_PRODUCT(WIDE, true, true, "bf16", A0, A1, A2, A3, B, "1")

#define ESP_LIST_N16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define ESP_SUMS_N16 ESP_S4(0), ESP_S4(1)
ESP_ATTENTION_PRODUCTS(16, "8", "9", "10", "11", "12")
#define ESP_LIST_N32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define ESP_SUMS_N32 ESP_S16(0)
ESP_ATTENTION_PRODUCTS(32, "16", "17", "18", "19", "20")
#define ESP_LIST_N64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ESP_SUMS_N64 ESP_S16(0), ESP_S16(4)
ESP_ATTENTION_PRODUCTS(64, "32", "33", "34", "35", "36")
#define ESP_LIST_N80 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39"
#define ESP_SUMS_N80 ESP_S16(0), ESP_S16(4), ESP_S4(8), ESP_S4(9)
ESP_ATTENTION_PRODUCTS(80, "40", "41", "42", "43", "44")
#define ESP_LIST_N96 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define ESP_SUMS_N96 ESP_S16(0), ESP_S16(4), ESP_S16(8)
ESP_ATTENTION_PRODUCTS(96, "48", "49", "50", "51", "52")
#define ESP_LIST_N128 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define ESP_SUMS_N128 ESP_S16(0), ESP_S16(4), ESP_S16(8), ESP_S16(12)
ESP_ATTENTION_PRODUCTS(128, "64", "65", "66", "67", "68")

} // namespace ptx

#endif
