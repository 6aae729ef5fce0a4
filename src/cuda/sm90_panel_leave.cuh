// Sums on their way out of the panel kernels (sm90_panel.cuh).
#ifndef ESP_CUDA_SM90_PANEL_LEAVE_CUH
#define ESP_CUDA_SM90_PANEL_LEAVE_CUH

#include "cuda/sm90_panel_parts.cuh"

namespace panel
{

// ---- by the copy engine: 16-bit Y with tokens side by side, rows in their order, scale and bias
// at most ----

// Chunks of 64 rows x 32 tokens of a warpgroup in shared memory. They leave one by one while the
// next tile is multiplied: all at once they would stand in the engine's way before that tile's
// loads.
template <class C> struct departures {
    static constexpr int WIDTH = C::N / 32, ALL = C::BLOCKS * WIDTH; // chunks of a block, of a tile
    // In turns the other consumer multiplies meanwhile, and there is nothing to put off.
    static constexpr bool LATER = C::SHARING != IN_TURNS && C::CHUNKS >= ALL - 1;
    const CUtensorMap *map;
    uint32_t chunks; // CHUNKS places of CHUNK_BYTES
    int barrier;     // of the warpgroup
    int row = 0, token = 0, next = 0, end = 0;
    int width = WIDTH; // chunks of a block that there are

    __device__ __forceinline__ uint32_t place(int chunk) const
    {
        return chunks + chunk % C::CHUNKS * CHUNK_BYTES;
    }
    // All writes of the warpgroup are there, for the engine too.
    __device__ __forceinline__ void settle()
    {
        ptx::async_fence();
        ptx::named_barrier(barrier, 128);
    }
    // Until at most PENDING chunks that were sent are still to be read.
    template <int PENDING> __device__ __forceinline__ void wait_read(int thread)
    {
        if (thread == 0) {
            ptx::bulk_wait_read<PENDING>();
        }
        ptx::named_barrier(barrier, 128);
    }
    __device__ __forceinline__ void send_next(int thread)
    {
        if (next < end) {
            if (thread == 0 && next % WIDTH < width) {
                int at = (row + next / WIDTH * GPU_BLOCK_ROWS) / 2;
                ptx::tensor_store(map, token + next % WIDTH * 32, at, 0, place(next));
                ptx::bulk_commit();
            }
            next++;
        }
    }
    __device__ __forceinline__ void send_all(int thread)
    {
        while (next < end) {
            send_next(thread);
        }
    }
};

// Scale and bias of the two rows of a thread; `row`: the block's first.
__device__ __forceinline__ void load_terms(const gpu_product &p, int row, int thread,
                                           float (&scale)[2], float (&bias)[2])
{
    const gpu_epilogue &e = p.epilogue;
    int mine = row + thread / 32 * 16 + thread % 32 / 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        bool there = mine + i < p.weight.out;
        scale[i] = there && (e.bits & ESP_EP_SCALE) != 0 ? e.scale[mine + i] : 1.0f;
        bias[i] = there && (e.bits & ESP_EP_BIAS) != 0 ? e.bias[mine + i] : 0.0f;
    }
}

// 32 tokens of a warp into a chunk, even rows before odd ones, by stmatrix. A thread has rows 2 g
// and 2 g + 1 (dealt so by the packing) and two tokens of each eight.
template <int N, bool PLAIN>
__device__ __forceinline__ void write_chunk(gpu_type type, const float (&sums)[N / 2], int c,
                                            uint32_t chunk, const float (&scale)[2],
                                            const float (&bias)[2], int thread)
{
    int lane = thread % 32, half = lane / 8 % 2, line = half * 32 + thread / 32 * 8 + lane % 8;
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int at = (c * 4 + j + i / 2) * 4 + i % 2 * 2;
            float low = sums[at], high = sums[at + 1];
            if constexpr (!PLAIN) {
                low = __fadd_rn(__fmul_rn(low, scale[i % 2]), bias[i % 2]);
                high = __fadd_rn(__fmul_rn(high, scale[i % 2]), bias[i % 2]);
            }
            words[i] = epilogue::round_pair(type, low, high);
        }
        uint32_t piece = (j + lane / 16) ^ (lane % 8 >> 1);
        ptx::store_matrices(chunk + line * 64 + piece * 16, words);
    }
}

// A block's terms are loaded with it.
template <class C, bool PLAIN>
__device__ __forceinline__ void write_chunks(const gpu_product &p, departures<C> &leaving,
                                             const float (&sums)[C::BLOCKS][C::N / 2], int thread)
{
    using to = departures<C>;
    const gpu_epilogue &e = p.epilogue;
    float scale[2] = {1, 1}, bias[2] = {0, 0};
    if constexpr (to::LATER) {
        leaving.template wait_read<0>(thread);
    }
#pragma unroll
    for (int c = 0; c < to::ALL; c++) {
        if (c % to::WIDTH >= leaving.width) {
            continue;
        }
        if (!PLAIN && c % to::WIDTH == 0) {
            load_terms(p, leaving.row + c / to::WIDTH * GPU_BLOCK_ROWS, thread, scale, bias);
        }
        if constexpr (!to::LATER) {
            leaving.template wait_read<C::CHUNKS - 1>(thread);
        } else if (c == C::CHUNKS) { // the place of the first
            leaving.template wait_read<0>(thread);
        }
        write_chunk<C::N, PLAIN>(e.type, sums[c / to::WIDTH], c % to::WIDTH, leaving.place(c),
                                 scale, bias, thread);
        if (!to::LATER || (c == 0 && C::CHUNKS < to::ALL)) {
            leaving.settle();
            leaving.send_next(thread);
        }
    }
    if constexpr (to::LATER) {
        leaving.settle();
    }
}

// `blocks` of the tile, the first from output row `row` on, up to token `end`. What lies past the
// end of Y the engine leaves out.
template <class C>
__device__ __forceinline__ void leave_by_engine(const gpu_product &p, departures<C> &leaving,
                                                const float (&sums)[C::BLOCKS][C::N / 2], int row,
                                                int blocks, int token, int end, int thread)
{
    leaving.send_all(thread);
    leaving.row = row, leaving.token = token, leaving.next = 0;
    leaving.width = (end - token) / 32;
    leaving.end = min(blocks, C::BLOCKS) * departures<C>::WIDTH;
    if ((p.epilogue.bits & (ESP_EP_SCALE | ESP_EP_BIAS)) == 0) {
        write_chunks<C, true>(p, leaving, sums, thread);
    } else {
        write_chunks<C, false>(p, leaving, sums, thread);
    }
}

// ---- through a strip of shared memory per warp: all else ----

// Accumulators of 32 tokens to the warp's strip. A thread has rows 2 g and 2 g + 1 (dealt so by the
// packing) and two tokens of each eight.
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

// The common case, unrolled: Y with tokens side by side and aligned, a tile full of tokens, no
// activation. A lane has eight tokens of two rows in each 32 tokens.
template <int N>
__device__ __forceinline__ void leave_plainly(const gpu_epilogue &e, const float (&sums)[N / 2],
                                              const int32_t *rows, int token, float *strip,
                                              int lane)
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
    int64_t at[2] = {outs[0] * e.feature_step + token + part,
                     outs[1] * e.feature_step + token + part};
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
                                      const int32_t *rows, int token, int end, float *strip,
                                      int lane)
{
    end = min(end, e.tokens);
    if (e.token_step == 1 && e.aligned && token + N <= end &&
        (e.bits & ~(unsigned)(ESP_EP_SCALE | ESP_EP_BIAS | ESP_EP_RESIDUAL)) == 0) {
        leave_plainly<N>(e, sums, rows, token, strip, lane);
        return;
    }
    epilogue::row_terms mine = epilogue::load_terms(e, rows, lane);
#pragma unroll 1
    for (int part = 0; part < N / 32 && token + part * 32 < end; part++) {
        __syncwarp();
        stage_sums<N>(sums, part, ptx::shared_address(strip), lane);
        __syncwarp();
        epilogue::finish_staged(e, strip, mine, token + part * 32, lane);
    }
}

} // namespace panel

#endif
