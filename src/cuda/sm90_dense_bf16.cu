// The dense kernel for bf16; what it does is said in sm90_dense.cuh.
#include "cuda/sm90_dense.cuh"

extern "C" int gpu_sm90_dense_bf16(const gpu_product *product, void *stream)
{
    return dense::launch<dense::config<true, 256, 3, 8>>(*product, stream);
}
