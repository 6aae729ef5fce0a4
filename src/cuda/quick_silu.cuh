// silu where it is computed on its own: as an operation, and on the way into a product of few tokens,
// which is to give the same bits.
#ifndef ESP_CUDA_QUICK_SILU_CUH
#define ESP_CUDA_QUICK_SILU_CUH

namespace activate
{

// epilogue::silu with a quick quotient, two units in the last place off; one below 2^-126 is 0. Exact quotients took a
// third longer than memory.
__device__ __forceinline__ float quick_silu(float v)
{
    return __fdividef(v, 1.0f + expf(-v));
}

} // namespace activate

#endif
