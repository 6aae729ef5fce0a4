// Thin wrappers around single instructions of Hopper: barriers in shared memory, asynchronous copies, and
// the sparse warpgroup product. One function, one instruction; what they mean together is said where they
// are used. Addresses of shared memory are 32-bit.
#ifndef ESP_CUDA_SM90_PTX_CUH
#define ESP_CUDA_SM90_PTX_CUH

#include <cuda.h>

#include "cuda/sm80_ptx.cuh"

namespace ptx {

// ---- barriers ----

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
__device__ __forceinline__ void barrier_init_fence()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity)
{
    uint32_t done = 0;
    while (done == 0) {
        asm volatile("{\n.reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n}"
                     : "=r"(done)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    }
}

// Among `threads` threads that name the same barrier of the hardware.
__device__ __forceinline__ void named_barrier(int barrier, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
// Does not wait.
__device__ __forceinline__ void named_barrier_arrive(int barrier, int threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// ---- clusters ----

__device__ __forceinline__ uint32_t cluster_rank()
{
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ uint32_t cluster_size()
{
    uint32_t size;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}
__device__ __forceinline__ void cluster_arrive()
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait()
{
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The same place in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ uint32_t in_cluster(uint32_t address, uint32_t rank)
{
    uint32_t there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}
__device__ __forceinline__ void load_cluster_4(uint32_t address, float *v)
{
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
                 : "r"(address)
                 : "memory");
}
// To shared memory of a block of the cluster; arrives at a barrier there as 16 bytes.
__device__ __forceinline__ void send_16(uint32_t to, const float (&v)[4], uint32_t barrier)
{
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 "
                 "[%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
                 "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(barrier)
                 : "memory");
}

// ---- launches that overlap ----

// Allows the next grid of the stream to start, if it was launched so, when all blocks have said this.
__device__ __forceinline__ void launch_next()
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
// Until the grids before this one in the stream are done and what they wrote can be read.
__device__ __forceinline__ void stream_order_wait()
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

// ---- copies into shared memory ----

__device__ __forceinline__ void prefetch_l2(const void *from)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

// bytes: a multiple of 16.
__device__ __forceinline__ void bulk_prefetch_l2(const void *from, uint32_t bytes)
{
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ void copy_wait_all()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}
// Arrives at the barrier once this thread's copies so far are there; the barrier counts each thread.
__device__ __forceinline__ void copy_arrive(uint32_t barrier)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
// Makes this thread's ordinary and cp.async writes visible to the tensor cores and the copy engine.
__device__ __forceinline__ void async_fence()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void bulk_copy(uint32_t to, const void *from, uint32_t bytes,
                                          uint32_t barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}
__device__ __forceinline__ void bulk_copy_once(uint32_t to, const void *from, uint32_t bytes,
                                               uint32_t barrier, uint64_t policy)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
                 : "memory");
}
__device__ __forceinline__ void tensor_copy(uint32_t to, const CUtensorMap *map, int x, int y,
                                            uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(barrier)
                 : "memory");
}
__device__ __forceinline__ void tensor_copy_once(uint32_t to, const CUtensorMap *map, int x, int y,
                                                 uint32_t barrier, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(barrier), "l"(policy)
                 : "memory");
}
__device__ __forceinline__ void tensor_copy(uint32_t to, const CUtensorMap *map, int x, int y, int z,
                                            uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
                 : "memory");
}

// ---- copies out of shared memory ----

__device__ __forceinline__ void tensor_store(const CUtensorMap *map, int x, int y, int z,
                                             uint32_t from)
{
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(
                     map),
                 "r"(x), "r"(y), "r"(z), "r"(from)
                 : "memory");
}
__device__ __forceinline__ void bulk_commit()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until shared memory of all but PENDING of this thread's groups may be written again.
template <int PENDING> __device__ __forceinline__ void bulk_wait_read()
{
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}
__device__ __forceinline__ void bulk_wait_all()
{
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// ---- ordinary accesses to shared memory ----

__device__ __forceinline__ void store_shared_4(uint32_t address, const float *v)
{
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v[0]), "f"(v[1]),
                 "f"(v[2]), "f"(v[3])
                 : "memory");
}

__device__ __forceinline__ void store_matrices(uint32_t address, const uint32_t (&r)[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

__device__ __forceinline__ void store_matrices_transposed(uint32_t address, const uint32_t (&r)[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     address),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

// ---- registers of a warpgroup ----

template <int COUNT> __device__ __forceinline__ void take_registers()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> __device__ __forceinline__ void give_registers()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// ---- products ----

__device__ __forceinline__ void product_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void product_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int PENDING> __device__ __forceinline__ void product_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Where an operand of a warpgroup product lies. swizzle: 0 none, 1 of 128 bytes.
__device__ __forceinline__ uint64_t descriptor(uint32_t address, uint32_t leading, uint32_t stride,
                                               uint64_t swizzle)
{
    return (uint64_t)((address & 0x3FFFF) >> 4) | (uint64_t)(leading >> 4) << 16 |
           (uint64_t)(stride >> 4) << 32 | swizzle << 62;
}

// d += A B for 64 rows, N tokens and 32 columns of which A holds two of each four; both operands in
// shared memory, B with tokens side by side (BY_TOKEN 0) or columns (1). `positions` of two steps lie in one
// register, SELECTOR takes the step. d, of which the first N / 2 count, is overwritten when `accumulate` is 0.
template <int N, bool BF16> struct sparse_product;

#define ESP_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define ESP_D16(i) ESP_D4(i), ESP_D4(i + 4), ESP_D4(i + 8), ESP_D4(i + 12)
#define ESP_D64(i) ESP_D16(i), ESP_D16(i + 16), ESP_D16(i + 32), ESP_D16(i + 48)
#define ESP_LIST_32                                                                                \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ESP_LIST_64                                                                                \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "             \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "             \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define ESP_LIST_128                                                                               \
    ESP_LIST_64                                                                                    \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "           \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "   \
    "%127"
#define ESP_SPARSE_PRODUCT(TOKENS, IS_BF16, TYPE, LIST, OPERANDS, A, B, P, ACC, SEL, TRANS)        \
    template <> struct sparse_product<TOKENS, IS_BF16> {                                           \
        template <int SELECTOR, int BY_TOKEN, int SUMS>                                            \
        static __device__ __forceinline__ void run(float (&d)[SUMS], uint64_t a, uint64_t b,       \
                                                   uint32_t positions, int accumulate)             \
        {                                                                                          \
            static_assert(SUMS >= TOKENS / 2, "room for all sums");                                \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" ACC ", 0;\n"                         \
                         "wgmma.mma_async.sp.sync.aligned.m64n" #TOKENS "k32.f32." TYPE "." TYPE   \
                         " {" LIST "}, %" A ", %" B ", %" P ", %" SEL ", p, 1, 1, 0, %" TRANS      \
                         ";\n}"                                                                    \
                         : OPERANDS                                                                \
                         : "l"(a), "l"(b), "r"(positions), "r"(accumulate), "n"(SELECTOR),         \
                           "n"(BY_TOKEN ? 0 : 1));                                                 \
        }                                                                                          \
    };
#define ESP_D128 ESP_D64(0), ESP_D64(64)
#define ESP_D64_ ESP_D64(0)
#define ESP_D32 ESP_D16(0), ESP_D16(16)
ESP_SPARSE_PRODUCT(256, false, "f16", ESP_LIST_128, ESP_D128, "128", "129", "130", "131", "132",
                   "133")
ESP_SPARSE_PRODUCT(256, true, "bf16", ESP_LIST_128, ESP_D128, "128", "129", "130", "131", "132",
                   "133")
ESP_SPARSE_PRODUCT(128, false, "f16", ESP_LIST_64, ESP_D64_, "64", "65", "66", "67", "68", "69")
ESP_SPARSE_PRODUCT(128, true, "bf16", ESP_LIST_64, ESP_D64_, "64", "65", "66", "67", "68", "69")
ESP_SPARSE_PRODUCT(64, false, "f16", ESP_LIST_32, ESP_D32, "32", "33", "34", "35", "36", "37")
ESP_SPARSE_PRODUCT(64, true, "bf16", ESP_LIST_32, ESP_D32, "32", "33", "34", "35", "36", "37")

} // namespace ptx

#endif
