// Attention by mma.sync for f16.
#include "cuda/attention_general.cuh"

extern "C" int gpu_any_attend_groups_f16(const gpu_attention_groups *a, void *stream)
{
    using namespace attention;
    return ESP_BY_HEAD_DIM(launch_groups, false);
}

extern "C" int gpu_any_attend_prefill_f16(const gpu_attention_prefill *a, void *stream)
{
    using namespace attention;
    return ESP_BY_HEAD_DIM(launch_prefill, false);
}
