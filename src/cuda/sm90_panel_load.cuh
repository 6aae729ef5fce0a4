// Loading of the panel kernels (sm90_panel.cuh): weights and X into the stages of the ring.
#ifndef ESP_CUDA_SM90_PANEL_LOAD_CUH
#define ESP_CUDA_SM90_PANEL_LOAD_CUH

#include "cuda/sm90_panel_parts.cuh"

namespace panel
{

// By one thread. Weights could be asked for before the stream's order is waited for: a gain only of
// few steps in tiles of 128 tokens, else a loss (docs/kernels-gpu.md, "Many tokens").
template <class C> struct weight_loader {
    const gpu_panels &w;
    const CUtensorMap *map;
    const shared_map<C> &at;

    // Announces the weights and `x_bytes` more for the stage and starts the copy of the weights.
    // Blocks past the panel's end are computed, not stored. One copy for all blocks: what the copy
    // engine takes long for is to be asked.
    __device__ __forceinline__ void load(const tile &t, int step, int stage, uint32_t x_bytes) const
    {
        ptx::barrier_expect(at.full(stage), C::W_BYTES + x_bytes);
        ptx::tensor_copy(at.weights(stage), map, 0, step * 4, t.panel * w.blocks + t.block,
                         at.full(stage));
    }
};

// ---- X gathered by the panel's list ----

// Four columns of a list as they lie there, u32 or u16. They are taken apart only when they are
// used: doing so at once would wait for the load, and so would one function for both widths.
template <bool WIDE> struct four_columns;

template <> struct four_columns<true> {
    uint4 four;
    __device__ __forceinline__ void load(const gpu_panels &w, int64_t first)
    {
        four = __ldg((const uint4 *)((const uint32_t *)w.columns + first));
    }
    __device__ __forceinline__ uint32_t at(int i) const
    {
        return i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w;
    }
};

template <> struct four_columns<false> {
    uint2 four;
    __device__ __forceinline__ void load(const gpu_panels &w, int64_t first)
    {
        four = __ldg((const uint2 *)((const uint16_t *)w.columns + first));
    }
    __device__ __forceinline__ uint32_t at(int i) const
    {
        return (i < 2 ? four.x : four.y) >> (i % 2 * 16) & 0xffff;
    }
};

// Four rows of X, eight lanes a row, STRIPS x 64 tokens. Lane c's 16 bytes of row r stand at c ^
// (r & 7): the swizzle that the product's descriptor names.
template <int STRIPS, bool WIDE>
__device__ __forceinline__ void gather_rows(const gpu_product &p, const four_columns<WIDE> &columns,
                                            uint32_t to, int first_row, int chunk, int token)
{
    const uint16_t *x = (const uint16_t *)p.x;
    int left = p.tokens - token;
    bool whole = left >= STRIPS * 64 - 56; // of this lane's eight tokens in each strip
    uint32_t column[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        column[i] = columns.at(i);
        whole = whole && column[i] < (uint32_t)p.weight.in;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int row = first_row + i;
        uint32_t slot = to + row * 128 + ((chunk ^ (row & 7)) << 4);
        const uint16_t *from = x + column[i] * p.x_stride + token;
        if (whole) { // nearly always; a copy of a length that is not constant costs several times
                     // more
#pragma unroll
            for (int b = 0; b < STRIPS; b++) {
                ptx::copy_16(slot + b * 8192, from + b * 64);
            }
            continue;
        }
        bool there = column[i] < (uint32_t)p.weight.in;
#pragma unroll 1
        for (int b = 0; b < STRIPS; b++) {
            uint32_t bytes = there ? 2 * (uint32_t)max(0, min(8, left - b * 64)) : 0;
            ptx::copy_16(slot + b * 8192, bytes != 0 ? from + b * 64 : x, bytes);
        }
    }
}

// Each thread's copies arrive at the barrier by themselves, so the loader runs ahead as far as
// there are stages.
template <class C, int STRIPS, bool WIDE>
__device__ __forceinline__ void gather_tile(const gpu_product &p, const tile &t,
                                            const stretch &mine, const weight_loader<C> &weights,
                                            ring<C::STAGES> &place, int thread)
{
    int warp = thread / 32, lane = thread % 32;
    int first_row = warp * 16 + lane / 8 * 4, chunk = lane % 8;
    int64_t list = (int64_t)t.panel * p.weight.steps * GPU_STEP_COLUMNS + first_row;
    four_columns<WIDE> columns, coming;
    columns.load(p.weight, list + mine.first * GPU_STEP_COLUMNS);
    for (int step = mine.first; step < mine.end; step++) {
        int next = step + 1 < mine.end ? step + 1 : 0;
        coming.load(p.weight, list + next * GPU_STEP_COLUMNS);
        ptx::barrier_wait(weights.at.empty(place.stage), place.parity ^ 1);
        if (thread == 0) {
            weights.load(t, step, place.stage, 0);
        }
        __syncwarp();
        gather_rows<STRIPS, WIDE>(p, columns, weights.at.x(place.stage), first_row, chunk,
                                  t.token + chunk * 8);
        ptx::copy_arrive(weights.at.full(place.stage));
        columns = coming;
        place.next();
    }
}

template <class C, bool WIDE>
__device__ __forceinline__ void load_gathered(const gpu_product &p, const maps &with,
                                              const shared_map<C> &at, int thread)
{
    constexpr int STRIPS = C::TILE_TOKENS / 64;
    const weight_loader<C> weights = {p.weight, &with.weights, at};
    ring<C::STAGES> place;
    stretch mine = steps_of(p);
    walk<C> tiles = {p.deal};
    tile t;
    bool there = tiles.next(&t);
    ptx::stream_order_wait();
    for (; there; there = tiles.next(&t)) {
        if (t.shift == 0) {
            gather_tile<C, STRIPS, WIDE>(p, t, mine, weights, place, thread);
        } else if (C::SHIFT == 1 || t.shift == 1) {
            gather_tile<C, STRIPS / 2, WIDE>(p, t, mine, weights, place, thread);
        } else {
            gather_tile<C, STRIPS / 4, WIDE>(p, t, mine, weights, place, thread);
        }
    }
    ptx::copy_wait_all();
}

// ---- X by the copy engine ----

template <class C>
__device__ __forceinline__ void load_boxes(const gpu_product &p, const maps_of<C> &with,
                                           const tile &t, int step, const shared_map<C> &at,
                                           int stage)
{
    const CUtensorMap *map = &with.x[t.shift];
    if constexpr (C::LOADING == SPREAD) {
        load_fives<C>(p, with, t, step, at.x(stage), at.full(stage));
    } else if constexpr (C::LOADING == TOKENS) {
        ptx::tensor_copy(at.x(stage), map, step * GPU_STEP_COLUMNS, t.token, at.full(stage));
    } else if (p.tokens % 64 == 0) {
        ptx::tensor_copy(at.x(stage), map, 0, step * GPU_STEP_COLUMNS, t.token / 64,
                         at.full(stage));
    } else {
        for (int i = 0; i < C::TILE_TOKENS >> t.shift; i += 64) {
            ptx::tensor_copy(at.x(stage) + i * 128, map, t.token + i, step * GPU_STEP_COLUMNS,
                             at.full(stage));
        }
    }
}

template <class C>
__device__ __forceinline__ void load_by_engine(const gpu_product &p, const maps_of<C> &with,
                                               const shared_map<C> &at)
{
    const weight_loader<C> weights = {p.weight, &with.weights, at};
    ring<C::STAGES> place;
    stretch mine = steps_of(p);
    walk<C> tiles = {p.deal};
    tile t;
    bool there = tiles.next(&t);
    ptx::stream_order_wait();
    for (; there; there = tiles.next(&t)) {
        for (int step = mine.first; step < mine.end; step++) {
            ptx::barrier_wait(at.empty(place.stage), place.parity ^ 1);
            weights.load(t, step, place.stage, C::X_BYTES >> t.shift);
            load_boxes<C>(p, with, t, step, at, place.stage);
            place.next();
        }
    }
}

// ---- X element by element, where it is not aligned: slow, and the same result ----

template <class C>
__device__ __forceinline__ void copy_elements(const gpu_product &p, const tile &t, int step,
                                              uint32_t to, int warp, int lane)
{
    const uint16_t *x = (const uint16_t *)p.x;
    constexpr bool by_token = C::LOADING == TOKENS;
    int tokens = C::TILE_TOKENS >> t.shift;
    int rows = by_token ? tokens : 64, width = by_token ? 64 : tokens;
    int first = step * GPU_STEP_COLUMNS;
    for (int row = warp; row < rows; row += LOADER_WARPS) {
        int64_t column = first + row; // where X has features side by side: the token's row
        if constexpr (C::LOADING == GATHER) {
            int64_t at = (int64_t)t.panel * p.weight.steps * GPU_STEP_COLUMNS + first + row;
            column = p.weight.wide ? ((const uint32_t *)p.weight.columns)[at]
                                   : ((const uint16_t *)p.weight.columns)[at];
        }
        if constexpr (C::LOADING == SPREAD) {
            column = spread_column<C>(p, step, row);
        }
        int64_t outer = by_token ? t.token + row : column;
        bool there = outer < (by_token ? p.tokens : p.weight.in);
        int64_t inner = by_token ? first : t.token, end = by_token ? p.weight.in : p.tokens;
#pragma unroll 4
        for (int i = lane; i < width; i += 32) {
            uint16_t v = there && inner + i < end ? x[outer * p.x_stride + inner + i] : 0;
            int strip = i / 64 * 8192; // of 64 tokens; none where features lie side by side
            uint32_t slot = strip + row * 128 + ((i / 8 % 8 ^ (row & 7)) << 4) + i % 8 * 2;
            ptx::store_shared_u16(to + slot, v);
        }
    }
}

template <class C>
__device__ __forceinline__ void load_elements(const gpu_product &p, const maps &with,
                                              const shared_map<C> &at, int thread)
{
    const weight_loader<C> weights = {p.weight, &with.weights, at};
    ring<C::STAGES> place;
    stretch mine = steps_of(p);
    walk<C> tiles = {p.deal};
    ptx::stream_order_wait();
    for (tile t; tiles.next(&t);) {
        for (int step = mine.first; step < mine.end; step++) {
            ptx::barrier_wait(at.empty(place.stage), place.parity ^ 1);
            if (thread == 0) {
                weights.load(t, step, place.stage, 0);
            }
            __syncwarp();
            copy_elements<C>(p, t, step, at.x(place.stage), thread / 32, thread % 32);
            ptx::async_fence();
            __syncwarp();
            if (thread % 32 == 0) {
                ptx::barrier_arrive(at.full(place.stage));
            }
            place.next();
        }
    }
}

} // namespace panel

#endif
