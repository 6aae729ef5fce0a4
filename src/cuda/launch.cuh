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

// Launches a kernel of one argument that may start while the launch before it ends, where the device can.
template <class A>
int gpu_launch_overlapping(void (*kernel)(A), unsigned blocks, int threads, uint32_t shared,
                           int device, void *stream, const A &argument)
{
    int major = 0;
    cudaError_t failed = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (failed != cudaSuccess) {
        return failed;
    }
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t how = {};
    how.gridDim = dim3(blocks);
    how.blockDim = dim3((unsigned)threads);
    how.dynamicSmemBytes = shared;
    how.stream = (cudaStream_t)stream;
    how.attrs = &attribute;
    how.numAttrs = major >= 9 ? 1 : 0;
    return cudaLaunchKernelEx(&how, kernel, argument);
}

#endif
