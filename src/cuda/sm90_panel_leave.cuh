// Sums on their way out of the panel kernels (sm90_panel.cuh) by the copy engine: 16-bit Y with
// rows in their order.
//
// A warpgroup lays its rounded sums into chunks of 4096 bytes in shared memory
// (sm90_panel_chunk.cuh). They leave one by one while the next tile is multiplied: all at once they
// would stand in the engine's way before that tile's loads. What lies past the end of Y the engine
// leaves out.
//
// Scale, bias, and an activation, swiglu or a residual (sm90_panel_residual.cuh) are applied in
// passing, all at once at the tile's end, where the tensor cores wait: ten instructions a sum for
// gelu, 3000 clocks for a tile of 128 x 256. Setting sums aside in registers and finishing them in
// the next tile's steps was slower; activating them in place makes the compiler wait for each
// product.
//
// An activation or swiglu together with a residual takes the strips, and so does an activation
// where Y is by token: each would have to be compiled once more.
#ifndef ESP_CUDA_SM90_PANEL_LEAVE_CUH
#define ESP_CUDA_SM90_PANEL_LEAVE_CUH

#include "cuda/sm90_panel_chunk.cuh"
#include "cuda/sm90_panel_moments.cuh"
#include "cuda/sm90_panel_residual.cuh"

namespace panel
{

// Chunks of a warpgroup; number n stands in place n % CHUNKS.
template <class C> struct departures {
    static constexpr int ALL = C::N / 32; // of a tile
    // In turns the other consumer multiplies meanwhile, and there is nothing to put off.
    static constexpr bool LATER = C::SHARING != IN_TURNS && C::CHUNKS >= ALL - 1;
    const maps *with;
    const gpu_product &p;
    const gpu_tiled &tiled;
    uint32_t chunks;            // CHUNKS places of CHUNK_BYTES
    int barrier;                // of the warpgroup
    int next = 0, end = 0;      // to be sent; ready to be sent up to here
    int row = 0, token = 0;     // where the tile that leaves begins, as the engine counts rows
    residual_ahead<C> residual; // these two: of the tile that is multiplied, then leaves
    moments_ahead<C> norm;

    __device__ __forceinline__ bool by_token() const
    {
        return p.epilogue.token_step != 1;
    }
    __device__ __forceinline__ int chunk_tokens() const
    {
        return (p.epilogue.bits & ESP_EP_SWIGLU) != 0 ? 64 : 32;
    }
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
    __device__ __forceinline__ void send_next(int thread)
    {
        if (next < end) {
            if (thread == 0) {
                int at = token + next * chunk_tokens();
                ptx::tensor_store(&with->y, by_token() ? row : at, by_token() ? at : row, 0,
                                  place(next));
                ptx::bulk_commit();
            }
            next++;
        }
    }
    __device__ __forceinline__ void after_step(int thread)
    {
        send_next(thread);
        if (residual.asks(p)) {
            residual.ask_next(p.epilogue);
        }
        if constexpr (C::NORMS) {
            norm.step(tiled.normed);
        }
    }
    // Of COUNT chunks from c on, which all have written, up to the tile's last one; by feature.
    template <int COUNT> __device__ __forceinline__ void count_moments(int c, int thread) const
    {
        uint32_t places[COUNT];
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            places[i] = place(c + i);
        }
        leave_moments<C::BF16, COUNT>(tiled, places, row / 32, token + c * 32, token + end * 32,
                                      thread);
    }
    __device__ __forceinline__ void send_all(int thread)
    {
        while (next < end) {
            send_next(thread);
        }
    }
};

template <class C, passing WHAT, bool BY_TOKEN, bool NORMED = false>
__device__ __forceinline__ void write_chunks(const gpu_product &p, departures<C> &leaving,
                                             const float (&sums)[C::BLOCKS][C::N / 2],
                                             row_terms terms, int thread)
{
    using to = departures<C>;
    leaving.template wait_read<0>(thread); // those of the tile before, sent long ago
    constexpr bool EARLY = C::CHUNKS < to::ALL; // the first leaves before the last is written
    constexpr int CHUNKS_OF_TILE = WHAT == passing::PAIRS ? to::ALL / 2 : to::ALL;
#pragma unroll
    for (int c = 0; c < CHUNKS_OF_TILE; c++) {
        if (c >= leaving.end) {
            break;
        }
        if (c == C::CHUNKS && to::LATER) { // the place of the first
            if constexpr (C::LEAVES) { // now that most sums have left their registers
                leaving.template count_moments<1>(0, thread);
            }
            leaving.template wait_read<0>(thread);
        } else if (c >= C::CHUNKS) {
            leaving.template wait_read<C::CHUNKS - 1>(thread);
        }
        if constexpr (WHAT == passing::ADD) {
            leaving.residual.template lay_down<BY_TOKEN>(p.epilogue, c, leaving.place(c), thread);
        }
        if constexpr (WHAT == passing::PAIRS) {
            write_pairs<C::N, BY_TOKEN, NORMED>(p.epilogue, sums[0], c, leaving.place(c), terms,
                                                thread);
        } else {
            write_chunk<C::N, WHAT, BY_TOKEN, NORMED>(p.epilogue, sums[0], c, leaving.place(c),
                                                      terms, thread);
        }
        if (!to::LATER || (c == 0 && EARLY)) {
            leaving.settle();
            leaving.send_next(thread);
            if constexpr (C::LEAVES && !to::LATER) {
                leaving.template count_moments<1>(c, thread);
            }
        }
    }
    if constexpr (to::LATER) {
        leaving.settle();
        // A part of a tile has fewer chunks than places, so that its first was not counted above.
        int counted = EARLY && leaving.end > C::CHUNKS ? 1 : 0;
        for (int c = counted; C::LEAVES && c < leaving.end; c += 4) {
            leaving.template count_moments<4>(c, thread);
        }
    }
}

template <class C, bool BY_TOKEN>
__device__ __forceinline__ void write_tile(const gpu_product &p, departures<C> &leaving,
                                           const float (&sums)[C::BLOCKS][C::N / 2],
                                           const row_terms &terms, int thread)
{
    unsigned bits = p.epilogue.bits;
    if ((bits & ESP_EP_SWIGLU) != 0) {
        write_chunks<C, passing::PAIRS, BY_TOKEN>(p, leaving, sums, terms, thread);
    } else if ((bits & ESP_EP_RESIDUAL) != 0) {
        write_chunks<C, passing::ADD, BY_TOKEN>(p, leaving, sums, terms, thread);
    } else if (BY_TOKEN || (bits & ~(unsigned)(ESP_EP_SCALE | ESP_EP_BIAS)) == 0) {
        write_chunks<C, passing::LINEAR, BY_TOKEN>(p, leaving, sums, terms, thread);
    } else if ((bits & ESP_EP_GELU) != 0) {
        write_chunks<C, passing::GELU, false>(p, leaving, sums, terms, thread);
    } else if ((bits & ESP_EP_RELU) != 0) {
        write_chunks<C, passing::RELU, false>(p, leaving, sums, terms, thread);
    } else {
        write_chunks<C, passing::GATE, false>(p, leaving, sums, terms, thread);
    }
}

// As panel_norms (panel_call.c) says.
template <class C>
__device__ __forceinline__ void write_normed_tile(const gpu_product &p, departures<C> &leaving,
                                                  const float (&sums)[C::BLOCKS][C::N / 2],
                                                  const row_terms &terms, int thread)
{
    if ((p.epilogue.bits & ESP_EP_SWIGLU) != 0) {
        write_chunks<C, passing::PAIRS, false, true>(p, leaving, sums, terms, thread);
    } else if ((p.epilogue.bits & ESP_EP_GELU) != 0) {
        write_chunks<C, passing::GELU, false, true>(p, leaving, sums, terms, thread);
    } else {
        write_chunks<C, passing::LINEAR, false, true>(p, leaving, sums, terms, thread);
    }
}

// `width` tokens of the tile, from output row `row` on.
template <class C>
__device__ __forceinline__ void leave_at_once(const gpu_product &p, departures<C> &leaving,
                                              const float (&sums)[C::BLOCKS][C::N / 2], int row,
                                              int token, int width, const row_terms &terms,
                                              int thread)
{
    static_assert(C::BLOCKS == 1, "a part of a tile has the first of its chunks");
    bool pairs = (p.epilogue.bits & ESP_EP_SWIGLU) != 0;
    // Or the compiler works out where a thread's words go for every way of leaving before the first
    // tile, and has no registers left to activate several sums at a time.
    asm volatile("" : "+r"(thread));
    leaving.send_all(thread);
    leaving.row = pairs || !leaving.by_token() ? row / 2 : row;
    leaving.token = token, leaving.next = 0;
    leaving.end = width / leaving.chunk_tokens();
    if constexpr (C::NORMS) {
        write_normed_tile<C>(p, leaving, sums, terms, thread);
    } else if constexpr (C::LEAVES) {
        write_chunks<C, passing::ADD, false>(p, leaving, sums, terms, thread);
    } else if (p.epilogue.bits == 0 && !leaving.by_token()) {
        write_chunks<C, passing::BARE, false>(p, leaving, sums, terms, thread);
    } else if (leaving.by_token()) {
        write_tile<C, true>(p, leaving, sums, terms, thread);
    } else {
        write_tile<C, false>(p, leaving, sums, terms, thread);
    }
}

} // namespace panel

#endif
