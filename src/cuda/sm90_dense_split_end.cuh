// How tiles of the dense kernel for some hundred tokens (sm90_dense_split.cuh) end: what the blocks
// of a cluster have sent is added up, scaled, biased, activated and stored, with a residual.
#ifndef ESP_CUDA_SM90_DENSE_SPLIT_END_CUH
#define ESP_CUDA_SM90_DENSE_SPLIT_END_CUH

#include "cuda/sm90_activate.cuh"
#include "cuda/sm90_dense_split.cuh"
#include "cuda/sm90_few_rows.cuh"

namespace dense_split
{

// Eight tokens of rows `row` and row + 1, which lie in shared memory from `from` on as four lanes'
// sums: two tokens of the first row, the same of the second.
template <class C> struct ending {
    static constexpr gpu_type TYPE = C::BF16 ? GPU_BF16 : GPU_F16;
    const gpu_epilogue &e;
    bool there, whole; // whole: eight tokens leave together
    int row, token;
    uint32_t from;
    int64_t at; // of the first row
    float scale[2], bias[2];
    uint4 residual[2]; // swiglu: the first

    __device__ __forceinline__ bool pairs() const
    {
        return (e.bits & ESP_EP_SWIGLU) != 0;
    }
    __device__ __forceinline__ bool adds() const
    {
        return (e.bits & ESP_EP_RESIDUAL) != 0;
    }
    __device__ __forceinline__ int64_t at_row(int i) const
    {
        return at + i * e.feature_step;
    }
    // Item i of the block.
    __device__ __forceinline__ void place(const gpu_product &p, const task &mine,
                                          const exchange<C> &sums, int i)
    {
        int eight = i % C::EIGHTS, pair = i / C::EIGHTS;
        row = mine.row + sums.first * 16 + pair * 2;
        token = mine.token + eight * 8;
        from = sums.base + C::SUMS_AT + pair / 8 * C::BAND_BYTES + eight * PIECE + pair % 8 * 64;
        at = (pairs() ? row / 2 : row) * e.feature_step + token * e.token_step;
        there = pair < sums.bands * 8 && row < p.weight.out && token < e.tokens;
        whole = e.aligned && e.token_step == 1 && e.type == TYPE && token + 8 <= e.tokens;
        work_out_now(from), work_out_now(at);
    }
    __device__ __forceinline__ void load()
    {
        if (!there) { // rows come in sixteens
            return;
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            scale[i] = (e.bits & ESP_EP_SCALE) != 0 ? __ldg(e.scale + row + i) : 1.0f;
            bias[i] = (e.bits & ESP_EP_BIAS) != 0 ? __ldg(e.bias + row + i) : 0.0f;
        }
        if (adds() && whole) { // of another launch: what the L1 has may be older
            const uint16_t *beside = (const uint16_t *)e.residual;
            residual[0] = __ldcg((const uint4 *)(beside + at));
            if (!pairs()) {
                residual[1] = __ldcg((const uint4 *)(beside + at_row(1)));
            }
        }
    }

    // In the order of the blocks.
    __device__ __forceinline__ void add_up(const exchange<C> &sums, float (&v)[2][8]) const
    {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float4 four = ptx::load_shared_4(from + k * 16);
            v[0][k * 2] = four.x, v[0][k * 2 + 1] = four.y;
            v[1][k * 2] = four.z, v[1][k * 2 + 1] = four.w;
        }
        uint32_t next = from;
#pragma unroll 1
        for (int block = 1; block < sums.split; block++) {
            next += sums.of_sender;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float4 four = ptx::load_shared_4(next + k * 16);
                v[0][k * 2] += four.x, v[0][k * 2 + 1] += four.y;
                v[1][k * 2] += four.z, v[1][k * 2 + 1] += four.w;
            }
        }
    }
    template <class Call>
    static __device__ __forceinline__ void each(float (&v)[2][8], const Call &call)
    {
#pragma unroll
        for (int i = 0; i < 16; i++) {
            v[i / 8][i % 8] = call(v[i / 8][i % 8]);
        }
    }
    __device__ __forceinline__ void pass(float (&v)[2][8]) const
    {
        if ((e.bits & ESP_EP_GELU) != 0) {
            each(v, [](float x) { return activate::gelu(x); });
        } else if ((e.bits & (ESP_EP_SILU | ESP_EP_GELU_TANH)) != 0) {
            activate::gate gate = activate::gate::of((e.bits & ESP_EP_GELU_TANH) != 0);
            each(v, [&](float x) { return gate.apply(x); });
        } else if ((e.bits & ESP_EP_RELU) != 0) {
            each(v, [](float x) { return activate::at_least(x, 0.0f); });
        } else if (pairs()) {
            activate::gate silu = activate::gate::of(false);
#pragma unroll
            for (int t = 0; t < 8; t++) {
                v[0][t] = silu.apply(v[0][t]) * v[1][t];
            }
        }
    }
    static __device__ __forceinline__ void add_eight(float (&v)[8], const uint4 &eight)
    {
        const uint32_t more[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float2 two = epilogue::widen_pair(TYPE, more[k]);
            v[k * 2] = __fadd_rn(v[k * 2], two.x);
            v[k * 2 + 1] = __fadd_rn(v[k * 2 + 1], two.y);
        }
    }
    __device__ __forceinline__ void store_eight(int i, const float (&v)[8]) const
    {
        *(uint4 *)((uint16_t *)e.y + at_row(i)) = make_uint4(
            epilogue::round_pair(TYPE, v[0], v[1]), epilogue::round_pair(TYPE, v[2], v[3]),
            epilogue::round_pair(TYPE, v[4], v[5]), epilogue::round_pair(TYPE, v[6], v[7]));
    }
    __device__ __forceinline__ void finish_whole(const exchange<C> &sums) const
    {
        constexpr unsigned PASSING =
            ESP_EP_GELU | ESP_EP_SILU | ESP_EP_GELU_TANH | ESP_EP_RELU | ESP_EP_SWIGLU;
        float v[2][8];
        add_up(sums, v);
#pragma unroll
        for (int i = 0; i < 16; i++) { // exact where there is neither
            v[i / 8][i % 8] = fmaf(v[i / 8][i % 8], scale[i / 8], bias[i / 8]);
        }
        if ((e.bits & PASSING) != 0) {
            pass(v);
        }
        if (adds()) {
            add_eight(v[0], residual[0]);
            add_eight(v[1], residual[1]);
        }
        store_eight(0, v[0]);
        if (!pairs()) {
            store_eight(1, v[1]);
        }
    }

    // One number at a time, straight from shared memory: slow, and short code.
    __device__ __forceinline__ float sum(const exchange<C> &sums, int i, int t) const
    {
        uint32_t next = from + t / 2 * 16 + i * 8 + t % 2 * 4;
        float v = ptx::load_shared_f32(next);
#pragma unroll 1
        for (int block = 1; block < sums.split; block++) {
            next += sums.of_sender;
            v += ptx::load_shared_f32(next);
        }
        return epilogue::linear(e, v, i == 0 ? scale[0] : scale[1], i == 0 ? bias[0] : bias[1]);
    }
    __device__ __forceinline__ void finish_parts(const exchange<C> &sums) const
    {
        int rows = pairs() ? 1 : 2;
#pragma unroll 1
        for (int n = 0; n < min(8, e.tokens - token) * rows; n++) {
            int t = n / rows, i = n % rows;
            float v = sum(sums, i, t);
            v = pairs() ? epilogue::silu(v) * sum(sums, 1, t) : epilogue::activate(e.bits, v);
            int64_t to = at_row(i) + t * e.token_step;
            if (adds()) {
                uint32_t more = streamed::load_current(e.type, e.residual, to);
                v = __fadd_rn(v, streamed::widened(e.type, more));
            }
            epilogue::store_one(e.type, e.y, to, v);
        }
    }
    __device__ __forceinline__ void finish(const exchange<C> &sums) const
    {
        if (there && whole) {
            finish_whole(sums);
        } else if (there) {
            finish_parts(sums);
        }
    }
};

} // namespace dense_split

#endif
