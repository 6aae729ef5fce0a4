// Groups and prefill: which block does what, and launching; for one type, and here by mma.sync. Head sizes between those that
// are compiled take the next larger one, whose further features are zeros.
#ifndef ESP_CUDA_ATTENTION_GENERAL_CUH
#define ESP_CUDA_ATTENTION_GENERAL_CUH

#include "cuda/attention_block.cuh"
#include "cuda/attention_kernels.h"
#include "cuda/launch.cuh"

namespace attention {

constexpr int ENOUGH_BLOCKS = 256; // for all multiprocessors

// Blocks of queries that one block of threads takes: two where that leaves enough for all multiprocessors, so that
// keys are loaded once.
template <class C> __host__ __device__ int rounds_of(const gpu_attention_groups &a)
{
    bool fits = C::WHOLE && a.tokens > C::QUERIES && a.tokens <= 2 * C::QUERIES &&
                a.tokens <= C::STAGES * C::KEYS;
    return fits && a.groups * a.heads >= ENOUGH_BLOCKS ? 2 : 1;
}
template <class C> __host__ __device__ int rounds_of(const gpu_attention_prefill &)
{
    return 1;
}
template <class C, class A> __host__ __device__ uint32_t blocks_of_head(const A &a)
{
    int queries = C::QUERIES * rounds_of<C>(a);
    return (uint32_t)((a.tokens + queries - 1) / queries);
}

// Blocks of a group and head lie side by side: the L2 serves their keys.
template <class C>
__device__ __forceinline__ bool piece_of(const gpu_attention_groups &a, uint32_t block, piece *p)
{
    uint32_t of_head = blocks_of_head<C>(a);
    uint32_t head = block / of_head % (uint32_t)a.heads, group = block / of_head / (uint32_t)a.heads;
    int64_t begin = a.starts != nullptr ? a.starts[group] : group * a.pitch;
    int tokens = a.lengths != nullptr ? a.lengths[group] : (int)a.tokens;
    int first = (int)(block % of_head) * C::QUERIES;
    int64_t feature = head * a.head_dim, from = feature * a.stride + begin;
    *p = piece{(const uint16_t *)a.q + from + first,
               (const uint16_t *)a.k + from,
               (const uint16_t *)a.v + from,
               (uint16_t *)a.y + feature * a.y_stride + begin + first,
               a.stride,
               a.stride,
               a.y_stride,
               (int)a.head_dim,
               first,
               tokens,
               tokens,
               0,
               a.scale,
               a.row_table,
               a.column_table,
               (int)a.grid_width,
               first + C::QUERIES < tokens ? rounds_of<C>(a) : 1,
               (int)begin,
               (int)head,
               nullptr,
               nullptr};
    return first < tokens;
}

// Blocks that see the most keys come first.
template <class C>
__device__ __forceinline__ bool piece_of(const gpu_attention_prefill &a, uint32_t block, piece *p)
{
    uint32_t of_head = blocks_of_head<C>(a);
    uint32_t head = block % (uint32_t)a.heads, kv_head = head / (uint32_t)(a.heads / a.kv_heads);
    int first = (int)(of_head - 1 - block / (uint32_t)a.heads) * C::QUERIES;
    int64_t past = a.past + (a.past_at != nullptr ? *a.past_at : 0);
    int64_t filled = past + a.tokens < a.capacity ? past + a.tokens : a.capacity;
    int64_t feature = head * a.head_dim, from = kv_head * a.capacity * a.head_dim;
    *p = piece{(const uint16_t *)a.q + feature * a.stride + first,
               (const uint16_t *)a.keys + from,
               (const uint16_t *)a.values + from,
               (uint16_t *)a.y + feature * a.y_stride + first,
               a.stride,
               a.head_dim,
               a.y_stride,
               (int)a.head_dim,
               first,
               (int)a.tokens,
               (int)filled,
               (int)past,
               a.scale,
               nullptr,
               nullptr,
               0,
               1,
               0,
               (int)kv_head,
               nullptr,
               nullptr};
    return first < a.tokens;
}

// What a kernel gets; the maps come first, which are aligned the most.
template <class C, class A> struct task {
    typename C::maps with;
    A of;
};

template <class C, class A>
__global__ void __launch_bounds__(C::THREADS, C::BLOCKS) block_kernel(const __grid_constant__ task<C, A> t)
{
    extern __shared__ uint4 memory[];
    mma::let_next_launch_begin();
    mma::wait_for_launch_before();
    piece p;
    if (piece_of<C>(t.of, blockIdx.x, &p)) {
        C::use_maps(t.with, &p);
        attend<C>(p, (ptx::shared_address(memory) + C::ALIGNMENT - 1) / C::ALIGNMENT * C::ALIGNMENT);
    }
}

template <class C> uint32_t shared_bytes(const gpu_attention_groups &a)
{
    if (!C::GRID) {
        return C::BIAS_AT + C::ALIGNMENT;
    }
    int pitches = bias_pitch((int)(a.tokens / a.grid_width)) + bias_pitch((int)a.grid_width);
    return C::BIAS_AT + C::ALIGNMENT + (uint32_t)(C::QUERIES * pitches) * 4;
}
template <class C> uint32_t shared_bytes(const gpu_attention_prefill &)
{
    return C::BIAS_AT + C::ALIGNMENT;
}

inline int64_t heads_of(const gpu_attention_groups &a)
{
    return a.groups * a.heads;
}
inline int64_t heads_of(const gpu_attention_prefill &a)
{
    return a.heads;
}

template <class C, class A> int launch(const A &a, const typename C::maps &with, void *stream)
{
    static std::atomic<uint64_t> prepared;
    const auto kernel = block_kernel<C, A>;
    int64_t blocks = blocks_of_head<C>(a) * heads_of(a);
    if (blocks > INT32_MAX) {
        return cudaErrorInvalidValue;
    }
    const uint32_t most = C::BIAS_AT + C::ALIGNMENT + (C::GRID ? (uint32_t)C::QUERIES * 4 * 2 * bias_pitch(64) : 0);
    int failed = gpu_prepare((const void *)kernel, most, a.device, &prepared);
    return failed != 0 ? failed
                       : gpu_launch_overlapping(kernel, (unsigned)blocks, C::THREADS,
                                                shared_bytes<C>(a), a.device, stream,
                                                task<C, A>{with, a});
}

template <bool BF16, int D> int launch_groups(const gpu_attention_groups &a, void *stream)
{
    return a.row_table != nullptr ? launch<block_of<BF16, COLUMNS, D, 1, false, true>>(a, {}, stream)
                                  : launch<block_of<BF16, COLUMNS, D, 1, false, false>>(a, {}, stream);
}
template <bool BF16, int D> int launch_prefill(const gpu_attention_prefill &a, void *stream)
{
    return launch<block_of<BF16, ROWS, D, 1, true, false>>(a, {}, stream);
}

#define ESP_BY_HEAD_DIM(LAUNCH, BF16)                                                              \
    (a->head_dim <= 32    ? LAUNCH<BF16, 32>(*a, stream)                                           \
     : a->head_dim <= 64  ? LAUNCH<BF16, 64>(*a, stream)                                           \
     : a->head_dim <= 80  ? LAUNCH<BF16, 80>(*a, stream)                                           \
     : a->head_dim <= 96  ? LAUNCH<BF16, 96>(*a, stream)                                           \
     : a->head_dim <= 128 ? LAUNCH<BF16, 128>(*a, stream)                                          \
                          : LAUNCH<BF16, 256>(*a, stream))

} // namespace attention

#endif
