// How finished sums leave sm90_blocks.cuh.
#ifndef ESP_CUDA_SM90_BLOCKS_LEAVE_CUH
#define ESP_CUDA_SM90_BLOCKS_LEAVE_CUH

#include "cuda/block_exact.cuh"
#include "cuda/sm90_blocks_tile.cuh"
#include "cuda/sm90_stage.cuh"

namespace blocks {

// What the engine has to know of X and Y.
struct maps {
    CUtensorMap x, y, residual;
};

// Where a thread's sums stand: rows 2 g and 2 g + 1 of the warp's strip of 16 (the packing deals them so), two
// tokens of each eight.

struct two_terms { // of a thread's two rows
    float scale[2], bias[2];
    __device__ __forceinline__ void load(const gpu_epilogue &e, int row, int64_t out)
    {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            bool there = row >= 0 && row + i < out;
            scale[i] = there && (e.bits & ESP_EP_SCALE) != 0 ? e.scale[row + i] : 1.0f;
            bias[i] = there && (e.bits & ESP_EP_BIAS) != 0 ? e.bias[row + i] : 0.0f;
        }
    }
};

// Eight tokens' sums of a thread: [i] are row i / 2, token i % 2.
__device__ __forceinline__ void finish_four(const float *sums, const two_terms &terms, float (&v)[4])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v[i] = fmaf(sums[i], terms.scale[i / 2], terms.bias[i / 2]);
    }
}

// A box of 16 rows x 64 tokens as Y has it. By feature: rows of 128 bytes, swizzled; matrices of a store are
// the even and the odd rows of eight tokens, then of the next eight.
__device__ __forceinline__ void lay_by_feature(const gpu_epilogue &e, const float *sums,
                                               const two_terms &terms, uint32_t to, int lane)
{
    uint32_t row = lane % 8 * 2 + lane / 8 % 2, chunk = lane / 16;
#pragma unroll
    for (int pair = 0; pair < 4; pair++) { // of eights
        float a[4], b[4];
        finish_four(sums + pair * 8, terms, a);
        finish_four(sums + pair * 8 + 4, terms, b);
        uint32_t slot = to + row * 128 + (((pair * 2 + chunk) ^ (row & 7)) << 4);
        const uint32_t words[4] = {
            epilogue::round_pair(e.type, a[0], a[1]), epilogue::round_pair(e.type, a[2], a[3]),
            epilogue::round_pair(e.type, b[0], b[1]), epilogue::round_pair(e.type, b[2], b[3])};
        ptx::store_matrices(slot, words);
    }
}

// By token: 32 bytes a token. Half of the lanes begin with their second token: no two meet in a bank.
__device__ __forceinline__ void lay_by_token(const gpu_epilogue &e, const float *sums,
                                             const two_terms &terms, uint32_t to, int lane)
{
    uint32_t second = lane / 2 % 2, slot = to + lane % 4 * 64 + lane / 4 * 4;
#pragma unroll
    for (int eight = 0; eight < 8; eight++) {
        float v[4];
        finish_four(sums + eight * 4, terms, v);
        uint32_t even = epilogue::round_pair(e.type, v[0], v[2]);
        uint32_t odd = epilogue::round_pair(e.type, v[1], v[3]);
        ptx::store_shared_u32(slot + eight * 256 + second * 32, second != 0 ? odd : even);
        ptx::store_shared_u32(slot + eight * 256 + (second ^ 1) * 32, second != 0 ? even : odd);
    }
}

// 16-bit Y: 64 tokens at a time are rounded, laid down as a box and stored by the copy engine, which also cuts
// off what is past the end.
template <class C>
__device__ __forceinline__ void leave_by_engine(const gpu_block_product &p, const CUtensorMap *map,
                                                const float (&sums)[C::TOKENS / 2], int first,
                                                int token, uint32_t staging, int lane)
{
    const gpu_epilogue &e = p.epilogue;
    bool by_feature = e.token_step == 1;
    two_terms terms;
    terms.load(e, first >= 0 ? first + lane / 4 * 2 : -1, p.weight.out);
#pragma unroll
    for (int box = 0; box < C::BOXES; box++) {
        uint32_t to = staging + box % 2 * BOX_BYTES;
        if (lane == 0) {
            ptx::store_wait_read<1>();
        }
        __syncwarp();
        if (by_feature) {
            lay_by_feature(e, sums + box * 32, terms, to, lane);
        } else {
            lay_by_token(e, sums + box * 32, terms, to, lane);
        }
        ptx::async_fence();
        __syncwarp();
        if (lane == 0) {
            int at = token + box * 64;
            if (first >= 0 && at < e.tokens) {
                ptx::tensor_store(map, by_feature ? at : first, by_feature ? first : at, to);
            }
            ptx::store_commit();
        }
    }
}

template <class C>
__device__ __forceinline__ void
leave_by_strip(const gpu_epilogue &e, const float (&sums)[C::TOKENS / 2], const int32_t *rows,
               int token, float *strip, int lane)
{
    epilogue::row_terms mine = epilogue::load_terms(e, rows, lane);
    if (lane == 0) {
        ptx::store_wait_read<0>(); // boxes of an earlier tile
    }
#pragma unroll 1
    for (int part = 0; part < C::TOKENS / 32 && token + part * 32 < e.tokens; part++) {
        __syncwarp();
        epilogue::stage_sums<C::TOKENS>(sums, part, ptx::shared_address(strip), lane);
        __syncwarp();
        epilogue::finish_staged(e, strip, mine, token + part * 32, lane);
    }
}

// The sums that the band's strip s has at 32 tokens, by fragments of its own only.
template <class C>
__device__ __noinline__ void leave_exactly(const gpu_block_product &p, int band, int strip_of_band,
                                           int token, float *strip, int lane)
{
    const int32_t *rows = p.weight.rows + band * GPU_BAND_ROWS + strip_of_band * GPU_STRIP_ROWS;
    epilogue::row_terms mine = epilogue::load_terms(p.epilogue, rows, lane);
    if (lane == 0) {
        ptx::store_wait_read<0>();
    }
#pragma unroll 1
    for (int part = 0; part < C::TOKENS / 32 && token + part * 32 < p.tokens; part++) {
        float sums[16] = {};
        exact::add_strip<C::BF16>(p, band, strip_of_band, token + part * 32, lane, sums);
        __syncwarp();
        epilogue::stage_sums<32>(sums, 0, ptx::shared_address(strip), lane);
        __syncwarp();
        epilogue::finish_staged(p.epilogue, strip, mine, token + part * 32, lane);
    }
}

__host__ __device__ inline bool is_plain(const gpu_epilogue &e)
{
    return (e.bits & ~(unsigned)(ESP_EP_SCALE | ESP_EP_BIAS)) == 0;
}
// Whether the engine can take Y as it is. It writes whole pieces of 16 bytes.
__host__ __device__ inline bool goes_by_engine(const gpu_block_product &p)
{
    const gpu_epilogue &e = p.epilogue;
    bool by_feature = e.token_step == 1, gated = (e.bits & ESP_EP_SWIGLU) != 0;
    return e.aligned && (by_feature ? e.tokens : p.weight.out) % 8 == 0 && e.type != GPU_F32 &&
           (by_feature || !gated);
}

template <int N> __device__ __forceinline__ bool all_finite(const float (&sums)[N])
{
    float most = 0;
#pragma unroll
    for (int i = 0; i < N; i++) {
        most = fmaxf(most, __fmul_rn(sums[i], 0.0f) == 0.0f ? 0.0f : 1.0f);
    }
    return __all_sync(~0u, most == 0.0f);
}

} // namespace blocks

#endif
