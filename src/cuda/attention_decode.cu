// Attention of one token each of many sequences: a stream of caches.
//
// A block has up to 16 query heads that read one head of the caches: they are the rows of the tensor cores' left
// operand, so several cost no more bytes than one. A cluster of blocks shares out the cache in chunks of 16 rows, and
// so do the warps of a block; each warp has room of its own for one chunk or two, and no warp waits for another until the
// end. There the partial results meet in shared memory, first those of the warps, then, in the block that finishes a
// head, those of the cluster's blocks, in a fixed order. Without clusters (before compute capability 9.0) a block reads
// the whole cache.
//
// A warp's next keys are on their way while it multiplies values, its next values while it multiplies keys; chunks
// further on are asked for as far as the L2. So room for one chunk will do, and four blocks have it on a multiprocessor.
// Where a warp has many chunks, room for two is faster.
//
// Latencies. Where a sequence ends is known for sure only after the launch before; what the table said before that is
// nearly always right, so chunks that there is room for are loaded by that before then, and once more in the rare case.
// The others are asked for behind the queries: whatever is asked for before those is waited for with them. Blocks send
// their sums, so that nobody waits for what others wrote to memory. Code that runs once comes from far as well: loops
// stay loops.
//
// The step's own row may come along (`k`, `v`): it is rotated by the warp whose chunk it belongs to, which lays it
// into its room and writes it to the caches; every block rotates its queries for itself. As ops_rope.cu, bit by bit.
#include "cuda/attention_cluster.cuh"
#include "cuda/attention_kernels.h"
#include "cuda/attention_warp.cuh"
#include "cuda/launch.cuh"

namespace attention {

constexpr int DECODE_WARPS = 4, DECODE_THREADS = DECODE_WARPS * 32, CHUNK = 16, MOST_HEADS = 16;
constexpr unsigned MOST_SPLITS = 8;
constexpr int CHUNKS_AHEAD = 3; // of a warp that are on their way, as far as the L2 at least

// Shared memory: a chunk of keys and one of values for each warp, later its sums; queries; what each warp found; a
// barrier; what blocks of a cluster sent of the heads that this one finishes.
template <bool IS_BF16, int FEATURES, int STAGES_> struct decode_of {
    static constexpr bool BF16 = IS_BF16;
    static constexpr int D = FEATURES, STAGES = STAGES_;
    using tile = attention::tile<ROWS, D, CHUNK>;
    static constexpr uint32_t CHUNK_BYTES = 2 * tile::BYTES, ROOM_BYTES = STAGES * CHUNK_BYTES;
    static constexpr int SUMS_ROW = D + 8; // f32
    static_assert(MOST_HEADS * SUMS_ROW * 4 <= CHUNK_BYTES, "sums take the place of a chunk");
    static constexpr int QUERY_ROW = D + GAP;
    static constexpr uint32_t QUERIES_AT = DECODE_WARPS * ROOM_BYTES;
    static constexpr uint32_t FOUND_AT = QUERIES_AT + MOST_HEADS * QUERY_ROW * 2; // [warps][16] most, total
    static constexpr uint32_t BARRIER_AT = FOUND_AT + DECODE_WARPS * MOST_HEADS * 8;
    static constexpr uint32_t SENT_AT = BARRIER_AT + 16;
    static constexpr uint32_t SENT_BYTES = D * 4 + 16; // of a head: sums, most, total
    static constexpr uint32_t MOST_SHARED = SENT_AT + (MOST_HEADS + MOST_SPLITS - 1) * SENT_BYTES;

    static constexpr uint32_t shared(unsigned heads, unsigned splits)
    {
        return SENT_AT + (splits > 1 ? (heads + splits - 1) / splits * splits * SENT_BYTES : 0);
    }
};

// Numbers that every block would divide for.
struct decode_task {
    gpu_attention_decode of;
    uint32_t group, batches; // query heads of a head of the caches; in so many blocks
    uint32_t splits;         // blocks of a cluster
};

struct share {
    uint16_t *keys, *values; // of the head
    int seen, capacity;
    int cached; // rows that the caches hold already: all that are seen, or all but the last
    int features, heads; // of q: of the block
    int stride;          // of q, k and v
    int64_t q, y;        // element of the first head's feature 0
    int chunk, step;     // the warp's first, and how far to the next
    uint32_t sequence;
    int64_t row;  // element of k and v: of feature 0
    bool records; // writes a new row: one of the blocks that see a head
};

template <class C> __device__ __forceinline__ share share_of(const decode_task &t, int *past)
{
    const gpu_attention_decode &a = t.of;
    uint32_t heads = (uint32_t)a.kv_heads, index = blockIdx.x / t.splits;
    uint32_t batch = index % t.batches, kv = index / t.batches % heads;
    uint32_t sequence = index / t.batches / heads;
    const gpu_place place = a.places[sequence];
    uint32_t head = kv * t.group + batch * MOST_HEADS;
    int64_t from = ((int64_t)(2 * a.layer * a.kv_heads) + kv) * place.capacity * a.head_dim;
    share s;
    s.keys = (uint16_t *)place.keys + from;
    s.values = (uint16_t *)place.values + from;
    s.capacity = place.capacity;
    *past = place.past;
    s.features = (int)a.head_dim;
    s.heads = (int)min(t.group - batch * MOST_HEADS, (uint32_t)MOST_HEADS);
    s.stride = (int)a.stride;
    s.q = (int64_t)(head * (uint32_t)s.features) * s.stride + sequence;
    s.y = (int64_t)(head * (uint32_t)s.features) * a.y_stride + sequence;
    s.sequence = sequence;
    s.row = (int64_t)(kv * (uint32_t)s.features) * s.stride + sequence;
    s.records = batch == 0;
    s.chunk = (int)(ptx::block_of_cluster() * DECODE_WARPS + threadIdx.x / 32);
    s.step = (int)t.splits * DECODE_WARPS;
    return s;
}

// Keys or values of a chunk, zeros where the caches have no more rows; nothing, where none is seen. A lane has the same
// 16 bytes of every STEP-th row.
template <class C>
__device__ __forceinline__ void load_chunk(const share &s, uint32_t to, const uint16_t *rows, int chunk)
{
    constexpr int PIECES = C::D / 8, STEP = 32 / PIECES;
    int lane = threadIdx.x % 32, row = lane / PIECES, column = lane % PIECES * 8;
    int valid = column < s.features && row < STEP ? s.cached - chunk * CHUNK - row : 0;
    if (chunk * CHUNK < s.seen) {
        const char *from = (const char *)(rows + (int64_t)(chunk * CHUNK + row) * s.features + column);
        uint32_t at = to + (uint32_t)(row * C::tile::ROW + column) * 2, pitch = (uint32_t)(STEP * s.features) * 2;
#pragma unroll
        for (int i = 0; i < CHUNK; i += STEP) {
            if ((32 % PIECES == 0 || row < STEP) && (CHUNK % STEP == 0 || row + i < CHUNK)) {
                ptx::copy_16(at + (uint32_t)(i * C::tile::ROW) * 2, from + i / STEP * pitch, valid > i ? 16u : 0u);
            }
        }
    }
    ptx::copy_commit();
}

// As far as the L2.
template <class C> __device__ __forceinline__ void ask_for(const share &s, int chunk)
{
    int row = chunk * CHUNK, bytes = CHUNK * s.features * 2;
    if (row < s.seen && row + CHUNK <= s.capacity) {
        int64_t from = (int64_t)row * s.features * 2;
#pragma unroll 1
        for (int at = threadIdx.x % 32 * 128; at < bytes; at += 32 * 128) {
            ptx::prefetch_to_l2((const char *)s.keys + from + at);
            ptx::prefetch_to_l2((const char *)s.values + from + at);
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
        int64_t angle = (int64_t)pair * (int)a.angle_stride + s.sequence;
        low = there ? __ldcg(head + (int64_t)pair * s.stride) : (uint16_t)0;
        high = there ? __ldcg(head + (int64_t)(pair + s.features / 2) * s.stride) : (uint16_t)0;
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
            value[i] = d < s.features ? __ldcg((const uint16_t *)a.v + s.row + (int64_t)d * s.stride) : (uint16_t)0;
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
// not hold anything: rows of a product do not meet. Behind the features lie zeros, two for each pair too many. Each
// thread does `meanwhile` once, when its first loads are on their way.
template <class C, class Meanwhile>
__device__ __forceinline__ void lay_queries(const gpu_attention_decode &a, const share &s, uint32_t to,
                                            const Meanwhile &meanwhile)
{
    constexpr int HALF = C::D / 2, AT_ONCE = 2;
    const uint16_t *q = (const uint16_t *)a.q + s.q;
    int half = s.features / 2;
    bool turns = a.k != nullptr;
    if (threadIdx.x >= s.heads * HALF) {
        meanwhile();
    }
#pragma unroll 1
    for (int first = threadIdx.x; first < s.heads * HALF; first += AT_ONCE * DECODE_THREADS) {
        raw_pair<C> raw[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int at = first + i * DECODE_THREADS, head = at / HALF, pair = at % HALF;
            raw[i].load(a, s, q + (int64_t)(head * s.features) * s.stride, pair, head < s.heads && pair < half,
                        turns);
        }
        if (first == threadIdx.x) {
            meanwhile();
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int at = first + i * DECODE_THREADS, head = at / HALF, pair = at % HALF;
            if (turns) {
                raw[i].turn();
            }
            if (head < s.heads) {
                uint32_t row = to + (uint32_t)(head * C::QUERY_ROW) * 2;
                ptx::store_shared_u16(row + (pair < half ? pair : 2 * pair) * 2, raw[i].low);
                ptx::store_shared_u16(row + (pair < half ? pair + half : 2 * pair + 1) * 2, raw[i].high);
            }
        }
    }
}

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

// Rows that are seen, and of them those in the caches, where row `past` is the step's.
__device__ __forceinline__ void find_end(const gpu_attention_decode &a, int past, share *s)
{
    s->seen = min(max(past, -1) + 1, s->capacity);
    s->cached = a.k != nullptr && past >= 0 && past < s->capacity ? past : s->seen;
}

// Keys and values of as many chunks as the warp has room for.
template <class C> __device__ __forceinline__ void load_first(const share &s, uint32_t room)
{
#pragma unroll 1
    for (int i = 0; i < C::STAGES; i++) {
        uint32_t to = room + (uint32_t)i * C::CHUNK_BYTES;
        load_chunk<C>(s, to, s.keys, s.chunk + i * s.step);
        load_chunk<C>(s, to + C::tile::BYTES, s.values, s.chunk + i * s.step);
    }
}

// As far as the L2.
template <class C> __device__ __forceinline__ void ask_for_next(const share &s)
{
#pragma unroll 1
    for (int i = C::STAGES; i < CHUNKS_AHEAD; i++) {
        ask_for<C>(s, s.chunk + i * s.step);
    }
}

// First chunks of the caches, where the launch before fills none of their rows; then the queries and the step's row,
// when that launch is done. Should the sequence end elsewhere than was thought, all but the queries once more.
template <class C>
__device__ __forceinline__ void begin(const gpu_attention_decode &a, uint32_t room, uint32_t queries, share *s,
                                      fresh_row<C> *fresh)
{
    int past = 0;
    if (a.k == nullptr) {
        mma::wait_for_launch_before();
    }
    for (int pass = 0;; pass++) {
        load_first<C>(*s, room);
        if (pass == 0) {
            mma::wait_for_launch_before();
            past = ptx::load_current(&a.places[s->sequence].past);
        }
        fresh->load(a, *s);
        if (pass == 0) {
            lay_queries<C>(a, *s, queries, [&] { ask_for_next<C>(*s); });
        }
        int seen = s->seen, cached = s->cached;
        find_end(a, past, s);
        if (s->seen == seen && s->cached == cached) {
            return;
        }
        ptx::copy_wait<0>();
        __syncwarp();
    }
}

template <class C>
__device__ __forceinline__ void take_chunks(const share &s, uint32_t room, uint32_t queries, float scale,
                                            fresh_row<C> *fresh, running<1, C::D> *r)
{
    constexpr int PENDING = 2 * C::STAGES - 1; // keys and values that may be on their way while others are taken
    uint32_t keys = room;
    for (int chunk = s.chunk; chunk * CHUNK < s.seen; chunk += s.step) {
        uint32_t values = keys + C::tile::BYTES;
        ask_for<C>(s, chunk + CHUNKS_AHEAD * s.step);
        ptx::copy_wait<PENDING>();
        __syncwarp();
        if (chunk == fresh->chunk) {
            ptx::copy_wait<0>(); // its values too
            __syncwarp();
            fresh->lay(s, keys);
        }
        float scores[1][CHUNK / 8][4] = {};
        score_chunk<C>(s, queries, keys, chunk, scores);
        __syncwarp();
        load_chunk<C>(s, keys, s.keys, chunk + C::STAGES * s.step);
        take_powers(scores, scale, r);
        ptx::copy_wait<PENDING>();
        __syncwarp();
        add_values<C::BF16, ROWS, 1, C::D, CHUNK>(
            scores, values + right_lane<true>(threadIdx.x % 32, C::tile::ROW), r);
        __syncwarp();
        load_chunk<C>(s, values, s.values, chunk + C::STAGES * s.step);
        keys = keys + C::CHUNK_BYTES < room + C::ROOM_BYTES ? keys + C::CHUNK_BYTES : room;
    }
    ptx::copy_wait<0>();
    __syncwarp();
}

// A warp's sums take the place of its chunks.
template <class C>
__device__ __forceinline__ void leave_sums(const share &s, uint32_t shared, running<1, C::D> *r)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t sums = shared + (uint32_t)warp * C::ROOM_BYTES;
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

// Of one head: four neighbouring features, and what they count for.
struct joined {
    float sums[4], most, total;

    __device__ __forceinline__ void begin()
    {
        most = -INFINITY, total = sums[0] = sums[1] = sums[2] = sums[3] = 0;
    }
    // `larger` is no less than `most` and the other's.
    __device__ __forceinline__ void add(float4 of, float2 found, float larger, float scale)
    {
        float weight = weight_of(found.x, larger, scale);
        sums[0] = fmaf(of.x, weight, sums[0]), sums[1] = fmaf(of.y, weight, sums[1]);
        sums[2] = fmaf(of.z, weight, sums[2]), sums[3] = fmaf(of.w, weight, sums[3]);
        total = fmaf(found.y, weight, total);
    }
};

// Of `count` parts, whose sums and findings lie `sums_step` and `found_step` bytes apart.
template <int MOST>
__device__ __forceinline__ joined join(uint32_t sums, uint32_t sums_step, uint32_t found, uint32_t found_step,
                                       int count, float scale)
{
    joined all;
    all.begin();
    float largest = -INFINITY;
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        largest = i < count ? fmaxf(largest, ptx::load_shared_2(found + i * found_step).x) : largest;
    }
    all.most = largest;
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        if (i < count) {
            all.add(ptx::load_shared_4(sums + i * sums_step), ptx::load_shared_2(found + i * found_step),
                    largest, scale);
        }
    }
    return all;
}

template <class C>
__device__ __forceinline__ void finish(const gpu_attention_decode &a, const share &s, int head, int d,
                                       const joined &all)
{
    uint16_t *y = (uint16_t *)a.y + s.y + (int64_t)(head * s.features + d) * a.y_stride;
    float factor = 1.0f / all.total;
    if (d < s.features) { // a multiple of 8
#pragma unroll
        for (int i = 0; i < 4; i++) {
            y[i * a.y_stride] = (uint16_t)ptx::pack<C::BF16>(all.sums[i] * factor, 0);
        }
    }
}

// The warps' sums become the block's: y, or what goes to the block that finishes the head.
template <class C>
__device__ __forceinline__ void join_warps(const gpu_attention_decode &a, const share &s, uint32_t shared,
                                           unsigned splits, float scale)
{
    constexpr int FOURS = C::D / 4;
    uint32_t rank = ptx::block_of_cluster();
#pragma unroll 1
    for (int i = threadIdx.x; i < s.heads * FOURS; i += DECODE_THREADS) {
        int head = i / FOURS, d = i % FOURS * 4;
        joined all = join<DECODE_WARPS>(shared + (uint32_t)(head * C::SUMS_ROW + d) * 4, C::ROOM_BYTES,
                                        shared + C::FOUND_AT + (uint32_t)head * 8, MOST_HEADS * 8, DECODE_WARPS,
                                        scale);
        if (splits == 1) {
            finish<C>(a, s, head, d, all);
            continue;
        }
        uint32_t owner = (uint32_t)head % splits, place = (uint32_t)head / splits * splits + rank;
        uint32_t to = ptx::in_block(shared + C::SENT_AT + place * C::SENT_BYTES, owner);
        uint32_t barrier = ptx::in_block(shared + C::BARRIER_AT, owner);
        const float found[4] = {all.most, all.total, 0, 0};
        ptx::send_four(to + (uint32_t)d * 4, all.sums, barrier);
        if (d == 0) {
            ptx::send_four(to + C::D * 4, found, barrier);
        }
    }
}

// What the blocks of the cluster sent of the heads rank, rank + splits...
template <class C>
__device__ __forceinline__ void join_blocks(const gpu_attention_decode &a, const share &s, uint32_t shared,
                                            unsigned splits, float scale)
{
    constexpr int FOURS = C::D / 4;
    int rank = (int)ptx::block_of_cluster(), owned = (s.heads - rank + (int)splits - 1) / (int)splits;
#pragma unroll 1
    for (int i = threadIdx.x; i < owned * FOURS; i += DECODE_THREADS) {
        int mine = i / FOURS, d = i % FOURS * 4;
        uint32_t from = shared + C::SENT_AT + (uint32_t)mine * splits * C::SENT_BYTES;
        ptx::wait_for_sent(shared + C::BARRIER_AT);
        joined all = join<MOST_SPLITS>(from + (uint32_t)d * 4, C::SENT_BYTES, from + C::D * 4, C::SENT_BYTES,
                                       (int)splits, scale);
        finish<C>(a, s, mine * (int)splits + rank, d, all);
    }
}

// So that blocks of the cluster may send as soon as all have passed this.
template <class C>
__device__ __forceinline__ void expect_sums(const share &s, uint32_t shared, unsigned splits)
{
    int rank = (int)ptx::block_of_cluster(), owned = (s.heads - rank + (int)splits - 1) / (int)splits;
    if (splits > 1 && threadIdx.x == 0) {
        ptx::expect_sent(shared + C::BARRIER_AT, (uint32_t)owned * splits * C::SENT_BYTES);
    }
    __syncwarp();
    if (splits > 1) {
        ptx::cluster_has_come();
    }
}

template <class C>
__global__ void __launch_bounds__(DECODE_THREADS, C::D > 128 ? 1 : C::STAGES > 1 ? 3 : 4)
    decode_kernel(const __grid_constant__ decode_task t)
{
    extern __shared__ uint4 memory[];
    const gpu_attention_decode &a = t.of;
    uint32_t shared = ptx::shared_address(memory);
    uint32_t room = shared + threadIdx.x / 32 * C::ROOM_BYTES;
    float scale = a.scale * LOG2_E;
    mma::let_next_launch_begin();
    int guessed;
    share s = share_of<C>(t, &guessed);
    find_end(a, guessed, &s);
    expect_sums<C>(s, shared, t.splits);
    fresh_row<C> fresh;
    begin<C>(a, room, shared + C::QUERIES_AT, &s, &fresh);
    __syncthreads();
    running<1, C::D> r;
    r.begin();
    take_chunks<C>(s, room, shared + C::QUERIES_AT, scale, &fresh, &r);
    leave_sums<C>(s, shared, &r);
    __syncthreads();
    if (t.splits > 1) {
        ptx::wait_for_cluster();
    }
    join_warps<C>(a, s, shared, t.splits, scale);
    if (t.splits > 1) {
        join_blocks<C>(a, s, shared, t.splits, scale);
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
    int64_t group = a.heads / a.kv_heads, batches = (group + MOST_HEADS - 1) / MOST_HEADS;
    int64_t blocks = a.sequences * a.kv_heads * batches;
    unsigned splits = splits_of(a, blocks);
    if (blocks * splits > INT32_MAX) {
        return cudaErrorInvalidValue;
    }
    decode_task task = {a, (uint32_t)group, (uint32_t)batches, splits};
    unsigned heads = (unsigned)(group < MOST_HEADS ? group : MOST_HEADS);
    int failed = gpu_prepare((const void *)decode_kernel<C>, C::MOST_SHARED, a.device, &prepared);
    return failed != 0 ? failed
                       : gpu_launch_clusters(decode_kernel<C>, (unsigned)blocks * splits, splits,
                                             DECODE_THREADS, C::shared(heads, splits), a.overlaps,
                                             stream, task);
}

// More rows than this for each warp: two chunks at a time. One H200, 32 heads of 128, 16 sequences of 512 rows: 54 us
// with room for one chunk, 47 with two.
constexpr int64_t FEW_ROWS = 64;

template <bool BF16, int D> int launch_decode_of(const gpu_attention_decode &a, void *stream)
{
    int64_t group = a.heads / a.kv_heads;
    int64_t blocks = a.sequences * a.kv_heads * ((group + MOST_HEADS - 1) / MOST_HEADS);
    bool few = a.longest <= FEW_ROWS * DECODE_WARPS * splits_of(a, blocks);
    if constexpr (D <= 128) {
        if (!few) {
            return launch_decode_as<decode_of<BF16, D, 2>>(a, stream);
        }
    }
    return launch_decode_as<decode_of<BF16, D, 1>>(a, stream);
}

template <bool BF16> int launch_decode(const gpu_attention_decode &a, void *stream)
{
    return a.head_dim <= 32    ? launch_decode_of<BF16, 32>(a, stream)
           : a.head_dim <= 64  ? launch_decode_of<BF16, 64>(a, stream)
           : a.head_dim <= 80  ? launch_decode_of<BF16, 80>(a, stream)
           : a.head_dim <= 96  ? launch_decode_of<BF16, 96>(a, stream)
           : a.head_dim <= 128 ? launch_decode_of<BF16, 128>(a, stream)
                               : launch_decode_of<BF16, 256>(a, stream);
}

} // namespace attention

extern "C" int gpu_any_attend_decode(const gpu_attention_decode *a, void *stream)
{
    return a->type == GPU_BF16 ? attention::launch_decode<true>(*a, stream)
                               : attention::launch_decode<false>(*a, stream);
}
