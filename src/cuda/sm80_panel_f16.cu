// The warps' panel kernels for f16; what they do is said in sm80_panel.cuh.
#include "cuda/sm80_panel.cuh"

extern "C" int gpu_sm80_panel_f16(const gpu_product *product, gpu_tile tile, void *stream)
{
    return warp_panel::launch_any<false>(*product, tile, stream);
}
