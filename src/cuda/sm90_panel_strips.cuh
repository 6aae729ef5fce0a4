// Sums of the panel kernels (sm90_panel.cuh) that the copy engine cannot store: through a strip of
// shared memory per warp and ordinary stores.
#ifndef ESP_CUDA_SM90_PANEL_STRIPS_CUH
#define ESP_CUDA_SM90_PANEL_STRIPS_CUH

#include "cuda/sm90_panel_parts.cuh"
#include "cuda/sm90_stage.cuh"

namespace panel
{

// The common case, unrolled: Y with tokens side by side and aligned, a tile full of tokens, no
// activation. A lane has eight tokens of two rows in each 32 tokens.
template <int N>
__device__ __forceinline__ void leave_plainly(const gpu_epilogue &e, const float (&sums)[N / 2],
                                              const int32_t *rows, int token, float *strip,
                                              int lane)
{
    int part = lane % 4 * 8;
    int outs[2] = {rows[lane / 4], rows[lane / 4 + 8]};
    float scale[2] = {1, 1}, bias[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (outs[i] >= 0) {
            scale[i] = (e.bits & ESP_EP_SCALE) != 0 ? e.scale[outs[i]] : 1.0f;
            bias[i] = (e.bits & ESP_EP_BIAS) != 0 ? e.bias[outs[i]] : 0.0f;
        }
    }
    int64_t at[2] = {outs[0] * e.feature_step + token + part,
                     outs[1] * e.feature_step + token + part};
    const float4 *from = (const float4 *)(strip + lane / 4 * epilogue::PITCH + part);
#pragma unroll
    for (int i = 0; i < N / 32; i++) {
        __syncwarp();
        epilogue::stage_sums<N>(sums, i, ptx::shared_address(strip), lane);
        __syncwarp();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float4 a = from[half * 2 * epilogue::PITCH], b = from[half * 2 * epilogue::PITCH + 1];
            float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
            if ((e.bits & (ESP_EP_SCALE | ESP_EP_BIAS)) != 0) {
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    v[j] = __fadd_rn(__fmul_rn(v[j], scale[half]), bias[half]);
                }
            }
            if (outs[half] >= 0) {
                epilogue::finish_eight(e, at[half] + i * 32, v);
            }
        }
    }
}

// Tokens from `token` up to `end`.
template <int N>
__device__ __forceinline__ void leave(const gpu_epilogue &e, const float (&sums)[N / 2],
                                      const int32_t *rows, int token, int end, float *strip,
                                      int lane)
{
    end = min(end, e.tokens);
    if (e.token_step == 1 && e.aligned && token + N <= end &&
        (e.bits & ~(unsigned)(ESP_EP_SCALE | ESP_EP_BIAS | ESP_EP_RESIDUAL)) == 0) {
        leave_plainly<N>(e, sums, rows, token, strip, lane);
        return;
    }
    epilogue::row_terms mine = epilogue::load_terms(e, rows, lane);
#pragma unroll 1
    for (int part = 0; part < N / 32 && token + part * 32 < end; part++) {
        __syncwarp();
        epilogue::stage_sums<N>(sums, part, ptx::shared_address(strip), lane);
        __syncwarp();
        epilogue::finish_staged(e, strip, mine, token + part * 32, lane);
    }
}

} // namespace panel

#endif
