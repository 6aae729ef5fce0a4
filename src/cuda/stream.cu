// Streams, pinned memory and kept work of the CUDA runtime behind plain C: how a model gives a GPU its work
// without waiting for it.
#include <cuda_runtime.h>

#include "cuda/gpu.h"

static int cleared(cudaError_t error)
{
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
    }
    return error;
}

extern "C" int gpu_stream_create(void **stream)
{
    cudaStream_t made = nullptr;
    cudaError_t error = cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking);
    *stream = made;
    return cleared(error);
}

extern "C" void gpu_stream_free(void *stream)
{
    cleared(cudaStreamSynchronize((cudaStream_t)stream));
    cleared(cudaStreamDestroy((cudaStream_t)stream));
}

extern "C" int gpu_stream_wait(void *stream)
{
    return cleared(cudaStreamSynchronize((cudaStream_t)stream));
}

extern "C" int gpu_pinned_alloc(size_t bytes, void **memory)
{
    return cleared(cudaMallocHost(memory, bytes > 0 ? bytes : 1));
}

extern "C" void gpu_pinned_free(void *memory)
{
    cleared(cudaFreeHost(memory));
}

extern "C" int gpu_send(void *to, const void *from, size_t bytes, void *stream)
{
    return cleared(
        cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, (cudaStream_t)stream));
}

extern "C" size_t gpu_memory_free(void)
{
    size_t left = 0, all = 0;
    return cleared(cudaMemGetInfo(&left, &all)) == 0 ? left : 0;
}

// ---- kept work ----

// Thread-local: another thread may go on allocating meanwhile.
extern "C" int gpu_keep_begin(void *stream)
{
    return cleared(cudaStreamBeginCapture((cudaStream_t)stream, cudaStreamCaptureModeThreadLocal));
}

extern "C" int gpu_keep_end(void *stream, void **kept)
{
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t made = nullptr;
    cudaError_t error = cudaStreamEndCapture((cudaStream_t)stream, &graph);
    if (error == cudaSuccess && kept != nullptr) {
        error = cudaGraphInstantiate(&made, graph, 0);
        *kept = made;
    }
    if (graph != nullptr) {
        cleared(cudaGraphDestroy(graph));
    }
    return cleared(error);
}

extern "C" int gpu_keep_replay(void *kept, void *stream)
{
    return cleared(cudaGraphLaunch((cudaGraphExec_t)kept, (cudaStream_t)stream));
}

extern "C" void gpu_keep_free(void *kept)
{
    cleared(cudaGraphExecDestroy((cudaGraphExec_t)kept));
}
