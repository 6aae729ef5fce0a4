// Attention of many tokens over a cache, causal, head size 128, as sm90_attention_ahead.cuh: values of a tile of 64 keys are
// multiplied while the next one's powers are taken. Three warpgroups share keys and values; tiles come from the last one on, so
// that those which a warpgroup sees in part come first.
#ifndef ESP_CUDA_SM90_ATTENTION_PAST_CUH
#define ESP_CUDA_SM90_ATTENTION_PAST_CUH

#include "cuda/sm90_attention_ahead.cuh"

namespace attention {

// One compiled kernel. Tiles of keys and values are [64 features of 128][64 keys][64 features].
template <bool IS_BF16> struct past_of {
    static constexpr bool BF16 = IS_BF16;
    static constexpr int D = 128, KEYS = 64;
    static constexpr int WARPGROUPS = 3, THREADS = WARPGROUPS * 128, QUERIES = WARPGROUPS * 64, STAGES = 4;
    static constexpr uint32_t TILE_BYTES = D * 128, STAGE_BYTES = 2 * TILE_BYTES, HALF_BYTES = 64 * 128;
    static constexpr uint32_t QUERIES_AT = STAGES * STAGE_BYTES, BARRIERS_AT = QUERIES_AT + WARPGROUPS * TILE_BYTES;
    static constexpr uint32_t ALIGNMENT = 1024, BYTES = BARRIERS_AT + (2 * STAGES + 1) * 8 + ALIGNMENT;
    static constexpr float LEAD = 8, LOWEST = -1e30f; // a row of hidden scores alone gives no NaN
};

struct past_task {
    CUtensorMap queries, keys, values;
    gpu_attention_prefill of;
};

// What a block works on: queries `block.first` on, over `filled` keys, of which query t sees past + t + 1.
struct past_stretch {
    stretch block; // tiles: of keys that any of them sees
    int kv_head, past, filled;
};

// Blocks that see the most keys come first.
template <class C> __device__ __forceinline__ past_stretch past_stretch_of(const gpu_attention_prefill &a)
{
    uint32_t heads = (uint32_t)a.heads, of_head = (uint32_t)((a.tokens + C::QUERIES - 1) / C::QUERIES);
    past_stretch w;
    int head = (int)(blockIdx.x % heads), first = (int)(of_head - 1 - blockIdx.x / heads) * C::QUERIES;
    w.past = (int)(a.past + (a.past_at != nullptr ? *a.past_at : 0));
    w.filled = (int)min((int64_t)w.past + a.tokens, a.capacity);
    w.kv_head = head / (int)(a.heads / a.kv_heads);
    int end = min(w.filled, w.past + first + C::QUERIES);
    w.block = {head, 0, (int)a.tokens, (end + C::KEYS - 1) / C::KEYS, first};
    return w;
}

// ---- coming: tile number i is the i-th from the end ----

template <class C>
__device__ __forceinline__ void fetch_past(const past_task &t, const past_stretch &w, const places<C> &at, int i)
{
    int key = (w.block.tiles - 1 - i) * C::KEYS;
    ptx::barrier_expect(at.here(i), C::STAGE_BYTES);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        ptx::tensor_copy(at.keys(i) + half * C::HALF_BYTES, &t.keys, half * 64, key, w.kv_head, at.here(i));
        ptx::tensor_copy(at.values(i) + half * C::HALF_BYTES, &t.values, half * 64, key, w.kv_head, at.here(i));
    }
}

template <class C>
__device__ __forceinline__ void begin_past_copies(const past_task &t, const past_stretch &w, const places<C> &at)
{
    for (int i = 0; i < C::STAGES; i++) {
        ptx::barrier_init(at.here(i), 1);
        ptx::barrier_init(at.read(i), C::THREADS / 32);
    }
    ptx::barrier_init(at.queries_here(), 1);
    ptx::barrier_init_fence();
    ptx::barrier_expect(at.queries_here(), C::WARPGROUPS * C::TILE_BYTES);
    for (int i = 0; i < C::WARPGROUPS; i++) {
        ptx::tensor_copy(at.queries(0, i), &t.queries, w.block.first + i * 64, 0, w.block.head, at.queries_here());
    }
    for (int i = 0; i < min(w.block.tiles, C::STAGES); i++) {
        fetch_past<C>(t, w, at, i);
    }
}

// Values of keys that are not filled become zeros. For all threads.
template <class C>
__device__ __forceinline__ void clean_past(const past_stretch &w, const places<C> &at)
{
    int valid = w.filled - (w.block.tiles - 1) * C::KEYS;
    if (valid >= C::KEYS) {
        return;
    }
    for (int i = threadIdx.x; i < 2 * (C::KEYS - valid) * 8; i += C::THREADS) {
        int row = valid + i / 16, piece = i % 16;
        ptx::store_shared_16(at.values(0) + (uint32_t)(piece / 8) * C::HALF_BYTES + (uint32_t)(row * 128 + piece % 8 * 16),
                             make_uint4(0, 0, 0, 0));
    }
    ptx::async_fence();
    __syncthreads();
}

// ---- one warpgroup ----

template <class C> struct past_walk {
    const past_task &t;
    const past_stretch &w;
    places<C> at;
    uint32_t queries;
    int first; // query of the warpgroup
    float scale;
    running<1, C::D> *r;

    __device__ __forceinline__ void begin_scores_of(int i, float (&s)[8][4]) const
    {
        uint64_t q = ptx::descriptor(queries, 0, 1024, 1), k = ptx::descriptor(at.keys(i), 0, 1024, 1);
        ptx::product_fence();
#pragma unroll
        for (int d = 0; d < C::D / 16; d++) {
            uint64_t step = (uint64_t)(d / 4 * (C::HALF_BYTES / 16) + d % 4 * 2); // in 16 bytes
            ptx::past_score_product<C::BF16>::run(s, q + (uint64_t)(d * 128), k + step, d > 0);
        }
        ptx::product_commit();
    }
    __device__ __forceinline__ void begin_values_of(int i, const uint32_t (&a)[4][4]) const
    {
        uint64_t v = ptx::descriptor(at.values(i), C::HALF_BYTES, 1024, 1);
        ptx::name_registers(a);
        ptx::name_registers(r->o[0]);
        ptx::product_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) {
            ptx::attention_product<C::D, C::BF16, true>::run(r->o[0], a[k], v + (uint64_t)(k * 128));
        }
        ptx::product_commit();
    }
    __device__ __forceinline__ void hide(int i, float (&s)[8][4]) const
    {
        int key0 = (w.block.tiles - 1 - i) * C::KEYS, lane = threadIdx.x % 32;
        if (key0 + C::KEYS <= min(w.filled, w.past + first + 1)) {
            return; // seen by all
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int query = first + (int)threadIdx.x % 128 / 32 * 16 + lane / 4 + half * 8;
            int seen = min(w.filled, w.past + query + 1) - key0 - lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < 8; n++) {
                s[n][2 * half] = n * 8 < seen ? s[n][2 * half] : -INFINITY;
                s[n][2 * half + 1] = n * 8 + 1 < seen ? s[n][2 * half + 1] : -INFINITY;
            }
        }
    }
    __device__ __forceinline__ bool powers(int i, float (&s)[8][4], float (&before)[2]) const
    {
        const float nothing[2] = {0, 0};
        hide(i, s);
        bool moved = keep_up<C>(s, nothing, scale, r, before);
        take_powers_at(s, nothing, scale, r);
        return moved;
    }
    // Before tile i: the stage that all have left gets another one.
    __device__ __forceinline__ void refill(int i) const
    {
        int left = i - 2, later = left + C::STAGES;
        if (threadIdx.x == 0 && left >= 0 && later < w.block.tiles) {
            ptx::barrier_wait(at.read(left), (uint32_t)(left / C::STAGES) & 1);
            fetch_past<C>(t, w, at, later);
        }
        __syncwarp();
    }
    __device__ __forceinline__ void leave(int i) const
    {
        if (threadIdx.x % 32 == 0) {
            ptx::barrier_arrive(at.read(i));
        }
    }
    __device__ __forceinline__ void run() const
    {
        float s[8][4], before[2];
        uint32_t a[4][4];
        int end = min(w.filled, w.past + first + 64); // of what this warpgroup sees
        int own = w.block.tiles - (end + C::KEYS - 1) / C::KEYS, i = own; // others see tiles in front, fewer than STAGES
        for (int skipped = 0; skipped < own; skipped++) {
            leave(skipped);
        }
        r->most[0][0] = r->most[0][1] = C::LOWEST;
        for (int early = 2; early <= i; early++) {
            refill(early);
        }
        at.await(i);
        begin_scores_of(i, s);
        ptx::product_wait<0>();
        ptx::name_registers(s);
        powers(i, s, before);
        pack_numerators<C>(s, a);
        for (i++; i < w.block.tiles; i++) {
            refill(i);
            at.await(i);
            begin_scores_of(i, s);
            begin_values_of(i - 1, a);
            ptx::product_wait<1>();
            ptx::name_registers(s);
            bool moved = powers(i, s, before);
            ptx::name_registers(s); // or powers would sink behind the wait
            ptx::product_wait<0>();
            ptx::name_registers(r->o[0]);
            ptx::name_registers(a);
            if (moved) {
#pragma unroll
                for (int n = 0; n < C::D / 8 * 4; n++) {
                    r->o[0][n / 4][n % 4] *= before[n % 4 / 2];
                }
            }
            leave(i - 1);
            pack_numerators<C>(s, a);
        }
        begin_values_of(w.block.tiles - 1, a);
        ptx::product_wait<0>();
        ptx::name_registers(r->o[0]);
        ptx::name_registers(a);
    }
};

// ---- the block ----

template <class C> __global__ void __launch_bounds__(C::THREADS, 1) past_kernel(const __grid_constant__ past_task t)
{
    extern __shared__ uint4 memory[];
    const places<C> at = {(ptx::shared_address(memory) + C::ALIGNMENT - 1) / C::ALIGNMENT * C::ALIGNMENT};
    mma::let_next_launch_begin();
    mma::wait_for_launch_before();
    past_stretch w = past_stretch_of<C>(t.of);
    if (threadIdx.x == 0) {
        begin_past_copies<C>(t, w, at);
    }
    __syncthreads();
    at.await(0);
    clean_past<C>(w, at);
    ptx::barrier_wait(at.queries_here(), 0);
    int warpgroup = threadIdx.x / 128, first = w.block.first + warpgroup * 64;
    running<1, C::D> r;
    r.begin();
    past_walk<C>{t, w, at, at.queries(0, warpgroup), first, t.of.scale * LOG2_E, &r}.run();
    if (first < w.block.tokens) {
        leave_block<C>(t.of, w.block, at.queries(0, warpgroup), first, r);
    }
}

template <bool BF16> int launch_past(const gpu_attention_prefill &a, void *stream)
{
    using C = past_of<BF16>;
    static std::atomic<uint64_t> prepared;
    past_task task = {{}, {}, {}, a};
    int64_t blocks = (a.tokens + C::QUERIES - 1) / C::QUERIES * a.heads, cache = a.capacity * a.head_dim;
    int failed = blocks > INT32_MAX ? (int)cudaErrorInvalidValue : 0;
    failed = failed != 0 ? failed
                         : describe(a.q, a.tokens, a.head_dim, a.heads, a.stride, a.head_dim * a.stride, C::D, &task.queries);
    failed = failed != 0 ? failed
                         : describe(a.keys, a.head_dim, a.capacity, a.kv_heads, a.head_dim, cache, C::KEYS, &task.keys);
    failed = failed != 0 ? failed
                         : describe(a.values, a.head_dim, a.capacity, a.kv_heads, a.head_dim, cache, C::KEYS, &task.values);
    failed = failed != 0 ? failed : gpu_prepare((const void *)past_kernel<C>, C::BYTES, a.device, &prepared);
    return failed != 0 ? failed
                       : gpu_launch_overlapping(past_kernel<C>, (unsigned)blocks, C::THREADS, C::BYTES, a.device, stream, task);
}

} // namespace attention

#endif
