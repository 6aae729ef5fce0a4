// Sums of sm90_blocks.cuh that need more than scale and bias, on their way to 16-bit Y by the copy
// engine (swiglu where tokens lie side by side).
//
// A warp's tile, 16 rows, is finished and rounded into boxes of 64 tokens in shared memory. They
// leave one by one while the next tile is multiplied: all at once they would stand in the engine's
// way before that tile's loads. As soon as they have been read, the residual of the tile that is
// being multiplied is loaded into their places, where it waits for the sums.
//
// A loop goes over the boxes and moves the sums along: unrolled, it outgrows the instruction cache,
// which cost more than a tenth of the time. Where all that is to be done is known when this is
// compiled (gelu; a residual), the code is short enough to go on without a loop.
#ifndef ESP_CUDA_SM90_BLOCKS_FINISH_CUH
#define ESP_CUDA_SM90_BLOCKS_FINISH_CUH

#include "cuda/sm90_activate.cuh"
#include "cuda/sm90_blocks_leave.cuh"

namespace blocks
{

// What happens to sums after scale and bias.
struct ending {
    unsigned bits;
    gpu_type type; // of Y

    template <class C> static __device__ __forceinline__ ending of(const gpu_epilogue &e)
    {
        return C::ENDING == 0 ? ending{e.bits, e.type}
                              : ending{C::ENDING, C::BF16 ? GPU_BF16 : GPU_F16};
    }
    __device__ __forceinline__ bool adds() const
    {
        return (bits & ESP_EP_RESIDUAL) != 0;
    }
    __device__ __forceinline__ bool gates() const
    {
        return (bits & ESP_EP_SWIGLU) != 0;
    }
};

// Any activation but swiglu.
template <int COUNT> __device__ __forceinline__ void activate_all(unsigned bits, float (&v)[COUNT])
{
    if ((bits & ESP_EP_GELU) != 0) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            v[i] = activate::gelu(v[i]);
        }
    } else if ((bits & (ESP_EP_GELU_TANH | ESP_EP_SILU)) != 0) {
        activate::gate gate = activate::gate::of((bits & ESP_EP_GELU_TANH) != 0);
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            v[i] = gate.apply(v[i]);
        }
    } else if ((bits & ESP_EP_RELU) != 0) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            v[i] = activate::at_least(v[i], 0.0f);
        }
    }
}

// Two tokens, with what stands in their place if that is to be added.
__device__ __forceinline__ uint32_t add_and_round(const ending &e, uint32_t old, float a, float b)
{
    if (e.adds()) {
        float2 more = epilogue::widen_pair(e.type, old);
        a = __fadd_rn(a, more.x), b = __fadd_rn(b, more.y);
    }
    return epilogue::round_pair(e.type, a, b);
}

// Four pairs, one of each of four matrices of 8 x 8.
__device__ __forceinline__ void put_matrices(const ending &e, uint32_t at, const float (&v)[8])
{
    uint32_t words[4] = {0, 0, 0, 0};
    if (e.adds()) {
        ptx::load_matrices(at, words);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        words[i] = add_and_round(e, words[i], v[2 * i], v[2 * i + 1]);
    }
    ptx::store_matrices(at, words);
}

// Rows of 128 bytes, swizzled; matrices are the even and the odd rows of eight tokens, then of the
// next eight.
__device__ __forceinline__ void put_by_feature(const ending &e, const float (&v)[32], uint32_t to,
                                               int lane)
{
    uint32_t row = lane % 8 * 2 + lane / 8 % 2, chunk = lane / 16;
#pragma unroll
    for (int pair = 0; pair < 4; pair++) { // of eights
        float eight[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            eight[i] = v[pair * 8 + i];
        }
        put_matrices(e, to + row * 128 + (((pair * 2 + chunk) ^ (row & 7)) << 4), eight);
    }
}

// As above; eight rows of Y, matrices are four eights of tokens.
__device__ __forceinline__ void lay_gated(const ending &e, const float (&v)[32], uint32_t to, int lane)
{
    uint32_t row = lane % 8, chunk = lane / 8;
    const activate::gate silu = activate::gate::of(false);
#pragma unroll
    for (int part = 0; part < 2; part++) {
        float gated[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int at = part * 16 + i / 2 * 4 + i % 2;
            gated[i] = silu.apply(v[at]) * v[at + 2];
        }
        put_matrices(e, to + row * 128 + (((part * 4 + chunk) ^ row) << 4), gated);
    }
}

// By token: 32 bytes a token. Half of the lanes begin with their second token: no two meet in a
// bank.
__device__ __forceinline__ void put_by_token(const ending &e, const float (&v)[32], uint32_t to,
                                             int lane)
{
    uint32_t second = lane / 2 % 2, slot = to + lane % 4 * 64 + lane / 4 * 4;
    bool adds = e.adds();
#pragma unroll
    for (int eight = 0; eight < 8; eight++) {
        const float *four = v + eight * 4;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint32_t token = second ^ i, at = slot + eight * 256 + token * 32;
            uint32_t old = adds ? ptx::load_shared(at) : 0;
            float low = token != 0 ? four[1] : four[0], high = token != 0 ? four[3] : four[2];
            ptx::store_shared_u32(at, add_and_round(e, old, low, high));
        }
    }
}

// A warp's boxes. Lane 0 alone speaks to the engine.
template <class C> struct departures {
    const maps *with;
    const gpu_epilogue &e;
    uint32_t boxes, arrived; // arrived: barrier of the residual's
    bool adds;
    int row = -1, token = 0, next = C::BOXES;
    int coming_row = -1, coming_token = 0; // of the tile that is being multiplied
    bool loaded = true;                    // its residual was asked for
    bool hurry = false;                    // it has too few steps to send a box in each
    uint32_t parity = 0;

    // A tile begins. `at`: the row of Y of its first one, -1: none.
    __device__ __forceinline__ void announce(int at, int first_token, int steps)
    {
        coming_row = at, coming_token = first_token;
        loaded = !adds;
        hurry = steps < 2 * C::BOXES;
    }
    // Of a box: swiglu leaves half of the rows.
    __device__ __forceinline__ uint32_t box_bytes() const
    {
        return ending::of<C>(e).gates() ? BOX_BYTES / 2 : BOX_BYTES;
    }
    __device__ __forceinline__ bool by_feature() const
    {
        return C::ENDING != 0 || e.token_step == 1;
    }
    __device__ __forceinline__ void send_next(int lane)
    {
        int at = token + next * 64;
        if (lane == 0 && row >= 0 && at < e.tokens) {
            ptx::tensor_store(&with->y, by_feature() ? at : row, by_feature() ? row : at,
                              boxes + next * BOX_BYTES);
            ptx::store_commit();
        }
        next++;
    }
    __device__ __forceinline__ void load_residual(int lane)
    {
        if (lane == 0) {
            ptx::store_wait_read<0>();
            int last = coming_row < 0 ? 0 : min(C::BOXES, (e.tokens - coming_token + 63) / 64);
            ptx::barrier_expect(arrived, max(last, 0) * box_bytes());
            for (int box = 0; box < last; box++) {
                int at = coming_token + box * 64;
                ptx::tensor_copy(boxes + box * BOX_BYTES, &with->residual,
                                 by_feature() ? at : coming_row, by_feature() ? coming_row : at,
                                 arrived);
            }
        }
        loaded = true;
    }
    // In each step of the tile that is being multiplied: one request to the engine, if there is
    // time for that.
    __device__ __forceinline__ void go_on(int lane)
    {
        if (next < C::BOXES) {
            do {
                send_next(lane);
            } while (hurry && next < C::BOXES);
        } else if (!loaded) {
            load_residual(lane);
        }
    }
    // Until the boxes are free, or hold the residual of the tile at hand.
    __device__ __forceinline__ void settle(int lane)
    {
        while (next < C::BOXES) {
            send_next(lane);
        }
        if (!loaded) {
            load_residual(lane);
        }
        if (adds) {
            ptx::barrier_wait(arrived, parity);
            parity ^= 1;
        } else if (lane == 0) {
            ptx::store_wait_read<0>();
        }
        __syncwarp();
    }
};

// The sums are used up. What is past the end the engine cuts off.
template <class C>
__device__ __forceinline__ void leave_finished(const gpu_block_product &p, departures<C> &leaving,
                                               float (&sums)[C::TOKENS / 2], const two_terms &terms,
                                               int lane)
{
    const ending e = ending::of<C>(p.epilogue);
#pragma unroll(C::ENDING == 0 ? 1 : C::BOXES)
    for (int box = 0; box < C::BOXES; box++) {
        uint32_t to = leaving.boxes + box * BOX_BYTES;
        float v[32];
#pragma unroll
        for (int eight = 0; eight < 8; eight++) {
            float four[4];
            finish_four(sums + eight * 4, terms, four);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                v[eight * 4 + i] = four[i];
            }
        }
        activate_all(e.bits, v);
        if (e.gates()) {
            lay_gated(e, v, to, lane);
        } else if (leaving.by_feature()) {
            put_by_feature(e, v, to, lane);
        } else {
            put_by_token(e, v, to, lane);
        }
#pragma unroll
        for (int i = 0; i < C::TOKENS / 2 - 32; i++) {
            sums[i] = sums[i + 32];
        }
    }
    ptx::async_fence();
    __syncwarp();
    leaving.row = leaving.coming_row, leaving.token = leaving.coming_token, leaving.next = 0;
}

} // namespace blocks

#endif
