// What the kernels for up to 16 tokens share that run on every GPU from compute capability 8.0 on: a stream of
// weights through rings in shared memory, X in small pieces beside it, and sums that meet at the end.
//
// Who does what. A block has 32 rows of the weight, a slab; its warps share out the steps of 64 columns in
// turn. Each warp has a ring of its own: copies (cp.async) of STAGES steps are under way, and no warp waits for
// another. X of the next step waits in registers and is laid down for ldmatrix when its turn comes. At the
// end the warps' sums meet in shared memory, always in the same order, so results do not depend on timing.
//
// A kernel gives a slab S of its own:
//   S::WARPS, S::STAGES, S::STAGE_BYTES, S::BF16
//   steps, in           of the slab; columns of X
//   column(step, i)     the row of X that is column i of the step; in or more: none
//   slot(i)             where that row lies among the step's 64
//   fetch(to, step)     starts the copies of a step, by all lanes
//   multiply(weights, x, sums)
//   row_in_sixteen(i)   row of sums[.][.][2 i] among its 16
//   output_row(i)       of row i of the slab; -1: none
#ifndef ESP_CUDA_FEW_CUH
#define ESP_CUDA_FEW_CUH

#include "cuda/epilogue.cuh"
#include "cuda/few_x.cuh"
#include "cuda/launch.cuh"
#include "cuda/sm80_ptx.cuh"

namespace few {

constexpr int SLAB_ROWS = 32, SIXTEENS = 2;
constexpr int SUM_PITCH = 20; // floats between rows of a warp's sums
constexpr uint32_t SUM_FLOATS = SLAB_ROWS * SUM_PITCH;
constexpr uint32_t STRIP_FLOATS = epilogue::ROWS * epilogue::PITCH;

template <int EIGHTS> using warp_sums = float[SIXTEENS][EIGHTS][4];

struct operand {
    const uint16_t *x;
    int64_t feature_step, token_step;
    int tokens;
};

template <class P> __device__ __forceinline__ operand x_of(const P &p)
{
    return {(const uint16_t *)p.x, p.x_by_token ? 1 : p.x_stride, p.x_by_token ? p.x_stride : 1, p.tokens};
}

// What X holds for one column, as it was read: a word holds one or two tokens. It is put together only when it
// is laid down: doing so at once would wait for the loads.
template <int EIGHTS, reading READING> struct column_of_x {
    static constexpr int WORDS = few::COLUMN_WORDS<EIGHTS, READING>;
    uint32_t word[WORDS];

    __device__ __forceinline__ void load(const operand &x, int64_t column, bool there)
    {
        const uint16_t *from = x.x + (there ? column * x.feature_step : 0);
        if constexpr (READING == EIGHT) {
#pragma unroll
            for (int e = 0; e < EIGHTS; e++) {
                uint4 four = there ? __ldg((const uint4 *)from + e) : make_uint4(0, 0, 0, 0);
                word[4 * e] = four.x, word[4 * e + 1] = four.y;
                word[4 * e + 2] = four.z, word[4 * e + 3] = four.w;
            }
        } else {
#pragma unroll
            for (int i = 0; i < WORDS; i++) {
                word[i] = there && i < x.tokens ? __ldg(from + i * x.token_step) : 0;
            }
        }
    }

    __device__ __forceinline__ void lay(uint32_t to) const
    {
        few::lay_column<EIGHTS, READING>(word, to);
    }
};

template <class S, int EIGHTS> struct map_of {
    static constexpr uint32_t RING_BYTES = S::STAGES * S::STAGE_BYTES, X_BYTES = EIGHTS * 1024;
    static constexpr uint32_t X_AT = S::WARPS * RING_BYTES, SHARED = X_AT + S::WARPS * X_BYTES;
    static_assert((S::WARPS * SUM_FLOATS + SIXTEENS * STRIP_FLOATS) * 4 <= X_AT,
                  "sums do not fit where the weights were");
    static_assert(SHARED <= 99 * 1024, "more shared memory than a block of every GPU can have");
};

// Steps first, first + WARPS... of the slab into the warp's sums.
template <class S, int EIGHTS, reading READING>
__device__ __forceinline__ void add_steps(const S &slab, const operand &x, uint32_t ring, uint32_t laid,
                                          int first, int lane, warp_sums<EIGHTS> &sums)
{
    auto column = [&](int step, int i) { return step < slab.steps ? slab.column(step, i) : slab.in; };
    int64_t coming[2] = {column(first, lane), column(first, lane + 32)};
#pragma unroll 1
    for (int i = 0; i < S::STAGES; i++) {
        if (first + i * S::WARPS < slab.steps) {
            slab.fetch(ring + i * S::STAGE_BYTES, first + i * S::WARPS, lane);
        }
        ptx::copy_commit();
    }
    column_of_x<EIGHTS, READING> eights[2];
    eights[0].load(x, coming[0], coming[0] < slab.in);
    eights[1].load(x, coming[1], coming[1] < slab.in);
    coming[0] = column(first + S::WARPS, lane);
    coming[1] = column(first + S::WARPS, lane + 32);
    int stage = 0;
    for (int step = first; step < slab.steps; step += S::WARPS) {
        eights[0].lay(laid + S::slot(lane) * 16);
        eights[1].lay(laid + S::slot(lane + 32) * 16);
        eights[0].load(x, coming[0], coming[0] < slab.in);
        eights[1].load(x, coming[1], coming[1] < slab.in);
        coming[0] = column(step + 2 * S::WARPS, lane);
        coming[1] = column(step + 2 * S::WARPS, lane + 32);
        uint32_t at = ring + stage * S::STAGE_BYTES;
        ptx::copy_wait<S::STAGES - 1>();
        __syncwarp();
        slab.template multiply<EIGHTS>(at, laid, lane, sums);
        __syncwarp();
        if (step + S::STAGES * S::WARPS < slab.steps) {
            slab.fetch(at, step + S::STAGES * S::WARPS, lane);
        }
        ptx::copy_commit();
        stage = stage + 1 == S::STAGES ? 0 : stage + 1;
    }
    ptx::copy_wait<0>();
}

// The warps' sums to Y. All threads call it; shared memory from `memory` on is free then.
template <class S, int EIGHTS>
__device__ __forceinline__ void finish(const gpu_epilogue &e, const epilogue::row_terms &terms,
                                       float *memory, const warp_sums<EIGHTS> &sums, int warp, int lane)
{
    float *strips = memory + S::WARPS * SUM_FLOATS, *mine = memory + warp * SUM_FLOATS;
#pragma unroll
    for (int s = 0; s < SIXTEENS; s++) {
#pragma unroll
        for (int i = 0; i < EIGHTS * 2; i++) {
            int row = s * 16 + S::row_in_sixteen(lane / 4, i % 2), token = i / 2 * 8 + lane % 4 * 2;
            const float *from = sums[s][i / 2] + i % 2 * 2;
            *(float2 *)(mine + row * SUM_PITCH + token) = make_float2(from[0], from[1]);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < SLAB_ROWS * EIGHTS * 8; i += S::WARPS * 32) {
        int row = i / (EIGHTS * 8), token = i % (EIGHTS * 8), at = row * SUM_PITCH + token;
        float sum = memory[at];
#pragma unroll
        for (int w = 1; w < S::WARPS; w++) {
            sum += memory[w * SUM_FLOATS + at];
        }
        strips[row / 16 * STRIP_FLOATS + row % 16 * epilogue::PITCH + token] = sum;
    }
    __syncthreads();
    if (warp < SIXTEENS) {
        epilogue::finish_staged(e, strips + warp * STRIP_FLOATS, terms, 0, lane);
    }
}

// All of it, by a block of S::WARPS warps.
template <class S, int EIGHTS, reading READING, class P>
__device__ __forceinline__ void multiply_slab(const S &slab, const P &p, unsigned char *memory)
{
    using map = map_of<S, EIGHTS>;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t base = ptx::shared_address(memory);
    warp_sums<EIGHTS> sums = {};
    epilogue::row_terms terms = {}; // asked for now: at the end they would be waited for
    if (warp < SIXTEENS) {
        terms = epilogue::terms_of(p.epilogue, slab.output_row(warp * 16 + lane % 16));
    }
    add_steps<S, EIGHTS, READING>(slab, x_of(p), base + warp * map::RING_BYTES,
                                  base + map::X_AT + warp * map::X_BYTES, warp, lane, sums);
    __syncthreads(); // rings are drained: sums take their place
    finish<S, EIGHTS>(p.epilogue, terms, (float *)memory, sums, warp, lane);
}

// How a product's X is read, as template arguments of `Launcher::run<EIGHTS, READING>(p, stream)`.
template <class Launcher, class P> int launch_by_reading(const P &p, void *stream)
{
    bool eight = p.x_aligned && !p.x_by_token && p.tokens % 8 == 0;
    if (p.tokens == 1) {
        return Launcher::template run<1, ONE>(p, stream);
    }
    if (p.tokens <= 8) {
        return eight ? Launcher::template run<1, EIGHT>(p, stream) : Launcher::template run<1, ANY>(p, stream);
    }
    return eight ? Launcher::template run<2, EIGHT>(p, stream) : Launcher::template run<2, ANY>(p, stream);
}

} // namespace few

#endif
