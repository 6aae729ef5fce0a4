// Devices, memory and errors of the CUDA runtime behind plain C. The runtime is linked statically, so a
// machine without a driver runs this, too.
#include <cstdio>
#include <cstring>

#include <cuda.h>
#include <cuda_runtime.h>

#include "cuda/gpu.h"
#include "cuda/gpu_clusters.h"
#include "cuda/gpu_lack.h"

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
    *count = 0;
    cudaError_t error = cudaGetDeviceCount(count);
    if (error != cudaSuccess) {
        *count = 0;
    }
    return cleared(error);
}

extern "C" gpu_lack gpu_lacking(int error)
{
    int driver = 0;
    if (cleared(cudaDriverGetVersion(&driver)) != 0 || driver == 0) {
        return GPU_LACKS_DRIVER;
    }
    if (error == cudaErrorInsufficientDriver) {
        return GPU_LACKS_NEWER_DRIVER;
    }
    return error == cudaSuccess || error == cudaErrorNoDevice ? GPU_LACKS_GPU : GPU_LACKS_OTHER;
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

// ---- clusters ----

// Stands for kernels whose blocks take most of a multiprocessor's shared memory.
static __global__ void large_block()
{
}

extern "C" void gpu_most_clusters(int most[GPU_CLUSTER_SIZES])
{
    const int shared = 200 << 10;
    cudaLaunchAttribute attribute = {};
    cudaLaunchConfig_t how = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    how.blockDim = dim3(128);
    how.dynamicSmemBytes = shared;
    how.attrs = &attribute;
    how.numAttrs = 1;
    bool large = cudaFuncSetAttribute(large_block, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      shared) == cudaSuccess;
    for (int i = 0; i < GPU_CLUSTER_SIZES; i++) {
        how.gridDim = dim3(1024);
        attribute.val.clusterDim = {1u << i, 1, 1};
        most[i] = 0;
        if (!large || cudaOccupancyMaxActiveClusters(&most[i], large_block, &how) != cudaSuccess) {
            most[i] = 0;
        }
    }
    (void)cudaGetLastError(); // no clusters before 9.0: nothing that a later launch should hear of
}

// In a thread that has called nothing yet, the device may be the right one and still have no context, without which the
// driver refuses to describe tensors. Setting the device makes it current.
extern "C" int gpu_enter(int index, int *before)
{
    static thread_local int entered = -1;
    cudaError_t error = cudaGetDevice(before);
    if (error == cudaSuccess && (*before != index || entered != index)) {
        error = cudaSetDevice(index);
        entered = error == cudaSuccess ? index : -1;
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

// The driver's own question about a pointer: an order of magnitude less host time than the runtime's, which
// asks for all that there is to know.
using ask_pointer = CUresult (*)(unsigned, CUpointer_attribute *, void **, CUdeviceptr);

static ask_pointer find_ask_pointer()
{
    void *found = nullptr;
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    cudaError_t error = cudaGetDriverEntryPointByVersion("cuPointerGetAttributes", &found, 12000,
                                                         cudaEnableDefault, &result);
#else
    cudaError_t error =
        cudaGetDriverEntryPoint("cuPointerGetAttributes", &found, cudaEnableDefault, &result);
#endif
    return cleared(error) == 0 ? (ask_pointer)found : nullptr;
}

// Where the allocation that holds `at` ends; 0: it is not memory of the device.
static CUdeviceptr end_of_range(ask_pointer ask, int index, CUdeviceptr at)
{
    CUpointer_attribute what[] = {
        CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
        CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, CU_POINTER_ATTRIBUTE_RANGE_SIZE};
    unsigned type = 0;
    int device = -1;
    CUdeviceptr start = 0;
    size_t size = 0;
    void *answers[] = {&type, &device, &start, &size};
    bool known = ask(4, what, answers, at) == CUDA_SUCCESS && type == CU_MEMORYTYPE_DEVICE;
    return known && device == index ? start + size : 0;
}

// Memory of cudaMalloc and not pieces that a caller has mapped side by side.
static bool is_whole(ask_pointer ask, CUdeviceptr at)
{
    CUpointer_attribute what = CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE;
    int whole = 1;
    void *answer = &whole;
    return ask(1, &what, &answer, at) != CUDA_SUCCESS || whole != 0;
}

extern "C" bool gpu_holds(int index, const void *memory, size_t bytes)
{
    static const ask_pointer ask = find_ask_pointer();
    CUdeviceptr at = (CUdeviceptr)memory, left = bytes > 0 ? bytes : 1;
    while (ask != nullptr) {
        CUdeviceptr end = end_of_range(ask, index, at);
        if (end <= at) {
            return false;
        }
        if (left <= end - at) {
            return true;
        }
        if (is_whole(ask, at)) {
            return false;
        }
        left -= end - at;
        at = end;
    }
    return false;
}

extern "C" int gpu_upload(void *to, const void *from, size_t bytes)
{
    cudaError_t error = cudaDeviceSynchronize();
    if (error == cudaSuccess) {
        error = cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice);
    }
    if (error == cudaSuccess) { // it may return when the bytes have left the host's memory
        error = cudaDeviceSynchronize();
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

extern "C" int gpu_copy_to_host(void *to, const void *from, size_t bytes, void *stream)
{
    cudaStream_t in = (cudaStream_t)stream;
    cudaError_t error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, in);
    if (error == cudaSuccess) {
        error = cudaStreamSynchronize(in);
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
