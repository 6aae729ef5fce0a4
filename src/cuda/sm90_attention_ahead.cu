// Attention that runs ahead, without and with a grid, for both types.
#include "cuda/sm90_attention_rows.cuh"

namespace {

template <bool BF16> int launch_rows_by_head_dim(const gpu_attention_groups *a, void *stream)
{
    return a->head_dim <= 64 ? attention::launch_rows<BF16, 64>(*a, stream)
                             : attention::launch_rows<BF16, 80>(*a, stream);
}

} // namespace

extern "C" int gpu_sm90_attend_ahead(const gpu_attention_groups *a, void *stream)
{
    return a->type == GPU_BF16 ? attention::launch_ahead<true, 64>(*a, stream)
                               : attention::launch_ahead<false, 64>(*a, stream);
}

extern "C" int gpu_sm90_attend_rows(const gpu_attention_groups *a, void *stream)
{
    return a->type == GPU_BF16 ? launch_rows_by_head_dim<true>(a, stream)
                               : launch_rows_by_head_dim<false>(a, stream);
}
