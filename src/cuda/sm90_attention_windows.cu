// Attention in windows by warpgroup products, for both types.
#include "cuda/sm90_attention_windows.cuh"

namespace {

template <bool BF16> int launch_by_head_dim(const gpu_attention_windows *a, void *stream)
{
    return a->head_dim <= 64 ? attention::launch_windows<BF16, 64>(*a, stream)
                             : attention::launch_windows<BF16, 80>(*a, stream);
}

} // namespace

extern "C" int gpu_sm90_attend_windows(const gpu_attention_windows *a, void *stream)
{
    return a->type == GPU_BF16 ? launch_by_head_dim<true>(a, stream) : launch_by_head_dim<false>(a, stream);
}
