// Y = epilogue(W X) for block-sparse W and up to 16 tokens, on any GPU from Ampere on.
// Reference: src/ref/matmul.c.
//
// Idea. The time is that of reading the weights once. Fragments are stored as a warp's registers want them, so
// they need no rearranging, and those of half a band (64 rows) lie side by side: each of its block's eight
// warps streams an equal share of them through a ring of its own in shared memory, a lane reading back what it
// copied itself, so that no warp waits for another. Weights are the 16-row operand of the
// product, tokens its 8 columns; X comes straight from the L2, one turn ahead.
//
// In the end partial sums meet in shared memory in the order of the warps: results do not depend on timing.
//
// A launch lets the next one begin at once and waits for the one before only when it comes to X: in a row of
// launches, weights of the next stream in while sums of this one are added up.
//
// Shared memory: 8 warps x 16 fragments = 64 KB, later the partial sums. Two blocks a multiprocessor.
//
// Tails: tokens and columns past the end are zeros and not read.
//
// Limit: memory bandwidth, and the few microseconds in which a launch starts, fills its rings and adds up.
#include "cuda/blocks_launch.cuh"
#include "cuda/epilogue.cuh"
#include "cuda/gpu_blocks.h"
#include "cuda/mma_ptx.cuh"

namespace {

constexpr int WARPS = GPU_BLOCK_SHARES, THREADS = WARPS * 32, STRIPS = 4;
constexpr int RING = 16; // fragments
constexpr uint32_t RING_BYTES = RING * GPU_FRAGMENT_BYTES, SHARED = WARPS * RING_BYTES;
constexpr int SUM_PITCH = 20; // floats between rows of partial sums
constexpr int SUM_FLOATS = GPU_HALF_ROWS * SUM_PITCH;
constexpr int STRIP_FLOATS = epilogue::ROWS * epilogue::PITCH;
static_assert((WARPS * SUM_FLOATS + STRIPS * STRIP_FLOATS) * 4 <= SHARED, "sums do not fit");

// The warp's ring. A fragment is asked for when the one before in its place has been used.
struct stream {
    const uint4 *from; // of this lane
    uint32_t ring;     // likewise
    int left;          // fragments not yet asked for
    int asked, taken;  // their places, counted on

    __device__ __forceinline__ void ask()
    {
        if (left > 0) {
            mma::copy_16(ring + asked % RING * GPU_FRAGMENT_BYTES, from);
        }
        mma::copy_commit();
        from += 32;
        left--;
        asked++;
    }
    __device__ __forceinline__ uint4 take()
    {
        mma::copy_wait<RING - 2>(); // of RING - 1
        uint4 found = mma::load_shared_16(ring + taken % RING * GPU_FRAGMENT_BYTES);
        taken++;
        ask(); // where the fragment before this one was
        return found;
    }
};

// X of 16 columns as it is read; put together only when it is used, since that waits.
template <int EIGHTS> struct columns_of_x {
    uint16_t value[EIGHTS][4];

    __device__ __forceinline__ void load(const gpu_block_product &p, int64_t column, bool used,
                                         int lane)
    {
        int64_t column_step = p.x_by_token ? 1 : p.x_stride,
                token_step = p.x_by_token ? p.x_stride : 1;
        column += lane % 4 * 2;
        const uint16_t *x = (const uint16_t *)p.x + column * column_step + lane / 4 * token_step;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int offset = i / 2 * 8 + i % 2;
            bool there = used && column + offset < p.weight.in;
#pragma unroll
            for (int e = 0; e < EIGHTS; e++) {
                bool wanted = there && e * 8 + lane / 4 < p.tokens;
                value[e][i] = wanted ? __ldg(x + offset * column_step + e * 8 * token_step) : 0;
            }
        }
    }
    __device__ __forceinline__ uint32_t pair(int e, int i) const
    {
        return value[e][2 * i] | (uint32_t)value[e][2 * i + 1] << 16;
    }
};

// The code is kept short, 16 columns a turn: it is read from memory again and again, like the weights.
template <int EIGHTS, bool BF16>
__device__ __forceinline__ void add_share(const gpu_block_product &p, const gpu_block_share &mine,
                                          int half, uint32_t ring, int lane,
                                          float (&sums)[STRIPS][EIGHTS][4])
{
    auto words = [&](int step) { // one past the last step is there
        const uint32_t *from = (const uint32_t *)(p.weight.steps + step);
        return lane < 8 && step <= mine.end ? __ldg(from + lane) : 0;
    };
    auto bits = [&](uint32_t word, int k) {
        return __shfl_sync(~0u, word, 2) >> (16 * half + 4 * k) & 15;
    };
    stream weights = {(const uint4 *)p.weight.fragments + (int64_t)mine.fragment * 32 + lane,
                      ring + lane * 16, (int)(mine.fragments_end - mine.fragment), 0, 0};
    uint32_t word = words(mine.step), coming = words(mine.step + 1);
#pragma unroll 1
    for (int i = 0; i < RING - 1; i++) {
        weights.ask();
    }
    mma::wait_for_launch_before(); // weights do not depend on it, X does
    columns_of_x<EIGHTS> x;
    uint32_t strips = bits(word, 0);
    x.load(p, (int)__shfl_sync(~0u, word, 4), mine.step < mine.end && strips != 0, lane);
#pragma unroll 1
    for (int turn = 4 * mine.step; turn < 4 * mine.end; turn++) {
        columns_of_x<EIGHTS> now = x;
        uint32_t these = strips;
        int next = (turn + 1) % 4;
        if (next == 0) {
            word = coming;
            coming = words(turn / 4 + 2);
        }
        strips = bits(word, next);
        x.load(p, (int)__shfl_sync(~0u, word, 4 + next), turn + 1 < 4 * mine.end && strips != 0,
               lane);
#pragma unroll
        for (int s = 0; s < STRIPS; s++) {
            if ((these >> s & 1) != 0) {
                uint4 a = weights.take();
#pragma unroll
                for (int e = 0; e < EIGHTS; e++) {
                    mma::product_16x8<BF16>(sums[s][e], a, now.pair(e, 0), now.pair(e, 1));
                }
            }
        }
    }
    mma::copy_wait<0>();
}

__device__ __forceinline__ epilogue::row_terms terms_of(const gpu_epilogue &e, int row)
{
    epilogue::row_terms mine = {row, 1.0f, 0.0f};
    if (row >= 0) {
        mine.scale = (e.bits & ESP_EP_SCALE) != 0 ? e.scale[row] : 1.0f;
        mine.bias = (e.bits & ESP_EP_BIAS) != 0 ? e.bias[row] : 0.0f;
    }
    return mine;
}

template <int EIGHTS, bool BF16>
__global__ void __launch_bounds__(THREADS, EIGHTS == 1 ? 3 : 2)
    few_kernel(const __grid_constant__ gpu_block_product p)
{
    extern __shared__ __align__(128) unsigned char memory[];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, half = blockIdx.x % 2;
    float sums[STRIPS][EIGHTS][4] = {};
    mma::let_next_launch_begin();
    gpu_block_share mine = p.weight.shares[blockIdx.x * GPU_BLOCK_SHARES + warp];
    const int32_t *rows = p.weight.rows + blockIdx.x * GPU_HALF_ROWS + warp % STRIPS * 16;
    int row = rows[lane % 16]; // asked for long before it is used
    add_share<EIGHTS, BF16>(p, mine, half, mma::shared_address(memory) + warp * RING_BYTES, lane,
                            sums);
    __syncthreads(); // rings are drained: partial sums take their place
    float *partial = (float *)memory, *strips = partial + WARPS * SUM_FLOATS;
    float *own = partial + warp * SUM_FLOATS;
#pragma unroll
    for (int s = 0; s < STRIPS; s++) {
#pragma unroll
        for (int i = 0; i < EIGHTS * 2; i++) { // rows 2 g and 2 g + 1: see blocks_pack.cu
            int row = s * 16 + lane / 4 * 2 + i % 2, token = i / 2 * 8 + lane % 4 * 2;
            const float *from = sums[s][i / 2] + i % 2 * 2;
            *(float2 *)(own + row * SUM_PITCH + token) = make_float2(from[0], from[1]);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < GPU_HALF_ROWS * EIGHTS * 8; i += THREADS) {
        int row = i / (EIGHTS * 8), token = i % (EIGHTS * 8);
        float sum = partial[row * SUM_PITCH + token];
        for (int w = 1; w < WARPS; w++) {
            sum += partial[w * SUM_FLOATS + row * SUM_PITCH + token];
        }
        strips[row / 16 * STRIP_FLOATS + row % 16 * epilogue::PITCH + token] = sum;
    }
    __syncthreads();
    if (warp < STRIPS) {
        epilogue::row_terms terms = terms_of(p.epilogue, row);
        epilogue::finish_staged(p.epilogue, strips + warp * STRIP_FLOATS, terms, 0, lane);
    }
}

template <int EIGHTS, bool BF16> int launch_as(const gpu_block_product &p, void *stream)
{
    static std::atomic<uint64_t> prepared;
    int failed = gpu_prepare((const void *)few_kernel<EIGHTS, BF16>, SHARED, p.device, &prepared);
    if (failed != 0) {
        return failed;
    }
    return blocks::launch_beside(p.overlaps, few_kernel<EIGHTS, BF16>,
                                 dim3((unsigned)p.weight.bands * 2), THREADS, SHARED, stream, p);
}

} // namespace

extern "C" int gpu_blocks_few(const gpu_block_product *product, void *stream)
{
    if (product->tokens <= 8) {
        return product->bf16 ? launch_as<1, true>(*product, stream)
                             : launch_as<1, false>(*product, stream);
    }
    return product->bf16 ? launch_as<2, true>(*product, stream)
                         : launch_as<2, false>(*product, stream);
}
