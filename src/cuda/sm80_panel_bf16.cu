// The warps' panel kernels for bf16; what they do is said in sm80_panel.cuh.
#include "cuda/sm80_panel.cuh"

extern "C" int gpu_sm80_panel_bf16(const gpu_product *product, gpu_tile tile, void *stream)
{
    return warp_panel::launch_any<true>(*product, tile, stream);
}
