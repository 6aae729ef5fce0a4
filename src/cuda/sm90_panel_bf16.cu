// The panel kernels for bf16; what they do is said in sm90_panel.cuh.
#include "cuda/sm90_panel.cuh"

extern "C" int gpu_sm90_panel_bf16(const gpu_product *product, gpu_tile tile, void *stream)
{
    if (product->weight.columns != nullptr) {
        return panel::launch_gathered<true>(*product, tile, stream);
    }
    return product->x_by_token ? panel::launch_whole<true, panel::TOKENS>(*product, tile, stream)
                               : panel::launch_whole<true, panel::FEATURES>(*product, tile, stream);
}
