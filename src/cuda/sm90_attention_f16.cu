// Attention by warpgroup products for f16.
#include "cuda/sm90_attention.cuh"

extern "C" int gpu_sm90_attend_groups_f16(const gpu_attention_groups *a, void *stream)
{
    using namespace attention;
    return ESP_SM90_BY_HEAD_DIM(launch_groups_sm90, false);
}

extern "C" int gpu_sm90_attend_prefill_f16(const gpu_attention_prefill *a, void *stream)
{
    using namespace attention;
    return ESP_SM90_BY_HEAD_DIM(launch_prefill_sm90, false);
}

extern "C" bool gpu_sm90_can_attend(int device)
{
    int major = 0;
    return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
           major == 9;
}
