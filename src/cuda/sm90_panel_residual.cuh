// Residuals of the panel kernels' sums, on their way into the chunks (sm90_panel_leave.cuh).
//
// Loads are of 16 bytes, the first chunks' when the last product runs, the others' as soon as these
// have given up their registers: a thread's own words one by one took four times the requests, and
// one chunk ahead of its use they came late. What a thread loads is not what its sums need; the
// chunk's place in shared memory turns the one into the other.
//
// Where a tile has few steps, memory is asked for its residual while its products run, a chunk a
// step: 6 % faster with 12 steps, 3 % slower with 64, whoever asks, threads or the copy engine.
#ifndef ESP_CUDA_SM90_PANEL_RESIDUAL_CUH
#define ESP_CUDA_SM90_PANEL_RESIDUAL_CUH

#include "cuda/sm90_panel_parts.cuh"

namespace panel
{

// A thread's share of a tile's residual: of each chunk two pieces of 16 bytes from its warp's 16
// rows. By feature: eight tokens of rows 2 i and 2 i + 1. By token: eight rows of tokens i and
// i + 16.
template <class C> struct residual_ahead {
    static constexpr int ALL = C::N / 32, AHEAD = 3; // chunks; more would cost others registers
    const uint16_t *from;
    int left;  // tokens from the first piece on
    int asked; // chunks that memory was asked for
    uint4 of[AHEAD][2];

    // Nothing of a tile before: what is kept from one to the next takes registers of activations.
    __device__ __forceinline__ residual_ahead() : left(0), asked(0)
    {
    }

    // Whether a tile has so few steps that memory is asked ahead.
    static __device__ __forceinline__ bool asks(const gpu_product &p)
    {
        return p.weight.steps <= 24 * p.deal.split;
    }

    // `row`, `token`: where `width` tokens of 64 rows begin; `steps`: of the tile.
    __device__ __forceinline__ void begin(const gpu_product &p, int row, int token, int width,
                                          int steps, int thread)
    {
        const gpu_epilogue &e = p.epilogue;
        int lane = thread % 32;
        bool by_token = e.token_step != 1;
        int first = by_token ? token_of(lane) : lane % 4 * 8;
        row += thread / 32 * 16 + (by_token ? lane % 2 * 8 : lane / 4 * 2);
        left = row < p.weight.out ? min(width, e.tokens - token) - first : 0;
        from = (const uint16_t *)e.residual + row * e.feature_step + (token + first) * e.token_step;
        for (int i = steps; i < width / 32; i++) {
            ask_next(e);
        }
    }
    // In Y by token. So dealt that no two lanes meet in a bank.
    static __device__ __forceinline__ int token_of(int lane)
    {
        return lane / 2 % 4 * 2 + lane / 8 % 2 + lane / 16 * 8;
    }
    // use(which, where) for the pieces of chunk c that there are.
    template <class Use>
    __device__ __forceinline__ void pieces(const gpu_epilogue &e, int c, const Use &use) const
    {
        bool by_token = e.token_step != 1;
        const uint16_t *at = from + c * 32 * e.token_step;
        if (c * 32 < left) {
            use(0, at);
        }
        if (c * 32 + (by_token ? 16 : 0) < left) {
            use(1, at + (by_token ? 16 * e.token_step : e.feature_step));
        }
    }
    // Brings one more chunk into the L2.
    __device__ __forceinline__ void ask_next(const gpu_epilogue &e)
    {
        if (asked * 32 < left) {
            pieces(e, asked, [](int, const uint16_t *at) { ptx::prefetch_l2(at); });
            asked++;
        }
    }
    // From the L2, which a launch before this one may have written (the L1 could hold older lines).
    __device__ __forceinline__ void load(const gpu_epilogue &e, int c)
    {
        pieces(e, c,
               [&](int i, const uint16_t *at) { of[c % AHEAD][i] = __ldcg((const uint4 *)at); });
    }
    __device__ __forceinline__ void load_first(const gpu_epilogue &e)
    {
#pragma unroll
        for (int c = 0; c < AHEAD; c++) {
            load(e, c);
        }
    }
    // Into the chunk's place, where the warp finds what its sums need (past the end of Y anything);
    // loads a later chunk.
    template <bool BY_TOKEN>
    __device__ __forceinline__ void lay_down(const gpu_epilogue &e, int c, uint32_t chunk,
                                             int thread)
    {
        int lane = thread % 32, token = token_of(lane);
        chunk += BY_TOKEN ? token * 128 + (((thread / 32 * 2 + lane % 2) ^ token % 8) << 4)
                          : thread / 4 * 64 + ((lane % 4 ^ lane / 8) << 4);
        ptx::store_shared_16(chunk, of[c % AHEAD][0]);
        ptx::store_shared_16(chunk + 2048, of[c % AHEAD][1]);
        if (c + AHEAD < ALL) {
            load(e, c + AHEAD);
        }
        __syncwarp();
    }
};

} // namespace panel

#endif
