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

#endif
