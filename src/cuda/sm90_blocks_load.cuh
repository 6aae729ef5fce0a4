// The loading warp of sm90_blocks.cuh.
#ifndef ESP_CUDA_SM90_BLOCKS_LOAD_CUH
#define ESP_CUDA_SM90_BLOCKS_LOAD_CUH

#include "cuda/sm90_blocks_tile.cuh"

namespace blocks
{

// The warp's way through the steps of its tiles, four at a time: what they are has to come from
// memory too, so it is asked for while the four before are loaded, and where a tile's steps are, a
// tile ahead.
struct step_walk {
    const gpu_blocks &weight;
    int count; // of tiles
    int round, tile, step, end;
    int coming_tile, coming_step, coming_end;

    __device__ __forceinline__ void look_ahead(const tiles &all)
    {
        coming_tile = dealt(round + 1);
        if (coming_tile < count) {
            int band = band_at(all, coming_tile);
            coming_step = __ldg(weight.band_steps + band);
            coming_end = __ldg(weight.band_steps + band + 1);
        }
    }
    __device__ __forceinline__ void next_tile(const tiles &all)
    {
        tile = coming_tile, step = coming_step, end = coming_end;
        round++;
        look_ahead(all);
    }
    // To the next steps; whether there are any.
    __device__ __forceinline__ bool advance(const tiles &all, int taken)
    {
        step += taken;
        while (tile < count && step >= end) {
            next_tile(all);
        }
        return tile < count;
    }
    __device__ __forceinline__ bool start(const tiles &all)
    {
        round = -1;
        look_ahead(all);
        next_tile(all);
        return advance(all, 0);
    }
    __device__ __forceinline__ int taken() const
    {
        return min(4, end - step);
    }
    // Lane 8 i + j has word j of the i-th of four steps.
    __device__ __forceinline__ uint32_t load(int lane) const
    {
        return lane / 8 < taken() ? __ldg((const uint32_t *)(weight.steps + step) + lane) : 0;
    }
};

// Boxes of X: feature-major `unit` columns x 64 tokens each, token-major `unit` columns x all
// tokens. One lane a box.
template <class C>
__device__ __forceinline__ void load_boxes(const gpu_block_product &p, const CUtensorMap *map,
                                           uint32_t words, int i, uint32_t to, int token,
                                           uint32_t full, int lane)
{
    constexpr int STRIPS = C::BY_TOKEN ? 1 : C::TOKENS / 64;
    int piece = lane / STRIPS, strip = lane % STRIPS, unit = p.weight.unit;
    int column = (int)__shfl_sync(~0u, words, 8 * i + 4 + (piece * unit / 16) % 4);
    if (piece * unit >= 64) {
        return;
    }
    uint32_t at = to + piece * unit * (C::TOKENS * 2) + strip * (unit * 128);
    if (C::BY_TOKEN) {
        ptx::tensor_copy(at, map, column, token, full);
    } else {
        ptx::tensor_copy(at, map, token + strip * 64, column, full);
    }
}

// The i-th of the steps in `words`.
template <class C>
__device__ __forceinline__ void load_step(const gpu_block_product &p, const CUtensorMap *map,
                                          uint32_t words, int i, int token, const shared_map<C> &at,
                                          int stage, int lane)
{
    uint32_t first[HALVES] = {__shfl_sync(~0u, words, 8 * i), __shfl_sync(~0u, words, 8 * i + 1)};
    uint32_t present = __shfl_sync(~0u, words, 8 * i + 2), full = at.full(stage);
    if (lane == 0) {
        uint32_t bytes[HALVES] = {__popc(present & 0xffff) * (uint32_t)GPU_FRAGMENT_BYTES,
                                  __popc(present >> 16) * (uint32_t)GPU_FRAGMENT_BYTES};
        ptx::store_shared_u32(at.mask(stage), present);
        ptx::barrier_expect(full, C::X_BYTES + bytes[0] + bytes[1]);
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            if (bytes[half] != 0) {
                const char *from =
                    (const char *)p.weight.fragments + (int64_t)first[half] * GPU_FRAGMENT_BYTES;
                ptx::bulk_copy(at.weights(stage, half), from, bytes[half], full);
            }
        }
    }
    __syncwarp();
    load_boxes<C>(p, map, words, i, at.x(stage), token, full, lane);
}

template <class C>
__device__ __forceinline__ void load(const gpu_block_product &p, const tiles &all,
                                     const CUtensorMap *map, const shared_map<C> &at, int lane)
{
    ring<C::STAGES> place;
    step_walk walk = {p.weight, all.bands * all.tokens, 0, 0, 0, 0, 0, 0, 0};
    bool more = walk.start(all);
    uint32_t coming = more ? walk.load(lane) : 0;
    mma::wait_for_launch_before();
    while (more) {
        int token = tile_at<C>(all, walk.tile).token, count = walk.taken();
        uint32_t words = coming;
        more = walk.advance(all, count);
        coming = more ? walk.load(lane) : 0;
        for (int i = 0; i < count; i++) {
            ptx::barrier_wait(at.empty(place.stage), place.parity ^ 1);
            load_step<C>(p, map, words, i, token, at, place.stage, lane);
            place.next();
        }
    }
}

} // namespace blocks

#endif
