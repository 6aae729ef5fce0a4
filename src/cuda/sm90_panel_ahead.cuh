// X into the L2 before it is needed (sm90_panel.cuh). Where a tile has few steps, the ring reaches
// only a little way into the next one, and all tiles that share its tokens wait for memory
// together. They share out the lines of X instead, one a thread.
//
// Consumers ask, since loaders are in a hurry: for the first tile before the stream's order is
// waited for (a later write to X is seen all the same: the L2 is where it goes), and for the tile
// after the next one while a tile's last product runs.
#ifndef ESP_CUDA_SM90_PANEL_AHEAD_CUH
#define ESP_CUDA_SM90_PANEL_AHEAD_CUH

#include "cuda/sm90_panel_parts.cuh"

namespace panel
{

template <class C> struct x_ahead {
    const gpu_product &p;
    int thread; // of those that multiply one tile
    static constexpr int THREADS = C::SHARING == IN_TURNS ? 128 : 256;
    static constexpr int LINES = C::TILE_TOKENS / 64; // of a feature, 64 tokens each

    // For the tile after the next one. Tiles of fewer steps than the ring has stages are loaded a
    // tile ahead anyway; where steps are many, few of them wait for memory, and what is asked for
    // besides stands in the loads' way. Measured, as that tiles of 64 rows do not gain.
    static __device__ __forceinline__ bool worthwhile(int steps)
    {
        return C::SHARING == BY_ROWS && steps > C::STAGES && steps <= 4 * C::STAGES;
    }
    // Nothing where one line a thread is not enough: such a burst holds up the loads behind it.
    __device__ __forceinline__ void ask(const tile &t) const
    {
        if (C::LOADING == TOKENS || t.sharers * (THREADS / LINES) < p.weight.in) {
            return;
        }
        int feature = t.sharer + t.sharers * (thread / LINES), line = thread % LINES;
        int token = t.token + line * 64;
        if (feature < p.weight.in && line < LINES >> t.shift && token < p.tokens) {
            ptx::prefetch_l2((const uint16_t *)p.x + feature * p.x_stride + token);
        }
    }
};

} // namespace panel

#endif
