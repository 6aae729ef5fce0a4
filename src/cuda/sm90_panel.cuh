// Y = epilogue(W X) for panels (2:4 is one panel without a column list), many tokens, on Hopper.
// Reference: src/ref/matmul.c.
//
// Idea. Inside its kept columns a panel is an ordinary 2:4 matrix, so the sparse warpgroup product
// (wgmma.sp, 64 rows x N tokens x 32 columns) computes it once the kept rows of X lie side by side in shared
// memory. Choosing columns thus costs nothing but the way in which X is loaded.
//
// Who does what. One block a multiprocessor walks over tiles of rows x tokens. One warpgroup loads, two
// multiply. The stages of a ring in shared memory hold 64 kept columns each:
//   weights  by one bulk copy a block of 64 rows, packed in just the form that the product reads (pack.cu)
//   X        GATHER: rows of X picked by the panel's list, 16-byte cp.async, any columns in any order
//            FEATURES, TOKENS: 2:4 has no list, so the tensor copy engine fetches boxes of X, whichever
//            way it lies
// A loader waits for its own cp.async, fences them towards the tensor cores, and only then tells the
// consumers (`full`). Consumers keep one product in flight and free a stage (`empty`) when the next but one
// is issued. Sums leave through a strip of shared memory per warp, 32 tokens at a time, so that epilogue and
// stores see whole sectors in either layout of Y.
//
// Shared memory, bytes: STAGES x TILE_TOKENS * 128 of X | STAGES x TILE_BLOCKS * 4608 of weights |
// 8 warps x 2304 of leaving sums | barriers. Registers: 128 accumulators a thread (232 in all), 40 a loader.
//
// Tails. Weights are padded with zeros; columns past the list, features past `in` and tokens past the end
// are written as zero into shared memory and never read from X, so that NaN there does no harm; rows past
// the end have no output row. X at addresses that 16-byte accesses cannot take is loaded element by element.
//
// Limit: both operands come from shared memory, which the product reads at 144 clocks for 128 of
// arithmetic; below that the L2 (about 50 bytes a clock and multiprocessor), which bounds small panels.
#ifndef ESP_CUDA_SM90_PANEL_CUH
#define ESP_CUDA_SM90_PANEL_CUH

#include "cuda/epilogue.cuh"
#include "cuda/launch.cuh"
#include "cuda/sm90_ptx.cuh"

namespace panel {

enum loading { GATHER, FEATURES, TOKENS };

constexpr int LOADERS = 128, LOADER_WARPS = 4;
constexpr uint32_t STRIP_FLOATS = epilogue::ROWS * epilogue::PITCH;

// BLOCKS: of 64 rows that one consumer has; GROUP_ROWS x GROUP_TOKENS consumers; N tokens each.
template <bool BF16_, int BLOCKS_, int GROUP_ROWS_, int GROUP_TOKENS_, int N_, int STAGES_, int LAG_,
          loading LOADING_>
struct config {
    static constexpr bool BF16 = BF16_;
    static constexpr int BLOCKS = BLOCKS_, GROUP_ROWS = GROUP_ROWS_, GROUP_TOKENS = GROUP_TOKENS_;
    static constexpr int N = N_, STAGES = STAGES_, LAG = LAG_;
    static constexpr loading LOADING = LOADING_;
    static constexpr int GROUPS = GROUP_ROWS * GROUP_TOKENS, WARPS = 4 * GROUPS;
    static constexpr int THREADS = 128 * GROUPS + LOADERS;
    static constexpr int TILE_BLOCKS = BLOCKS * GROUP_ROWS, TILE_TOKENS = N * GROUP_TOKENS;
    static constexpr uint32_t X_BYTES = TILE_TOKENS * 128, W_BYTES = TILE_BLOCKS * GPU_STEP_BYTES;
    static constexpr uint32_t W_AT = STAGES * X_BYTES, STRIPS_AT = W_AT + STAGES * W_BYTES;
    static constexpr uint32_t BARRIERS_AT = STRIPS_AT + WARPS * STRIP_FLOATS * 4;
    static constexpr uint32_t SHARED = BARRIERS_AT + STAGES * 16 + 1024; // 1024: to align
    static_assert(SHARED <= 232448, "more shared memory than a block can have");
    static_assert(LAG + 2 <= STAGES, "loaders and consumers would wait for each other");
};

struct tiles {
    int of_panel; // row tiles of a panel
    int rows, tokens;
};

// A tile, from its place in the order of all tiles.
struct tile {
    int panel, block, token;
};

template <class C>
__device__ __forceinline__ tile tile_at(const gpu_product &p, const tiles &all, int index)
{
    int row = p.tokens_first ? index / all.tokens : index % all.rows;
    int token = p.tokens_first ? index % all.tokens : index / all.rows;
    return {row / all.of_panel, row % all.of_panel * C::TILE_BLOCKS, token * C::TILE_TOKENS};
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
    __device__ __forceinline__ uint32_t weights(int stage) const
    {
        return base + C::W_AT + stage * C::W_BYTES;
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

// ---- loading ----

// Announces `bytes` for the stage and starts the copies of its weights; by one thread.
template <class C>
__device__ __forceinline__ void load_weights(const gpu_panels &w, const tile &t, int step,
                                             const shared_map<C> &at, int stage, uint32_t bytes)
{
    ptx::barrier_expect(at.full(stage), bytes);
#pragma unroll
    for (int i = 0; i < C::TILE_BLOCKS; i++) {
        int block = min(t.block + i, w.blocks - 1); // what is past the end is computed, not stored
        int64_t piece = ((int64_t)t.panel * w.blocks + block) * w.steps + step;
        ptx::bulk_copy(at.weights(stage) + i * GPU_STEP_BYTES,
                       (const char *)w.data + piece * GPU_STEP_BYTES, GPU_STEP_BYTES, at.full(stage));
    }
}

// Four columns of a list as they lie there, u32 or u16. They are taken apart only when they are used: doing so
// at once would wait for the load, and so would one function for both widths.
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

// Four rows of X, eight lanes a row, 64 tokens at a time. Lane c's 16 bytes of row r stand at c ^ (r & 7): the
// swizzle that the product's descriptor names.
template <class C, bool WIDE>
__device__ __forceinline__ void gather_rows(const gpu_product &p, const four_columns<WIDE> &columns,
                                            uint32_t to, int first_row, int chunk, int token)
{
    constexpr int STRIPS = C::TILE_TOKENS / 64;
    const uint16_t *x = (const uint16_t *)p.x;
    int left = p.tokens - token;
    bool whole = left >= C::TILE_TOKENS - 56; // of this lane's eight tokens in each strip
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
        if (whole) { // nearly always; a copy of a length that is not constant costs several times more
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

template <class C, bool WIDE>
__device__ __forceinline__ void load_gathered(const gpu_product &p, const tiles &all,
                                              const shared_map<C> &at, int thread)
{
    int warp = thread / 32, lane = thread % 32;
    int first_row = warp * 16 + lane / 8 * 4, chunk = lane % 8;
    ring<C::STAGES> place;
    int started = 0, handed = 0; // stages, the latter modulo STAGES
    auto hand_over = [&]() {
        ptx::async_fence();
        __syncwarp();
        if (lane == 0) {
            ptx::barrier_arrive(at.full(handed));
        }
        handed = handed + 1 == C::STAGES ? 0 : handed + 1;
    };
    for (int index = blockIdx.x; index < all.rows * all.tokens; index += gridDim.x) {
        tile t = tile_at<C>(p, all, index);
        int64_t list = (int64_t)t.panel * p.weight.steps * GPU_STEP_COLUMNS + first_row;
        four_columns<WIDE> columns, coming;
        columns.load(p.weight, list);
        for (int step = 0; step < p.weight.steps; step++, started++) {
            int next = step + 1 < p.weight.steps ? step + 1 : 0;
            coming.load(p.weight, list + next * GPU_STEP_COLUMNS);
            ptx::barrier_wait(at.empty(place.stage), place.parity ^ 1);
            if (thread == 0) {
                load_weights<C>(p.weight, t, step, at, place.stage, C::W_BYTES);
            }
            __syncwarp();
            gather_rows<C, WIDE>(p, columns, at.x(place.stage), first_row, chunk, t.token + chunk * 8);
            ptx::copy_commit();
            if (started >= C::LAG) {
                ptx::copy_wait<C::LAG>();
                hand_over();
            }
            columns = coming;
            place.next();
        }
    }
    ptx::copy_wait<0>();
    for (int i = min(started, C::LAG); i > 0; i--) {
        hand_over();
    }
}

template <class C>
__device__ __forceinline__ void load_boxes(const CUtensorMap *map, const tile &t, int step,
                                           const shared_map<C> &at, int stage)
{
    if constexpr (C::LOADING == TOKENS) {
        ptx::tensor_copy(at.x(stage), map, step * GPU_STEP_COLUMNS, t.token, at.full(stage));
    } else {
#pragma unroll
        for (int i = 0; i < C::TILE_TOKENS; i += 64) {
            ptx::tensor_copy(at.x(stage) + i * 128, map, t.token + i, step * GPU_STEP_COLUMNS,
                             at.full(stage));
        }
    }
}

template <class C>
__device__ __forceinline__ void load_by_engine(const gpu_product &p, const tiles &all,
                                               const CUtensorMap *map, const shared_map<C> &at)
{
    ring<C::STAGES> place;
    for (int index = blockIdx.x; index < all.rows * all.tokens; index += gridDim.x) {
        tile t = tile_at<C>(p, all, index);
        for (int step = 0; step < p.weight.steps; step++) {
            ptx::barrier_wait(at.empty(place.stage), place.parity ^ 1);
            load_weights<C>(p.weight, t, step, at, place.stage, C::W_BYTES + C::X_BYTES);
            load_boxes<C>(map, t, step, at, place.stage);
            place.next();
        }
    }
}

// Element by element, for X that is not aligned: slow, and the same result.
template <class C>
__device__ __forceinline__ void copy_elements(const gpu_product &p, const tile &t, int step,
                                              uint32_t to, int warp, int lane)
{
    const uint16_t *x = (const uint16_t *)p.x;
    constexpr bool by_token = C::LOADING == TOKENS;
    constexpr int ROWS = by_token ? C::TILE_TOKENS : 64, WIDTH = by_token ? 64 : C::TILE_TOKENS;
    int first = step * GPU_STEP_COLUMNS;
    for (int row = warp; row < ROWS; row += LOADER_WARPS) {
        int64_t column = first + row; // where X has features side by side: the token's row
        if constexpr (C::LOADING == GATHER) {
            int64_t at = (int64_t)t.panel * p.weight.steps * GPU_STEP_COLUMNS + first + row;
            column = p.weight.wide ? ((const uint32_t *)p.weight.columns)[at]
                                   : ((const uint16_t *)p.weight.columns)[at];
        }
        int64_t outer = by_token ? t.token + row : column;
        bool there = outer < (by_token ? p.tokens : p.weight.in);
        int64_t inner = by_token ? first : t.token, end = by_token ? p.weight.in : p.tokens;
#pragma unroll 8
        for (int i = lane; i < WIDTH; i += 32) {
            uint16_t v = there && inner + i < end ? x[outer * p.x_stride + inner + i] : 0;
            int strip = i / 64 * 8192; // of 64 tokens; none where features lie side by side
            uint32_t slot = strip + row * 128 + ((i / 8 % 8 ^ (row & 7)) << 4) + i % 8 * 2;
            ptx::store_shared_u16(to + slot, v);
        }
    }
}

template <class C>
__device__ __forceinline__ void load_elements(const gpu_product &p, const tiles &all,
                                              const shared_map<C> &at, int thread)
{
    ring<C::STAGES> place;
    for (int index = blockIdx.x; index < all.rows * all.tokens; index += gridDim.x) {
        tile t = tile_at<C>(p, all, index);
        for (int step = 0; step < p.weight.steps; step++) {
            ptx::barrier_wait(at.empty(place.stage), place.parity ^ 1);
            if (thread == 0) {
                load_weights<C>(p.weight, t, step, at, place.stage, C::W_BYTES);
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

// ---- multiplying ----

template <class C> struct consumer {
    const shared_map<C> &at;
    int group_row, group_token, thread; // thread of the warpgroup
    ring<C::STAGES> place;

    template <int PART>
    __device__ __forceinline__ void multiply_part(float (&sums)[C::BLOCKS][C::N / 2],
                                                  const uint32_t (&positions)[C::BLOCKS],
                                                  bool accumulate)
    {
        constexpr bool by_token = C::LOADING == TOKENS;
        uint32_t x = at.x(place.stage) + group_token * (C::N * 128) + PART * (by_token ? 64 : 4096);
        uint64_t b = ptx::descriptor(x, by_token ? 16 : 8192, 1024, 1);
#pragma unroll
        for (int i = 0; i < C::BLOCKS; i++) {
            uint32_t w = at.weights(place.stage) +
                         (group_row * C::BLOCKS + i) * GPU_STEP_BYTES + PART * 2048;
            uint64_t a = ptx::descriptor(w, 128, 256, 0);
            ptx::sparse_product<C::N, C::BF16>::template run<PART, by_token>(sums[i], a, b,
                                                                             positions[i], accumulate);
        }
    }

    __device__ __forceinline__ void release(int stage)
    {
        __syncwarp(); // all 32 have read their positions
        if (thread % 32 == 0) {
            ptx::barrier_arrive(at.empty(stage));
        }
    }

    // One step. The product that is in flight still reads its positions from `others`, so they must not be
    // overwritten before the wait.
    __device__ __forceinline__ void multiply_step(float (&sums)[C::BLOCKS][C::N / 2],
                                                  uint32_t (&positions)[C::BLOCKS],
                                                  const uint32_t (&others)[C::BLOCKS], bool first)
    {
        ptx::barrier_wait(at.full(place.stage), place.parity);
#pragma unroll
        for (int i = 0; i < C::BLOCKS; i++) {
            positions[i] =
                ptx::load_shared(at.weights(place.stage) +
                                 (group_row * C::BLOCKS + i) * GPU_STEP_BYTES + 4096 + thread * 4);
        }
        ptx::product_fence();
        multiply_part<0>(sums, positions, !first);
        multiply_part<1>(sums, positions, true);
        ptx::product_commit();
        ptx::product_wait<1>();
        keep(others);
        if (!first) {
            release(place.stage == 0 ? C::STAGES - 1 : place.stage - 1);
        }
        place.next();
    }

    static __device__ __forceinline__ void keep(const uint32_t (&positions)[C::BLOCKS])
    {
#pragma unroll
        for (int i = 0; i < C::BLOCKS; i++) {
            asm volatile("" ::"r"(positions[i]));
        }
    }

    __device__ __forceinline__ void multiply(float (&sums)[C::BLOCKS][C::N / 2], int steps)
    {
        uint32_t even[C::BLOCKS] = {}, odd[C::BLOCKS] = {};
        for (int step = 0; step < steps; step += 2) {
            multiply_step(sums, even, odd, step == 0);
            if (step + 1 < steps) {
                multiply_step(sums, odd, even, false);
            }
        }
        ptx::product_wait<0>();
        keep(even);
        keep(odd);
        release(place.stage == 0 ? C::STAGES - 1 : place.stage - 1);
    }
};

// Accumulators of 32 tokens to the warp's strip. A thread has rows 2 g and 2 g + 1 (dealt so by the packing)
// and two tokens of each eight.
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

// The common case, unrolled: Y with tokens side by side and aligned, a tile full of tokens, no activation. A
// lane has eight tokens of two rows in each 32 tokens.
template <int N>
__device__ __forceinline__ void leave_plainly(const gpu_epilogue &e, const float (&sums)[N / 2],
                                              const int32_t *rows, int token, float *strip, int lane)
{
    int part = lane % 4 * 8;
    int outs[2] = {rows[lane / 4], rows[lane / 4 + 8]};
    float scale[2] = {1, 1}, bias[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (outs[i] >= 0) {
            scale[i] = (e.bits & ESP_EP_SCALE) != 0 ? e.scale[outs[i]] : 1.0f;
            bias[i] = (e.bits & ESP_EP_BIAS) != 0 ? e.bias[outs[i]] : 0.0f;
        }
    }
    int64_t at[2] = {outs[0] * e.feature_step + token + part, outs[1] * e.feature_step + token + part};
    const float4 *from = (const float4 *)(strip + lane / 4 * epilogue::PITCH + part);
#pragma unroll
    for (int i = 0; i < N / 32; i++) {
        __syncwarp();
        stage_sums<N>(sums, i, ptx::shared_address(strip), lane);
        __syncwarp();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float4 a = from[half * 2 * epilogue::PITCH], b = from[half * 2 * epilogue::PITCH + 1];
            float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
            if ((e.bits & (ESP_EP_SCALE | ESP_EP_BIAS)) != 0) {
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    v[j] = __fadd_rn(__fmul_rn(v[j], scale[half]), bias[half]);
                }
            }
            if (outs[half] >= 0) {
                epilogue::finish_eight(e, at[half] + i * 32, v);
            }
        }
    }
}

template <int N>
__device__ __forceinline__ void leave(const gpu_epilogue &e, const float (&sums)[N / 2],
                                      const int32_t *rows, int token, float *strip, int lane)
{
    if (e.token_step == 1 && e.aligned && token + N <= e.tokens &&
        (e.bits & ~(unsigned)(ESP_EP_SCALE | ESP_EP_BIAS | ESP_EP_RESIDUAL)) == 0) {
        leave_plainly<N>(e, sums, rows, token, strip, lane);
        return;
    }
    epilogue::row_terms mine = epilogue::load_terms(e, rows, lane);
#pragma unroll 1
    for (int part = 0; part < N / 32 && token + part * 32 < e.tokens; part++) {
        __syncwarp();
        stage_sums<N>(sums, part, ptx::shared_address(strip), lane);
        __syncwarp();
        epilogue::finish_staged(e, strip, mine, token + part * 32, lane);
    }
}

template <class C>
__device__ __forceinline__ void consume(const gpu_product &p, const tiles &all,
                                        const shared_map<C> &at, float *strip, int group, int thread)
{
    consumer<C> self = {at, group % C::GROUP_ROWS, group / C::GROUP_ROWS, thread, {}};
    int lane = thread % 32, warp = thread / 32;
    float sums[C::BLOCKS][C::N / 2];
    for (int index = blockIdx.x; index < all.rows * all.tokens; index += gridDim.x) {
        tile t = tile_at<C>(p, all, index);
        self.multiply(sums, p.weight.steps);
#pragma unroll
        for (int i = 0; i < C::BLOCKS; i++) {
            int block = t.block + self.group_row * C::BLOCKS + i;
            if (block < p.weight.blocks) {
                int64_t row = ((int64_t)t.panel * p.weight.blocks + block) * GPU_BLOCK_ROWS;
                leave<C::N>(p.epilogue, sums[i], p.weight.rows + row + warp * 16,
                            t.token + self.group_token * C::N, strip, lane);
            }
        }
    }
}

template <class C>
__global__ void __launch_bounds__(C::THREADS, 1)
    kernel(const __grid_constant__ gpu_product p, const tiles all,
           const __grid_constant__ CUtensorMap map)
{
    extern __shared__ unsigned char memory[];
    uint32_t start = ptx::shared_address(memory), aligned = (start + 1023) & ~1023u;
    shared_map<C> at = {aligned};
    int group = threadIdx.x / 128, thread = threadIdx.x % 128;
    bool engine = C::LOADING != GATHER && p.x_aligned;
    if (threadIdx.x == 0) {
        for (int i = 0; i < C::STAGES; i++) {
            ptx::barrier_init(at.full(i), engine ? 1 : 1 + LOADER_WARPS);
            ptx::barrier_init(at.empty(i), C::WARPS);
        }
        ptx::barrier_init_fence();
    }
    __syncthreads();
    if (group == C::GROUPS) {
        ptx::give_registers<40>();
        if (!p.x_aligned) {
            load_elements<C>(p, all, at, thread);
        } else if constexpr (C::LOADING == GATHER) {
            if (p.weight.wide) {
                load_gathered<C, true>(p, all, at, thread);
            } else {
                load_gathered<C, false>(p, all, at, thread);
            }
        } else if (thread == 0) {
            load_by_engine<C>(p, all, &map, at);
        }
    } else {
        ptx::take_registers<232>();
        float *strips = (float *)(memory + (aligned - start) + C::STRIPS_AT);
        float *strip = strips + (threadIdx.x / 32) * STRIP_FLOATS;
        consume<C>(p, all, at, strip, group, thread);
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
    cudaError_t failed = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                          cudaEnableDefault, &found);
    return failed == cudaSuccess ? (encode_function)function : nullptr;
}

template <class C> int describe_x(const gpu_product &p, CUtensorMap *map)
{
    static const encode_function encode = find_encode();
    if (encode == nullptr) {
        return cudaErrorNotSupported;
    }
    bool by_token = C::LOADING == TOKENS;
    cuuint64_t inner = by_token ? p.weight.in : p.tokens, outer = by_token ? p.tokens : p.weight.in;
    const cuuint64_t sizes[2] = {inner, outer}, strides[1] = {(cuuint64_t)p.x_stride * 2};
    const cuuint32_t box[2] = {64, by_token ? (cuuint32_t)C::TILE_TOKENS : 64u};
    const cuuint32_t steps[2] = {1, 1};
    CUresult failed =
        encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, (void *)p.x, sizes, strides, box, steps,
               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return failed == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <class C> int launch(const gpu_product &p, void *stream)
{
    static std::atomic<uint64_t> prepared;
    int failed = gpu_prepare((const void *)kernel<C>, C::SHARED, p.device, &prepared);
    if (failed != 0) {
        return failed;
    }
    CUtensorMap map = {};
    if (C::LOADING != GATHER && p.x_aligned) {
        failed = describe_x<C>(p, &map);
        if (failed != 0) {
            return failed;
        }
    }
    tiles all;
    all.of_panel = (p.weight.blocks + C::TILE_BLOCKS - 1) / C::TILE_BLOCKS;
    all.rows = p.weight.panels * all.of_panel;
    all.tokens = (p.tokens + C::TILE_TOKENS - 1) / C::TILE_TOKENS;
    int64_t count = (int64_t)all.rows * all.tokens;
    dim3 grid((unsigned)(count < p.multiprocessors ? count : p.multiprocessors));
    kernel<C><<<grid, C::THREADS, C::SHARED, (cudaStream_t)stream>>>(p, all, map);
    return cudaGetLastError();
}

template <bool BF16> int launch_gathered(const gpu_product &p, gpu_tile tile, void *stream)
{
    switch (tile) {
    case GPU_TILE_128X256:
        return launch<config<BF16, 1, 2, 1, 256, 5, 1, GATHER>>(p, stream);
    case GPU_TILE_128X128:
        return launch<config<BF16, 1, 2, 1, 128, 8, 3, GATHER>>(p, stream);
    case GPU_TILE_64X512:
        return launch<config<BF16, 1, 1, 2, 256, 3, 1, GATHER>>(p, stream);
    case GPU_TILE_64X256:
        return launch<config<BF16, 1, 1, 2, 128, 5, 2, GATHER>>(p, stream);
    case GPU_TILE_256X128:
        return launch<config<BF16, 2, 2, 1, 128, 6, 2, GATHER>>(p, stream);
    default:
        return cudaErrorInvalidValue;
    }
}

template <bool BF16, loading LOADING>
int launch_whole(const gpu_product &p, gpu_tile tile, void *stream)
{
    if (tile == GPU_TILE_128X128) {
        return launch<config<BF16, 1, 2, 1, 128, 8, 1, LOADING>>(p, stream);
    }
    return launch<config<BF16, 1, 2, 1, 256, 5, 1, LOADING>>(p, stream);
}

} // namespace panel

#endif
