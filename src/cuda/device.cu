// Which GPUs are there. The runtime is linked statically, so a machine without a driver just shows none.
#include <cstdio>
#include <cstring>

#include <cuda_runtime.h>

extern "C" {
#include "cuda/cuda.h"
}

static void describe(int index, esp_device_info *info)
{
    *info = esp_device_info{};
    std::snprintf(info->name, sizeof info->name, "cuda:%d", index);
    std::snprintf(info->why_not, sizeof info->why_not,
                  "products and models run on the CPU in this version; it has no GPU kernels yet");
    cudaDeviceProp facts;
    cudaError_t failed = cudaGetDeviceProperties(&facts, index);
    if (failed != cudaSuccess) {
        std::snprintf(info->description, sizeof info->description, "%s",
                      cudaGetErrorString(failed));
        return;
    }
    std::snprintf(info->description, sizeof info->description,
                  "%s, compute capability %d.%d, %d multiprocessors", facts.name, facts.major,
                  facts.minor, facts.multiProcessorCount);
    info->memory_bytes = facts.totalGlobalMem;
}

extern "C" int esp_cuda_device_list(esp_device_info *infos, int capacity)
{
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        cudaGetLastError(); // the sticky "no driver" must not surprise a later call
        return 0;
    }
    for (int i = 0; i < count && i < capacity; i++) {
        describe(i, &infos[i]);
    }
    return count;
}
