// What launches of kernels with much shared memory share.
#ifndef ESP_CUDA_LAUNCH_CUH
#define ESP_CUDA_LAUNCH_CUH

#include <atomic>

#include <cuda_runtime.h>
#include <stdint.h>

// Allows the kernel `bytes` of shared memory on the device, once: `done` has a bit per device and belongs to
// the kernel. Devices past the 64th are asked each time.
inline int gpu_prepare(const void *kernel, uint32_t bytes, int device, std::atomic<uint64_t> *done)
{
    uint64_t bit = device < 64 ? (uint64_t)1 << device : 0;
    if ((done->load(std::memory_order_relaxed) & bit) != 0) {
        return cudaSuccess;
    }
    cudaError_t failed =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (failed == cudaSuccess) {
        done->fetch_or(bit, std::memory_order_relaxed);
    }
    return failed;
}

// Launches blocks in clusters of `cluster`. With `overlaps` (compute capability 9.0) they may start while the launch
// before them in the stream ends, so the kernel waits for that itself; without, there are no clusters.
template <class... A, class... B>
int gpu_launch_clusters(void (*kernel)(A...), unsigned blocks, unsigned cluster, int threads,
                        uint32_t shared, bool overlaps, void *stream, const B &...arguments)
{
    cudaLaunchAttribute attributes[2];
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim = {cluster, 1, 1};
    cudaLaunchConfig_t how = {};
    how.gridDim = dim3(blocks);
    how.blockDim = dim3((unsigned)threads);
    how.dynamicSmemBytes = shared;
    how.stream = (cudaStream_t)stream;
    how.attrs = attributes;
    how.numAttrs = !overlaps ? 0 : cluster > 1 ? 2 : 1;
    return cudaLaunchKernelEx(&how, kernel, arguments...);
}

// The same without clusters, where the device overlaps launches if it can.
template <class A>
int gpu_launch_overlapping(void (*kernel)(A), unsigned blocks, int threads, uint32_t shared,
                           int device, void *stream, const A &argument)
{
    int major = 0;
    cudaError_t failed = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    return failed != cudaSuccess ? (int)failed
                                 : gpu_launch_clusters(kernel, blocks, 1, threads, shared, major >= 9,
                                                       stream, argument);
}

#endif
