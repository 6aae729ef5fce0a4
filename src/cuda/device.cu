// Devices, memory and errors of the CUDA runtime behind plain C. The runtime is linked statically, so a
// machine without a driver just shows no GPU.
#include <cstdio>
#include <cstring>

#include <cuda_runtime.h>

#include "cuda/gpu.h"

extern "C" const char *gpu_error_text(int error)
{
    return cudaGetErrorString((cudaError_t)error);
}

extern "C" bool gpu_error_is_memory(int error)
{
    return error == cudaErrorMemoryAllocation;
}

// The runtime keeps the last error until it is asked for: it must not surprise a later launch.
static int cleared(cudaError_t error)
{
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
    }
    return error;
}

extern "C" int gpu_count(int *count)
{
    int driver = 0;
    *count = 0;
    cudaError_t error = cudaGetDeviceCount(count);
    if (error == cudaSuccess) {
        return 0;
    }
    cleared(error);
    *count = 0;
    bool no_driver = cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0;
    return no_driver || error == cudaErrorNoDevice ? 0 : error;
}

extern "C" int gpu_get_facts(int index, gpu_facts *facts)
{
    cudaDeviceProp shown;
    cudaError_t error = cudaGetDeviceProperties(&shown, index);
    if (error != cudaSuccess) {
        return cleared(error);
    }
    *facts = gpu_facts{};
    std::snprintf(facts->name, sizeof facts->name, "%s", shown.name);
    facts->major = shown.major;
    facts->minor = shown.minor;
    facts->multiprocessors = shown.multiProcessorCount;
    facts->memory_bytes = shown.totalGlobalMem;
    facts->l2_bytes = (size_t)shown.l2CacheSize;
    facts->shared_bytes = shown.sharedMemPerBlockOptin;
    int khz = 0;
    if (cudaDeviceGetAttribute(&khz, cudaDevAttrMemoryClockRate, index) == cudaSuccess) {
        facts->gb_per_s = 2.0 * khz * (shown.memoryBusWidth / 8) * 1e-6;
    }
    return 0;
}

extern "C" int gpu_enter(int index, int *before)
{
    cudaError_t error = cudaGetDevice(before);
    if (error == cudaSuccess && *before != index) {
        error = cudaSetDevice(index);
    }
    return cleared(error);
}

extern "C" void gpu_leave(int before)
{
    int now = before;
    if (cudaGetDevice(&now) == cudaSuccess && now != before) {
        (void)cudaSetDevice(before);
    }
}

extern "C" int gpu_alloc(size_t bytes, void **memory)
{
    return cleared(cudaMalloc(memory, bytes > 0 ? bytes : 1));
}

extern "C" void gpu_free(void *memory)
{
    cleared(cudaFree(memory));
}

extern "C" int gpu_pointer_device(const void *memory)
{
    cudaPointerAttributes facts;
    if (cleared(cudaPointerGetAttributes(&facts, memory)) != 0) {
        return -1;
    }
    bool there = facts.type == cudaMemoryTypeDevice || facts.type == cudaMemoryTypeManaged;
    return there ? facts.device : -1;
}

extern "C" int gpu_upload(void *to, const void *from, size_t bytes)
{
    cudaError_t error = cudaDeviceSynchronize();
    if (error == cudaSuccess) {
        error = cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice);
    }
    return cleared(error);
}

extern "C" int gpu_download(void *to, const void *from, size_t bytes)
{
    cudaError_t error = cudaDeviceSynchronize();
    if (error == cudaSuccess) {
        error = cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost);
    }
    return cleared(error);
}

extern "C" int gpu_wait(void)
{
    return cleared(cudaDeviceSynchronize());
}

extern "C" int gpu_fill(void *memory, int byte, size_t bytes)
{
    cudaError_t error = cudaMemset(memory, byte, bytes);
    return cleared(error == cudaSuccess ? cudaDeviceSynchronize() : error);
}

extern "C" void gpu_versions(int *runtime, int *driver)
{
    *runtime = *driver = 0;
    cleared(cudaRuntimeGetVersion(runtime));
    cleared(cudaDriverGetVersion(driver));
}
