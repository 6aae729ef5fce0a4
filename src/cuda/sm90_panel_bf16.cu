// The panel kernels for bf16; what they do is said in sm90_panel.cuh.
#include "cuda/sm90_panel.cuh"

extern "C" int gpu_sm90_tiles_bf16(const gpu_tiled *tiled, gpu_tile tile, void *stream)
{
    if (tiled->product.weight.columns != nullptr) {
        return panel::launch_gathered<true>(*tiled, tile, stream);
    }
    return tiled->product.x_by_token
               ? panel::launch_whole<true, panel::TOKENS>(*tiled, tile, stream)
               : panel::launch_whole<true, panel::FEATURES>(*tiled, tile, stream);
}
