// Work captured as a graph and replayed between two events: what is timed is the device alone.
#include <cstdlib>

#include <cuda_runtime.h>

#include "cuda/gpu.h"

struct gpu_recording {
    cudaStream_t stream;
    cudaGraphExec_t graph; // NULL: nothing was captured
    cudaEvent_t begin, end;
};

static int cleared(cudaError_t error)
{
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
    }
    return error;
}

extern "C" int gpu_recording_create(gpu_recording **made, void **stream)
{
    auto *recording = (gpu_recording *)std::calloc(1, sizeof(gpu_recording));
    if (recording == nullptr) {
        return cudaErrorMemoryAllocation;
    }
    cudaError_t error = cudaStreamCreateWithFlags(&recording->stream, cudaStreamNonBlocking);
    if (error == cudaSuccess) {
        error = cudaEventCreate(&recording->begin);
    }
    if (error == cudaSuccess) {
        error = cudaEventCreate(&recording->end);
    }
    if (error != cudaSuccess) {
        gpu_recording_free(recording);
        return cleared(error);
    }
    *made = recording;
    *stream = recording->stream;
    return 0;
}

// Thread-local: another thread may go on allocating meanwhile.
extern "C" int gpu_recording_begin(gpu_recording *recording)
{
    return cleared(cudaStreamBeginCapture(recording->stream, cudaStreamCaptureModeThreadLocal));
}

extern "C" int gpu_recording_end(gpu_recording *recording, bool *captured)
{
    cudaGraph_t graph = nullptr;
    *captured = false;
    cudaError_t error = cudaStreamEndCapture(recording->stream, &graph);
    if (error == cudaSuccess && graph != nullptr) {
        error = cudaGraphInstantiate(&recording->graph, graph, 0);
        *captured = error == cudaSuccess;
    }
    if (graph != nullptr) {
        cleared(cudaGraphDestroy(graph));
    }
    return cleared(error);
}

extern "C" int gpu_recording_replay(gpu_recording *recording, int repeats, double *us)
{
    float ms = 0;
    cudaError_t error = cudaEventRecord(recording->begin, recording->stream);
    for (int i = 0; i < repeats && error == cudaSuccess; i++) {
        error = cudaGraphLaunch(recording->graph, recording->stream);
    }
    if (error == cudaSuccess) {
        error = cudaEventRecord(recording->end, recording->stream);
    }
    if (error == cudaSuccess) {
        error = cudaEventSynchronize(recording->end);
    }
    if (error == cudaSuccess) {
        error = cudaEventElapsedTime(&ms, recording->begin, recording->end);
    }
    *us = 1e3 * (double)ms;
    return cleared(error);
}

extern "C" void gpu_recording_free(gpu_recording *recording)
{
    if (recording->graph != nullptr) {
        cleared(cudaGraphExecDestroy(recording->graph));
    }
    if (recording->begin != nullptr) {
        cleared(cudaEventDestroy(recording->begin));
    }
    if (recording->end != nullptr) {
        cleared(cudaEventDestroy(recording->end));
    }
    if (recording->stream != nullptr) {
        cleared(cudaStreamDestroy(recording->stream));
    }
    std::free(recording);
}
