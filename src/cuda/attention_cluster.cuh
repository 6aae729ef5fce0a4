// What blocks of a cluster that share out a decode's caches use to send each other their sums (compute capability 9.0);
// elsewhere a block is a cluster of its own, and none of it happens. One function, one step.
#ifndef ESP_CUDA_ATTENTION_CLUSTER_CUH
#define ESP_CUDA_ATTENTION_CLUSTER_CUH

#include "cuda/attention_ptx.cuh"
#include "cuda/sm90_ptx.cuh"

namespace ptx {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ uint32_t block_of_cluster()
{
    return cluster_rank();
}
// The same place in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ uint32_t in_block(uint32_t address, uint32_t rank)
{
    return in_cluster(address, rank);
}
// All threads: this one has come, and what it expects can be sent; later, all of the cluster have.
__device__ __forceinline__ void cluster_has_come()
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void wait_for_cluster()
{
    cluster_wait();
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
    send_16(to, v, barrier);
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
