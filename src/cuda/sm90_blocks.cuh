// Y = epilogue(W X) for block-sparse W, many tokens, on Hopper. Reference: src/ref/matmul.c.
//
// Idea. A stored block is a small dense matrix, so the tensor cores are never the limit: what is, is the way
// of X from the L2 into the multiprocessor, since a block of R rows uses what it loads R times only. So rows
// of blocks that share columns are brought together in bands of 128 rows (blocks_plan.c), a tile is a band x
// T tokens, and each piece of X that any row of the band needs is loaded once.
//
// Who does what. One block a multiprocessor walks over tiles. One warp loads: a stage of the ring in shared
// memory is a step of 64 columns (pieces of 16, 32 or 64, wherever they lie in X), fetched by tensor copies,
// and its weights, two bulk copies, one for each half of the band. Two warpgroups multiply, each a half:
// weights go to registers (a fragment is 16 bytes a lane; where a block is missing, zeros), X is read from
// shared memory. 16 columns for which a half has no fragment are skipped. Sums of 16-bit types leave by
// tensor stores, which go on while the next tile begins; everything else through a strip of f32.
//
// Balance. Bands differ in length. They are sorted, the longest first, and dealt to the multiprocessors back
// and forth: within 7 % of the best assignment for random weights, and it needs no counter in memory.
//
// 0 * Inf. Rows of blocks smaller than 64 share a product with rows that lack the block, for which a zero
// stands in. That is right unless X is not finite there; then the sums are not finite either, which is seen
// before they leave, and such strips are computed again, fragment by fragment (`leave_exactly`).
//
// Shared memory, bytes, T = 256: 4 stages x (32768 of X + 16384 of weights) | 8 warps x 4096 of leaving sums |
// 4 x 4 of masks | barriers. Registers: 128 sums and 2 x 16 of weights a thread (232 in all), 40 a loader.
//
// Tails. Tensor copies write zeros for columns and tokens past the end of X; columns of padding are such.
//
// Limit: the L2, about 52 bytes a clock and multiprocessor, and nearly as much the tensor cores.
#ifndef ESP_CUDA_SM90_BLOCKS_CUH
#define ESP_CUDA_SM90_BLOCKS_CUH

#include "cuda/block_exact.cuh"
#include "cuda/blocks_launch.cuh"
#include "cuda/epilogue.cuh"
#include "cuda/gpu_blocks.h"
#include "cuda/sm90_blocks_ptx.cuh"

namespace blocks
{

constexpr int HALVES = 2, WARPS = 4 * HALVES, THREADS = 128 * HALVES + 128;
constexpr uint32_t HALF_BYTES = GPU_HALF_STEP_FRAGMENTS * GPU_FRAGMENT_BYTES;
constexpr uint32_t STAGING_BYTES =
    4096; // of a warp: two boxes of 16 rows x 64 tokens, or a strip of f32
static_assert(epilogue::ROWS * epilogue::PITCH * 4 <= STAGING_BYTES, "a strip does not fit");

template <bool BF16_, bool BY_TOKEN_, int TOKENS_, int STAGES_> struct config {
    static constexpr bool BF16 = BF16_, BY_TOKEN = BY_TOKEN_; // BY_TOKEN: X
    static constexpr int TOKENS = TOKENS_, STAGES = STAGES_;
    static constexpr uint32_t X_BYTES = TOKENS * 128, W_BYTES = HALVES * HALF_BYTES;
    static constexpr uint32_t W_AT = STAGES * X_BYTES, STAGING_AT = W_AT + STAGES * W_BYTES;
    static constexpr uint32_t MASKS_AT = STAGING_AT + WARPS * STAGING_BYTES;
    static constexpr uint32_t BARRIERS_AT = MASKS_AT + STAGES * 8;       // keeps them aligned to 8
    static constexpr uint32_t SHARED = BARRIERS_AT + STAGES * 16 + 1024; // 1024: to align
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
        return base + C::STAGING_AT + warp * STAGING_BYTES;
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
};

// ---- loading, by one warp ----

// The warp's way through the steps of its tiles, four at a time: what they are has to come from memory too, so
// it is asked for while the four before are loaded, and where a tile's steps are, a tile ahead.
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

// Boxes of X: feature-major `unit` columns x 64 tokens each, token-major `unit` columns x all tokens. One lane
// a box.
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

// ---- multiplying ----

// The weights of one step that a warp multiplies.
struct step_weights {
    uint4 a[4];
    // Bit 4 k + s of `mask`: the half has a fragment there.
    __device__ __forceinline__ void load(uint32_t weights, uint32_t mask, int strip, int lane)
    {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t bit = 1u << (4 * k + strip);
            a[k] = make_uint4(0, 0, 0, 0);
            if ((mask & bit) != 0) {
                uint32_t before = __popc(mask & (bit - 1));
                a[k] = ptx::load_shared_16(weights + before * GPU_FRAGMENT_BYTES + lane * 16);
            }
        }
    }
    // A product in flight still reads its registers; this says so to the compiler.
    __device__ __forceinline__ void keep() const
    {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            asm volatile("" ::"r"(a[k].x), "r"(a[k].y), "r"(a[k].z), "r"(a[k].w));
        }
    }
};

template <class C> struct consumer {
    const shared_map<C> &at;
    int half, warp, lane; // warp of the warpgroup
    ring<C::STAGES> place;
    uint64_t x_form;      // a descriptor without its address
    uint32_t x_offset[4]; // of the k-th 16 columns in a stage

    __device__ __forceinline__ void set_unit(int unit)
    {
        // Token-major: rows of `unit` columns, swizzled over as many bytes.
        uint64_t swizzle = !C::BY_TOKEN || unit == 64 ? 1 : unit == 32 ? 2 : 3;
        x_form = C::BY_TOKEN ? ptx::descriptor(0, 16, unit * 16, swizzle)
                             : ptx::descriptor(0, unit * 128, 1024, swizzle);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t piece = k * 16 / unit, inside = k * 16 % unit;
            x_offset[k] = piece * unit * (C::TOKENS * 2) + inside * (C::BY_TOKEN ? 2 : 128);
        }
    }
    __device__ __forceinline__ uint64_t x_descriptor(int k) const
    {
        return x_form | ((at.x(place.stage) + x_offset[k]) & 0x3FFFF) >> 4;
    }

    __device__ __forceinline__ void release(int stage)
    {
        if (lane == 0) {
            ptx::barrier_arrive(at.empty(stage));
        }
    }

    // The 16 columns that COLUMNS has bits for. No branch stands between the products of a step: each would part
    // them into groups of their own, and a group starts only when the one before has ended.
    template <int COLUMNS>
    __device__ __forceinline__ void multiply_columns(float (&sums)[C::TOKENS / 2],
                                                     const step_weights &now)
    {
        ptx::product_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if ((COLUMNS >> k & 1) != 0) {
                ptx::dense_product<C::TOKENS, C::BF16>::template run<C::BY_TOKEN>(sums, now.a[k],
                                                                                  x_descriptor(k));
            }
        }
        ptx::product_commit();
    }
    template <int COLUMNS = 15>
    __device__ __forceinline__ void multiply_these(float (&sums)[C::TOKENS / 2],
                                                   const step_weights &now, uint32_t columns)
    {
        if constexpr (COLUMNS > 0) {
            if (columns == COLUMNS) {
                multiply_columns<COLUMNS>(sums, now);
            } else {
                multiply_these<COLUMNS - 1>(sums, now, columns);
            }
        }
    }
    // The products of the step before, by `before`, are in flight while this one's weights are loaded.
    __device__ __forceinline__ void multiply_step(float (&sums)[C::TOKENS / 2], step_weights &now,
                                                  const step_weights &before, bool first)
    {
        ptx::barrier_wait(at.full(place.stage), place.parity);
        uint32_t present = uniform(ptx::load_shared(at.mask(place.stage)) >> (16 * half) & 0xffff);
        now.load(at.weights(place.stage, half), present, warp, lane);
        ptx::product_wait<0>();
        before.keep();
        if (!first) {
            release(place.stage == 0 ? C::STAGES - 1 : place.stage - 1);
        }
        uint32_t any = present | present >> 2; // bit 4 k: the half has one for the k-th 16 columns
        any = (any | any >> 1) & 0x1111;
        multiply_these(sums, now, (any | any >> 3 | any >> 6 | any >> 9) & 15);
        place.next();
    }

    __device__ __forceinline__ void multiply(float (&sums)[C::TOKENS / 2], int steps)
    {
        step_weights even = {}, odd = {};
        for (int step = 0; step < steps; step += 2) {
            multiply_step(sums, even, odd, step == 0);
            if (step + 1 < steps) {
                multiply_step(sums, odd, even, false);
            }
        }
        ptx::product_wait<0>();
        even.keep();
        odd.keep();
        if (steps > 0) {
            release(place.stage == 0 ? C::STAGES - 1 : place.stage - 1);
        }
    }
};

// ---- leaving ----

// Where a thread's sums stand: rows 2 g and 2 g + 1 of the warp's strip of 16 (the packing deals them so), two
// tokens of each eight.

struct two_terms { // of a thread's two rows
    float scale[2], bias[2];
    __device__ __forceinline__ void load(const gpu_epilogue &e, int row, int64_t out)
    {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            bool there = row >= 0 && row + i < out;
            scale[i] = there && (e.bits & ESP_EP_SCALE) != 0 ? e.scale[row + i] : 1.0f;
            bias[i] = there && (e.bits & ESP_EP_BIAS) != 0 ? e.bias[row + i] : 0.0f;
        }
    }
};

// Eight tokens' sums of a thread: [i] are row i / 2, token i % 2.
__device__ __forceinline__ void finish_four(const gpu_epilogue &e, const float *sums,
                                            const two_terms &terms, float (&v)[4])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v[i] = sums[i];
        if ((e.bits & (ESP_EP_SCALE | ESP_EP_BIAS)) != 0) {
            v[i] = __fadd_rn(__fmul_rn(v[i], terms.scale[i / 2]), terms.bias[i / 2]);
        }
    }
}

// A box of 16 rows x 64 tokens as Y has it. By feature: rows of 128 bytes, swizzled; matrices of a store are
// the even and the odd rows of eight tokens, then of the next eight.
__device__ __forceinline__ void lay_by_feature(const gpu_epilogue &e, const float *sums,
                                               const two_terms &terms, uint32_t to, int lane)
{
    uint32_t row = lane % 8 * 2 + lane / 8 % 2, chunk = lane / 16;
#pragma unroll
    for (int pair = 0; pair < 4; pair++) { // of eights
        float a[4], b[4];
        finish_four(e, sums + pair * 8, terms, a);
        finish_four(e, sums + pair * 8 + 4, terms, b);
        uint32_t slot = to + row * 128 + (((pair * 2 + chunk) ^ (row & 7)) << 4);
        ptx::store_matrices(slot, epilogue::round_pair(e.type, a[0], a[1]),
                            epilogue::round_pair(e.type, a[2], a[3]),
                            epilogue::round_pair(e.type, b[0], b[1]),
                            epilogue::round_pair(e.type, b[2], b[3]));
    }
}

// By token: 32 bytes a token. Half of the lanes begin with their second token: no two meet in a bank.
__device__ __forceinline__ void lay_by_token(const gpu_epilogue &e, const float *sums,
                                             const two_terms &terms, uint32_t to, int lane)
{
    uint32_t second = lane / 2 % 2, slot = to + lane % 4 * 64 + lane / 4 * 4;
#pragma unroll
    for (int eight = 0; eight < 8; eight++) {
        float v[4];
        finish_four(e, sums + eight * 4, terms, v);
        uint32_t even = epilogue::round_pair(e.type, v[0], v[2]);
        uint32_t odd = epilogue::round_pair(e.type, v[1], v[3]);
        ptx::store_shared_u32(slot + eight * 256 + second * 32, second != 0 ? odd : even);
        ptx::store_shared_u32(slot + eight * 256 + (second ^ 1) * 32, second != 0 ? even : odd);
    }
}

// 16-bit Y: 64 tokens at a time are rounded, laid down as a box and stored by the copy engine, which also cuts
// off what is past the end.
template <class C>
__device__ __forceinline__ void leave_by_engine(const gpu_block_product &p, const CUtensorMap *map,
                                                const float (&sums)[C::TOKENS / 2], int first,
                                                int token, uint32_t staging, int lane)
{
    const gpu_epilogue &e = p.epilogue;
    bool by_feature = e.token_step == 1;
    two_terms terms;
    terms.load(e, first >= 0 ? first + lane / 4 * 2 : -1, p.weight.out);
#pragma unroll
    for (int box = 0; box < C::TOKENS / 64; box++) {
        uint32_t to = staging + box % 2 * 2048;
        if (lane == 0) {
            ptx::store_wait_read<1>();
        }
        __syncwarp();
        if (by_feature) {
            lay_by_feature(e, sums + box * 32, terms, to, lane);
        } else {
            lay_by_token(e, sums + box * 32, terms, to, lane);
        }
        ptx::async_fence();
        __syncwarp();
        if (lane == 0) {
            int at = token + box * 64;
            if (first >= 0 && at < e.tokens) {
                ptx::tensor_store(map, by_feature ? at : first, by_feature ? first : at, to);
            }
            ptx::store_commit();
        }
    }
}

// 32 tokens' sums to a strip of f32.
template <int N>
__device__ __forceinline__ void stage_sums(const float (&sums)[N / 2], int part, uint32_t strip,
                                           int lane)
{
    uint32_t to = strip + (lane / 4 * 2 * epilogue::PITCH + lane % 4 * 2) * 4;
#pragma unroll
    for (int i = 0; i < N / 32; i++) {
        if (i == part) {
#pragma unroll
            for (int j = 0; j < 8; j++) {
                uint32_t row = j % 2, token = j / 2 * 8;
                ptx::store_shared_2(to + (row * epilogue::PITCH + token) * 4, sums[i * 16 + j * 2],
                                    sums[i * 16 + j * 2 + 1]);
            }
        }
    }
}

template <class C>
__device__ __forceinline__ void
leave_by_strip(const gpu_epilogue &e, const float (&sums)[C::TOKENS / 2], const int32_t *rows,
               int token, float *strip, int lane)
{
    epilogue::row_terms mine = epilogue::load_terms(e, rows, lane);
    if (lane == 0) {
        ptx::store_wait_read<0>(); // boxes of an earlier tile
    }
#pragma unroll 1
    for (int part = 0; part < C::TOKENS / 32 && token + part * 32 < e.tokens; part++) {
        __syncwarp();
        stage_sums<C::TOKENS>(sums, part, ptx::shared_address(strip), lane);
        __syncwarp();
        epilogue::finish_staged(e, strip, mine, token + part * 32, lane);
    }
}

// The sums that the band's strip s has at 32 tokens, by fragments of its own only.
template <class C>
__device__ __noinline__ void leave_exactly(const gpu_block_product &p, int band, int strip_of_band,
                                           int token, float *strip, int lane)
{
    const int32_t *rows = p.weight.rows + band * GPU_BAND_ROWS + strip_of_band * GPU_STRIP_ROWS;
    epilogue::row_terms mine = epilogue::load_terms(p.epilogue, rows, lane);
    if (lane == 0) {
        ptx::store_wait_read<0>();
    }
#pragma unroll 1
    for (int part = 0; part < C::TOKENS / 32 && token + part * 32 < p.tokens; part++) {
        float sums[16] = {};
        exact::add_strip<C::BF16>(p, band, strip_of_band, token + part * 32, lane, sums);
        __syncwarp();
        stage_sums<32>(sums, 0, ptx::shared_address(strip), lane);
        __syncwarp();
        epilogue::finish_staged(p.epilogue, strip, mine, token + part * 32, lane);
    }
}

// Whether the engine can take Y as it is. It writes whole pieces of 16 bytes.
__host__ __device__ inline bool goes_by_engine(const gpu_block_product &p)
{
    const gpu_epilogue &e = p.epilogue;
    return e.aligned && (e.token_step == 1 ? e.tokens : p.weight.out) % 8 == 0 &&
           e.type != GPU_F32 && (e.bits & ~(unsigned)(ESP_EP_SCALE | ESP_EP_BIAS)) == 0;
}

template <int N> __device__ __forceinline__ bool all_finite(const float (&sums)[N])
{
    float most = 0;
#pragma unroll
    for (int i = 0; i < N; i++) {
        most = fmaxf(most, __fmul_rn(sums[i], 0.0f) == 0.0f ? 0.0f : 1.0f);
    }
    return __all_sync(~0u, most == 0.0f);
}

// What a warp has to know of a tile; asked for a tile ahead.
struct tile_facts {
    int begin, end; // steps
    int row;        // of Y, the first of the warp's strip; the others follow; -1: none

    __device__ __forceinline__ void load(const gpu_blocks &w, const tiles &all, int index,
                                         int count, int warp)
    {
        if (index < count) {
            int band = band_at(all, index);
            begin = __ldg(w.band_steps + band);
            end = __ldg(w.band_steps + band + 1);
            row = __ldg(w.rows + band * GPU_BAND_ROWS + warp * GPU_STRIP_ROWS);
        }
    }
};

template <class C>
__device__ __forceinline__ void consume(const gpu_block_product &p, const tiles &all,
                                        const CUtensorMap *to, const shared_map<C> &at,
                                        float *strip)
{
    int lane = threadIdx.x % 32, warp = uniform(threadIdx.x / 32);
    consumer<C> self = {at, warp / 4, warp % 4, lane, {}, 0, {}};
    self.set_unit(p.weight.unit);
    bool engine = goes_by_engine(p);
    int count = all.bands * all.tokens;
    tile_facts facts, coming = {};
    coming.load(p.weight, all, dealt(0), count, warp);
    mma::wait_for_launch_before();
    for (int round = 0, index = dealt(0); index < count; index = dealt(++round)) {
        tile t = tile_at<C>(all, index);
        facts = coming;
        coming.load(p.weight, all, dealt(round + 1), count, warp);
        float sums[C::TOKENS / 2];
#pragma unroll
        for (int i = 0; i < C::TOKENS / 2; i++) {
            sums[i] = 0;
        }
        self.multiply(sums, uniform(facts.end - facts.begin));
        if (p.weight.narrow && !all_finite(sums)) {
            leave_exactly<C>(p, t.band, warp, t.token, strip, lane);
        } else if (engine) {
            leave_by_engine<C>(p, to, sums, facts.row, t.token, at.staging(warp), lane);
        } else {
            const int32_t *rows = p.weight.rows + t.band * GPU_BAND_ROWS + warp * GPU_STRIP_ROWS;
            leave_by_strip<C>(p.epilogue, sums, rows, t.token, strip, lane);
        }
    }
    if (lane == 0) {
        ptx::store_wait_read<0>();
    }
}

template <class C>
__global__ void __launch_bounds__(THREADS, 1)
    kernel(const __grid_constant__ gpu_block_product p, const tiles all,
           const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to)
{
    extern __shared__ unsigned char memory[];
    uint32_t start = ptx::shared_address(memory), aligned = (start + 1023) & ~1023u;
    shared_map<C> at = {aligned};
    mma::let_next_launch_begin();
    if (threadIdx.x == 0) {
        for (int i = 0; i < C::STAGES; i++) {
            ptx::barrier_init(at.full(i), 1);
            ptx::barrier_init(at.empty(i), WARPS);
        }
        ptx::barrier_init_fence();
    }
    __syncthreads();
    int warp = uniform(threadIdx.x / 32);
    if (warp >= WARPS) {
        ptx::give_registers<40>();
        if (warp == WARPS) {
            load<C>(p, all, &from, at, threadIdx.x % 32);
        }
    } else {
        ptx::take_registers<232>();
        float *strip = (float *)(memory + (at.staging(warp) - start));
        consume<C>(p, all, &to, at, strip);
    }
}

// ---- launching ----

using encode_function = CUresult (*)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                     const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                     const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                     CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

inline encode_function find_encode()
{
    void *function = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaError_t failed = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                          12000, cudaEnableDefault, &found);
    return failed == cudaSuccess ? (encode_function)function : nullptr;
}

// 16-bit elements [outer][inner], boxes of box_outer x box_inner, swizzled over the length of their rows.
inline int describe(void *base, int64_t inner, int64_t outer, int64_t stride, int box_inner,
                    int box_outer, bool swizzled, CUtensorMap *map)
{
    static const encode_function encode = find_encode();
    if (encode == nullptr) {
        return cudaErrorNotSupported;
    }
    const cuuint64_t sizes[2] = {(cuuint64_t)inner, (cuuint64_t)outer};
    const cuuint64_t strides[1] = {(cuuint64_t)stride * 2};
    const cuuint32_t box[2] = {(cuuint32_t)box_inner, (cuuint32_t)box_outer}, steps[2] = {1, 1};
    CUtensorMapSwizzle swizzle = !swizzled         ? CU_TENSOR_MAP_SWIZZLE_NONE
                                 : box_inner == 64 ? CU_TENSOR_MAP_SWIZZLE_128B
                                 : box_inner == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                   : CU_TENSOR_MAP_SWIZZLE_32B;
    CUresult failed = encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, base, sizes, strides, box,
                             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return failed == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <class C>
int describe_operands(const gpu_block_product &p, CUtensorMap *from, CUtensorMap *to)
{
    const gpu_epilogue &e = p.epilogue;
    int failed = C::BY_TOKEN ? describe((void *)p.x, p.weight.in, p.tokens, p.x_stride,
                                        p.weight.unit, C::TOKENS, true, from)
                             : describe((void *)p.x, p.tokens, p.weight.in, p.x_stride, 64,
                                        p.weight.unit, true, from);
    if (failed == 0 && goes_by_engine(p)) {
        failed = e.token_step == 1 ? describe(e.y, e.tokens, p.weight.out, e.feature_step, 64,
                                              GPU_STRIP_ROWS, true, to)
                                   : describe(e.y, p.weight.out, e.tokens, e.token_step,
                                              GPU_STRIP_ROWS, 64, false, to);
    }
    return failed;
}

// A slab is what one round of tiles can have, so that X comes from memory in every round and not in the first
// only; but where weights would not stay in the L2 from slab to slab, it is as much X as does.
template <class C> tiles tiles_of(const gpu_block_product &p)
{
    tiles all = {p.weight.bands, (p.tokens + C::TOKENS - 1) / C::TOKENS, 1};
    int64_t x_bytes = p.weight.in * (int64_t)C::TOKENS * 2, l2 = p.l2_bytes / 2;
    int64_t most = p.weight.bytes < l2 ? p.multiprocessors / p.weight.bands : l2 / x_bytes;
    int64_t slabs = most < 1 ? all.tokens : (all.tokens + most - 1) / most;
    all.slab = (int)((all.tokens + slabs - 1) / slabs);
    return all;
}

template <class C> int launch_as(const gpu_block_product &p, void *stream)
{
    static std::atomic<uint64_t> prepared;
    int failed = gpu_prepare((const void *)kernel<C>, C::SHARED, p.device, &prepared);
    CUtensorMap from = {}, to = {};
    if (failed == 0) {
        failed = describe_operands<C>(p, &from, &to);
    }
    if (failed != 0) {
        return failed;
    }
    tiles all = tiles_of<C>(p);
    int64_t count = (int64_t)all.bands * all.tokens;
    dim3 grid((unsigned)(count < p.multiprocessors ? count : p.multiprocessors));
    return launch_beside(p.overlaps, kernel<C>, grid, THREADS, C::SHARED, stream, p, all, from, to);
}

template <bool BF16> int launch(const gpu_block_product &p, int tile_tokens, void *stream)
{
    if (tile_tokens == 256) {
        return p.x_by_token ? launch_as<config<BF16, true, 256, 4>>(p, stream)
                            : launch_as<config<BF16, false, 256, 4>>(p, stream);
    }
    return p.x_by_token ? launch_as<config<BF16, true, 128, 6>>(p, stream)
                        : launch_as<config<BF16, false, 128, 6>>(p, stream);
}

} // namespace blocks

#endif
