// Y = epilogue(W X) for panels (2:4 is one panel without a column list), many tokens, on every GPU from
// compute capability 8.0 on. Reference: src/ref/matmul.c.
//
// Idea. As sm90_panel.cuh, with the sparse product of a warp (mma.sp, 16 rows x 8 tokens x 32 columns) and
// copies that the threads start themselves: a tile of rows x tokens is a block of four warps, all of which
// load and multiply. `ldmatrix` takes the weights from the packing of pack.cu as they lie, and turns X, whose
// rows are kept columns, into operands on the way.
//
// Who does what. A ring of STAGES in shared memory holds 64 kept columns each; the copies of a stage
// (cp.async, 16 bytes) are started STAGES steps ahead, one barrier of the block a step. X comes in one of
// three ways:
//   LISTED    rows of X picked by the panel's list
//   FEATURES  2:4, X feature-major: rows of X in order
//   TOKENS    2:4, X token-major: 64 features of each token side by side; ldmatrix without turning
// Sums leave through a strip of shared memory per warp, where the ring was.
//
// Shared memory, bytes, a stage: TOKENS * 128 of X, in strips of 64 tokens [64 columns][128 bytes], piece c of
// 16 bytes of row r at c ^ (r & 7) (token-major: [tokens][128 bytes], likewise) | ROWS * 72 of weights.
// A tile takes at most 99 KB, what a block may have on GPUs of 8.6, 8.9 and 12.0.
//
// Tails as in sm90_panel.cuh: what lies past an end is zero in shared memory and never read from X.
//
// Limit: shared memory. A warp's 64 rows x 64 tokens x 32 columns are 32 products and 12 matrix loads of
// 512 bytes, 48 clocks of a multiprocessor's shared memory; then, for small panels, the L2, since
// TOKENS * 128 bytes are gathered for each ROWS rows.
#ifndef ESP_CUDA_SM80_PANEL_CUH
#define ESP_CUDA_SM80_PANEL_CUH

#include "cuda/epilogue.cuh"
#include "cuda/launch.cuh"
#include "cuda/sm80_ptx.cuh"

namespace warp_panel {

enum loading { LISTED, FEATURES, TOKENS };

constexpr int WARPS = 4, THREADS = 32 * WARPS;
constexpr uint32_t STRIP_FLOATS = epilogue::ROWS * epilogue::PITCH;
constexpr uint32_t MOST_SHARED = 99 * 1024;

// A tile of TILE_ROWS x TILE_TOKENS, cut into warps of WARP_ROWS x WARP_TOKENS; RESIDENT blocks are meant to
// share a multiprocessor.
template <bool BF16_, int TILE_ROWS_, int TILE_TOKENS_, int WARP_ROWS_, int WARP_TOKENS_, int STAGES_,
          int RESIDENT_, loading LOADING_>
struct config {
    static constexpr bool BF16 = BF16_;
    static constexpr int TILE_ROWS = TILE_ROWS_, TILE_TOKENS = TILE_TOKENS_;
    static constexpr int WARP_ROWS = WARP_ROWS_, WARP_TOKENS = WARP_TOKENS_;
    static constexpr int STAGES = STAGES_, RESIDENT = RESIDENT_;
    static constexpr loading LOADING = LOADING_;
    static constexpr int WARPS_ALONG_ROWS = TILE_ROWS / WARP_ROWS;
    static constexpr int SIXTEENS = WARP_ROWS / 16, EIGHTS = WARP_TOKENS / 8;
    static constexpr int BLOCK_ROWS = TILE_ROWS < GPU_BLOCK_ROWS ? GPU_SHORT_ROWS : GPU_BLOCK_ROWS;
    static constexpr int BLOCKS = TILE_ROWS / BLOCK_ROWS;
    static constexpr uint32_t BLOCK_BYTES = BLOCK_ROWS * GPU_ROW_BYTES, PART_BYTES = BLOCK_ROWS * 32;
    static constexpr uint32_t X_BYTES = TILE_TOKENS * 128;
    static constexpr uint32_t STAGE_BYTES = X_BYTES + BLOCKS * BLOCK_BYTES;
    static constexpr uint32_t SHARED = STAGES * STAGE_BYTES;
    static_assert(WARPS_ALONG_ROWS * (TILE_TOKENS / WARP_TOKENS) == WARPS, "four warps share a tile");
    static_assert(STAGE_BYTES % 128 == 0, "the swizzle flips bits of addresses");
    static_assert(SHARED <= MOST_SHARED && SHARED >= WARPS * STRIP_FLOATS * 4, "shared memory");
    static_assert(BLOCK_ROWS % WARP_ROWS == 0, "a warp has rows of one packed block");
};

struct tiles {
    int of_panel; // row tiles of a panel
    int rows, tokens;
};

struct tile {
    int panel, block, token;
};

// Tiles side by side in the grid share tokens.
template <class C> __device__ __forceinline__ tile tile_at(const tiles &all, int index)
{
    int row = index % all.rows, token = index / all.rows;
    return {row / all.of_panel, row % all.of_panel * C::BLOCKS, token * C::TILE_TOKENS};
}

// ---- loading ----

// Columns of four rows of a step. A list's are taken apart only when they are used, one step later: doing so at
// once would wait for the load.
template <bool WIDE> struct four_columns;

template <> struct four_columns<true> {
    uint4 four;
    __device__ __forceinline__ void load(const char *list)
    {
        four = __ldg((const uint4 *)list);
    }
    __device__ __forceinline__ uint32_t at(int i) const
    {
        return i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w;
    }
};

template <> struct four_columns<false> {
    uint2 four;
    __device__ __forceinline__ void load(const char *list)
    {
        four = __ldg((const uint2 *)list);
    }
    __device__ __forceinline__ uint32_t at(int i) const
    {
        return (i < 2 ? four.x : four.y) >> (i % 2 * 16) & 0xffff;
    }
};

// What a thread loads, step after step: the weights' next piece, and of X eight tokens of four rows for each 64
// tokens, or (TOKENS) eight features of each 16th token. Its pointers walk along and its places in a stage are
// constants: whatever is worked out anew in every step delays the copies.
template <class C, bool WIDE> struct loader {
    static constexpr uint32_t WIDTH = WIDE ? 4 : 2;
    const gpu_product &p;
    const tile &t;
    int step = 0;
    const char *weights[C::BLOCKS];
    const char *x; // LISTED: in row 0; FEATURES, TOKENS: in the next step
    uint32_t stride; // of X, bytes
    uint32_t x_at, weights_at;
    bool tokens_whole;
    const char *list; // next to be read
    four_columns<WIDE> columns;

    __device__ __forceinline__ loader(const gpu_product &product, const tile &at) : p(product), t(at)
    {
        int chunk = threadIdx.x % 8, eighth = threadIdx.x / 8;
#pragma unroll
        for (int i = 0; i < C::BLOCKS; i++) {
            int block = min(t.block + i, p.weight.blocks - 1); // past the end: computed, not stored
            int64_t piece = ((int64_t)t.panel * p.weight.blocks + block) * p.weight.steps;
            weights[i] = (const char *)p.weight.data + piece * C::BLOCK_BYTES + threadIdx.x * 16;
        }
        weights_at = C::X_BYTES + threadIdx.x * 16;
        stride = (uint32_t)p.x_stride * 2;
        if constexpr (C::LOADING == TOKENS) {
            x = (const char *)p.x + (t.token + eighth) * p.x_stride * 2 + chunk * 16;
            x_at = eighth * 128 + ((chunk ^ eighth % 8) << 4);
            tokens_whole = t.token + C::TILE_TOKENS <= p.tokens;
        } else {
            int row = eighth * 4;
            x = (const char *)p.x + (t.token + chunk * 8) * 2;
            x += C::LOADING == FEATURES ? row * p.x_stride * 2 : 0;
            x_at = row * 128 + ((chunk ^ row % 8) << 4); // the other rows' by flipping bits
            tokens_whole = t.token + chunk * 8 + C::TILE_TOKENS - 56 <= p.tokens;
        }
        if constexpr (C::LOADING == LISTED) {
            int64_t first = (int64_t)t.panel * p.weight.steps * GPU_STEP_COLUMNS + eighth * 4;
            list = (const char *)p.weight.columns + first * WIDTH;
            columns.load(list);
        }
    }

    __device__ __forceinline__ void load_weights(uint32_t stage)
    {
#pragma unroll
        for (int b = 0; b < C::BLOCKS; b++) {
#pragma unroll
            for (uint32_t i = 0; i < C::BLOCK_BYTES; i += THREADS * 16) {
                if (i + THREADS * 16 <= C::BLOCK_BYTES || threadIdx.x * 16 < C::BLOCK_BYTES - i) {
                    ptx::copy_16(stage + weights_at + b * C::BLOCK_BYTES + i, weights[b] + i);
                }
            }
            weights[b] += C::BLOCK_BYTES;
        }
    }

    // Four rows, eight lanes a row.
    __device__ __forceinline__ void load_rows(uint32_t stage)
    {
        constexpr int STRIPS = C::TILE_TOKENS / 64;
        uint32_t column[4], slot = stage + x_at;
        const char *from[4];
        bool whole = tokens_whole;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if constexpr (C::LOADING == LISTED) {
                column[i] = columns.at(i);
                from[i] = x + (uint64_t)column[i] * stride;
            } else {
                column[i] = step * GPU_STEP_COLUMNS + threadIdx.x / 8 * 4 + i;
                from[i] = x + (uint64_t)i * stride;
            }
            whole = whole && column[i] < (uint32_t)p.weight.in;
        }
        if (whole) { // nearly always; a copy of a length that is not constant costs several times more
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int b = 0; b < STRIPS; b++) {
                    ptx::copy_16((slot ^ (i << 4)) + i * 128 + b * 8192, from[i] + b * 128);
                }
            }
        } else {
            int left = p.tokens - t.token - threadIdx.x % 8 * 8;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                bool there = column[i] < (uint32_t)p.weight.in;
#pragma unroll 1
                for (int b = 0; b < STRIPS; b++) {
                    uint32_t bytes = there ? 2 * (uint32_t)max(0, min(8, left - b * 64)) : 0;
                    ptx::copy_16((slot ^ (i << 4)) + i * 128 + b * 8192,
                                 bytes != 0 ? from[i] + b * 128 : (const char *)p.x, bytes);
                }
            }
        }
        x += C::LOADING == FEATURES ? (uint64_t)stride * GPU_STEP_COLUMNS : 0;
        if constexpr (C::LOADING == LISTED) {
            list += GPU_STEP_COLUMNS * WIDTH;
            if (step + 1 < p.weight.steps) {
                columns.load(list);
            }
        }
    }

    // Eight features of each 16th token.
    __device__ __forceinline__ void load_tokens(uint32_t stage)
    {
        int64_t left = p.weight.in - (int64_t)step * GPU_STEP_COLUMNS - threadIdx.x % 8 * 8;
        uint32_t slot = stage + x_at;
        if (tokens_whole && left >= 8) {
#pragma unroll
            for (int i = 0; i < C::TILE_TOKENS; i += 16) {
                ptx::copy_16(slot + i * 128, x + (uint64_t)i * stride);
            }
        } else {
            int first = t.token + threadIdx.x / 8;
#pragma unroll 1
            for (int i = 0; i < C::TILE_TOKENS; i += 16) {
                bool there = first + i < p.tokens;
                uint32_t bytes = there ? 2 * (uint32_t)max((int64_t)0, min((int64_t)8, left)) : 0;
                ptx::copy_16(slot + i * 128, bytes != 0 ? x + (uint64_t)i * stride : (const char *)p.x,
                             bytes);
            }
        }
        x += GPU_STEP_COLUMNS * 2;
    }

    // Element by element, for X that is not aligned: slow, and the same result.
    __device__ __forceinline__ void load_elements(uint32_t stage) const
    {
        const uint16_t *elements = (const uint16_t *)p.x;
        constexpr bool by_token = C::LOADING == TOKENS;
        constexpr int ROWS = by_token ? C::TILE_TOKENS : 64, COLUMNS = by_token ? 64 : C::TILE_TOKENS;
        int first = step * GPU_STEP_COLUMNS;
        for (int row = threadIdx.x / 32; row < ROWS; row += WARPS) {
            int64_t column = first + row; // where X has features side by side: the token's row
            if constexpr (C::LOADING == LISTED) {
                int64_t at = (int64_t)t.panel * p.weight.steps * GPU_STEP_COLUMNS + first + row;
                column = WIDE ? ((const uint32_t *)p.weight.columns)[at]
                              : ((const uint16_t *)p.weight.columns)[at];
            }
            int64_t outer = by_token ? t.token + row : column;
            bool there = outer < (by_token ? p.tokens : p.weight.in);
            int64_t inner = by_token ? first : t.token, end = by_token ? p.weight.in : p.tokens;
#pragma unroll 4
            for (int i = threadIdx.x % 32; i < COLUMNS; i += 32) {
                uint16_t v = there && inner + i < end ? elements[outer * p.x_stride + inner + i] : 0;
                int strip = i / 64 * 8192; // of 64 tokens; none where features lie side by side
                uint32_t slot = strip + row * 128 + ((i / 8 % 8 ^ (row & 7)) << 4) + i % 8 * 2;
                ptx::store_shared_u16(stage + slot, v);
            }
        }
    }

    // The next step.
    __device__ __forceinline__ void load(uint32_t stage)
    {
        load_weights(stage);
        if (!p.x_aligned) {
            load_elements(stage);
        } else if constexpr (C::LOADING == TOKENS) {
            load_tokens(stage);
        } else {
            load_rows(stage);
        }
        step++;
    }
};

// ---- multiplying ----

// A step is four quarters: two halves of its columns, two halves of the warp's tokens. While the products of a
// quarter run, the operands of the next one are loaded.
template <class C> struct multiplier {
    static constexpr int HALF = C::EIGHTS / 2;
    int warp_row, warp_token, lane;  // first row and token of the warp in the tile
    uint32_t a_at, b_at, positions_at; // of this lane in a stage
    float sums[C::SIXTEENS][C::EIGHTS][4];
    uint32_t a[2][C::SIXTEENS][4], b[2][HALF][4]; // of a half of the columns; of a half of the tokens
    uint32_t positions[C::SIXTEENS], coming[C::SIXTEENS];

    __device__ __forceinline__ multiplier(int warp, int lane_)
        : warp_row(warp % C::WARPS_ALONG_ROWS * C::WARP_ROWS),
          warp_token(warp / C::WARPS_ALONG_ROWS * C::WARP_TOKENS), lane(lane_), sums()
    {
        uint32_t weights = C::X_BYTES + warp_row / C::BLOCK_ROWS * C::BLOCK_BYTES;
        uint32_t sixteen = warp_row % C::BLOCK_ROWS / 16, piece = lane / 8, row = lane % 8;
        a_at = weights + sixteen * 512 + piece % 2 * 256 + piece / 2 * 128 + row * 16;
        positions_at = weights + 2 * C::PART_BYTES + sixteen * 128 + lane * 4;
        if constexpr (C::LOADING == TOKENS) {
            b_at = (warp_token + row) * 128 + ((piece ^ row) << 4);
        } else {
            uint32_t chunk = warp_token / 8;
            b_at = chunk / 8 * 8192 + lane * 128 + ((chunk % 8 ^ row) << 4);
        }
    }

    template <int PART> __device__ __forceinline__ void load_a(uint32_t stage)
    {
#pragma unroll
        for (int s = 0; s < C::SIXTEENS; s++) {
            ptx::load_matrices(stage + a_at + PART * C::PART_BYTES + s * 512, a[PART][s]);
        }
    }

    // 32 kept columns of eight tokens a register. A stage begins at a multiple of 128 bytes, so the swizzle flips
    // bits of the address.
    template <int PART, int TOKEN_HALF> __device__ __forceinline__ void load_b(uint32_t stage)
    {
#pragma unroll
        for (int e = 0; e < HALF; e++) {
            int eight = TOKEN_HALF * HALF + e;
            if constexpr (C::LOADING == TOKENS) {
                ptx::load_matrices(((stage + b_at) ^ (PART << 6)) + eight * 1024, b[TOKEN_HALF][e]);
            } else {
                ptx::load_matrices_transposed(((stage + b_at) ^ (eight << 4)) + PART * 4096,
                                              b[TOKEN_HALF][e]);
            }
        }
    }

    // What the first quarter of a stage needs.
    __device__ __forceinline__ void begin(uint32_t stage)
    {
#pragma unroll
        for (int s = 0; s < C::SIXTEENS; s++) {
            coming[s] = ptx::load_shared(stage + positions_at + s * 128);
        }
        load_a<0>(stage);
        load_b<0, 0>(stage);
    }

    template <int PART, int TOKEN_HALF> __device__ __forceinline__ void multiply_quarter()
    {
#pragma unroll
        for (int s = 0; s < C::SIXTEENS; s++) {
#pragma unroll
            for (int e = 0; e < HALF; e++) {
                ptx::sparse_product_16x8<PART, C::BF16>(sums[s][TOKEN_HALF * HALF + e], a[PART][s],
                                                        b[TOKEN_HALF][e], positions[s]);
            }
        }
    }

    // All but the last quarter; afterwards the stage has been read.
    __device__ __forceinline__ void multiply_most(uint32_t stage)
    {
#pragma unroll
        for (int s = 0; s < C::SIXTEENS; s++) {
            positions[s] = coming[s];
        }
        load_b<0, 1>(stage);
        load_a<1>(stage);
        multiply_quarter<0, 0>();
        load_b<1, 0>(stage);
        multiply_quarter<0, 1>();
        load_b<1, 1>(stage);
        multiply_quarter<1, 0>();
    }

    __device__ __forceinline__ void multiply_rest()
    {
        multiply_quarter<1, 1>();
    }

    // Sums of 16 rows x 32 tokens to the strip. A thread has rows 2 g and 2 g + 1 (dealt so by the packing) and
    // two tokens of each eight. `which` is not a constant: registers cannot be indexed by it.
    __device__ __forceinline__ void stage_sums(int which, uint32_t strip) const
    {
        constexpr int PARTS = C::EIGHTS / 4;
        uint32_t to = strip + (lane / 4 * 2 * epilogue::PITCH + lane % 4 * 2) * 4;
#pragma unroll
        for (int i = 0; i < C::SIXTEENS * PARTS; i++) {
            if (i == which) {
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    const float *pair = sums[i / PARTS][i % PARTS * 4 + j / 2] + j % 2 * 2;
                    ptx::store_shared_2(to + (j % 2 * epilogue::PITCH + j / 2 * 8) * 4, pair[0], pair[1]);
                }
            }
        }
    }

    __device__ __forceinline__ void leave(const gpu_product &p, const tile &t, float *strip) const
    {
        constexpr int PARTS = C::EIGHTS / 4;
        int block = t.block + warp_row / C::BLOCK_ROWS;
        if (block >= p.weight.blocks) {
            return;
        }
        int64_t first = ((int64_t)t.panel * p.weight.blocks + block) * C::BLOCK_ROWS;
        const int32_t *rows = p.weight.rows + first + warp_row % C::BLOCK_ROWS;
#pragma unroll 1
        for (int i = 0; i < C::SIXTEENS * PARTS; i++) {
            int token = t.token + warp_token + i % PARTS * 32;
            if (token < p.tokens) {
                epilogue::row_terms terms = epilogue::load_terms(p.epilogue, rows + i / PARTS * 16, lane);
                __syncwarp();
                stage_sums(i, ptx::shared_address(strip));
                __syncwarp();
                epilogue::finish_staged(p.epilogue, strip, terms, token, lane);
            }
        }
    }
};

template <class C, bool WIDE>
__device__ __forceinline__ void add_steps(const gpu_product &p, const tile &t, uint32_t base,
                                          multiplier<C> &to)
{
    int steps = p.weight.steps;
    loader<C, WIDE> from(p, t);
#pragma unroll 1
    for (int i = 0; i < C::STAGES; i++) {
        if (i < steps) {
            from.load(base + i * C::STAGE_BYTES);
        }
        ptx::copy_commit();
    }
    ptx::copy_wait<C::STAGES - 1>();
    __syncthreads();
    to.begin(base);
    const uint32_t end = base + C::STAGES * C::STAGE_BYTES;
    uint32_t stage = base;
    for (int step = 0; step < steps; step++) {
        uint32_t next = stage + C::STAGE_BYTES == end ? base : stage + C::STAGE_BYTES;
        to.multiply_most(stage);
        ptx::copy_wait<C::STAGES - 2>();
        __syncthreads(); // the next stage is there for all, and all have read this one
        if (step + 1 < steps) {
            to.begin(next);
        }
        if (step + C::STAGES < steps) {
            from.load(stage);
        }
        ptx::copy_commit();
        to.multiply_rest();
        stage = next;
    }
    ptx::copy_wait<0>();
}

template <class C>
__global__ void __launch_bounds__(THREADS, C::RESIDENT)
    kernel(const __grid_constant__ gpu_product p, const tiles all)
{
    extern __shared__ __align__(128) unsigned char memory[];
    uint32_t base = ptx::shared_address(memory);
    tile t = tile_at<C>(all, blockIdx.x);
    int warp = threadIdx.x / 32;
    multiplier<C> to(warp, threadIdx.x % 32);
    if (C::LOADING == LISTED && p.weight.wide) {
        add_steps<C, true>(p, t, base, to);
    } else {
        add_steps<C, false>(p, t, base, to);
    }
    __syncthreads(); // strips take the place of the ring
    to.leave(p, t, (float *)memory + warp * STRIP_FLOATS);
}

// ---- launching ----

template <class C> int launch(const gpu_product &product, void *stream)
{
    gpu_product p = product;
    p.x_aligned = p.x_aligned && p.x_stride < INT32_MAX; // rows of X are 32 bits of bytes apart
    static std::atomic<uint64_t> prepared;
    int failed = gpu_prepare((const void *)kernel<C>, C::SHARED, p.device, &prepared);
    if (failed != 0) {
        return failed;
    }
    tiles all;
    all.of_panel = (p.weight.blocks + C::BLOCKS - 1) / C::BLOCKS;
    all.rows = p.weight.panels * all.of_panel;
    all.tokens = (p.tokens + C::TILE_TOKENS - 1) / C::TILE_TOKENS;
    unsigned count = (unsigned)all.rows * (unsigned)all.tokens;
    kernel<C><<<count, THREADS, C::SHARED, (cudaStream_t)stream>>>(p, all);
    return cudaGetLastError();
}

template <bool BF16> int launch_listed(const gpu_product &p, gpu_tile tile, void *stream)
{
    switch (tile) {
    case GPU_TILE_128X128:
        return launch<config<BF16, 128, 128, 64, 64, 3, 2, LISTED>>(p, stream);
    case GPU_TILE_64X256:
        return launch<config<BF16, 64, 256, 64, 64, 2, 2, LISTED>>(p, stream);
    case GPU_TILE_64X128:
        return launch<config<BF16, 64, 128, 64, 32, 3, 3, LISTED>>(p, stream);
    case GPU_TILE_32X256:
        return launch<config<BF16, 32, 256, 32, 64, 2, 3, LISTED>>(p, stream);
    case GPU_TILE_32X128:
        return launch<config<BF16, 32, 128, 32, 32, 3, 4, LISTED>>(p, stream);
    default:
        return cudaErrorInvalidValue;
    }
}

template <bool BF16, loading LOADING>
int launch_whole(const gpu_product &p, gpu_tile tile, void *stream)
{
    switch (tile) {
    case GPU_TILE_128X128:
        return launch<config<BF16, 128, 128, 64, 64, 3, 2, LOADING>>(p, stream);
    case GPU_TILE_64X128:
        return launch<config<BF16, 64, 128, 64, 32, 3, 3, LOADING>>(p, stream);
    default:
        return cudaErrorInvalidValue;
    }
}

template <bool BF16> int launch_any(const gpu_product &p, gpu_tile tile, void *stream)
{
    if (p.weight.columns != nullptr) {
        return launch_listed<BF16>(p, tile, stream);
    }
    return p.x_by_token ? launch_whole<BF16, TOKENS>(p, tile, stream)
                        : launch_whole<BF16, FEATURES>(p, tile, stream);
}

} // namespace warp_panel

#endif
