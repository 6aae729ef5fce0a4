// What loaders and consumers of sm90_blocks.cuh share: sizes, the order of tiles, the ring in shared memory.
#ifndef ESP_CUDA_SM90_BLOCKS_TILE_CUH
#define ESP_CUDA_SM90_BLOCKS_TILE_CUH

#include "cuda/epilogue.cuh"
#include "cuda/gpu_blocks.h"
#include "cuda/mma_ptx.cuh"
#include "cuda/sm90_blocks_ptx.cuh"

namespace blocks {

constexpr int HALVES = 2, WARPS = 4 * HALVES, THREADS = 128 * HALVES + 128;
constexpr uint32_t HALF_BYTES = GPU_HALF_STEP_FRAGMENTS * GPU_FRAGMENT_BYTES;
constexpr uint32_t BOX_BYTES = 2048; // of Y: 16 rows x 64 tokens

// BY_TOKEN: X. WHOLE: there is room for all boxes of Y that a warp has in a tile, so that sums can be finished by
// activations and residuals there; otherwise for two. ENDING: which of them, beside scale and bias, for Y by feature
// of X's type; 0: as the product says.
template <bool BF16_, bool BY_TOKEN_, int TOKENS_, int STAGES_, bool WHOLE_, unsigned ENDING_ = 0>
struct config {
    static constexpr bool BF16 = BF16_, BY_TOKEN = BY_TOKEN_, WHOLE = WHOLE_;
    static constexpr unsigned ENDING = ENDING_;
    static constexpr int TOKENS = TOKENS_, STAGES = STAGES_, BOXES = TOKENS / 64;
    static constexpr uint32_t STAGING_BYTES = (WHOLE ? BOXES : 2) * BOX_BYTES; // of a warp
    static_assert(epilogue::ROWS * epilogue::PITCH * 4 <= STAGING_BYTES, "a strip does not fit");
    static constexpr uint32_t X_BYTES = TOKENS * 128, W_BYTES = HALVES * HALF_BYTES;
    static constexpr uint32_t W_AT = STAGES * X_BYTES, STAGING_AT = W_AT + STAGES * W_BYTES;
    static constexpr uint32_t MASKS_AT = STAGING_AT + WARPS * STAGING_BYTES;
    static constexpr uint32_t BARRIERS_AT = MASKS_AT + STAGES * 8;       // keeps them aligned to 8
    static constexpr uint32_t SHARED = BARRIERS_AT + STAGES * 16 + WARPS * 8 + 1024; // 1024: to align
    static_assert(SHARED <= 232448, "more shared memory than a block can have");
};

// What all lanes of a warp hold alike. The compiler lets products run on only where it sees that a warp does
// not part.
__device__ __forceinline__ uint32_t uniform(uint32_t same)
{
    return __shfl_sync(~0u, same, 0);
}

// All tiles in the order of their numbers: slabs of X that the L2 can hold, in a slab bands, in a band
// tokens.
struct tiles {
    int bands, tokens, slab; // tokens, slab: counted in tiles
    bool whole_boxes;        // X by feature: of all tokens of a tile in one box a piece
};

struct tile {
    int band, token;
};

__device__ __forceinline__ tile place_of(const tiles &all, int index)
{
    int slab = index / (all.bands * all.slab), inside = index - slab * all.bands * all.slab;
    int width = min(all.slab, all.tokens - slab * all.slab);
    return {inside / width, slab * all.slab + inside % width};
}
template <class C> __device__ __forceinline__ tile tile_at(const tiles &all, int index)
{
    tile found = place_of(all, index);
    return {found.band, found.token * C::TOKENS};
}
__device__ __forceinline__ int band_at(const tiles &all, int index)
{
    return place_of(all, index).band;
}

// The tile that a block has in a round, dealt back and forth; `count` or more: none.
__device__ __forceinline__ int dealt(int round)
{
    int place = round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
    return round * (int)gridDim.x + place;
}

// A place in the ring; `parity` flips with each round.
template <int STAGES> struct ring {
    int stage = 0;
    uint32_t parity = 0;
    __device__ __forceinline__ void next()
    {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

template <class C> struct shared_map {
    uint32_t base;
    __device__ __forceinline__ uint32_t x(int stage) const
    {
        return base + stage * C::X_BYTES;
    }
    __device__ __forceinline__ uint32_t weights(int stage, int half) const
    {
        return base + C::W_AT + stage * C::W_BYTES + half * HALF_BYTES;
    }
    __device__ __forceinline__ uint32_t staging(int warp) const
    {
        return base + C::STAGING_AT + warp * C::STAGING_BYTES;
    }
    __device__ __forceinline__ uint32_t mask(int stage) const
    {
        return base + C::MASKS_AT + stage * 4;
    }
    __device__ __forceinline__ uint32_t full(int stage) const
    {
        return base + C::BARRIERS_AT + stage * 8;
    }
    __device__ __forceinline__ uint32_t empty(int stage) const
    {
        return base + C::BARRIERS_AT + (C::STAGES + stage) * 8;
    }
    __device__ __forceinline__ uint32_t residual(int warp) const
    {
        return base + C::BARRIERS_AT + (2 * C::STAGES + warp) * 8;
    }
};

} // namespace blocks

#endif
