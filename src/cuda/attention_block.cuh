// Attention of a block of queries of one head, on any GPU from compute capability 8.0 on: its warps share the keys and
// values, which come in tiles by cp.async, one tile ahead of the products where shared memory has room for two.
//
//   queries -> room of the second tile -> registers of the warps
//   keys, values -> tile 0, tile 1, tile 0 ...  one barrier of the block a tile
//   y <- room of the queries <- registers
#ifndef ESP_CUDA_ATTENTION_BLOCK_CUH
#define ESP_CUDA_ATTENTION_BLOCK_CUH

#include "cuda/attention_grid.cuh"

namespace attention {

// One compiled kernel. M: times 16 queries of a warp; CAUSAL: query i sees keys 0 .. past + i only.
template <bool IS_BF16, layout KEYS_AS, int FEATURES, int M_, bool IS_CAUSAL, bool HAS_GRID>
struct block_of {
    static constexpr bool BF16 = IS_BF16, CAUSAL = IS_CAUSAL, GRID = HAS_GRID;
    static constexpr layout L = KEYS_AS;
    static constexpr int D = FEATURES, M = M_;
    static constexpr int TOGETHER = 1; // warps that multiply in step
    static constexpr int WARPS = 4, THREADS = WARPS * 32, QUERIES = WARPS * 16 * M;
    static constexpr int KEYS = D > 128 || D * M > 160 ? 32 : 64;
    static constexpr int STAGES = D > 128 ? 1 : 2;
    static constexpr bool RELOADS = false; // queries are read from shared memory for each tile
    static constexpr bool WHOLE = false;   // a block may take all queries of a head whose keys fit the stages
    static constexpr int LAST_KEYS = KEYS; // a tile of at most so many keys is multiplied as one of no more
    using tile = attention::tile<L, D, KEYS>;
    static constexpr int QUERY_ROW = QUERIES + GAP;
    static constexpr uint32_t QUERY_BYTES = D * QUERY_ROW * 2, STAGE_BYTES = 2 * tile::BYTES;
    static constexpr uint32_t FIRST_STAGES = (STAGES - 1) * STAGE_BYTES;
    // Queries lie where the last stage will be, or behind the only one.
    static constexpr uint32_t QUERIES_AT = STAGES == 1 ? STAGE_BYTES : FIRST_STAGES;
    static constexpr uint32_t LAST = QUERY_BYTES > STAGE_BYTES || STAGES == 1 ? QUERY_BYTES : STAGE_BYTES;
    static constexpr uint32_t BIAS_AT = QUERIES_AT + LAST;
    static constexpr int REGISTERS = D * M / 2 + KEYS * M / 2 + D * M / 4; // of sums, scores and queries
    static constexpr int BLOCKS = REGISTERS > 170 ? 1 : REGISTERS > 110 ? 2 : REGISTERS > 85 ? 3 : 4;
    static constexpr uint32_t ALIGNMENT = 16; // of shared memory
    struct maps {};

    static __device__ __forceinline__ void use_maps(const maps &, piece *) {}

    // How tiles come. fetch: also counts where there is none. await: until this thread's copies of tile j are there.
    static __device__ __forceinline__ void start(uint32_t) {}
    static __device__ __forceinline__ void fetch(const piece &p, uint32_t shared, int j, int tiles)
    {
        if (j < tiles) {
            load(p, shared + (uint32_t)(j % STAGES) * STAGE_BYTES, j * KEYS);
        }
        ptx::copy_commit();
    }
    static __device__ __forceinline__ void await_queries()
    {
        ptx::copy_wait<STAGES - 1>();
    }
    static __device__ __forceinline__ void await(uint32_t, int)
    {
        ptx::copy_wait<(STAGES > 1 ? STAGES - 2 : 0)>();
    }
    static __device__ __forceinline__ void clean(const piece &, uint32_t, int) {}
    static __device__ void load(const piece &p, uint32_t stage, int key);
    template <int WIDE>
    static __device__ __forceinline__ void add_scores(const uint32_t (&q)[M][D / 16][4], uint32_t stage,
                                                      float (&s)[M][WIDE][4])
    {
        int lane = threadIdx.x % 32;
        attention::add_scores<BF16, L, M, D, KEYS>(
            q, stage + right_lane<L == COLUMNS>(lane, tile::ROW), s);
    }
    template <int WIDE>
    static __device__ __forceinline__ void add_values(const float (&s)[M][WIDE][4], uint32_t stage,
                                                      running<M, D> *r)
    {
        int lane = threadIdx.x % 32;
        attention::add_values<BF16, L, M, D, KEYS>(
            s, stage + tile::BYTES + right_lane<L == ROWS>(lane, tile::ROW), r);
    }
};

// ---- loading ----

template <bool BF16, layout L, int D, int M, bool CAUSAL, bool GRID>
__device__ __forceinline__ void block_of<BF16, L, D, M, CAUSAL, GRID>::load(const piece &p, uint32_t stage,
                                                                          int key)
{
    int valid = p.keys_count - key;
    if constexpr (L == COLUMNS) {
        load_columns<THREADS, D, KEYS, tile::ROW>(threadIdx.x, stage, p.keys + key, p.key_stride,
                                                  p.features, valid);
        load_columns<THREADS, D, KEYS, tile::ROW>(threadIdx.x, stage + tile::BYTES, p.values + key,
                                                  p.key_stride, p.features, valid);
    } else {
        int64_t offset = (int64_t)key * p.features;
        load_rows<THREADS, D, KEYS, tile::ROW>(threadIdx.x, stage, p.keys + offset, p.features, valid);
        load_rows<THREADS, D, KEYS, tile::ROW>(threadIdx.x, stage + tile::BYTES, p.values + offset,
                                               p.features, valid);
    }
}

// ---- one tile ----

template <class C, int WIDE>
__device__ __forceinline__ void hide_keys(const piece &p, int key0, float (&s)[C::M][WIDE][4])
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < C::M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int query = p.first + (warp * C::M + m) * 16 + lane / 4 + half * 8;
            int seen = C::CAUSAL ? min(p.keys_count, p.past + query + 1) : p.keys_count;
#pragma unroll
            for (int n = 0; n < WIDE; n++) {
                int key = key0 + n * 8 + lane % 4 * 2;
                s[m][n][2 * half] = key < seen ? s[m][n][2 * half] : -INFINITY;
                s[m][n][2 * half + 1] = key + 1 < seen ? s[m][n][2 * half + 1] : -INFINITY;
            }
        }
    }
}

// WIDE: keys of the tile that are multiplied, over 8; the tile has no others.
template <class C, int WIDE>
__device__ __forceinline__ void take_keys(const piece &p, const grid_bias &bias,
                                          const uint32_t (&q)[C::M][C::D / 16][4], uint32_t stage,
                                          int key0, bool all_seen, running<C::M, C::D> *r)
{
    int first = p.first + (int)threadIdx.x / 32 * C::M * 16; // query of the warp
    float s[C::M][WIDE][4] = {};
    if constexpr (C::GRID) {
        begin_with_bias<C>(bias, key0, p.keys_count - 1, s);
    }
    C::add_scores(q, stage, s);
    if (!all_seen) {
        hide_keys<C>(p, key0, s);
    }
    if (first < p.queries) { // else what comes out is not looked at
        take_powers(s, p.scale * LOG2_E, r);
    }
    C::add_values(s, stage, r);
}

template <class C>
__device__ __forceinline__ void load_all_queries(uint32_t room, uint32_t (&q)[C::M][C::D / 16][4])
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < C::M; m++) {
        load_queries<C::D>(room + (uint32_t)((warp * C::M + m) * 16) * 2, C::QUERY_ROW, lane, q[m]);
    }
}

template <class C>
__device__ __forceinline__ void take_tile(const piece &p, const grid_bias &bias, uint32_t room,
                                          uint32_t (&q)[C::M][C::D / 16][4], uint32_t stage,
                                          int key0, running<C::M, C::D> *r)
{
    int first = p.first + (int)threadIdx.x / 32 / C::TOGETHER * C::TOGETHER * C::M * 16;
    int fully = C::CAUSAL ? min(p.keys_count, p.past + first + 1) : p.keys_count; // seen by all
    int partly = C::CAUSAL ? p.past + first + C::TOGETHER * C::M * 16 : p.keys_count; // by any
    if (key0 >= partly || first >= p.queries) {
        return;
    }
    if (C::RELOADS) {
        load_all_queries<C>(room, q);
    }
    if (C::LAST_KEYS < C::KEYS && p.keys_count - key0 <= C::LAST_KEYS) {
        take_keys<C, C::LAST_KEYS / 8>(p, bias, q, stage, key0, false, r);
    } else {
        take_keys<C, C::KEYS / 8>(p, bias, q, stage, key0, key0 + C::KEYS <= fully, r);
    }
}

// ---- leaving ----

// A warp's queries to shared memory, features below one another, and from there to y in pieces of 16 bytes. Queries
// that are not there leave as zeros up to the next multiple of 8.
template <class C>
__device__ __forceinline__ void leave(const piece &p, uint32_t room, running<C::M, C::D> *r)
{
    int lane = threadIdx.x % 32, first = threadIdx.x / 32 * C::M * 16;
    if (p.first + first >= p.queries) {
        return;
    }
#pragma unroll
    for (int m = 0; m < C::M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int query = first + m * 16 + half * 8;
            float total = of_row_sum(r->total[m][half]);
            bool there = p.first + query + lane / 4 < p.queries;
            float factor = 1 / total;
            uint32_t to = room + (uint32_t)(lane / 4 * C::QUERY_ROW + query + lane % 4 * 2) * 2;
#pragma unroll
            for (int n = 0; n < C::D / 8; n++) {
                uint32_t pair = there ? finished<C::BF16>(*r, m, n, half, factor) : 0;
                ptx::store_shared_u32(to + (uint32_t)(n * 8 * C::QUERY_ROW) * 2, ptx::turn_matrix(pair));
            }
        }
    }
    __syncwarp();
    constexpr int PIECES = C::M * 2;
    for (int i = lane; i < p.features * PIECES; i += 32) {
        int row = i / PIECES, query = first + i % PIECES * 8;
        if (p.first + query < p.queries) {
            uint4 v = ptx::load_shared_16(room + (uint32_t)(row * C::QUERY_ROW + query) * 2);
            *reinterpret_cast<uint4 *>(p.y + row * p.y_stride + query) = v;
        }
    }
}

// ---- the block ----

template <class C> __device__ __forceinline__ void attend(piece p, uint32_t shared)
{
    constexpr int AHEAD = C::STAGES > 1 ? C::STAGES - 1 : 1;
    int end = C::CAUSAL ? min(p.keys_count, p.past + p.first + C::QUERIES) : p.keys_count;
    int tiles = (end + C::KEYS - 1) / C::KEYS;
    uint32_t room = shared + C::QUERIES_AT;
    load_columns<C::THREADS, C::D, C::QUERIES, C::QUERY_ROW>(threadIdx.x, room, p.q, p.stride, p.features,
                                                             p.queries - p.first);
    ptx::copy_commit();
    C::start(shared);
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
        C::fetch(p, shared, j, tiles);
    }
    C::await_queries();
    __syncthreads();
    uint32_t q[C::M][C::D / 16][4];
    if (!C::RELOADS) {
        load_all_queries<C>(room, q);
    }
    grid_bias bias = {};
    if constexpr (C::GRID) {
        bias = bias_of<C>(p, shared);
        relate<C>(p, q, bias, p.row_table, true, room);
        relate<C>(p, q, bias, p.column_table, false, room);
        __syncwarp();
    }
    for (int round = 0;; round++) {
        running<C::M, C::D> r;
        r.begin();
        for (int j = 0; j < tiles; j++) {
            uint32_t stage = shared + (uint32_t)(j % C::STAGES) * C::STAGE_BYTES;
            if (!C::WHOLE || round == 0) {
                C::await(shared, j);
                __syncthreads(); // the tile is there for all, and nobody reads the one before
                if (C::WHOLE && j == 0 && p.rounds > 1) {
                    load_columns<C::THREADS, C::D, C::QUERIES, C::QUERY_ROW>(
                        threadIdx.x, room + C::QUERY_BYTES, p.q + C::QUERIES, p.stride, p.features,
                        p.queries - p.first - C::QUERIES);
                }
                if (C::STAGES > 1) {
                    C::fetch(p, shared, j + AHEAD, tiles);
                }
                C::clean(p, stage, j * C::KEYS);
            }
            take_tile<C>(p, bias, room, q, stage, j * C::KEYS, &r);
            if (C::STAGES == 1) {
                __syncthreads();
                C::fetch(p, shared, j + 1, tiles);
            }
        }
        if (!C::RELOADS) {
            __syncthreads(); // the room was a stage's
        }
        leave<C>(p, room, &r);
        if (!C::WHOLE || round + 1 >= p.rounds) {
            break;
        }
        p.first += C::QUERIES, p.y += C::QUERIES, room += C::QUERY_BYTES;
        ptx::copy_commit();
        ptx::copy_wait<0>();
        __syncthreads(); // these queries are there for all
    }
}

} // namespace attention

#endif
