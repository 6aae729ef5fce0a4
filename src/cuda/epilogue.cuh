// What happens to finished sums on the GPU: scale, bias, activation, residual, rounding, in that order and
// in f32, as src/ref does it. Shared by every product kernel.
#ifndef ESP_CUDA_EPILOGUE_CUH
#define ESP_CUDA_EPILOGUE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <espalier/matmul.h>

#include "cuda/gpu.h"

namespace epilogue {

__device__ __forceinline__ float silu(float v)
{
    return v / (1.0f + expf(-v));
}

// Any activation but swiglu; NaN stays NaN.
__device__ __forceinline__ float activate(unsigned bits, float v)
{
    if ((bits & ESP_EP_RELU) != 0) {
        return v < 0.0f ? 0.0f : v;
    }
    if ((bits & ESP_EP_GELU) != 0) {
        return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f));
    }
    if ((bits & ESP_EP_GELU_TANH) != 0) {
        float inner = 0.79788456080286536f * (v + 0.044715f * v * v * v);
        return 0.5f * v * (1.0f + tanhf(inner));
    }
    return (bits & ESP_EP_SILU) != 0 ? silu(v) : v;
}

__device__ __forceinline__ float linear(const gpu_epilogue &e, float v, float scale, float bias)
{
    v = (e.bits & ESP_EP_SCALE) != 0 ? __fmul_rn(v, scale) : v;
    return (e.bits & ESP_EP_BIAS) != 0 ? __fadd_rn(v, bias) : v;
}

// ---- one element ----

__device__ __forceinline__ float load_one(gpu_type type, const void *data, int64_t at)
{
    switch (type) {
    case GPU_F16:
        return __half2float(((const __half *)data)[at]);
    case GPU_BF16:
        return __bfloat162float(((const __nv_bfloat16 *)data)[at]);
    default:
        return ((const float *)data)[at];
    }
}

__device__ __forceinline__ void store_one(gpu_type type, void *data, int64_t at, float v)
{
    switch (type) {
    case GPU_F16:
        ((__half *)data)[at] = __float2half_rn(v);
        break;
    case GPU_BF16:
        ((__nv_bfloat16 *)data)[at] = __float2bfloat16_rn(v);
        break;
    default:
        ((float *)data)[at] = v;
    }
}

__device__ __forceinline__ void finish_one(const gpu_epilogue &e, int64_t at, float v)
{
    if ((e.bits & ESP_EP_RESIDUAL) != 0) {
        v = __fadd_rn(v, load_one(e.type, e.residual, at));
    }
    store_one(e.type, e.y, at, v);
}

// ---- eight elements side by side, 16-byte aligned ----

__device__ __forceinline__ uint32_t round_pair(gpu_type type, float low, float high)
{
    if (type == GPU_F16) {
        __half2 pair = __floats2half2_rn(low, high);
        return *(uint32_t *)&pair;
    }
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&pair;
}

__device__ __forceinline__ float2 widen_pair(gpu_type type, uint32_t pair)
{
    return type == GPU_F16 ? __half22float2(*(__half2 *)&pair)
                           : __bfloat1622float2(*(__nv_bfloat162 *)&pair);
}

__device__ __forceinline__ void add_eight(const gpu_epilogue &e, int64_t at, float (&v)[8])
{
    if (e.type == GPU_F32) {
        const float4 *from = (const float4 *)((const float *)e.residual + at);
        float4 a = from[0], b = from[1];
        v[0] += a.x, v[1] += a.y, v[2] += a.z, v[3] += a.w;
        v[4] += b.x, v[5] += b.y, v[6] += b.z, v[7] += b.w;
        return;
    }
    uint4 packed = *(const uint4 *)((const uint16_t *)e.residual + at);
    const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 pair = widen_pair(e.type, words[i]);
        v[2 * i] += pair.x;
        v[2 * i + 1] += pair.y;
    }
}

__device__ __forceinline__ void finish_eight(const gpu_epilogue &e, int64_t at, float (&v)[8])
{
    if ((e.bits & ESP_EP_RESIDUAL) != 0) {
        add_eight(e, at, v);
    }
    if (e.type == GPU_F32) {
        float4 *to = (float4 *)((float *)e.y + at);
        to[0] = make_float4(v[0], v[1], v[2], v[3]);
        to[1] = make_float4(v[4], v[5], v[6], v[7]);
        return;
    }
    *(uint4 *)((uint16_t *)e.y + at) =
        make_uint4(round_pair(e.type, v[0], v[1]), round_pair(e.type, v[2], v[3]),
                   round_pair(e.type, v[4], v[5]), round_pair(e.type, v[6], v[7]));
}

// ---- a warp's 16 rows x 32 tokens, staged in shared memory ----

// Row i of the staged sums begins at i * PITCH floats: 16-byte aligned, and free of bank conflicts both for
// the accumulators' stores and for the loads below.
constexpr int ROWS = 16, TOKENS = 32, PITCH = 36;

// What lane i and lane i + 16 know of row i; the others ask them.
struct row_terms {
    int row; // output row, -1: none
    float scale, bias;
};

__device__ __forceinline__ row_terms terms_of(const gpu_epilogue &e, int row)
{
    row_terms mine = {row, 1.0f, 0.0f};
    if (row >= 0) {
        mine.scale = (e.bits & ESP_EP_SCALE) != 0 ? e.scale[row] : 1.0f;
        mine.bias = (e.bits & ESP_EP_BIAS) != 0 ? e.bias[row] : 0.0f;
    }
    return mine;
}

__device__ __forceinline__ row_terms load_terms(const gpu_epilogue &e, const int32_t *rows,
                                                int lane)
{
    return terms_of(e, rows[lane % ROWS]);
}

// Eight tokens of one row.
__device__ __forceinline__ void load_along_tokens(const gpu_epilogue &e, const float *staged,
                                                  const row_terms &mine, int row, int token,
                                                  float (&v)[8])
{
    const float4 *from = (const float4 *)(staged + row * PITCH + token);
    float4 a = from[0], b = from[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    float scale = __shfl_sync(~0u, mine.scale, row), bias = __shfl_sync(~0u, mine.bias, row);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        v[i] = linear(e, v[i], scale, bias);
    }
}

// Eight rows, `step` apart, of one token.
__device__ __forceinline__ void load_along_rows(const gpu_epilogue &e, const float *staged,
                                                const row_terms &mine, int row, int step, int token,
                                                float (&v)[8])
{
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int at = row + i * step;
        v[i] = linear(e, staged[at * PITCH + token], __shfl_sync(~0u, mine.scale, at),
                      __shfl_sync(~0u, mine.bias, at));
    }
}

__device__ __forceinline__ void activate_eight(const gpu_epilogue &e, float (&v)[8])
{
    if ((e.bits & (ESP_EP_RELU | ESP_EP_GELU | ESP_EP_GELU_TANH | ESP_EP_SILU)) == 0) {
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        v[i] = activate(e.bits, v[i]);
    }
}

__device__ __forceinline__ void gate_eight(float (&gate)[8], const float (&up)[8])
{
#pragma unroll
    for (int i = 0; i < 8; i++) {
        gate[i] = silu(gate[i]) * up[i];
    }
}

// Y with tokens side by side: a lane takes eight tokens of a row, four lanes a row.
__device__ __forceinline__ void finish_along_tokens(const gpu_epilogue &e, const float *staged,
                                                    const row_terms &mine, int token, int lane)
{
    bool pairs = (e.bits & ESP_EP_SWIGLU) != 0;
    int part = lane % 4 * 8, first = token + part;
#pragma unroll 1
    for (int half = 0; half < (pairs ? 1 : 2); half++) {
        float v[8];
        int row = pairs ? lane / 4 * 2 : lane / 4 + 8 * half;
        load_along_tokens(e, staged, mine, row, part, v);
        if (pairs) {
            float up[8];
            load_along_tokens(e, staged, mine, row + 1, part, up);
            gate_eight(v, up);
        } else {
            activate_eight(e, v);
        }
        int out = __shfl_sync(~0u, mine.row, row);
        if (out < 0 || first >= e.tokens) {
            continue;
        }
        int64_t at = (int64_t)(pairs ? out / 2 : out) * e.feature_step + first;
        if (e.aligned && first + 8 <= e.tokens) {
            finish_eight(e, at, v);
            continue;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (first + i < e.tokens) {
                finish_one(e, at + i, v[i]);
            }
        }
    }
}

// Y with features side by side: a lane takes a token, eight rows at a time.
__device__ __forceinline__ void finish_along_rows(const gpu_epilogue &e, const float *staged,
                                                  const row_terms &mine, int token, int lane)
{
    bool pairs = (e.bits & ESP_EP_SWIGLU) != 0;
    int64_t base = (int64_t)(token + lane) * e.token_step;
#pragma unroll 1
    for (int half = 0; half < (pairs ? 1 : 2); half++) {
        float v[8];
        int step = pairs ? 2 : 1, row = 8 * half, outs[8];
        load_along_rows(e, staged, mine, row, step, lane, v);
        if (pairs) {
            float up[8];
            load_along_rows(e, staged, mine, 1, step, lane, up);
            gate_eight(v, up);
        } else {
            activate_eight(e, v);
        }
        bool together = e.aligned;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int out = __shfl_sync(~0u, mine.row, row + i * step);
            outs[i] = out >= 0 && pairs ? out / 2 : out;
            together = together && outs[i] == outs[0] + i;
        }
        if (token + lane >= e.tokens) {
            continue;
        }
        if (together && outs[0] >= 0 && outs[0] % 8 == 0) {
            finish_eight(e, base + outs[0], v);
            continue;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (outs[i] >= 0) {
                finish_one(e, base + (int64_t)outs[i] * e.feature_step, v[i]);
            }
        }
    }
}

// All 32 lanes call it; `staged` was written and __syncwarp() passed.
__device__ __forceinline__ void finish_staged(const gpu_epilogue &e, const float *staged,
                                              const row_terms &mine, int token, int lane)
{
    if (e.token_step == 1) {
        finish_along_tokens(e, staged, mine, token, lane);
    } else {
        finish_along_rows(e, staged, mine, token, lane);
    }
}

} // namespace epilogue

#endif
