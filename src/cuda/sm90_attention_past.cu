// Attention of many tokens over a cache, for both types.
#include "cuda/sm90_attention_past.cuh"

extern "C" int gpu_sm90_attend_past(const gpu_attention_prefill *a, void *stream)
{
    return a->type == GPU_BF16 ? attention::launch_past<true>(*a, stream) : attention::launch_past<false>(*a, stream);
}
