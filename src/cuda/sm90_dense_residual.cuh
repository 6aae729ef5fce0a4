// Residuals of the dense kernel (sm90_dense.cuh), brought by the copy engine into the chunks from
// which the finished sums will leave. A step of dense products takes twice as long as one of 2:4
// products, so the engine has time for them: one box a step, behind the one that leaves.
#ifndef ESP_CUDA_SM90_DENSE_RESIDUAL_CUH
#define ESP_CUDA_SM90_DENSE_RESIDUAL_CUH

#include "cuda/sm90_panel_leave.cuh"

namespace dense
{

using panel::departures;
using panel::passing;
using panel::row_terms;

// A warpgroup's. Chunk c comes into the place from which chunk c of the last tile has left.
template <class C> struct arrivals {
    static_assert(C::CHUNKS >= C::N / 32, "each chunk of a tile has a place of its own");
    const CUtensorMap *map;
    uint32_t barrier;
    int next = 0, end = 0;  // to be asked for; none from here on
    int row = 0, token = 0; // where the tile begins, as the engine counts rows
    uint32_t parity = 0;

    // A tile of `width` tokens from output row `first` on; 0: nothing is to come.
    __device__ __forceinline__ void begin(const departures<C> &leaving, int first, int token_,
                                          int width)
    {
        row = leaving.by_token() ? first : first / 2, token = token_;
        next = 0, end = width / 32;
    }
    // By thread 0, when the place is free.
    __device__ __forceinline__ void ask(const departures<C> &leaving)
    {
        if (next == 0) {
            ptx::barrier_expect(barrier, end * panel::CHUNK_BYTES);
        }
        int at = token + next * 32;
        ptx::tensor_copy(leaving.place(next), map, leaving.by_token() ? row : at,
                         leaving.by_token() ? at : row, 0, barrier);
    }
    // Sends a chunk of the last tile and asks for what may come into the place of the one before.
    __device__ __forceinline__ void step(departures<C> &leaving, int thread)
    {
        int left = leaving.next;
        bool all_left = left == leaving.end;
        leaving.send_next(thread);
        if (next < end && (all_left || next < left)) {
            if (thread == 0) {
                if (all_left) {
                    ptx::bulk_wait_read<0>();
                } else {
                    ptx::bulk_wait_read<1>();
                }
                ask(leaving);
            }
            next++;
        }
    }
    // Asks for the rest and waits until everything is there.
    __device__ __forceinline__ void finish(departures<C> &leaving, int thread)
    {
        while (next < end || leaving.next < leaving.end) {
            step(leaving, thread);
        }
        ptx::barrier_wait(barrier, parity);
        parity ^= 1;
    }
};

template <class C, bool BY_TOKEN>
__device__ __forceinline__ void add_chunks(const gpu_product &p, const departures<C> &leaving,
                                           const float (&sums)[C::N / 2], const row_terms &terms,
                                           int thread)
{
#pragma unroll
    for (int c = 0; c < C::N / 32; c++) {
        if (c >= leaving.end) {
            break;
        }
        panel::write_chunk<C::N, passing::ADD, BY_TOKEN>(p.epilogue, sums, c, leaving.place(c),
                                                         terms, thread);
    }
}

template <class C>
__device__ __forceinline__ void leave_added(const gpu_product &p, departures<C> &leaving,
                                            arrivals<C> &coming, const float (&sums)[C::N / 2],
                                            const row_terms &terms, int thread)
{
    coming.finish(leaving, thread);
    leaving.row = coming.row, leaving.token = coming.token;
    leaving.next = 0, leaving.end = coming.end;
    if (leaving.by_token()) {
        add_chunks<C, true>(p, leaving, sums, terms, thread);
    } else {
        add_chunks<C, false>(p, leaving, sums, terms, thread);
    }
    leaving.settle();
    if constexpr (C::LEAVES) {
        for (int c = 0; c < leaving.end; c += 4) {
            leaving.template count_moments<4>(c, thread);
        }
        ptx::named_barrier(leaving.barrier, 128); // the engine will bring the next residual there
    }
}

} // namespace dense

#endif
