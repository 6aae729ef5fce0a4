// Sums on their way out of the panel kernels (sm90_panel.cuh) by the copy engine: 16-bit Y with
// tokens side by side and rows in their order.
//
// A warpgroup lays its rounded sums into chunks of 4096 bytes in shared memory. They leave one by
// one while the next tile is multiplied: all at once they would stand in the engine's way before
// that tile's loads. What lies past the end of Y the engine leaves out.
//
// Scale and bias are applied in passing, all at once at the tile's end. What takes longer,
// activations and residuals, is in sm90_panel_finish.cuh.
#ifndef ESP_CUDA_SM90_PANEL_LEAVE_CUH
#define ESP_CUDA_SM90_PANEL_LEAVE_CUH

#include "cuda/sm90_panel_parts.cuh"

namespace panel
{

// Scale and bias of the two rows of a thread.
struct row_terms {
    float scale[2], bias[2];

    // `row`: the block's first. To be called before they are needed: memory is far.
    __device__ __forceinline__ void load(const gpu_product &p, int row, int thread)
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
    // Exact where there is neither.
    __device__ __forceinline__ float apply(float sum, int i) const
    {
        return fmaf(sum, scale[i], bias[i]);
    }
};

// Chunks of a warpgroup; number n stands in place n % CHUNKS.
template <class C> struct departures {
    static constexpr int WIDTH = C::N / 32, ALL = C::BLOCKS * WIDTH; // of a block, of a tile
    // In turns the other consumer multiplies meanwhile, and there is nothing to put off.
    static constexpr bool LATER = C::SHARING != IN_TURNS && C::CHUNKS >= ALL - 1;
    const maps *with;
    uint32_t chunks;        // CHUNKS places of CHUNK_BYTES
    int barrier;            // of the warpgroup
    int next = 0, end = 0;  // to be sent; ready to be sent up to here
    int row = 0, token = 0; // of the tile that leaves

    __device__ __forceinline__ uint32_t place(int chunk) const
    {
        return chunks + chunk % C::CHUNKS * CHUNK_BYTES;
    }
    // All writes of the warpgroup are there, for the engine too.
    __device__ __forceinline__ void settle() const
    {
        ptx::async_fence();
        ptx::named_barrier(barrier, 128);
    }
    // Until at most PENDING chunks that were sent are still to be read.
    template <int PENDING> __device__ __forceinline__ void wait_read(int thread) const
    {
        if (thread == 0) {
            ptx::bulk_wait_read<PENDING>();
        }
        ptx::named_barrier(barrier, 128);
    }
    // By thread 0. `in_row`: of Y, its first.
    __device__ __forceinline__ void send(int chunk, int in_row, int from_token) const
    {
        ptx::tensor_store(&with->y, from_token, in_row / 2, 0, place(chunk));
        ptx::bulk_commit();
    }
    __device__ __forceinline__ void send_next(int thread)
    {
        if (next < end) {
            if (thread == 0) {
                send(next, row + next / WIDTH * GPU_BLOCK_ROWS, token + next % WIDTH * 32);
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

// Where a lane's 16 bytes of a chunk of 64 rows x 32 tokens stand for ldmatrix and stmatrix: even
// rows before odd ones, 64 bytes each, eights j and j + 1 of tokens. A thread has rows 2 g and
// 2 g + 1 (dealt so by the packing) and two tokens of each eight.
__device__ __forceinline__ uint32_t lane_of_chunk(int j, int thread)
{
    int lane = thread % 32, half = lane / 8 % 2, line = half * 32 + thread / 32 * 8 + lane % 8;
    return line * 64 + (((j + lane / 16) ^ (lane % 8 >> 1)) << 4);
}

// 32 tokens of a warp into a chunk.
template <int N, bool PLAIN>
__device__ __forceinline__ void write_chunk(gpu_type type, const float (&sums)[N / 2], int c,
                                            uint32_t chunk, const row_terms &terms, int thread)
{
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int at = (c * 4 + j + i / 2) * 4 + i % 2 * 2;
            float low = sums[at], high = sums[at + 1];
            if constexpr (!PLAIN) {
                low = terms.apply(low, i % 2);
                high = terms.apply(high, i % 2);
            }
            words[i] = epilogue::round_pair(type, low, high);
        }
        ptx::store_matrices(chunk + lane_of_chunk(j, thread), words);
    }
}

template <class C, bool PLAIN>
__device__ __forceinline__ void write_chunks(const gpu_product &p, departures<C> &leaving,
                                             const float (&sums)[C::BLOCKS][C::N / 2],
                                             row_terms terms, int thread)
{
    using to = departures<C>;
    if constexpr (to::LATER) {
        leaving.template wait_read<0>(thread);
    }
#pragma unroll
    for (int c = 0; c < to::ALL; c++) {
        if (c >= leaving.end) {
            break;
        }
        if (!PLAIN && c > 0 && c % to::WIDTH == 0) {
            terms.load(p, leaving.row + c / to::WIDTH * GPU_BLOCK_ROWS, thread);
        }
        if constexpr (!to::LATER) {
            leaving.template wait_read<C::CHUNKS - 1>(thread);
        } else if (c == C::CHUNKS) { // the place of the first
            leaving.template wait_read<0>(thread);
        }
        write_chunk<C::N, PLAIN>(p.epilogue.type, sums[c / to::WIDTH], c % to::WIDTH,
                                 leaving.place(c), terms, thread);
        if (!to::LATER || (c == 0 && C::CHUNKS < to::ALL)) {
            leaving.settle();
            leaving.send_next(thread);
        }
    }
    if constexpr (to::LATER) {
        leaving.settle();
    }
}

// `width` tokens of the tile, from output row `row` on, with scale and bias at most.
template <class C>
__device__ __forceinline__ void leave_at_once(const gpu_product &p, departures<C> &leaving,
                                              const float (&sums)[C::BLOCKS][C::N / 2], int row,
                                              int token, int width, const row_terms &terms,
                                              int thread)
{
    leaving.send_all(thread);
    leaving.row = row, leaving.token = token, leaving.next = 0;
    static_assert(C::BLOCKS == 1, "a part of a tile has the first of its chunks");
    leaving.end = width / 32;
    if ((p.epilogue.bits & (ESP_EP_SCALE | ESP_EP_BIAS)) == 0) {
        write_chunks<C, true>(p, leaving, sums, terms, thread);
    } else {
        write_chunks<C, false>(p, leaving, sums, terms, thread);
    }
}

} // namespace panel

#endif
