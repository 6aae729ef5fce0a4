// Attention of one token each of many sequences: a stream of caches.
//
// A block has up to 16 query heads that read one head of the caches: they are the rows of the tensor cores' left
// operand, so several cost no more bytes than one. A cluster of blocks shares out the cache in chunks of 16 rows, and
// so do the warps of a block; each warp has a room of its own for one chunk, and no warp waits for another until the
// end. There the partial results meet in shared memory, first those of the warps, then, across the cluster, those of
// the blocks, in a fixed order. Without clusters (before compute capability 9.0) a block reads the whole cache.
//
// A warp's next keys are on their way while it multiplies values, its next values while it multiplies keys; chunks
// further on are asked for as far as the L2. So little room is needed, and four blocks have it on a multiprocessor.
//
// Latencies. Where a sequence ends is known for sure only after the launch before; what the table said before that is
// nearly always right, so chunks are asked for by that, and once more in the rare case.
//
// The step's own row may come along (`k`, `v`): it is rotated by the warp whose chunk it belongs to, which lays it
// into its room and writes it to the caches; every block rotates its queries for itself. As ops_rope.cu, bit by bit.
#include "cuda/attention_kernels.h"
#include "cuda/attention_warp.cuh"
#include "cuda/launch.cuh"

namespace attention {

constexpr int DECODE_WARPS = 4, DECODE_THREADS = DECODE_WARPS * 32, CHUNK = 16, MOST_HEADS = 16;
constexpr unsigned MOST_SPLITS = 8;

// Shared memory: a chunk of keys and one of values for each warp, later its sums; queries; what each warp, and then
// the block, found.
template <bool IS_BF16, int FEATURES> struct decode_of {
    static constexpr bool BF16 = IS_BF16;
    static constexpr int D = FEATURES;
    using tile = attention::tile<ROWS, D, CHUNK>;
    static constexpr uint32_t CHUNK_BYTES = 2 * tile::BYTES;
    static constexpr int SUMS_ROW = D + 8; // f32
    static_assert(MOST_HEADS * SUMS_ROW * 4 <= CHUNK_BYTES, "sums take the place of a chunk");
    static constexpr int QUERY_ROW = D + GAP;
    static constexpr uint32_t QUERIES_AT = DECODE_WARPS * CHUNK_BYTES;
    // [warps][16] most, [warps][16] total; of the block: [16] most, [16] total
    static constexpr uint32_t FOUND_AT = QUERIES_AT + MOST_HEADS * QUERY_ROW * 2;
    static constexpr uint32_t BLOCK_AT = FOUND_AT + DECODE_WARPS * MOST_HEADS * 8;
    static constexpr uint32_t SHARED = BLOCK_AT + MOST_HEADS * 8;
};

struct share {
    uint16_t *keys, *values; // of the head
    int seen, capacity;
    int cached; // rows that the caches hold already: all that are seen, or all but the last
    int features, heads; // of q: of the block
    int64_t q, y;        // element of the first head's feature 0
    int chunk, step;     // the warp's first, and how far to the next
    uint32_t sequence;
    int64_t row;  // element of k and v: of feature 0
    bool records; // writes a new row: one of the blocks that see a head
};

template <class C>
__device__ __forceinline__ share share_of(const gpu_attention_decode &a, unsigned splits, int *past)
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
    s.capacity = place.capacity;
    *past = place.past;
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

// Keys or values of a chunk; nothing, where there is none.
template <class C>
__device__ __forceinline__ void load_chunk(const share &s, uint32_t to, const uint16_t *rows, int chunk)
{
    int row = chunk * CHUNK;
    if (row < s.seen) {
        load_rows<32, C::D, CHUNK, C::tile::ROW>(threadIdx.x % 32, to, rows + (int64_t)row * s.features,
                                                 s.features, s.cached - row);
    }
    ptx::copy_commit();
}

// As far as the L2.
template <class C> __device__ __forceinline__ void ask_for(const share &s, int chunk)
{
    int row = chunk * CHUNK, bytes = CHUNK * s.features * 2;
    if (row < s.seen && row + CHUNK <= s.capacity) {
        for (int at = threadIdx.x % 32 * 128; at < bytes; at += 32 * 128) {
            ptx::prefetch_to_l2((const char *)(s.keys + (int64_t)row * s.features) + at);
            ptx::prefetch_to_l2((const char *)(s.values + (int64_t)row * s.features) + at);
        }
    }
}

// ---- the step's own row ----

// Features `pair` and `pair + half` of a head of the block's token, and what they are rotated with, as they were read:
// loads that nothing keeps apart, for each is a way to the L2. Products and sums are rounded one by one, as the
// reference's.
template <class C> struct raw_pair {
    uint16_t low, high;
    float cosine, sine;

    __device__ __forceinline__ void load(const gpu_attention_decode &a, const share &s,
                                         const uint16_t *head, int pair, bool there, bool turns)
    {
        int64_t angle = pair * a.angle_stride + s.sequence;
        low = there ? __ldcg(head + pair * a.stride) : (uint16_t)0;
        high = there ? __ldcg(head + (pair + s.features / 2) * a.stride) : (uint16_t)0;
        cosine = there && turns ? __ldcg(a.cosines + angle) : 1.0f;
        sine = there && turns ? __ldcg(a.sines + angle) : 0.0f;
    }

    __device__ __forceinline__ void turn()
    {
        float x = ptx::widened<C::BF16>(low), y = ptx::widened<C::BF16>(high);
        float v = __fsub_rn(__fmul_rn(x, cosine), __fmul_rn(y, sine));
        float w = __fadd_rn(__fmul_rn(y, cosine), __fmul_rn(x, sine));
        low = (uint16_t)ptx::pack<C::BF16>(v, 0), high = (uint16_t)ptx::pack<C::BF16>(w, 0);
    }
};

// The new key and value, in the warp that has their chunk.
template <class C> struct fresh_row {
    static constexpr int PAIRS = (C::D / 2 + 31) / 32, EACH = (C::D + 31) / 32;
    raw_pair<C> key[PAIRS];
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
        for (int i = 0; i < PAIRS; i++) {
            int pair = i * 32 + threadIdx.x % 32;
            key[i].load(a, s, (const uint16_t *)a.k + s.row, pair, pair < s.features / 2, true);
        }
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int d = i * 32 + threadIdx.x % 32;
            value[i] = d < s.features ? __ldcg((const uint16_t *)a.v + s.row + d * a.stride) : (uint16_t)0;
        }
    }

    static __device__ __forceinline__ void put(const share &s, uint32_t row, uint16_t *cache, int d,
                                               uint16_t value)
    {
        ptx::store_shared_u16(row + d * 2, value);
        if (s.records) {
            cache[(int64_t)s.cached * s.features + d] = value;
        }
    }

    // The chunk's copies are done, and all lanes know.
    __device__ __forceinline__ void lay(const share &s, uint32_t room)
    {
        uint32_t row = room + (uint32_t)(s.cached % CHUNK * C::tile::ROW) * 2;
        int half = s.features / 2;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            int pair = i * 32 + threadIdx.x % 32;
            key[i].turn();
            if (pair < half) {
                put(s, row, s.keys, pair, key[i].low);
                put(s, row, s.keys, pair + half, key[i].high);
            }
        }
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int d = i * 32 + threadIdx.x % 32;
            if (d < s.features) {
                put(s, row + C::tile::BYTES, s.values, d, value[i]);
            }
        }
        __syncwarp();
    }
};

// [16][D] from feature-major memory, where the features of a token lie a stride apart. Rows of heads that there are
// not hold anything: rows of a product do not meet.
template <class C> struct queries_of {
    static constexpr int HALF = C::D / 2, EACH = MOST_HEADS * HALF / DECODE_THREADS;
    static_assert(MOST_HEADS * HALF % DECODE_THREADS == 0, "pairs are dealt evenly");
    raw_pair<C> raw[EACH];

    static __device__ __forceinline__ int head_of(int i)
    {
        return (i * DECODE_THREADS + (int)threadIdx.x) / HALF;
    }
    static __device__ __forceinline__ int pair_of(int i)
    {
        return (i * DECODE_THREADS + (int)threadIdx.x) % HALF;
    }
    // Whether any thread has something: all go the same way.
    static __device__ __forceinline__ bool any(const share &s, int i)
    {
        return i * DECODE_THREADS < s.heads * HALF;
    }

    __device__ __forceinline__ void load(const gpu_attention_decode &a, const share &s)
    {
        const uint16_t *q = (const uint16_t *)a.q + s.q;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            if (any(s, i)) {
                int head = head_of(i), pair = pair_of(i);
                raw[i].load(a, s, q + (int64_t)head * s.features * a.stride, pair,
                            head < s.heads && pair < s.features / 2, a.k != nullptr);
            }
        }
    }

    __device__ __forceinline__ void lay(const gpu_attention_decode &a, const share &s, uint32_t to)
    {
        int half = s.features / 2;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int head = head_of(i), pair = pair_of(i);
            if (!any(s, i) || head >= s.heads) {
                continue;
            }
            if (a.k != nullptr) {
                raw[i].turn();
            }
            // Behind the features lie zeros: two for each pair too many.
            int first = pair < half ? pair : 2 * pair, second = pair < half ? pair + half : 2 * pair + 1;
            uint32_t row = to + (uint32_t)(head * C::QUERY_ROW) * 2;
            ptx::store_shared_u16(row + first * 2, raw[i].low);
            ptx::store_shared_u16(row + second * 2, raw[i].high);
        }
    }
};

// The queries come from shared memory for each chunk: no registers keep them.
template <class C>
__device__ __forceinline__ void score_chunk(const share &s, uint32_t queries, uint32_t keys, int chunk,
                                            float (&scores)[1][CHUNK / 8][4])
{
    int lane = threadIdx.x % 32;
    uint32_t q[1][C::D / 16][4];
#pragma unroll
    for (int k = 0; k < C::D / 16; k++) {
        int row = lane % 16, d = k * 16 + lane / 16 * 8;
        ptx::load_matrices(queries + (uint32_t)(row * C::QUERY_ROW + d) * 2, q[0][k]);
    }
    add_scores<C::BF16, ROWS, 1, C::D, CHUNK>(q, keys + right_lane<false>(lane, C::tile::ROW), scores);
#pragma unroll
    for (int n = 0; n < CHUNK / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            bool seen = chunk * CHUNK + n * 8 + lane % 4 * 2 + i % 2 < s.seen;
            scores[0][n][i] = seen ? scores[0][n][i] : -INFINITY;
        }
    }
}

// What a warp has on its way: keys, then values, of its first chunk; later the same of the next one.
template <class C>
__device__ __forceinline__ void begin_chunks(const gpu_attention_decode &a, const share &s, uint32_t room,
                                             fresh_row<C> *fresh)
{
    load_chunk<C>(s, room, s.keys, s.chunk);
    load_chunk<C>(s, room + C::tile::BYTES, s.values, s.chunk);
    fresh->load(a, s);
}

template <class C>
__device__ __forceinline__ void take_chunks(const share &s, uint32_t room, uint32_t queries, float scale,
                                            fresh_row<C> *fresh, running<1, C::D> *r)
{
    uint32_t values = room + C::tile::BYTES;
    for (int chunk = s.chunk; chunk * CHUNK < s.seen; chunk += s.step) {
        ask_for<C>(s, chunk + 3 * s.step);
        ptx::copy_wait<1>();
        __syncwarp();
        if (chunk == fresh->chunk) {
            ptx::copy_wait<0>(); // its values too
            __syncwarp();
            fresh->lay(s, room);
        }
        float scores[1][CHUNK / 8][4] = {};
        score_chunk<C>(s, queries, room, chunk, scores);
        __syncwarp();
        load_chunk<C>(s, room, s.keys, chunk + s.step);
        take_powers(scores, scale, r);
        ptx::copy_wait<1>();
        __syncwarp();
        add_values<C::BF16, ROWS, 1, C::D, CHUNK>(
            scores, values + right_lane<true>(threadIdx.x % 32, C::tile::ROW), r);
        __syncwarp();
        load_chunk<C>(s, values, s.values, chunk + s.step);
    }
    ptx::copy_wait<0>();
    __syncwarp();
}

// A warp's sums take the place of its chunk.
template <class C>
__device__ __forceinline__ void leave_sums(const share &s, uint32_t shared, running<1, C::D> *r)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t sums = shared + (uint32_t)warp * C::CHUNK_BYTES;
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
            uint32_t at = shared + (uint32_t)w * C::CHUNK_BYTES + (uint32_t)(head * C::SUMS_ROW + d) * 4;
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

// Rows that are seen, and of them those in the caches, where row `past` is the step's.
__device__ __forceinline__ void find_end(const gpu_attention_decode &a, int past, share *s)
{
    s->seen = min(max(past, -1) + 1, s->capacity);
    s->cached = a.k != nullptr && past >= 0 && past < s->capacity ? past : s->seen;
}

template <class C>
__global__ void __launch_bounds__(DECODE_THREADS, C::D > 128 ? 1 : 4)
    decode_kernel(const gpu_attention_decode a, unsigned splits)
{
    extern __shared__ uint4 memory[];
    uint32_t shared = ptx::shared_address(memory);
    uint32_t room = shared + threadIdx.x / 32 * C::CHUNK_BYTES;
    float scale = a.scale * LOG2_E;
    mma::let_next_launch_begin();
    int guessed;
    share s = share_of<C>(a, splits, &guessed);
    find_end(a, guessed, &s);
#pragma unroll
    for (int i = 0; i < 3; i++) {
        ask_for<C>(s, s.chunk + i * s.step);
    }
    mma::wait_for_launch_before();
    int past = ptx::load_current(&a.places[s.sequence].past);
    queries_of<C> queries;
    queries.load(a, s);
    fresh_row<C> fresh;
    begin_chunks<C>(a, s, room, &fresh);
    queries.lay(a, s, shared + C::QUERIES_AT);
    if (past != guessed) {
        find_end(a, past, &s);
        ptx::copy_wait<0>();
        __syncwarp();
        begin_chunks<C>(a, s, room, &fresh);
    }
    __syncthreads();
    running<1, C::D> r;
    r.begin();
    take_chunks<C>(s, room, shared + C::QUERIES_AT, scale, &fresh, &r);
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
