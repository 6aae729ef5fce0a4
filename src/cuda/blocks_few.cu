// Y = epilogue(W X) for block-sparse W and up to 16 tokens, on any GPU from Ampere on.
// Reference: src/ref/matmul.c.
//
// Idea. The time is that of reading the weights once. Fragments are stored as a warp's registers want them, so
// they need no rearranging, and those of half a band (64 rows) lie side by side: each of its block's eight
// warps streams an equal share of them through a ring of its own in shared memory, a lane reading back what it
// copied itself, so that no warp waits for another. Weights are the 16-row operand of the product, tokens its
// 8 columns; X comes straight from the L2, a step ahead.
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

constexpr int WARPS = 8, THREADS = WARPS * 32, STRIPS = 4;
constexpr int RING = 16, GROUP = 4,
              GROUPS = RING / GROUP; // fragments of a ring, of a group of copies
constexpr uint32_t RING_BYTES = RING * GPU_FRAGMENT_BYTES, SHARED = WARPS * RING_BYTES;
constexpr int SUM_PITCH = 20; // floats between rows of partial sums
constexpr int SUM_FLOATS = GPU_HALF_ROWS * SUM_PITCH;
constexpr int STRIP_FLOATS = epilogue::ROWS * epilogue::PITCH;
static_assert((WARPS * SUM_FLOATS + STRIPS * STRIP_FLOATS) * 4 <= SHARED, "sums do not fit");

// Steps and fragments of a warp.
struct share {
    int step, end;
    int64_t fragment, fragments_end;
};

__device__ __forceinline__ share share_of(const gpu_blocks &w, int band, int half, int warp,
                                          int lane)
{
    int begin = w.band_steps[band], end = w.band_steps[band + 1];
    share mine = {begin, begin, 0, 0};
    if (begin == end) {
        return mine;
    }
    int64_t base = w.steps[begin].first[half];
    int64_t all = w.steps[end - 1].first[half] +
                  __popc(w.steps[end - 1].present >> (16 * half) & 0xffff) - base;
    for (int first = begin; first < end; first += 32) {
        bool there = first + lane < end;
        int64_t before = there ? (w.steps[first + lane].first[half] - base) * WARPS : 0;
        mine.step += __popc(__ballot_sync(~0u, there && before < warp * all));
        mine.end += __popc(__ballot_sync(~0u, there && before < (warp + 1) * all));
    }
    mine.fragment = mine.step < end ? (int64_t)w.steps[mine.step].first[half] : base + all;
    mine.fragments_end = mine.end < end ? (int64_t)w.steps[mine.end].first[half] : base + all;
    return mine;
}

// The warp's ring. Copies go in groups of four, so many of which are always under way.
struct stream {
    const uint4 *from; // of this lane
    uint32_t ring;     // likewise
    int64_t left;      // fragments not yet asked for
    int slot, taken;   // of the next fragment to ask for; fragments that were taken

    __device__ __forceinline__ void ask_group()
    {
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            if (left > 0) {
                mma::copy_16(ring + (slot + i) * GPU_FRAGMENT_BYTES, from);
            }
            from += 32;
            left--;
        }
        slot = (slot + GROUP) % RING;
        mma::copy_commit();
    }
    __device__ __forceinline__ uint4 take()
    {
        if (taken % GROUP == 0) {
            if (taken > 0) { // what was there has been used
                ask_group();
            }
            mma::copy_wait<GROUPS - 2>();
        }
        uint4 found = mma::load_shared_16(ring + taken % RING * GPU_FRAGMENT_BYTES);
        taken++;
        return found;
    }
};

// X of one step as it is read; put together only when it is used, since that waits.
template <int EIGHTS> struct step_of_x {
    uint16_t value[4][EIGHTS][4];

    __device__ __forceinline__ void load(const gpu_block_product &p, uint32_t word, int half,
                                         int lane)
    {
        const uint16_t *x = (const uint16_t *)p.x;
        int64_t column_step = p.x_by_token ? 1 : p.x_stride,
                token_step = p.x_by_token ? p.x_stride : 1;
        uint32_t mask = __shfl_sync(~0u, word, 2) >> (16 * half) & 0xffff;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            int64_t column = (int)__shfl_sync(~0u, word, 4 + k) + lane % 4 * 2;
            bool used = (mask >> (4 * k) & 15) != 0;
#pragma unroll
            for (int e = 0; e < EIGHTS; e++) {
                int token = e * 8 + lane / 4;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int64_t c = column + i / 2 * 8 + i % 2;
                    bool there = used && token < p.tokens && c < p.weight.in;
                    value[k][e][i] = there ? __ldg(x + c * column_step + token * token_step) : 0;
                }
            }
        }
    }
    __device__ __forceinline__ uint32_t pair(int k, int e, int i) const
    {
        return value[k][e][2 * i] | (uint32_t)value[k][e][2 * i + 1] << 16;
    }
};

template <int EIGHTS, bool BF16>
__device__ __forceinline__ void multiply_step(const step_of_x<EIGHTS> &x, uint32_t mask,
                                              stream &weights, float (&sums)[STRIPS][EIGHTS][4])
{
#pragma unroll
    for (int k = 0; k < 4; k++) {
        uint32_t b[EIGHTS][2];
#pragma unroll
        for (int e = 0; e < EIGHTS; e++) {
            b[e][0] = x.pair(k, e, 0), b[e][1] = x.pair(k, e, 1);
        }
#pragma unroll
        for (int s = 0; s < STRIPS; s++) {
            if ((mask >> (4 * k + s) & 1) != 0) {
                uint4 a = weights.take();
#pragma unroll
                for (int e = 0; e < EIGHTS; e++) {
                    mma::product_16x8<BF16>(sums[s][e], a, b[e][0], b[e][1]);
                }
            }
        }
    }
}

template <int EIGHTS, bool BF16>
__device__ __forceinline__ void add_share(const gpu_block_product &p, const share &mine, int half,
                                          uint32_t ring, int lane, float (&sums)[STRIPS][EIGHTS][4])
{
    auto words = [&](int step) { // one past the last step is there
        return lane < 8 && step <= mine.end
                   ? __ldg((const uint32_t *)(p.weight.steps + step) + lane)
                   : 0;
    };
    stream weights = {(const uint4 *)p.weight.fragments + mine.fragment * 32 + lane,
                      ring + lane * 16, mine.fragments_end - mine.fragment, 0, 0};
#pragma unroll
    for (int i = 0; i < GROUPS - 1; i++) {
        weights.ask_group();
    }
    uint32_t word = words(mine.step), coming = words(mine.step + 1);
    mma::wait_for_launch_before(); // weights do not depend on it, X does
    step_of_x<EIGHTS> x;
    x.load(p, word, half, lane);
    for (int step = mine.step; step < mine.end; step++) {
        step_of_x<EIGHTS> now = x;
        uint32_t mask = __shfl_sync(~0u, word, 2) >> (16 * half) & 0xffff;
        word = coming;
        coming = words(step + 2);
        if (step + 1 < mine.end) {
            x.load(p, word, half, lane);
        }
        multiply_step<EIGHTS, BF16>(now, mask, weights, sums);
    }
    mma::copy_wait<0>();
}

template <int EIGHTS, bool BF16>
__global__ void __launch_bounds__(THREADS, EIGHTS == 1 ? 3 : 2)
    few_kernel(const __grid_constant__ gpu_block_product p)
{
    extern __shared__ __align__(128) unsigned char memory[];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, band = blockIdx.x / 2,
        half = blockIdx.x % 2;
    float sums[STRIPS][EIGHTS][4] = {};
    mma::let_next_launch_begin();
    share mine = share_of(p.weight, band, half, warp, lane);
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
        const int32_t *rows =
            p.weight.rows + band * GPU_BAND_ROWS + half * GPU_HALF_ROWS + warp * 16;
        epilogue::row_terms terms = epilogue::load_terms(p.epilogue, rows, lane);
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
