// The dense kernel for f16; what it does is said in sm90_dense.cuh.
#include "cuda/sm90_dense.cuh"

extern "C" int gpu_sm90_dense_f16(const gpu_product *product, void *stream)
{
    return dense::launch<dense::config<false, 256, 3, 8>>(*product, stream);
}
