// Memory of calibration in the order of a stream, from a pool of its own that keeps what is given
// back, so that the device's default pool stays as others set it; copies, and events behind them.
#include <cuda_runtime.h>

#include "cuda/gpu_calibrate.h"

namespace {

int cleared(cudaError_t error)
{
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
    }
    return error;
}

} // namespace

extern "C" int gpu_pool_create(void **pool)
{
    cudaMemPool_t made = nullptr;
    cudaMemPoolProps wanted = {};
    uint64_t keep = UINT64_MAX;
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    wanted.allocType = cudaMemAllocationTypePinned;
    wanted.location.type = cudaMemLocationTypeDevice;
    wanted.location.id = device;
    error = error == cudaSuccess ? cudaMemPoolCreate(&made, &wanted) : error;
    if (error == cudaSuccess) {
        error = cudaMemPoolSetAttribute(made, cudaMemPoolAttrReleaseThreshold, &keep);
        *pool = made;
    }
    return cleared(error);
}

extern "C" void gpu_pool_free(void *pool)
{
    cleared(cudaMemPoolDestroy((cudaMemPool_t)pool));
}

extern "C" int gpu_pool_take(void *pool, size_t bytes, void **memory, void *stream)
{
    return cleared(cudaMallocFromPoolAsync(memory, bytes > 0 ? bytes : 1, (cudaMemPool_t)pool,
                                           (cudaStream_t)stream));
}

extern "C" void gpu_pool_give(void *memory, void *stream)
{
    if (memory != nullptr) {
        cleared(cudaFreeAsync(memory, (cudaStream_t)stream));
    }
}

extern "C" void gpu_pool_trim(void *pool)
{
    cleared(cudaMemPoolTrimTo((cudaMemPool_t)pool, 0));
}

extern "C" int gpu_clear(void *memory, size_t bytes, void *stream)
{
    return cudaMemsetAsync(memory, 0, bytes, (cudaStream_t)stream);
}

extern "C" int gpu_copy(void *to, const void *from, size_t bytes)
{
    cudaError_t error = cudaDeviceSynchronize();
    if (error == cudaSuccess) {
        error = cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToDevice);
    }
    if (error == cudaSuccess) { // it may return before it is done
        error = cudaDeviceSynchronize();
    }
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
    }
    return error;
}

extern "C" int gpu_move(void *to, const void *from, size_t bytes, void *stream)
{
    return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, (cudaStream_t)stream);
}

extern "C" int gpu_event_create(void **event)
{
    return cudaEventCreateWithFlags((cudaEvent_t *)event, cudaEventDisableTiming);
}

extern "C" void gpu_event_free(void *event)
{
    if (cudaEventDestroy((cudaEvent_t)event) != cudaSuccess) {
        (void)cudaGetLastError();
    }
}

extern "C" int gpu_event_record(void *event, void *stream)
{
    return cudaEventRecord((cudaEvent_t)event, (cudaStream_t)stream);
}

extern "C" int gpu_event_wait(void *event)
{
    return cudaEventSynchronize((cudaEvent_t)event);
}

