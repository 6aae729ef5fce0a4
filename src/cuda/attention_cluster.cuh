// What blocks of a cluster that share out a decode's caches use to send each other their sums (compute capability 9.0);
// elsewhere a block is a cluster of its own, and none of it happens. One function, one step.
#ifndef ESP_CUDA_ATTENTION_CLUSTER_CUH
#define ESP_CUDA_ATTENTION_CLUSTER_CUH

#include "cuda/attention_ptx.cuh"

namespace ptx {

__device__ __forceinline__ float4 load_shared_four(uint32_t address)
{
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ uint32_t block_of_cluster()
{
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// The same place in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ uint32_t in_block(uint32_t address, uint32_t rank)
{
    uint32_t there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}
// All threads: this one has come, and what it expects can be sent; later, all of the cluster have.
__device__ __forceinline__ void cluster_has_come()
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void wait_for_cluster()
{
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// A barrier that so many bytes pass which others send.
__device__ __forceinline__ void expect_sent(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n"
                 "fence.mbarrier_init.release.cluster;\n"
                 "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                 "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void wait_for_sent(uint32_t barrier)
{
    uint32_t done = 0;
    while (done == 0) {
        asm volatile("{\n.reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0;\n"
                     "selp.u32 %0, 1, 0, p;\n}"
                     : "=r"(done)
                     : "r"(barrier)
                     : "memory");
    }
}
// To shared memory of a block of the cluster; passes its barrier.
__device__ __forceinline__ void send_four(uint32_t to, const float (&v)[4], uint32_t barrier)
{
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 "
                 "[%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
                 "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(barrier)
                 : "memory");
}
#else
__device__ __forceinline__ uint32_t block_of_cluster()
{
    return 0;
}
__device__ __forceinline__ uint32_t in_block(uint32_t address, uint32_t)
{
    return address;
}
__device__ __forceinline__ void cluster_has_come()
{
}
__device__ __forceinline__ void wait_for_cluster()
{
}
__device__ __forceinline__ void expect_sent(uint32_t, uint32_t)
{
}
__device__ __forceinline__ void wait_for_sent(uint32_t)
{
}
__device__ __forceinline__ void send_four(uint32_t, const float (&)[4], uint32_t)
{
}
#endif

} // namespace ptx

#endif
