// Sums on their way out of the panel kernels (sm90_panel.cuh) by the copy engine: 16-bit Y with
// tokens side by side and rows in their order.
//
// A warpgroup lays its rounded sums into chunks of 4096 bytes in shared memory. They leave one by
// one while the next tile is multiplied: all at once they would stand in the engine's way before
// that tile's loads. What lies past the end of Y the engine leaves out.
//
// Scale, bias, and an activation, swiglu or a residual are applied in passing, all at once at the
// tile's end, where the tensor cores wait: ten instructions a sum for gelu, 3000 clocks for a tile
// of 128 x 256. Setting sums aside in registers and finishing them in the next tile's steps was
// slower, and so was a residual by the copy engine: both are more for its one thread to ask.
//
// An activation together with a residual takes the strips.
#ifndef ESP_CUDA_SM90_PANEL_LEAVE_CUH
#define ESP_CUDA_SM90_PANEL_LEAVE_CUH

#include "cuda/sm90_activate.cuh"
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
    static constexpr int ALL = C::N / 32; // of a tile
    // In turns the other consumer multiplies meanwhile, and there is nothing to put off.
    static constexpr bool LATER = C::SHARING != IN_TURNS && C::CHUNKS >= ALL - 1;
    const maps *with;
    uint32_t chunks;        // CHUNKS places of CHUNK_BYTES
    int barrier;            // of the warpgroup
    int next = 0, end = 0;  // to be sent; ready to be sent up to here
    int row = 0, token = 0; // of the tile that leaves
    int chunk_tokens = 32;

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
                send(next, row, token + next * chunk_tokens);
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

// What is done to sums in passing, known to the compiler.
enum class passing {
    BARE,
    LINEAR, // scale and bias, as in all that follow
    RELU,
    GELU,
    GATE,  // silu or gelu_tanh
    ADD,   // a residual, no activation
    PAIRS  // swiglu: the two rows of a thread are joined
};

template <passing WHAT> __device__ __forceinline__ float pass(float v, const activate::gate &gate)
{
    return WHAT == passing::RELU   ? activate::at_least(v, 0.0f)
           : WHAT == passing::GELU ? activate::gelu(v)
           : WHAT == passing::GATE ? gate.apply(v)
                                   : v;
}

// What a thread needs of the residual for one chunk: eight of tokens, row. By 4-byte loads from the
// L2, which a launch before this one may have written (the L1 could hold older lines).
struct residual_words {
    uint32_t of[4][2];

    // `row`, `token`: where the chunk begins. Past the end of Y: zeros.
    __device__ __forceinline__ void load(const gpu_product &p, int row, int token, int thread)
    {
        const gpu_epilogue &e = p.epilogue;
        row += thread / 32 * 16 + thread % 32 / 4 * 2;
        token += thread % 4 * 2;
        const uint16_t *from = (const uint16_t *)e.residual + row * e.feature_step + token;
#pragma unroll
        for (int eight = 0; eight < 4; eight++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                bool there = row + i < p.weight.out && token + eight * 8 < e.tokens;
                const uint16_t *at = from + i * e.feature_step + eight * 8;
                of[eight][i] = there ? __ldcg((const uint32_t *)at) : 0;
            }
        }
    }
};

// The residual of a tile of 64 rows x `width` tokens into the L2, while its products run: memory is
// too far to be waited for chunk by chunk.
__device__ __forceinline__ void prefetch_residual(const gpu_product &p, int row, int token,
                                                  int width, int thread)
{
    const gpu_epilogue &e = p.epilogue;
    row += thread / 2;
    const uint16_t *from = (const uint16_t *)e.residual + row * e.feature_step;
    for (int t = token + thread % 2 * 64; t < min(token + width, e.tokens); t += 128) {
        if (row < p.weight.out) {
            ptx::prefetch_l2(from + t);
        }
    }
}

// 32 tokens of a warp into a chunk.
template <int N, passing WHAT>
__device__ __forceinline__ void write_chunk(const gpu_epilogue &e, const float (&sums)[N / 2],
                                            int c, uint32_t chunk, const row_terms &terms,
                                            const residual_words &residual, int thread)
{
    const activate::gate gate = activate::gate::of((e.bits & ESP_EP_GELU_TANH) != 0);
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int at = (c * 4 + j + i / 2) * 4 + i % 2 * 2;
            float low = sums[at], high = sums[at + 1];
            if constexpr (WHAT != passing::BARE) {
                low = pass<WHAT>(terms.apply(low, i % 2), gate);
                high = pass<WHAT>(terms.apply(high, i % 2), gate);
            }
            if constexpr (WHAT == passing::ADD) {
                float2 more = epilogue::widen_pair(e.type, residual.of[j + i / 2][i % 2]);
                low += more.x, high += more.y;
            }
            words[i] = epilogue::round_pair(e.type, low, high);
        }
        ptx::store_matrices(chunk + lane_of_chunk(j, thread), words);
    }
}

// Swiglu of 64 tokens of a warp into a chunk of 32 rows x 64 tokens, 128 bytes a row.
template <int N>
__device__ __forceinline__ void write_pairs(const gpu_epilogue &e, const float (&sums)[N / 2],
                                            int c, uint32_t chunk, const row_terms &terms,
                                            int thread)
{
    const activate::gate silu = activate::gate::of(false);
    int lane = thread % 32, line = thread / 32 * 8 + lane % 8;
    uint32_t to = chunk + line * 128 + ((lane / 8 ^ lane % 8) << 4);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int at = (c * 8 + half * 4 + i) * 4;
            float low = silu.apply(terms.apply(sums[at], 0)) * terms.apply(sums[at + 2], 1);
            float high = silu.apply(terms.apply(sums[at + 1], 0)) * terms.apply(sums[at + 3], 1);
            words[i] = epilogue::round_pair(e.type, low, high);
        }
        ptx::store_matrices(to ^ (uint32_t)half * 64, words); // the swizzle is an exclusive or
    }
}

template <class C, passing WHAT>
__device__ __forceinline__ void write_chunks(const gpu_product &p, departures<C> &leaving,
                                             const float (&sums)[C::BLOCKS][C::N / 2],
                                             row_terms terms, int thread)
{
    using to = departures<C>;
    residual_words now = {}, coming = {};
    if constexpr (WHAT == passing::ADD) {
        coming.load(p, leaving.row, leaving.token, thread);
    }
    if constexpr (to::LATER) {
        leaving.template wait_read<0>(thread);
    }
    constexpr int CHUNKS_OF_TILE = WHAT == passing::PAIRS ? to::ALL / 2 : to::ALL;
#pragma unroll
    for (int c = 0; c < CHUNKS_OF_TILE; c++) {
        if (c >= leaving.end) {
            break;
        }
        if constexpr (WHAT == passing::ADD) {
            now = coming;
            if (c + 1 < leaving.end) {
                coming.load(p, leaving.row, leaving.token + (c + 1) * 32, thread);
            }
        }
        if constexpr (!to::LATER) {
            leaving.template wait_read<C::CHUNKS - 1>(thread);
        } else if (c == C::CHUNKS) { // the place of the first
            leaving.template wait_read<0>(thread);
        }
        if constexpr (WHAT == passing::PAIRS) {
            write_pairs<C::N>(p.epilogue, sums[0], c, leaving.place(c), terms, thread);
        } else {
            write_chunk<C::N, WHAT>(p.epilogue, sums[0], c, leaving.place(c), terms, now, thread);
        }
        if (!to::LATER || (c == 0 && C::CHUNKS < to::ALL)) {
            leaving.settle();
            leaving.send_next(thread);
        }
    }
    if constexpr (to::LATER) {
        leaving.settle();
    }
}

// `width` tokens of the tile, from output row `row` on.
template <class C>
__device__ __forceinline__ void leave_at_once(const gpu_product &p, departures<C> &leaving,
                                              const float (&sums)[C::BLOCKS][C::N / 2], int row,
                                              int token, int width, const row_terms &terms,
                                              int thread)
{
    leaving.send_all(thread);
    leaving.row = row, leaving.token = token, leaving.next = 0;
    static_assert(C::BLOCKS == 1, "a part of a tile has the first of its chunks");
    unsigned bits = p.epilogue.bits;
    leaving.chunk_tokens = (bits & ESP_EP_SWIGLU) != 0 ? 64 : 32;
    leaving.end = width / leaving.chunk_tokens;
    if (bits == 0) {
        write_chunks<C, passing::BARE>(p, leaving, sums, terms, thread);
    } else if ((bits & ESP_EP_SWIGLU) != 0) {
        write_chunks<C, passing::PAIRS>(p, leaving, sums, terms, thread);
    } else if ((bits & ESP_EP_RESIDUAL) != 0) {
        write_chunks<C, passing::ADD>(p, leaving, sums, terms, thread);
    } else if ((bits & ESP_EP_GELU) != 0) {
        write_chunks<C, passing::GELU>(p, leaving, sums, terms, thread);
    } else if ((bits & (ESP_EP_SILU | ESP_EP_GELU_TANH)) != 0) {
        write_chunks<C, passing::GATE>(p, leaving, sums, terms, thread);
    } else if ((bits & ESP_EP_RELU) != 0) {
        write_chunks<C, passing::RELU>(p, leaving, sums, terms, thread);
    } else {
        write_chunks<C, passing::LINEAR>(p, leaving, sums, terms, thread);
    }
}

} // namespace panel

#endif
