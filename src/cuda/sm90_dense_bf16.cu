// The dense kernels for bf16; what they do is said in sm90_dense.cuh.
#include "cuda/gpu_dense.h"
#include "cuda/sm90_dense.cuh"

extern "C" int gpu_sm90_dense_bf16(const gpu_tiled *tiled, gpu_tile tile, void *stream)
{
    return dense::launch_tile<true>(*tiled, tile, stream);
}
