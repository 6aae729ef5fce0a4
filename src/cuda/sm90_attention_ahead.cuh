// Attention within groups by warpgroup products that run ahead, on compute capability 9.0: values of a tile of 64 keys are
// multiplied while the next one's powers are taken (after Shah et al., FlashAttention-3, arXiv 2407.08608).
//
//   tensor cores   q k(i), p v(i - 1)       q k(i + 1), p v(i) ...
//   registers              powers of s(i)              powers of s(i + 1) ...
//
// A warpgroup has 64 queries; the two of a block share keys and values, which come by tensor copies, four tiles of room, and
// meet at no barrier: who has read a tile says so, and it is written anew two tiles later. Queries, keys and values lie as sm90_attention.cuh has them and both operands of the scores are read from there.
//
// What was summed is brought to a new largest score only when that is larger by LEAD powers of two; before, numerators are
// above 1 and rounded no worse. So there is nothing to shuffle and to multiply for most tiles. The last tile, which may not be
// whole, comes first, when there is nothing to bring anywhere.
#ifndef ESP_CUDA_SM90_ATTENTION_AHEAD_CUH
#define ESP_CUDA_SM90_ATTENTION_AHEAD_CUH

#include "cuda/sm90_attention.cuh"
#include "cuda/sm90_score_ptx.cuh"

namespace attention {

// One compiled kernel.
template <bool IS_BF16, int FEATURES> struct ahead_of {
    static constexpr bool BF16 = IS_BF16;
    static constexpr int D = FEATURES, KEYS = 64, FEW_KEYS = 16; // of a tile, and of a last one with no more
    static constexpr int WARPGROUPS = 2, THREADS = WARPGROUPS * 128, QUERIES = WARPGROUPS * 64, STAGES = 4;
    static constexpr uint32_t TILE_BYTES = D * 128, STAGE_BYTES = 2 * TILE_BYTES; // 64 columns of D features
    static constexpr uint32_t QUERIES_AT = STAGES * STAGE_BYTES;
    static constexpr int MOST_ROUNDS = 2; // blocks of queries over keys that stay
    static constexpr uint32_t BARRIERS_AT = QUERIES_AT + MOST_ROUNDS * WARPGROUPS * TILE_BYTES;
    static constexpr uint32_t ALIGNMENT = 1024, BYTES = BARRIERS_AT + (2 * STAGES + 1) * 8 + ALIGNMENT;
    static constexpr float LEAD = 8; // powers of two; numerators up to 256 are far from what f16 holds
};

struct ahead_task {
    CUtensorMap queries, keys, values;
    gpu_attention_groups of;
    int rounds;
};

// What a block works on.
struct stretch {
    int head, column; // of the group's first token
    int tokens, tiles;
    int first; // query of the block
};

// Queries of the longest group whose y is read.
__host__ __device__ __forceinline__ int64_t queries_of(const gpu_attention_groups &a)
{
    return a.read > 0 && a.read < a.tokens ? a.read : a.tokens;
}

template <class C> __device__ __forceinline__ stretch stretch_of(const ahead_task &t)
{
    const gpu_attention_groups &a = t.of;
    int queries = C::QUERIES * t.rounds;
    uint32_t of_head = (uint32_t)((queries_of(a) + queries - 1) / queries);
    uint32_t head = blockIdx.x / of_head % (uint32_t)a.heads, group = blockIdx.x / of_head / (uint32_t)a.heads;
    int tokens = a.lengths != nullptr ? a.lengths[group] : (int)a.tokens;
    return {(int)head, (int)(a.starts != nullptr ? a.starts[group] : group * a.pitch), tokens,
            (tokens + C::KEYS - 1) / C::KEYS, (int)(blockIdx.x % of_head) * queries};
}

// Key tile that comes as number i: the last one first.
__device__ __forceinline__ int key_of(const stretch &w, int i)
{
    return (i == 0 ? w.tiles - 1 : i - 1) * 64;
}

// ---- coming ----

template <class C> struct places {
    uint32_t shared;

    __device__ __forceinline__ uint32_t keys(int i) const
    {
        return shared + (uint32_t)(i % C::STAGES) * C::STAGE_BYTES;
    }
    __device__ __forceinline__ uint32_t values(int i) const
    {
        return keys(i) + C::TILE_BYTES;
    }
    __device__ __forceinline__ uint32_t queries(int round, int warpgroup) const
    {
        return shared + C::QUERIES_AT + (uint32_t)(round * C::WARPGROUPS + warpgroup) * C::TILE_BYTES;
    }
    __device__ __forceinline__ uint32_t here(int i) const
    {
        return shared + C::BARRIERS_AT + (uint32_t)(i % C::STAGES) * 8;
    }
    __device__ __forceinline__ uint32_t read(int i) const
    {
        return here(i) + C::STAGES * 8;
    }
    __device__ __forceinline__ uint32_t queries_here() const
    {
        return shared + C::BARRIERS_AT + 2 * C::STAGES * 8;
    }
    __device__ __forceinline__ void await(int i) const
    {
        ptx::barrier_wait(here(i), (uint32_t)(i / C::STAGES) & 1);
    }
};

// By one thread.
template <class C>
__device__ __forceinline__ void fetch_tile(const ahead_task &t, const stretch &w, const places<C> &at, int i)
{
    int column = w.column + key_of(w, i);
    ptx::barrier_expect(at.here(i), C::STAGE_BYTES);
    ptx::tensor_copy(at.keys(i), &t.keys, column, 0, w.head, at.here(i));
    ptx::tensor_copy(at.values(i), &t.values, column, 0, w.head, at.here(i));
}

// Queries, and the first `tiles` of keys and values. By one thread.
template <class C>
__device__ __forceinline__ void begin_copies(const ahead_task &t, const stretch &w, const places<C> &at, int tiles)
{
    for (int i = 0; i < C::STAGES; i++) {
        ptx::barrier_init(at.here(i), 1);
        ptx::barrier_init(at.read(i), C::THREADS / 32);
    }
    ptx::barrier_init(at.queries_here(), 1);
    ptx::barrier_init_fence();
    int blocks = min(t.rounds * C::WARPGROUPS, (w.tokens - w.first + 63) / 64);
    ptx::barrier_expect(at.queries_here(), (uint32_t)blocks * C::TILE_BYTES);
    for (int i = 0; i < blocks; i++) {
        ptx::tensor_copy(at.queries(0, i), &t.queries, w.column + w.first + i * 64, 0, w.head, at.queries_here());
        if (i == 0) {
            fetch_tile<C>(t, w, at, 0);
        }
    }
    for (int i = 1; i < min(w.tiles, tiles); i++) {
        fetch_tile<C>(t, w, at, i);
    }
}

// Values of keys that are not there become zeros. For all threads.
template <class C>
__device__ __forceinline__ void clean_values(const stretch &w, const places<C> &at)
{
    int valid = w.tokens - key_of(w, 0);
    if (valid == C::KEYS) {
        return;
    }
    for (int i = threadIdx.x; i < C::D * 8; i += C::THREADS) {
        int feature = i / 8, piece = i % 8, there = valid - piece * 8;
        if (there < 8) {
            uint32_t place = at.values(0) + (uint32_t)(feature * 128 + (piece ^ feature % 8) * 16);
            uint4 v = there > 0 ? ptx::load_shared_16(place) : make_uint4(0, 0, 0, 0);
            v.x &= ptx::first_halves(there), v.y &= ptx::first_halves(there - 2);
            v.z &= ptx::first_halves(there - 4), v.w &= ptx::first_halves(there - 6);
            ptx::store_shared_16(place, v);
        }
    }
    ptx::async_fence();
    __syncthreads();
}

// ---- products, begun and not waited for ----

template <class C, int WIDE>
__device__ __forceinline__ void begin_scores(uint32_t queries, uint32_t keys, float (&s)[WIDE][4])
{
    uint64_t q = ptx::descriptor(queries, 0, 1024, 1), k = ptx::descriptor(keys, 0, 1024, 1);
    ptx::product_fence();
#pragma unroll
    for (int d = 0; d < C::D / 16; d++) {
        ptx::first_score_product<WIDE * 8, C::BF16>::run(s, q + (uint64_t)(d * 128), k + (uint64_t)(d * 128), d > 0);
    }
    ptx::product_commit();
}

template <class C, int WIDE>
__device__ __forceinline__ void begin_values(uint32_t values, const uint32_t (&a)[WIDE / 2][4], running<1, C::D> *r)
{
    uint64_t v = ptx::descriptor(values, 0, 1024, 1);
    ptx::name_registers(a);
    ptx::name_registers(r->o[0]);
    ptx::product_fence();
#pragma unroll
    for (int k = 0; k < WIDE / 2; k++) {
        ptx::attention_product<C::D, C::BF16, false>::run(r->o[0], a[k], v + (uint64_t)(k * 2));
    }
    ptx::product_commit();
}

// ---- powers ----

template <class C, int WIDE>
__device__ __forceinline__ void pack_numerators(const float (&s)[WIDE][4], uint32_t (&a)[WIDE / 2][4])
{
#pragma unroll
    for (int k = 0; k < WIDE / 2; k++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            a[k][i] = ptx::pack<C::BF16>(s[2 * k + i / 2][i % 2 * 2], s[2 * k + i / 2][i % 2 * 2 + 1]);
        }
    }
}

// Scores, each of which `more` is added to, become numerators, relative to `most`.
template <int WIDE, int D>
__device__ __forceinline__ void take_powers_at(float (&s)[WIDE][4], const float (&more)[2], float scale, running<1, D> *r)
{
    float shift[2] = {(more[0] - r->most[0][0]) * scale, (more[1] - r->most[0][1]) * scale}, total[4] = {};
#pragma unroll
    for (int n = 0; n < WIDE; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[n][i] = ptx::exp2_fast(fmaf(s[n][i], scale, shift[i / 2]));
            total[i] += s[n][i];
        }
    }
    r->total[0][0] += total[0] + total[1];
    r->total[0][1] += total[2] + total[3];
}

// A larger `most` where one is needed; then what was summed before has to be brought there by `before`.
template <class C, int WIDE>
__device__ __forceinline__ bool keep_up(const float (&s)[WIDE][4], const float (&more)[2], float scale,
                                        running<1, C::D> *r, float (&before)[2])
{
    float most[2] = {most_of(s, 0) + more[0], most_of(s, 1) + more[1]}, lead = C::LEAD / scale;
    bool behind = most[0] > r->most[0][0] + lead || most[1] > r->most[0][1] + lead;
    if (!__any_sync(~0u, behind)) {
        return false;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float larger = fmaxf(r->most[0][half], of_row_most(most[half]));
        before[half] = ptx::exp2_fast((r->most[0][half] - larger) * scale);
        r->most[0][half] = larger;
        r->total[0][half] *= before[half];
    }
    return true;
}

// ---- one block of queries over all keys ----

// What is added to scores besides q k: nothing.
struct no_bias {
    template <int WIDE> __device__ __forceinline__ void add(int, float (&)[WIDE][4], float (&more)[2])
    {
        more[0] = more[1] = 0;
    }
};

// BIAS::add adds to each score of tile `key` / 64 and says what is added to all of a query's.
template <class C, class BIAS> struct walk {
    const ahead_task &t;
    const stretch &w;
    places<C> at;
    BIAS bias;
    uint32_t queries;
    float scale;
    bool fetches;     // this thread brings tiles
    bool has_queries; // this warp; else what comes out is not looked at
    running<1, C::D> *r;

    // Numerators of tile 0, of which `valid` keys are there.
    template <int WIDE> __device__ __forceinline__ void begin(int valid, float (&s)[WIDE][4], uint32_t (&a)[WIDE / 2][4])
    {
        begin_scores<C>(queries, at.keys(0), s);
        ptx::product_wait<0>();
        ptx::name_registers(s);
        int lane = threadIdx.x % 32;
        float more[2];
        bias.add(key_of(w, 0) / C::KEYS, s, more);
#pragma unroll
        for (int n = 0; n < WIDE && valid < WIDE * 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[n][i] = n * 8 + lane % 4 * 2 + i % 2 < valid ? s[n][i] : -INFINITY;
            }
        }
        r->most[0][0] = of_row_most(most_of(s, 0)) + more[0];
        r->most[0][1] = of_row_most(most_of(s, 1)) + more[1];
        take_powers_at(s, more, scale, r);
        pack_numerators<C>(s, a);
    }
    // From numerators of tile i - 1, WIDE * 8 of them, to those of tile i, while values of tile i - 1 are multiplied.
    template <int WIDE>
    __device__ __forceinline__ void step(int i, const uint32_t (&from)[WIDE / 2][4], float (&s)[8][4],
                                         uint32_t (&to)[4][4])
    {
        int later = i - 2 + C::STAGES;
        if (fetches && i >= 2 && later < w.tiles) {
            ptx::barrier_wait(at.read(i - 2), (uint32_t)((i - 2) / C::STAGES) & 1);
            fetch_tile<C>(t, w, at, later);
        }
        __syncwarp();
        at.await(i);
        begin_scores<C>(queries, at.keys(i), s);
        begin_values<C, WIDE>(at.values(i - 1), from, r);
        ptx::product_wait<1>();
        ptx::name_registers(s);
        float before[2];
        bool moved = false;
        if (has_queries) {
            float more[2];
            bias.add(key_of(w, i) / C::KEYS, s, more);
            moved = keep_up<C>(s, more, scale, r, before);
            take_powers_at(s, more, scale, r);
        }
        ptx::name_registers(s); // or powers would sink behind the wait
        ptx::product_wait<0>();
        ptx::name_registers(r->o[0]);
        ptx::name_registers(from);
        if (moved) {
#pragma unroll
            for (int n = 0; n < C::D / 8 * 4; n++) {
                r->o[0][n / 4][n % 4] *= before[n % 4 / 2];
            }
        }
        if (threadIdx.x % 32 == 0 && w.tiles > C::STAGES) {
            ptx::barrier_arrive(at.read(i - 1));
        }
        pack_numerators<C>(s, to);
    }
    template <int WIDE> __device__ __forceinline__ void end(const uint32_t (&a)[WIDE / 2][4]) const
    {
        begin_values<C, WIDE>(at.values(w.tiles - 1), a, r);
        ptx::product_wait<0>();
        ptx::name_registers(r->o[0]);
        ptx::name_registers(a);
    }
    __device__ __forceinline__ void run()
    {
        constexpr int FEW = C::FEW_KEYS / 8;
        float s[8][4];
        uint32_t a[4][4];
        int valid = w.tokens - key_of(w, 0);
        if constexpr (FEW > 0) {
            if (valid <= C::FEW_KEYS) {
                float few[FEW][4];
                uint32_t of_few[FEW / 2][4];
                begin<FEW>(valid, few, of_few);
                if (w.tiles == 1) {
                    end<FEW>(of_few);
                    return;
                }
                step<FEW>(1, of_few, s, a);
                go_on(2, s, a);
                return;
            }
        }
        begin<8>(valid, s, a);
        go_on(1, s, a);
    }
    __device__ __forceinline__ void go_on(int i, float (&s)[8][4], uint32_t (&a)[4][4])
    {
        for (; i < w.tiles; i++) {
            step<8>(i, a, s, a);
        }
        end<8>(a);
    }
};

// ---- leaving ----

// y of a warpgroup's queries, by way of where they lay: features below one another, from there in pieces of 16 bytes.
// Queries that are not there leave as zeros up to the next multiple of 8.
template <class C, class A>
__device__ __forceinline__ void leave_block(const A &a, const stretch &w, uint32_t room, int first,
                                            const running<1, C::D> &r)
{
    int lane = threadIdx.x % 32, thread = threadIdx.x % 128, warp = thread / 32, warpgroup = threadIdx.x / 128;
    ptx::named_barrier(1 + warpgroup, 128); // all have read their queries
#pragma unroll
    for (int half = 0; half < 2; half++) {
        bool there = first + warp * 16 + half * 8 + lane / 4 < w.tokens;
        float factor = 1 / of_row_sum(r.total[0][half]);
        uint32_t to = room + (uint32_t)(lane / 4 * 128 + ((warp * 2 + half) ^ lane / 4) * 16 + lane % 4 * 4);
#pragma unroll
        for (int n = 0; n < C::D / 8; n++) {
            uint32_t pair = there ? finished<C::BF16>(r, 0, n, half, factor) : 0;
            ptx::store_shared_u32(to + (uint32_t)n * 1024, ptx::turn_matrix(pair));
        }
    }
    ptx::named_barrier(1 + warpgroup, 128);
    int piece = thread % 8;
    if (first + piece * 8 >= w.tokens) {
        return;
    }
    uint16_t *y = (uint16_t *)a.y + w.head * a.head_dim * a.y_stride + w.column + first + piece * 8;
    for (int feature = thread / 8; feature < a.head_dim; feature += 16) {
        *(uint4 *)(y + feature * a.y_stride) =
            ptx::load_shared_16(room + (uint32_t)(feature * 128 + (piece ^ feature % 8) * 16));
    }
}

// ---- the block ----

template <class C> __global__ void __launch_bounds__(C::THREADS, 2) ahead_kernel(const __grid_constant__ ahead_task t)
{
    extern __shared__ uint4 memory[];
    const places<C> at = {(ptx::shared_address(memory) + C::ALIGNMENT - 1) / C::ALIGNMENT * C::ALIGNMENT};
    mma::let_next_launch_begin();
    mma::wait_for_launch_before(); // lengths and starts may be new
    stretch w = stretch_of<C>(t);
    if (w.first >= w.tokens) {
        return;
    }
    if (threadIdx.x == 0) {
        begin_copies<C>(t, w, at, C::STAGES);
    }
    __syncthreads();
    at.await(0);
    clean_values<C>(w, at);
    ptx::barrier_wait(at.queries_here(), 0);
    int warpgroup = threadIdx.x / 128, end = min(w.tokens, (int)queries_of(t.of));
    for (int round = 0; round < t.rounds; round++) {
        int first = w.first + (round * C::WARPGROUPS + warpgroup) * 64;
        if (first >= end && (round > 0 || w.tiles <= C::STAGES)) {
            break; // nobody waits for what this warpgroup reads
        }
        running<1, C::D> r;
        r.begin();
        walk<C, no_bias>{t, w, at, {}, at.queries(round, warpgroup), t.of.scale * LOG2_E, threadIdx.x == 0,
                first + (int)threadIdx.x % 128 / 32 * 16 < w.tokens, &r}
            .run();
        if (first < end) {
            leave_block<C>(t.of, w, at.queries(round, warpgroup), first, r);
        }
    }
}

// ---- launching ----

template <class C> int describe_task(const gpu_attention_groups &a, int rounds, ahead_task *task)
{
    *task = {{}, {}, {}, a, rounds};
    int64_t columns = a.starts != nullptr ? a.stride : (a.groups - 1) * a.pitch + a.tokens;
    const void *bases[] = {a.q, a.k, a.v};
    CUtensorMap *maps[] = {&task->queries, &task->keys, &task->values};
    int failed = 0;
    for (int i = 0; i < 3 && failed == 0; i++) {
        failed = describe(bases[i], columns, a.head_dim, a.heads, a.stride, a.head_dim * a.stride, C::D, maps[i]);
    }
    return failed;
}

template <bool BF16, int D> int launch_ahead(const gpu_attention_groups &a, void *stream)
{
    using C = ahead_of<BF16, D>;
    static std::atomic<uint64_t> prepared;
    bool stays = queries_of(a) > C::QUERIES && a.tokens <= C::STAGES * C::KEYS;
    int rounds = stays && a.groups * a.heads >= ENOUGH_BLOCKS ? C::MOST_ROUNDS : 1;
    ahead_task task;
    int failed = describe_task<C>(a, rounds, &task);
    int64_t queries = C::QUERIES * rounds, blocks = (queries_of(a) + queries - 1) / queries * a.groups * a.heads;
    failed = failed != 0 || blocks <= INT32_MAX ? failed : (int)cudaErrorInvalidValue;
    failed = failed != 0 ? failed : gpu_prepare((const void *)ahead_kernel<C>, C::BYTES, a.device, &prepared);
    return failed != 0 ? failed
                       : gpu_launch_overlapping(ahead_kernel<C>, (unsigned)blocks, C::THREADS, C::BYTES, a.device, stream, task);
}

} // namespace attention

#endif
