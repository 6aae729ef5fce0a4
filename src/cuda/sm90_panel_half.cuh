// Halves of a consumer's sums on their way out (sm90_panel_stagger.cuh): 64 rows x 128 tokens,
// while the other half is multiplied.
//
// By the copy engine, in the chunks and by the arithmetic of sm90_panel_leave.cuh. A part of two
// chunks is laid down, settled and sent at once: tensor cores and loads are busy meanwhile, so that
// nothing is gained by putting it off. Otherwise by strips (sm90_panel_strips.cuh).
#ifndef ESP_CUDA_SM90_PANEL_HALF_CUH
#define ESP_CUDA_SM90_PANEL_HALF_CUH

#include "cuda/sm90_panel_multiply.cuh"
#include "cuda/sm90_panel_strips.cuh"

namespace panel
{

constexpr int HALF_TOKENS = 128, HALF_SUMS = HALF_TOKENS / 2;
constexpr int PART_TOKENS = 64; // that leave beside one product

// Where a half goes: `width` tokens from `token` on of block `block` of a panel; none: 0.
struct half_tile {
    int panel, block, token, width;
};

template <class C> struct half_departures {
    static constexpr int PAIRS = C::CHUNKS / 2; // of chunks that may be on their way
    const maps &with;
    const gpu_tiled &tiled;
    const gpu_product &p;
    uint32_t chunks;
    float *strip; // the warp's
    int group, thread;
    int pair = 0;    // where the next one goes
    row_terms terms; // these two: of the half that leaves next
    residual_ahead<C> residual;
    moments_ahead<C> norm; // of the tile that is multiplied

    __device__ __forceinline__ bool by_token() const
    {
        return p.epilogue.token_step != 1;
    }
    __device__ __forceinline__ bool adds() const
    {
        return !C::NORMS && (C::LEAVES || (p.epilogue.bits & ESP_EP_RESIDUAL) != 0);
    }
    __device__ __forceinline__ int row_of(const half_tile &h) const
    {
        return (int)(h.panel * p.weight.panel_rows) + h.block * GPU_BLOCK_ROWS;
    }
    __device__ __forceinline__ uint32_t place(int i) const
    {
        return chunks + (pair * 2 + i) * CHUNK_BYTES;
    }
    // Asks memory for the residual of a half, where a tile has few steps.
    __device__ __forceinline__ void ask(const half_tile &h)
    {
        if (adds() && residual_ahead<C>::asks(p)) {
            residual_ahead<C> its;
            its.begin(p, row_of(h), h.token, h.width, HALF_TOKENS, thread);
            for (int i = 0; i < HALF_TOKENS / 32; i++) {
                its.ask_next(p.epilogue);
            }
        }
    }
    // What will be applied to the half that leaves next, `norms` being its tokens' terms; to be
    // called before it is multiplied to its end.
    __device__ __forceinline__ void load_terms(const half_tile &h, uint32_t norms)
    {
        terms.template load<C::NORMS>(tiled, row_of(h), thread, norms);
        residual = residual_ahead<C>();
        if (adds() && h.width > 0) {
            residual.begin(p, row_of(h), h.token, h.width, HALF_TOKENS, thread);
            residual.load_first(p.epilogue);
        }
    }
    __device__ __forceinline__ void make_room() const
    {
        if (thread == 0) {
            ptx::bulk_wait_read<PAIRS - 1>();
        }
        ptx::named_barrier(1 + group, 128);
    }
    // `row` as the engine counts rows.
    __device__ __forceinline__ void send(int row, int token, int count, int chunk_tokens)
    {
        ptx::async_fence();
        ptx::named_barrier(1 + group, 128);
        if (thread == 0) {
            for (int i = 0; i < count; i++) {
                int at = token + i * chunk_tokens;
                ptx::tensor_store(&with.y, by_token() ? row : at, by_token() ? at : row, 0,
                                  place(i));
            }
            ptx::bulk_commit();
        }
        pair = pair + 1 == PAIRS ? 0 : pair + 1;
    }

    template <passing WHAT, bool BY_TOKEN, bool NORMED = false>
    __device__ __forceinline__ void leave_as(const float (&sums)[HALF_SUMS], const half_tile &h,
                                             int part)
    {
        constexpr bool PAIRED = WHAT == passing::PAIRS; // 64 tokens are one chunk of rows by twos
        constexpr int CHUNKS = PAIRED ? 1 : 2, TOKENS = PAIRED ? 64 : 32;
        int row = PAIRED || !BY_TOKEN ? row_of(h) / 2 : row_of(h);
        make_room();
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            int c = part * CHUNKS + i;
            if constexpr (WHAT == passing::ADD) {
                residual.template lay_down<BY_TOKEN>(p.epilogue, c, place(i), thread);
            }
            if constexpr (PAIRED) {
                write_pairs<HALF_TOKENS, BY_TOKEN, NORMED>(p.epilogue, sums, c, place(i), terms,
                                                           thread);
            } else {
                write_chunk<HALF_TOKENS, WHAT, BY_TOKEN, NORMED>(p.epilogue, sums, c, place(i),
                                                                 terms, thread);
            }
        }
        const uint32_t sent[2] = {place(0), place(1)};
        send(row, h.token + part * PART_TOKENS, CHUNKS, TOKENS);
        if constexpr (C::LEAVES) {
            int token = h.token + part * PART_TOKENS;
            leave_moments<C::BF16, 2>(tiled, sent, row / 32, token, token + PART_TOKENS, thread);
        }
    }
    template <bool BY_TOKEN>
    __device__ __forceinline__ void leave_by_engine(const float (&sums)[HALF_SUMS],
                                                    const half_tile &h, int part)
    {
        unsigned bits = p.epilogue.bits;
        if ((bits & ESP_EP_SWIGLU) != 0) {
            leave_as<passing::PAIRS, BY_TOKEN>(sums, h, part);
        } else if (adds()) {
            leave_as<passing::ADD, BY_TOKEN>(sums, h, part);
        } else if (BY_TOKEN || (bits & ~(unsigned)(ESP_EP_SCALE | ESP_EP_BIAS)) == 0) {
            leave_as<passing::LINEAR, BY_TOKEN>(sums, h, part);
        } else if ((bits & ESP_EP_GELU) != 0) {
            leave_as<passing::GELU, false>(sums, h, part);
        } else if ((bits & ESP_EP_RELU) != 0) {
            leave_as<passing::RELU, false>(sums, h, part);
        } else {
            leave_as<passing::GATE, false>(sums, h, part);
        }
    }
    // As panel_norms (panel_call.c) says.
    __device__ __forceinline__ void leave_normed(const float (&sums)[HALF_SUMS], const half_tile &h,
                                                 int part)
    {
        if ((p.epilogue.bits & ESP_EP_SWIGLU) != 0) {
            leave_as<passing::PAIRS, false, true>(sums, h, part);
        } else if ((p.epilogue.bits & ESP_EP_GELU) != 0) {
            leave_as<passing::GELU, false, true>(sums, h, part);
        } else {
            leave_as<passing::LINEAR, false, true>(sums, h, part);
        }
    }
    __device__ __forceinline__ void leave_by_strips(const float (&sums)[HALF_SUMS],
                                                    const half_tile &h) const
    {
        const int32_t *rows =
            p.weight.rows + ((int64_t)h.panel * p.weight.blocks + h.block) * GPU_BLOCK_ROWS;
        leave<HALF_TOKENS>(p.epilogue, sums, rows + thread / 32 * 16, h.token, h.token + h.width,
                           strip, thread % 32);
    }
    // By strips, all with the first part.
    template <way WAY>
    __device__ __forceinline__ void leave_part(const float (&sums)[HALF_SUMS], const half_tile &h,
                                               int part)
    {
        if (part * PART_TOKENS >= h.width || (WAY == BY_STRIPS && part > 0)) {
            return;
        }
        if constexpr (WAY == BY_STRIPS) {
            leave_by_strips(sums, h);
        } else if constexpr (C::BARE) {
            leave_as<passing::BARE, false>(sums, h, part);
        } else if constexpr (C::LEAVES) {
            leave_as<passing::ADD, false>(sums, h, part);
        } else if constexpr (C::NORMS) {
            leave_normed(sums, h, part);
        } else {
            // As in leave_at_once: so that places are worked out anew, not kept in registers.
            asm volatile("" : "+r"(thread));
            if (p.epilogue.bits == 0 && !by_token()) {
                leave_as<passing::BARE, false>(sums, h, part);
            } else if (by_token()) {
                leave_by_engine<true>(sums, h, part);
            } else {
                leave_by_engine<false>(sums, h, part);
            }
        }
    }
};

} // namespace panel

#endif
