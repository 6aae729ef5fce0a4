// Y = epilogue(W X) for block-sparse W and any number of tokens, on any GPU from Ampere on.
// Reference: src/ref/matmul.c.
//
// Idea. As sm90_blocks.cuh: a tile is a band of 128 rows x 256 tokens, and each piece of X that any row of the
// band needs is loaded once. Here each warp has all 128 rows of 32 tokens: then all eight warps have the
// same work, however blocks are spread, and fragments that are missing cost nothing, even single ones.
//
// A stage of the ring in shared memory is half a step, 32 columns: X by 16-byte cp.async, swizzled so that
// ldmatrix reads it without conflicts, and the fragments of the band as they lie in memory. One tile a block;
// bands are sorted, the longest first, and the machine hands out blocks in that order.
//
// Shared memory: 4 stages x (16384 of X + 8192 of weights) = 96 KB, which every such GPU has; a strip of f32 a
// warp takes their place in the end. Registers: 128 sums.
//
// Tails. What is past the end of X, and columns of padding, are written as zeros. X at addresses that 16-byte
// accesses cannot take is loaded element by element.
//
// Limit: the L2 on Hopper, the tensor cores on smaller GPUs.
#include "cuda/epilogue.cuh"
#include "cuda/gpu_blocks.h"
#include "cuda/launch.cuh"
#include "cuda/mma_ptx.cuh"

namespace {

constexpr int WARPS = 8, THREADS = WARPS * 32, TOKENS = 256, WARP_TOKENS = 32, STAGES = 4;
constexpr int STRIPS = 8, EIGHTS = WARP_TOKENS / 8;
constexpr uint32_t X_BYTES = TOKENS * 64, W_BYTES = 2 * STRIPS * GPU_FRAGMENT_BYTES;
constexpr uint32_t STAGE_BYTES = X_BYTES + W_BYTES, SHARED = STAGES * STAGE_BYTES;
constexpr uint32_t STRIP_FLOATS = epilogue::ROWS * epilogue::PITCH;
static_assert(WARPS * STRIP_FLOATS * 4 <= SHARED, "strips do not fit");

enum reading { BY_FEATURE, BY_TOKEN, ANY };

// Half a step: 32 columns.
struct half_step {
    int32_t column[2]; // of each 16
    uint32_t mask[2];  // bit s: strip s has a fragment
    int64_t first[4];  // fragments of [16 columns][half of the band]
};

__device__ __forceinline__ half_step half_of(const gpu_block_step &step, int part)
{
    half_step made;
    int k = part * 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t low = step.present >> (4 * (k + i)) & 15,
                 high = step.present >> (16 + 4 * (k + i)) & 15;
        made.column[i] = part == 0 ? step.column[i] : step.column[2 + i];
        made.mask[i] = low | high << 4;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t below = step.present >> (16 * half) & ((1u << (4 * (k + i))) - 1);
            made.first[2 * i + half] = (int64_t)step.first[half] + __popc(below);
        }
    }
    return made;
}

// ---- loading ----

// Where 8 numbers lie in a stage. Feature-major [4 x 64 tokens][32 columns][64 tokens], token-major [256
// tokens][32 columns]; pieces of 16 bytes are swizzled.
__device__ __forceinline__ uint32_t slot_by_feature(int column, int token)
{
    return token / 64 * 4096 + column * 128 + ((token / 8 % 8 ^ (column & 7)) << 4);
}
__device__ __forceinline__ uint32_t slot_by_token(int column, int token)
{
    return token * 64 + ((column / 8 ^ (token / 2 & 3)) << 4);
}

// What a thread loads of X in each stage: four pieces of 16 bytes, always at the same places of the tile.
template <reading READING> struct loader_of_x;

// Columns r and r + 8 of both 16, eight tokens.
template <> struct loader_of_x<BY_FEATURE> {
    const uint16_t *x; // of column r
    int64_t stride, in;
    uint32_t slot;
    int row, bytes;

    __device__ __forceinline__ loader_of_x(const gpu_block_product &p, int token)
    {
        int t = threadIdx.x % 32 * 8, left = min(8, p.tokens - token - t);
        row = threadIdx.x / 32;
        bytes = left > 0 ? 2 * left : 0;
        x = (const uint16_t *)p.x + (left > 0 ? row * p.x_stride + token + t : 0);
        stride = p.x_stride;
        in = p.weight.in;
        slot = slot_by_feature(row, t);
    }
    __device__ __forceinline__ void load(const half_step &step, uint32_t to) const
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int column = step.column[i / 2] + i % 2 * 8;
            bool there = column + row < in && bytes > 0;
            mma::copy_16(to + slot + i * 1024, there ? x + column * stride : x, there ? bytes : 0);
        }
    }
};

// Eight columns of four tokens.
template <> struct loader_of_x<BY_TOKEN> {
    const uint16_t *x;
    int64_t step64; // of 64 tokens
    int64_t in;
    uint32_t slot;
    int part, column, left; // which 16, where in it; tokens from this thread's first on

    __device__ __forceinline__ loader_of_x(const gpu_block_product &p, int token)
    {
        int t = threadIdx.x / 4;
        part = threadIdx.x % 4 / 2;
        column = threadIdx.x % 2 * 8;
        left = p.tokens - token - t;
        x = (const uint16_t *)p.x + (left > 0 ? (int64_t)(token + t) * p.x_stride : 0);
        step64 = 64 * p.x_stride;
        in = p.weight.in;
        slot = slot_by_token(threadIdx.x % 4 * 8, t);
    }
    __device__ __forceinline__ void load(const half_step &step, uint32_t to) const
    {
        int64_t first = (part == 0 ? step.column[0] : step.column[1]) + column;
        uint32_t bytes = 2 * (uint32_t)max((int64_t)0, min((int64_t)8, in - first));
#pragma unroll
        for (int i = 0; i < 4; i++) {
            bool there = i * 64 < left && bytes > 0;
            mma::copy_16(to + slot + i * 4096, x + (there ? i * step64 + first : 0),
                         there ? bytes : 0);
        }
    }
};

// One by one, 32 numbers a thread.
template <> struct loader_of_x<ANY> {
    const gpu_block_product &p;
    int token;

    __device__ __forceinline__ loader_of_x(const gpu_block_product &product, int first)
        : p(product), token(first)
    {
    }
    __device__ __forceinline__ void load(const half_step &step, uint32_t to) const
    {
        const uint16_t *x = (const uint16_t *)p.x;
        int64_t column_step = p.x_by_token ? 1 : p.x_stride,
                token_step = p.x_by_token ? p.x_stride : 1;
#pragma unroll 8
        for (int i = threadIdx.x; i < 32 * TOKENS; i += THREADS) {
            int column = p.x_by_token ? i % 32 : i / TOKENS, t = p.x_by_token ? i / 32 : i % TOKENS;
            int64_t from = (column < 16 ? step.column[0] : step.column[1]) + column % 16;
            bool there = from < p.weight.in && token + t < p.tokens;
            uint16_t v = there ? x[from * column_step + (token + t) * token_step] : 0;
            mma::store_shared_u16(to + slot_by_feature(column, t) + t % 8 * 2, v);
        }
    }
};

// Warp w has strip w of both 16 columns.
__device__ __forceinline__ void load_weights(const gpu_blocks &w, const half_step &step, int warp,
                                             int lane, uint32_t to)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t bit = 1u << warp, half = warp / 4;
        if ((step.mask[i] & bit) != 0) {
            uint32_t below = __popc(step.mask[i] & (bit - 1) & (half == 0 ? 0xfu : 0xf0u));
            int64_t fragment = (half == 0 ? step.first[2 * i] : step.first[2 * i + 1]) + below;
            const uint4 *from = (const uint4 *)w.fragments + fragment * 32 + lane;
            mma::copy_16(to + (i * STRIPS + warp) * GPU_FRAGMENT_BYTES + lane * 16, from);
        }
    }
}

// ---- multiplying ----

// The warp's 32 tokens of 16 columns as right operands.
template <reading READING>
__device__ __forceinline__ void load_operands(uint32_t x, int k, int warp, int lane,
                                              uint32_t (&b)[EIGHTS][2])
{
#pragma unroll
    for (int pair = 0; pair < EIGHTS / 2; pair++) {
        int token = warp * WARP_TOKENS + pair * 16;
        uint32_t r[4];
        if constexpr (READING ==
                      BY_TOKEN) { // matrices: columns 0-7, 8-15 of eight tokens, then of the next
            int row = token + lane / 16 * 8 + lane % 8, column = k * 16 + lane / 8 % 2 * 8;
            mma::load_matrices(x + slot_by_token(column, row), r);
        } else {
            int column = k * 16 + lane % 16, row = token + lane / 16 * 8;
            mma::load_matrices_transposed(x + slot_by_feature(column, row), r);
        }
        b[2 * pair][0] = r[0], b[2 * pair][1] = r[1];
        b[2 * pair + 1][0] = r[2], b[2 * pair + 1][1] = r[3];
    }
}

template <bool BF16, reading READING>
__device__ __forceinline__ void multiply(uint32_t stage, const uint32_t (&mask)[2], int warp,
                                         int lane, float (&sums)[STRIPS][EIGHTS][4])
{
#pragma unroll
    for (int k = 0; k < 2; k++) {
        if (mask[k] == 0) {
            continue;
        }
        uint32_t b[EIGHTS][2];
        uint4 a[STRIPS];
        load_operands<READING>(stage, k, warp, lane, b);
        uint32_t weights = stage + X_BYTES + k * STRIPS * GPU_FRAGMENT_BYTES + lane * 16;
#pragma unroll
        for (int s = 0; s < STRIPS; s++) { // all of them before the first is waited for
            if ((mask[k] >> s & 1) != 0) {
                a[s] = mma::load_shared_16(weights + s * GPU_FRAGMENT_BYTES);
            }
        }
#pragma unroll
        for (int s = 0; s < STRIPS; s++) {
            if ((mask[k] >> s & 1) != 0) {
#pragma unroll
                for (int e = 0; e < EIGHTS; e++) {
                    mma::product_16x8<BF16>(sums[s][e], a[s], b[e][0], b[e][1]);
                }
            }
        }
    }
}

// ---- leaving ----

// A thread has rows 2 g and 2 g + 1 of each strip (the packing deals them so), two tokens of each eight.
__device__ __forceinline__ void leave(const gpu_block_product &p, int band, int token,
                                      float (&sums)[STRIPS][EIGHTS][4], float *strip, int lane)
{
    const int32_t *rows = p.weight.rows + band * GPU_BAND_ROWS;
    if (token >= p.tokens) {
        return;
    }
#pragma unroll
    for (int s = 0; s < STRIPS; s++) {
        epilogue::row_terms mine =
            epilogue::load_terms(p.epilogue, rows + s * GPU_STRIP_ROWS, lane);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < EIGHTS * 2; i++) {
            float2 *to = (float2 *)(strip + (lane / 4 * 2 + i % 2) * epilogue::PITCH + i / 2 * 8 +
                                    lane % 4 * 2);
            *to = make_float2(sums[s][i / 2][i % 2 * 2], sums[s][i / 2][i % 2 * 2 + 1]);
        }
        __syncwarp();
        epilogue::finish_staged(p.epilogue, strip, mine, token, lane);
    }
}

template <bool BF16, reading READING>
__global__ void __launch_bounds__(THREADS, 1)
    tile_kernel(const __grid_constant__ gpu_block_product p, int token_tiles)
{
    extern __shared__ __align__(128) unsigned char memory[];
    uint32_t ring = mma::shared_address(memory);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int band = blockIdx.x / token_tiles, token = blockIdx.x % token_tiles * TOKENS;
    int first = 2 * p.weight.band_steps[band], count = 2 * p.weight.band_steps[band + 1] - first;
    float sums[STRIPS][EIGHTS][4] = {};
    uint32_t masks[STAGES][2];
    loader_of_x<READING> x(p, token);
    gpu_block_step coming =
        p.weight.steps[first / 2]; // taken apart only when it is used: that waits
    auto fetch = [&](int step, int stage, uint32_t(&mask)[2]) {
        if (step < count) {
            half_step now = half_of(coming, step % 2);
            uint32_t to = ring + stage * STAGE_BYTES;
            coming = p.weight.steps[(first + step + 1) / 2]; // one past the last step is there
            mask[0] = now.mask[0], mask[1] = now.mask[1];
            if ((mask[0] | mask[1]) != 0) {
                x.load(now, to);
                load_weights(p.weight, now, warp, lane, to + X_BYTES);
            }
        }
        mma::copy_commit();
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        fetch(i, i, masks[i]);
    }
    for (int begin = 0; begin < count; begin += STAGES) {
#pragma unroll
        for (int stage = 0; stage < STAGES; stage++) {
            if (begin + stage < count) {
                mma::copy_wait<STAGES - 2>();
                __syncthreads(); // the stage has come for all, and the one before is read by all
                constexpr int AHEAD = STAGES - 1;
                fetch(begin + stage + AHEAD, (stage + AHEAD) % STAGES,
                      masks[(stage + AHEAD) % STAGES]);
                multiply<BF16, READING>(ring + stage * STAGE_BYTES, masks[stage], warp, lane, sums);
            }
        }
    }
    mma::copy_wait<0>();
    __syncthreads(); // strips take the ring's place
    float *strip = (float *)memory + warp * STRIP_FLOATS;
    leave(p, band, token + warp * WARP_TOKENS, sums, strip, lane);
}

// ---- launching ----

template <bool BF16, reading READING> int launch_as(const gpu_block_product &p, void *stream)
{
    static std::atomic<uint64_t> prepared;
    int failed = gpu_prepare((const void *)tile_kernel<BF16, READING>, SHARED, p.device, &prepared);
    if (failed != 0) {
        return failed;
    }
    int token_tiles = (p.tokens + TOKENS - 1) / TOKENS;
    tile_kernel<BF16, READING>
        <<<(unsigned)(p.weight.bands * token_tiles), THREADS, SHARED, (cudaStream_t)stream>>>(
            p, token_tiles);
    return cudaGetLastError();
}

template <bool BF16> int launch(const gpu_block_product &p, void *stream)
{
    if (!p.x_aligned) {
        return launch_as<BF16, ANY>(p, stream);
    }
    return p.x_by_token ? launch_as<BF16, BY_TOKEN>(p, stream)
                        : launch_as<BF16, BY_FEATURE>(p, stream);
}

} // namespace

extern "C" int gpu_blocks_tiles(const gpu_block_product *product, void *stream)
{
    return product->bf16 ? launch<true>(*product, stream) : launch<false>(*product, stream);
}
