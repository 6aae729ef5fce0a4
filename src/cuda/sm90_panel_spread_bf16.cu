// The panel kernels for bf16 and V:2:5 that is spread over all columns; what they do is said in
// sm90_panel.cuh and sm90_panel_spread.cuh.
#include "cuda/gpu_spread.h"
#include "cuda/sm90_panel_spread.cuh"

extern "C" int gpu_sm90_panel_spread_bf16(const gpu_tiled *tiled, gpu_tile tile, void *stream)
{
    return panel::launch_whole<true, panel::SPREAD>(*tiled, tile, stream);
}
