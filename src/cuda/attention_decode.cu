// Attention of one token each of many sequences: a stream of caches.
//
// A block has up to 16 query heads that read one head of the caches: they are the rows of the tensor cores' left
// operand, so several cost no more bytes than one. A cluster of blocks shares out the cache in chunks of 16 rows, and
// so do the warps of a block; each warp has a ring of its own, and no warp waits for another until the end. There the
// partial results meet in shared memory, first those of the warps, then, across the cluster, those of the blocks, in
// a fixed order. Without clusters (before compute capability 9.0) a block reads the whole cache.
//
// The step's own row may come along (`k`, `v`): it is rotated by the warp whose chunk it belongs to, which lays it
// into its ring and writes it to the caches; every block rotates its queries for itself. As ops_rope.cu, bit by bit.
#include "cuda/attention_kernels.h"
#include "cuda/attention_warp.cuh"
#include "cuda/launch.cuh"

namespace attention {

constexpr int DECODE_WARPS = 4, DECODE_THREADS = DECODE_WARPS * 32, CHUNK = 16, MOST_HEADS = 16;
constexpr unsigned MOST_SPLITS = 8;

// Shared memory: rings of the warps, later their sums; queries; what each warp, and then the block, found.
template <bool IS_BF16, int FEATURES> struct decode_of {
    static constexpr bool BF16 = IS_BF16;
    static constexpr int D = FEATURES, STAGES = D > 128 ? 1 : 2;
    using tile = attention::tile<ROWS, D, CHUNK>;
    static constexpr uint32_t STAGE_BYTES = 2 * tile::BYTES, RING_BYTES = STAGES * STAGE_BYTES;
    static constexpr int SUMS_ROW = D + 8; // f32
    static_assert(MOST_HEADS * SUMS_ROW * 4 <= STAGE_BYTES, "sums take the place of a stage");
    static constexpr int QUERY_ROW = D + GAP;
    static constexpr uint32_t QUERIES_AT = DECODE_WARPS * RING_BYTES;
    // [warps][16] most, [warps][16] total; of the block: [16] most, [16] total
    static constexpr uint32_t FOUND_AT = QUERIES_AT + MOST_HEADS * QUERY_ROW * 2;
    static constexpr uint32_t BLOCK_AT = FOUND_AT + DECODE_WARPS * MOST_HEADS * 8;
    static constexpr uint32_t SHARED = BLOCK_AT + MOST_HEADS * 8;
};

struct share {
    uint16_t *keys, *values; // of the head
    int seen, capacity;
    int cached; // rows that the caches hold already: all that are seen, or one less
    int features, heads; // of q: of the block
    int64_t q, y;        // element of the first head's feature 0
    int chunk, step;     // the warp's first, and how far to the next
    uint32_t sequence;
    int64_t row;  // element of k and v: of feature 0
    bool records; // writes a new row: one of the blocks that see a head
};

template <class C>
__device__ __forceinline__ share share_of(const gpu_attention_decode &a, unsigned splits)
{
    uint32_t group = (uint32_t)(a.heads / a.kv_heads), batches = (group + MOST_HEADS - 1) / MOST_HEADS;
    uint32_t index = blockIdx.x / splits, batch = index % batches, kv = index / batches % a.kv_heads;
    uint32_t sequence = index / batches / (uint32_t)a.kv_heads;
    const gpu_place place = a.places[sequence];
    int64_t head = (int64_t)kv * group + batch * MOST_HEADS;
    int64_t from = (2 * a.layer * a.kv_heads + kv) * place.capacity * a.head_dim;
    share s;
    s.keys = (uint16_t *)place.keys + from;
    s.values = (uint16_t *)place.values + from;
    s.seen = min(max(place.past, -1) + 1, place.capacity);
    s.capacity = place.capacity;
    s.cached = s.seen;
    s.features = (int)a.head_dim;
    s.heads = (int)min(group - batch * MOST_HEADS, (uint32_t)MOST_HEADS);
    s.q = head * a.head_dim * a.stride + sequence;
    s.y = head * a.head_dim * a.y_stride + sequence;
    s.sequence = sequence;
    s.row = (int64_t)kv * a.head_dim * a.stride + sequence;
    s.records = batch == 0;
    s.chunk = (int)(ptx::block_of_cluster() * DECODE_WARPS + threadIdx.x / 32);
    s.step = (int)splits * DECODE_WARPS;
    return s;
}

template <class C>
__device__ __forceinline__ void load_chunk(const share &s, uint32_t stage, int chunk)
{
    using tile = typename C::tile;
    int lane = threadIdx.x % 32, row = chunk * CHUNK;
    if (row < s.seen) {
        int64_t offset = (int64_t)row * s.features;
        load_rows<32, C::D, CHUNK, tile::ROW>(lane, stage, s.keys + offset, s.features, s.cached - row);
        load_rows<32, C::D, CHUNK, tile::ROW>(lane, stage + tile::BYTES, s.values + offset, s.features,
                                              s.cached - row);
    }
    ptx::copy_commit();
}

// Asks for the warp's first chunks before the launch before this one is done: into the L2 only, where what is
// written meanwhile arrives as well. `past` may be one of an earlier step, which costs a row of this at most.
template <class C> __device__ __forceinline__ void ask_ahead(const share &s)
{
    int lane = threadIdx.x % 32, bytes = CHUNK * s.features * 2;
#pragma unroll
    for (int i = 0; i < C::STAGES; i++) {
        int row = (s.chunk + i * s.step) * CHUNK;
        if (row < s.seen && row + CHUNK <= s.capacity) {
            for (int at = lane * 128; at < bytes; at += 32 * 128) {
                ptx::prefetch_to_l2((const char *)(s.keys + (int64_t)row * s.features) + at);
                ptx::prefetch_to_l2((const char *)(s.values + (int64_t)row * s.features) + at);
            }
        }
    }
}

// ---- the step's own row ----

// Feature d of a head of the block's token, and what it is rotated with, as they were read: loads that nothing keeps
// apart, for each is a way to the L2. Products and sums are rounded one by one, as the reference's.
template <class C> struct raw_feature {
    uint16_t low, high; // of its pair; high alone: of what is not rotated
    float cosine, sine;

    __device__ __forceinline__ void load(const gpu_attention_decode &a, const share &s,
                                         const uint16_t *head, int d, bool there, bool turns)
    {
        int half = s.features / 2, pair = d < half ? d : d - half;
        int64_t angle = pair * a.angle_stride + s.sequence;
        bool both = there && turns;
        low = both ? __ldcg(head + pair * a.stride) : (uint16_t)0;
        high = there ? __ldcg(head + (turns ? pair + half : d) * a.stride) : (uint16_t)0;
        cosine = both ? __ldcg(a.cosines + angle) : 0.0f;
        sine = both ? __ldcg(a.sines + angle) : 0.0f;
    }

    __device__ __forceinline__ uint16_t turned(const share &s, int d, bool turns) const
    {
        float x = ptx::widened<C::BF16>(low), y = ptx::widened<C::BF16>(high);
        float v = d < s.features / 2 ? __fsub_rn(__fmul_rn(x, cosine), __fmul_rn(y, sine))
                                     : __fadd_rn(__fmul_rn(y, cosine), __fmul_rn(x, sine));
        return turns ? (uint16_t)ptx::pack<C::BF16>(v, 0) : high;
    }
};

// Features lane, lane + 32... of the new key and value, in the warp that has its chunk.
template <class C> struct fresh_row {
    static constexpr int EACH = (C::D + 31) / 32;
    raw_feature<C> key[EACH];
    uint16_t value[EACH];
    int chunk; // -1: none in this warp

    __device__ __forceinline__ void load(const gpu_attention_decode &a, const share &s)
    {
        chunk = s.cached / CHUNK;
        if (s.cached == s.seen || chunk % s.step != s.chunk) {
            chunk = -1;
            return;
        }
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int d = i * 32 + threadIdx.x % 32;
            bool there = d < s.features;
            key[i].load(a, s, (const uint16_t *)a.k + s.row, d, there, true);
            value[i] = there ? __ldcg((const uint16_t *)a.v + s.row + d * a.stride) : (uint16_t)0;
        }
    }

    // The stage's copies are done, and all lanes know.
    __device__ __forceinline__ void lay(const share &s, uint32_t stage) const
    {
        uint32_t row = stage + (uint32_t)(s.cached % CHUNK * C::tile::ROW) * 2;
        int64_t to = (int64_t)s.cached * s.features;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int d = i * 32 + threadIdx.x % 32;
            if (d < s.features) {
                uint16_t turned = key[i].turned(s, d, true);
                ptx::store_shared_u16(row + d * 2, turned);
                ptx::store_shared_u16(row + C::tile::BYTES + d * 2, value[i]);
                if (s.records) {
                    s.keys[to + d] = turned;
                    s.values[to + d] = value[i];
                }
            }
        }
        __syncwarp();
    }
};

// [16][D] from feature-major memory, where the features of a token lie a stride apart; zeros around.
template <class C> struct queries_of {
    static constexpr int EACH = MOST_HEADS * C::D / DECODE_THREADS;
    raw_feature<C> raw[EACH];

    __device__ __forceinline__ void load(const gpu_attention_decode &a, const share &s)
    {
        const uint16_t *q = (const uint16_t *)a.q + s.q;
        bool turns = a.k != nullptr;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int head = (i * DECODE_THREADS + threadIdx.x) / C::D;
            int d = (i * DECODE_THREADS + threadIdx.x) % C::D;
            raw[i].load(a, s, q + (int64_t)head * s.features * a.stride, d,
                        head < s.heads && d < s.features, turns);
        }
    }

    __device__ __forceinline__ void lay(const gpu_attention_decode &a, const share &s, uint32_t to) const
    {
        bool turns = a.k != nullptr;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int head = (i * DECODE_THREADS + threadIdx.x) / C::D;
            int d = (i * DECODE_THREADS + threadIdx.x) % C::D;
            ptx::store_shared_u16(to + (uint32_t)(head * C::QUERY_ROW + d) * 2, raw[i].turned(s, d, turns));
        }
    }
};

template <class C>
__device__ __forceinline__ void take_chunk(const share &s, const uint32_t (&q)[1][C::D / 16][4],
                                           uint32_t stage, int chunk, float scale, running<1, C::D> *r)
{
    using tile = typename C::tile;
    int lane = threadIdx.x % 32;
    float scores[1][CHUNK / 8][4] = {};
    add_scores<C::BF16, ROWS, 1, C::D, CHUNK>(q, stage + right_lane<false>(lane, tile::ROW), scores);
#pragma unroll
    for (int n = 0; n < CHUNK / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            bool seen = chunk * CHUNK + n * 8 + lane % 4 * 2 + i % 2 < s.seen;
            scores[0][n][i] = seen ? scores[0][n][i] : -INFINITY;
        }
    }
    take_powers(scores, scale, r);
    add_values<C::BF16, ROWS, 1, C::D, CHUNK>(
        scores, stage + tile::BYTES + right_lane<true>(lane, tile::ROW), r);
}

// A warp's sums take the place of its ring.
template <class C>
__device__ __forceinline__ void leave_sums(const share &s, uint32_t shared, running<1, C::D> *r)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t sums = shared + (uint32_t)warp * C::RING_BYTES;
    uint32_t found = shared + C::FOUND_AT + (uint32_t)(warp * MOST_HEADS) * 8;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int head = lane / 4 + half * 8;
        float total = of_row_sum(r->total[0][half]);
        if (head < s.heads) {
            if (lane % 4 == 0) {
                ptx::store_shared_2(found + (uint32_t)head * 8, r->most[0][half], total);
            }
#pragma unroll
            for (int n = 0; n < C::D / 8; n++) {
                ptx::store_shared_2(sums + (uint32_t)(head * C::SUMS_ROW + n * 8 + lane % 4 * 2) * 4,
                                    r->o[0][n][2 * half], r->o[0][n][2 * half + 1]);
            }
        }
    }
}

// What a part counts for beside the largest: 0 for one that saw nothing.
__device__ __forceinline__ float weight_of(float most, float largest, float scale)
{
    return most == -INFINITY ? 0.0f : ptx::exp2_fast((most - largest) * scale);
}

// The warps' sums become the block's, in the room of warp 0.
template <class C>
__device__ __forceinline__ void join_warps(const share &s, uint32_t shared, float scale)
{
    for (int i = threadIdx.x; i < s.heads * C::D; i += DECODE_THREADS) {
        int head = i / C::D, d = i % C::D;
        float2 found[DECODE_WARPS];
        float largest = -INFINITY, sum = 0, total = 0;
#pragma unroll
        for (int w = 0; w < DECODE_WARPS; w++) {
            found[w] = ptx::load_shared_2(shared + C::FOUND_AT + (uint32_t)(w * MOST_HEADS + head) * 8);
            largest = fmaxf(largest, found[w].x);
        }
#pragma unroll
        for (int w = 0; w < DECODE_WARPS; w++) {
            float weight = weight_of(found[w].x, largest, scale);
            uint32_t at = shared + (uint32_t)w * C::RING_BYTES + (uint32_t)(head * C::SUMS_ROW + d) * 4;
            sum = fmaf(ptx::load_shared_f32(at), weight, sum);
            total = fmaf(found[w].y, weight, total);
        }
        ptx::store_shared_f32(shared + (uint32_t)(head * C::SUMS_ROW + d) * 4, sum);
        if (d == 0) {
            ptx::store_shared_2(shared + C::BLOCK_AT + (uint32_t)head * 8, largest, total);
        }
    }
}

// Each block of the cluster finishes a part of y.
template <class C>
__device__ __forceinline__ void join_blocks(const gpu_attention_decode &a, const share &s,
                                            uint32_t shared, unsigned splits, float scale)
{
    int first = (int)ptx::block_of_cluster() * DECODE_THREADS + threadIdx.x;
    for (int i = first; i < s.heads * C::D; i += (int)splits * DECODE_THREADS) {
        int head = i / C::D, d = i % C::D;
        if (d >= s.features) {
            continue;
        }
        uint32_t found = shared + C::BLOCK_AT + (uint32_t)head * 8;
        uint32_t sums = shared + (uint32_t)(head * C::SUMS_ROW + d) * 4;
        float most[MOST_SPLITS], totals[MOST_SPLITS], parts[MOST_SPLITS], largest = -INFINITY;
#pragma unroll
        for (unsigned b = 0; b < MOST_SPLITS; b++) {
            if (b < splits) {
                most[b] = ptx::load_cluster_f32(ptx::in_block(found, b));
                totals[b] = ptx::load_cluster_f32(ptx::in_block(found + 4, b));
                parts[b] = ptx::load_cluster_f32(ptx::in_block(sums, b));
                largest = fmaxf(largest, most[b]);
            }
        }
        float sum = 0, total = 0;
#pragma unroll
        for (unsigned b = 0; b < MOST_SPLITS; b++) {
            if (b < splits) {
                float weight = weight_of(most[b], largest, scale);
                sum = fmaf(parts[b], weight, sum);
                total = fmaf(totals[b], weight, total);
            }
        }
        uint16_t *y = (uint16_t *)a.y + s.y + ((int64_t)head * s.features + d) * a.y_stride;
        *y = (uint16_t)ptx::pack<C::BF16>(sum / total, 0);
    }
}

template <class C>
__global__ void __launch_bounds__(DECODE_THREADS, C::D > 128 ? 1 : 3)
    decode_kernel(const gpu_attention_decode a, unsigned splits)
{
    extern __shared__ uint4 memory[];
    uint32_t shared = ptx::shared_address(memory);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t ring = shared + (uint32_t)warp * C::RING_BYTES;
    float scale = a.scale * LOG2_E;
    mma::let_next_launch_begin();
    share s = share_of<C>(a, splits);
    ask_ahead<C>(s);
    mma::wait_for_launch_before();
    int past = ptx::load_current(&a.places[s.sequence].past);
    queries_of<C> queries;
    queries.load(a, s);
    s.seen = min(past, s.capacity - 1) + 1;
    s.cached = a.k != nullptr && past >= 0 && past < s.capacity ? past : s.seen;
#pragma unroll
    for (int i = 0; i < C::STAGES; i++) {
        load_chunk<C>(s, ring + (uint32_t)i * C::STAGE_BYTES, s.chunk + i * s.step);
    }
    fresh_row<C> fresh;
    fresh.load(a, s);
    queries.lay(a, s, shared + C::QUERIES_AT);
    __syncthreads();
    uint32_t q[1][C::D / 16][4];
#pragma unroll
    for (int k = 0; k < C::D / 16; k++) {
        int row = lane % 16, d = k * 16 + lane / 16 * 8;
        ptx::load_matrices(shared + C::QUERIES_AT + (uint32_t)(row * C::QUERY_ROW + d) * 2, q[0][k]);
    }
    running<1, C::D> r;
    r.begin();
    int stage = 0;
    for (int chunk = s.chunk; chunk * CHUNK < s.seen; chunk += s.step) {
        ptx::copy_wait<C::STAGES - 1>();
        __syncwarp();
        if (chunk == fresh.chunk) {
            fresh.lay(s, ring + (uint32_t)stage * C::STAGE_BYTES);
        }
        take_chunk<C>(s, q, ring + (uint32_t)stage * C::STAGE_BYTES, chunk, scale, &r);
        __syncwarp();
        load_chunk<C>(s, ring + (uint32_t)stage * C::STAGE_BYTES, chunk + C::STAGES * s.step);
        stage = stage + 1 < C::STAGES ? stage + 1 : 0;
    }
    ptx::copy_wait<0>();
    __syncwarp();
    leave_sums<C>(s, shared, &r);
    __syncthreads();
    join_warps<C>(s, shared, scale);
    ptx::cluster_barrier();
    join_blocks<C>(a, s, shared, splits, scale);
    if (splits > 1) {
        ptx::cluster_barrier(); // nobody leaves while others read its memory
    }
}

// ---- launching ----

// Two blocks for each multiprocessor, if the caches are long enough.
inline unsigned splits_of(const gpu_attention_decode &a, int64_t blocks)
{
    if (!a.overlaps) {
        return 1;
    }
    int64_t wanted = (2 * (int64_t)a.multiprocessors + blocks - 1) / blocks;
    int64_t useful = (a.longest + DECODE_WARPS * CHUNK - 1) / (DECODE_WARPS * CHUNK);
    wanted = wanted < useful ? wanted : useful;
    return (unsigned)(wanted < 1 ? 1 : wanted > MOST_SPLITS ? MOST_SPLITS : wanted);
}

template <class C> int launch_decode_as(const gpu_attention_decode &a, void *stream)
{
    static std::atomic<uint64_t> prepared;
    int64_t group = a.heads / a.kv_heads;
    int64_t blocks = a.sequences * a.kv_heads * ((group + MOST_HEADS - 1) / MOST_HEADS);
    unsigned splits = splits_of(a, blocks);
    if (blocks * splits > INT32_MAX) {
        return cudaErrorInvalidValue;
    }
    int failed = gpu_prepare((const void *)decode_kernel<C>, C::SHARED, a.device, &prepared);
    return failed != 0 ? failed
                       : gpu_launch_clusters(decode_kernel<C>, (unsigned)blocks * splits, splits,
                                             DECODE_THREADS, C::SHARED, a.overlaps, stream, a, splits);
}

template <bool BF16> int launch_decode(const gpu_attention_decode &a, void *stream)
{
    return a.head_dim <= 32    ? launch_decode_as<decode_of<BF16, 32>>(a, stream)
           : a.head_dim <= 64  ? launch_decode_as<decode_of<BF16, 64>>(a, stream)
           : a.head_dim <= 80  ? launch_decode_as<decode_of<BF16, 80>>(a, stream)
           : a.head_dim <= 96  ? launch_decode_as<decode_of<BF16, 96>>(a, stream)
           : a.head_dim <= 128 ? launch_decode_as<decode_of<BF16, 128>>(a, stream)
                               : launch_decode_as<decode_of<BF16, 256>>(a, stream);
}

} // namespace attention

extern "C" int gpu_any_attend_decode(const gpu_attention_decode *a, void *stream)
{
    return a->type == GPU_BF16 ? attention::launch_decode<true>(*a, stream)
                               : attention::launch_decode<false>(*a, stream);
}
