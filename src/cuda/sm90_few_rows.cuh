// How rows of up to 16 tokens end on Hopper: scale, bias, residual, activations and gates, and the
// stores.
#ifndef ESP_CUDA_SM90_FEW_ROWS_CUH
#define ESP_CUDA_SM90_FEW_ROWS_CUH

#include "cuda/epilogue.cuh"
#include "cuda/quick_silu.cuh"

namespace streamed
{

// From the L2, whatever the L1 has: where launches overlap, that may be older than what the launch
// before wrote. As it lies there, to be widened when it is needed.
__device__ __forceinline__ uint32_t load_current(gpu_type type, const void *data, int64_t at)
{
    return type == GPU_F32 ? __ldcg((const uint32_t *)data + at) : __ldcg((const uint16_t *)data + at);
}

__device__ __forceinline__ float widened(gpu_type type, uint32_t bits)
{
    return type == GPU_F32 ? __uint_as_float(bits) : epilogue::widen_pair(type, bits).x;
}

// The end of a group of 16 rows, of which a lane has two neighbours (see pack.cu) and two tokens of
// each eight: rows 2 l / 4 and the next, tokens 2 l % 4 and the next.
//
// This code runs once, so it comes from the L2, and its length is time. Sums that nothing but scale,
// bias and residual change and that leave two at a time, tokens or rows, take a short way of their
// own: with activations for each element of 16 tokens in between, leaving took 2.4 us instead of 1.
// The residual is asked for with the other terms: read one element after the other between stores,
// which it might alias for all that the compiler knows, it took a way to the L2 each. It is kept as
// it was read, or the warp that ends a group would wait for it before it asks for X.
template <int EIGHTS, bool SINGLE = false> struct two_rows {
    static constexpr int TOKENS = SINGLE ? 1 : 2; // of a lane and eight; SINGLE: there is one in all
    int row[2]; // of Y, -1: none
    float scale[2], bias[2];
    uint32_t residual[EIGHTS][2][2]; // of each eight tokens: two tokens, two rows (swiglu: the
                                     // first). The short way: [0] has both tokens

    __device__ __forceinline__ two_rows(int first, int second) : row{first, second}
    {
    }

    static __device__ __forceinline__ bool gates(const gpu_epilogue &e)
    {
        return (e.bits & ESP_EP_SWIGLU) != 0;
    }

    // Whether all goes the short way: tokens, or a single one, and rows side by side.
    static __device__ __forceinline__ bool plain(const gpu_epilogue &e)
    {
        constexpr unsigned LINEAR = ESP_EP_SCALE | ESP_EP_BIAS | ESP_EP_RESIDUAL;
        bool pairs = SINGLE || (e.aligned && e.token_step == 1 && e.tokens % 2 == 0);
        return pairs && e.type != GPU_F32 && (e.bits & ~LINEAR) == 0;
    }
    static __device__ __forceinline__ bool plain_by_token(const gpu_epilogue &e)
    {
        constexpr unsigned LINEAR = ESP_EP_SCALE | ESP_EP_BIAS;
        return e.aligned && e.feature_step == 1 && e.type != GPU_F32 && (e.bits & ~LINEAR) == 0;
    }

    static __device__ __forceinline__ int token_of(int eight, int which, int lane)
    {
        return eight * 8 + lane % 4 * 2 + which;
    }

    // Where row i of the two goes.
    __device__ __forceinline__ int64_t at(const gpu_epilogue &e, int i, int token) const
    {
        return (gates(e) ? row[i] / 2 : row[i]) * e.feature_step + token * e.token_step;
    }

    __device__ __forceinline__ void load_terms(const gpu_epilogue &e, int lane)
    {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            epilogue::row_terms terms = epilogue::terms_of(e, row[i]);
            scale[i] = terms.scale;
            bias[i] = terms.bias;
        }
        if ((e.bits & ESP_EP_RESIDUAL) == 0) {
            return;
        }
        if (plain(e)) {
            load_plain_residual(e, lane);
        } else {
            load_residual(e, lane);
        }
    }

    __device__ __forceinline__ void load_residual(const gpu_epilogue &e, int lane)
    {
#pragma unroll
        for (int i = 0; i < EIGHTS * 4; i++) {
            if (i / 2 % 2 >= TOKENS) {
                continue;
            }
            int token = token_of(i / 4, i / 2 % 2, lane), which = i % 2;
            bool there = token < e.tokens && row[which] >= 0 && !(gates(e) && which == 1);
            residual[i / 4][i / 2 % 2][which] =
                there ? load_current(e.type, e.residual, at(e, which, token)) : 0;
        }
    }

    __device__ __forceinline__ void load_plain_residual(const gpu_epilogue &e, int lane)
    {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint16_t *from = (const uint16_t *)e.residual + row[i] * e.feature_step;
#pragma unroll
            for (int eight = 0; eight < EIGHTS; eight++) {
                int token = token_of(eight, 0, lane);
                bool there = row[i] >= 0 && token < e.tokens;
                if constexpr (SINGLE) {
                    residual[eight][0][i] = there ? __ldcg(from) : 0;
                } else {
                    residual[eight][0][i] = there ? __ldcg((const uint32_t *)(from + token)) : 0;
                }
            }
        }
    }

    __device__ __forceinline__ void store(const gpu_epilogue &e, int i, int token, float v,
                                          uint32_t residual) const
    {
        if (row[i] >= 0) {
            v = (e.bits & ESP_EP_RESIDUAL) != 0 ? __fadd_rn(v, widened(e.type, residual)) : v;
            epilogue::store_one(e.type, e.y, at(e, i, token), v);
        }
    }

    __device__ __forceinline__ void finish_token(const gpu_epilogue &e, float first, float second,
                                                 int token, const uint32_t (&residual)[2]) const
    {
        if (token >= e.tokens) {
            return;
        }
        float v[2] = {epilogue::linear(e, first, scale[0], bias[0]),
                      epilogue::linear(e, second, scale[1], bias[1])};
        if (gates(e)) {
            store(e, 0, token, epilogue::silu(v[0]) * v[1], residual[0]);
            return;
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            store(e, i, token, epilogue::activate(e.bits, v[i]), residual[i]);
        }
    }

    // Two tokens of row i; SINGLE: one.
    __device__ __forceinline__ void finish_plain(const gpu_epilogue &e, int i, int token, float first,
                                                 float second, uint32_t residual) const
    {
        if (row[i] < 0 || token >= e.tokens) {
            return;
        }
        float2 v = {epilogue::linear(e, first, scale[i], bias[i]),
                    epilogue::linear(e, second, scale[i], bias[i])};
        if ((e.bits & ESP_EP_RESIDUAL) != 0) {
            float2 beside = epilogue::widen_pair(e.type, residual);
            v.x = __fadd_rn(v.x, beside.x), v.y = __fadd_rn(v.y, beside.y);
        }
        uint16_t *to = (uint16_t *)e.y + row[i] * e.feature_step + token;
        uint32_t made = epilogue::round_pair(e.type, v.x, v.y);
        if constexpr (SINGLE) {
            *to = (uint16_t)made;
        } else {
            *(uint32_t *)to = made;
        }
    }

    // Both rows of one token.
    __device__ __forceinline__ void finish_by_token(const gpu_epilogue &e, int token, float first,
                                                    float second) const
    {
        if (token >= e.tokens) {
            return;
        }
        uint16_t *to = (uint16_t *)e.y + token * e.token_step;
        uint32_t made = epilogue::round_pair(e.type, epilogue::linear(e, first, scale[0], bias[0]),
                                             epilogue::linear(e, second, scale[1], bias[1]));
        if (row[1] == row[0] + 1 && row[0] >= 0 && row[0] % 2 == 0) {
            *(uint32_t *)(to + row[0]) = made;
            return;
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (row[i] >= 0) {
                to[row[i]] = (uint16_t)(made >> 16 * i);
            }
        }
    }

    // Two tokens of row i.
    __device__ __forceinline__ void finish_gated(const gpu_epilogue &e, int i, int token, float2 gate,
                                                 float2 other) const
    {
        if (row[i] < 0 || token >= e.tokens) {
            return;
        }
        uint16_t *to = (uint16_t *)e.y + row[i] * e.feature_step + token;
        uint32_t made = epilogue::round_pair(e.type, activate::quick_silu(gate.x) * other.x,
                                             activate::quick_silu(gate.y) * other.y);
        if (e.aligned) {
            *(uint32_t *)to = made;
            return;
        }
        to[0] = (uint16_t)made, to[1] = (uint16_t)(made >> 16);
    }

    // Y = silu(gates) * others, by feature and of 16 bits; tokens are a multiple of eight.
    __device__ __forceinline__ void finish_halves(const gpu_epilogue &e, const float4 (&gates)[EIGHTS],
                                                  const float4 (&others)[EIGHTS], int lane) const
    {
#pragma unroll
        for (int i = 0; i < EIGHTS; i++) {
            int token = token_of(i, 0, lane);
            finish_gated(e, 0, token, {gates[i].x, gates[i].y}, {others[i].x, others[i].y});
            finish_gated(e, 1, token, {gates[i].z, gates[i].w}, {others[i].z, others[i].w});
        }
    }

    __device__ __forceinline__ void finish(const gpu_epilogue &e, const float4 (&sums)[EIGHTS],
                                           int lane) const
    {
        if (plain(e)) {
#pragma unroll
            for (int i = 0; i < EIGHTS; i++) {
                int token = token_of(i, 0, lane);
                finish_plain(e, 0, token, sums[i].x, sums[i].y, residual[i][0][0]);
                finish_plain(e, 1, token, sums[i].z, sums[i].w, residual[i][0][1]);
            }
            return;
        }
        if (!SINGLE && plain_by_token(e)) {
#pragma unroll
            for (int i = 0; i < EIGHTS; i++) {
                finish_by_token(e, token_of(i, 0, lane), sums[i].x, sums[i].z);
                finish_by_token(e, token_of(i, 1, lane), sums[i].y, sums[i].w);
            }
            return;
        }
#pragma unroll
        for (int i = 0; i < EIGHTS; i++) {
            finish_token(e, sums[i].x, sums[i].z, token_of(i, 0, lane), residual[i][0]);
            if constexpr (!SINGLE) {
                finish_token(e, sums[i].y, sums[i].w, token_of(i, 1, lane), residual[i][1]);
            }
        }
    }
};

} // namespace streamed

#endif
