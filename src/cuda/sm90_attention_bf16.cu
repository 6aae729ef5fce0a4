// Attention by warpgroup products for bf16.
#include "cuda/sm90_attention.cuh"

extern "C" int gpu_sm90_attend_groups_bf16(const gpu_attention_groups *a, void *stream)
{
    using namespace attention;
    return ESP_SM90_BY_HEAD_DIM(launch_groups_sm90, true);
}

extern "C" int gpu_sm90_attend_prefill_bf16(const gpu_attention_prefill *a, void *stream)
{
    using namespace attention;
    return ESP_SM90_BY_HEAD_DIM(launch_prefill_sm90, true);
}
