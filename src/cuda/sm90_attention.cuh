// Attention of a block of queries by warpgroup products, on compute capability 9.0: as attention_block.cuh, but a
// warpgroup has 64 queries, and keys and values stand in shared memory as wgmma reads them: blocks of rows of 128
// bytes, the 16-byte piece c of row r at c ^ (r & 7). Either way round is a descriptor's matter, so nothing is turned,
// and tensor copies lay them down so, three tiles ahead, with zeros where a head has no more features.
//
// One product waits for the other inside a warpgroup; warpgroups of two blocks or more share the tensor cores, so that
// some multiply while others take powers. A block that may (rounds_of) takes both blocks of queries of a short group,
// one after the other, over keys that came once.
#ifndef ESP_CUDA_SM90_ATTENTION_CUH
#define ESP_CUDA_SM90_ATTENTION_CUH

#include "cuda/attention_general.cuh"
#include "cuda/sm90_attention_ptx.cuh"

namespace attention {

constexpr int SWIZZLED = 64; // elements of a row of shared memory

// Keys or values of a tile of 64 keys. COLUMNS: one block [D][64]; ROWS: blocks [64][64 features].
template <layout L, int D> struct swizzled_tile {
    static constexpr int BLOCKS = L == COLUMNS ? 1 : (D + SWIZZLED - 1) / SWIZZLED;
    static constexpr int HEIGHT = L == COLUMNS ? D : 64;
    static constexpr uint32_t BLOCK_BYTES = HEIGHT * 128, BYTES = BLOCKS * BLOCK_BYTES;

    // Row of memory `row`, element `column` of it.
    static __device__ __forceinline__ uint32_t place(int row, int column)
    {
        uint32_t piece = (uint32_t)(column % SWIZZLED / 8 ^ row % 8);
        return (uint32_t)(column / SWIZZLED) * BLOCK_BYTES + (uint32_t)row * 128 + piece * 16;
    }
    // The right operand 16 deep from depth `deep` on, over the whole width. DEPTH_IS_ROW: depth goes along
    // rows of memory.
    template <bool DEPTH_IS_ROW>
    static __device__ __forceinline__ uint64_t operand(uint32_t tile, int deep)
    {
        uint32_t at = DEPTH_IS_ROW ? (uint32_t)deep * 128
                                   : (uint32_t)(deep / SWIZZLED) * BLOCK_BYTES + (uint32_t)(deep % SWIZZLED) * 2;
        return ptx::descriptor(tile, BLOCK_BYTES, 1024, 1) + at / 16; // its low bits are the address over 16
    }
};

// OF: warpgroups of a block. Two wait for one another at every tile, but share keys; one has half the queries and half
// the stages, so that there are twice as many blocks.
template <bool IS_BF16, layout KEYS_AS, int FEATURES, bool IS_CAUSAL, bool HAS_GRID, int OF>
struct warpgroups_of {
    static constexpr bool BF16 = IS_BF16, CAUSAL = IS_CAUSAL, GRID = HAS_GRID;
    static constexpr layout L = KEYS_AS;
    static constexpr int D = FEATURES, M = 1, KEYS = 64, TOGETHER = 4;
    static constexpr int LAST_KEYS = CAUSAL ? KEYS : 16; // 197 tokens are three tiles and a little
    // Of short groups all 256 keys are under way: where they are few, nothing else hides the way to the L2.
    static constexpr int STAGES = CAUSAL || GRID ? 2 * OF : 4;
    static constexpr int WARPS = 4 * OF, THREADS = WARPS * 32, QUERIES = WARPS * 16;
    using tile = swizzled_tile<L, D>;
    static constexpr int QUERY_ROW = QUERIES + GAP;
    static constexpr uint32_t QUERY_BYTES = D * QUERY_ROW * 2, STAGE_BYTES = 2 * tile::BYTES;
    // Queries whose registers would be held from tile to tile are given away by ptxas 13.0 where D is 64: keys of the
    // second tile then met numerators. So they are read again for each tile there, and keep their room.
    static constexpr bool RELOADS = D == 64 && !GRID, WHOLE = RELOADS && !CAUSAL && OF == 2;
    static constexpr uint32_t QUERIES_AT = (RELOADS ? STAGES : STAGES - 1) * STAGE_BYTES; // else in the last stage's
    static constexpr uint32_t BARRIERS_AT =
        QUERIES_AT + (RELOADS                     ? (WHOLE ? 2 : 1) * QUERY_BYTES
                      : QUERY_BYTES > STAGE_BYTES ? QUERY_BYTES
                                                  : STAGE_BYTES);
    static constexpr uint32_t BIAS_AT = BARRIERS_AT + 64;
    static constexpr int BLOCKS = (D <= 64 ? 4 : 2) / OF;
    static constexpr uint32_t ALIGNMENT = 1024;

    struct maps {
        CUtensorMap keys, values;
    };

    static __device__ __forceinline__ void use_maps(const maps &with, piece *p)
    {
        p->key_map = &with.keys, p->value_map = &with.values;
    }

    // The engine brings tiles, a barrier for each stage: one thread says so, and no thread's own writes, which would have
    // to be fenced for every tile, stand between copies and products.
    static __device__ __forceinline__ void start(uint32_t shared)
    {
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; i++) {
                ptx::barrier_init(shared + BARRIERS_AT + (uint32_t)i * 8, 1);
            }
            ptx::barrier_init_fence();
        }
    }
    static __device__ __forceinline__ void fetch(const piece &p, uint32_t shared, int j, int tiles)
    {
        if (threadIdx.x != 0 || j >= tiles) {
            return;
        }
        uint32_t stage = shared + (uint32_t)(j % STAGES) * STAGE_BYTES;
        uint32_t barrier = shared + BARRIERS_AT + (uint32_t)(j % STAGES) * 8;
        ptx::barrier_expect(barrier, STAGE_BYTES);
        copy_tile((const CUtensorMap *)p.key_map, p, j * KEYS, stage, barrier);
        copy_tile((const CUtensorMap *)p.value_map, p, j * KEYS, stage + tile::BYTES, barrier);
    }
    static __device__ __forceinline__ void await_queries()
    {
        ptx::copy_wait<0>();
    }
    static __device__ __forceinline__ void await(uint32_t shared, int j)
    {
        ptx::barrier_wait(shared + BARRIERS_AT + (uint32_t)(j % STAGES) * 8, (uint32_t)(j / STAGES) & 1);
    }
    // Values of keys that are not there become zeros: 0 times what lies there could be NaN. For all threads.
    static __device__ __forceinline__ void clean(const piece &p, uint32_t stage, int key)
    {
        int valid = p.keys_count - key;
        if (valid >= KEYS) {
            return;
        }
        constexpr int PIECES = (L == COLUMNS ? KEYS : tile::BLOCKS * SWIZZLED) / 8;
#pragma unroll 1
        for (int i = threadIdx.x; i < tile::HEIGHT * PIECES; i += THREADS) {
            int row = i / PIECES, column = i % PIECES * 8;
            int there = L == COLUMNS ? valid - column : row < valid ? 8 : 0;
            if (there < 8) {
                uint32_t at = stage + tile::BYTES + tile::place(row, column);
                uint4 v = there > 0 ? ptx::load_shared_16(at) : make_uint4(0, 0, 0, 0);
                v.x &= ptx::first_halves(there), v.y &= ptx::first_halves(there - 2);
                v.z &= ptx::first_halves(there - 4), v.w &= ptx::first_halves(there - 6);
                ptx::store_shared_16(at, v);
            }
        }
        ptx::async_fence();
        __syncthreads();
    }

    template <int WIDE>
    static __device__ __forceinline__ void add_scores(const uint32_t (&q)[M][D / 16][4], uint32_t stage,
                                                      float (&s)[M][WIDE][4])
    {
        ptx::name_registers(s[0]);
        ptx::product_fence();
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint64_t keys = tile::template operand<L == COLUMNS>(stage, k * 16);
            ptx::attention_product<WIDE * 8, BF16, L == COLUMNS>::run(s[0], q[0][k], keys);
        }
        ptx::product_commit();
        ptx::product_wait<0>();
        ptx::name_registers(s[0]);
        ptx::name_registers(q[0]);
    }
    template <int WIDE>
    static __device__ __forceinline__ void add_values(const float (&s)[M][WIDE][4], uint32_t stage,
                                                      running<M, D> *r)
    {
        uint32_t a[WIDE / 2][4];
#pragma unroll
        for (int k = 0; k < WIDE / 2; k++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *pair = &s[0][2 * k + i / 2][i % 2 * 2];
                a[k][i] = ptx::pack<BF16>(pair[0], pair[1]);
            }
        }
        ptx::name_registers(a);
        ptx::name_registers(r->o[0]);
        ptx::product_fence();
#pragma unroll
        for (int k = 0; k < WIDE / 2; k++) {
            uint64_t values = tile::template operand<L == ROWS>(stage + tile::BYTES, k * 16);
            ptx::attention_product<D, BF16, L == ROWS>::run(r->o[0], a[k], values);
        }
        ptx::product_commit();
        ptx::product_wait<0>();
        ptx::name_registers(r->o[0]);
        ptx::name_registers(a);
    }

private:
    static __device__ __forceinline__ void copy_tile(const CUtensorMap *map, const piece &p, int key,
                                                     uint32_t to, uint32_t barrier)
    {
        if constexpr (L == COLUMNS) {
            ptx::tensor_copy(to, map, p.column + key, 0, p.head, barrier);
        } else {
#pragma unroll
            for (int i = 0; i < tile::BLOCKS; i++) {
                ptx::tensor_copy(to + (uint32_t)i * tile::BLOCK_BYTES, map, i * SWIZZLED, key, p.head,
                                 barrier);
            }
        }
    }
};

// ---- tensor maps ----

using encode_function = CUresult (*)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                     const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                     const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                     CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

inline encode_function find_encode()
{
    void *function = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaError_t failed = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                          12000, cudaEnableDefault, &found);
    return failed == cudaSuccess ? (encode_function)function : nullptr;
}

// 16-bit numbers of heads, rows and columns; a box is 64 columns of `high` rows, zeros outside.
inline int describe(const void *base, int64_t columns, int64_t rows, int64_t heads, int64_t stride,
                    int64_t head_stride, int high, CUtensorMap *map)
{
    static const encode_function encode = find_encode();
    if (encode == nullptr) {
        return cudaErrorNotSupported;
    }
    const cuuint64_t sizes[3] = {(cuuint64_t)columns, (cuuint64_t)rows, (cuuint64_t)heads};
    const cuuint64_t strides[2] = {(cuuint64_t)stride * 2, (cuuint64_t)head_stride * 2};
    const cuuint32_t box[3] = {SWIZZLED, (cuuint32_t)high, 1}, steps[3] = {1, 1, 1};
    CUresult failed = encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 3, (void *)base, sizes, strides,
                             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return failed == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <class C> int describe_keys(const gpu_attention_groups &a, typename C::maps *with)
{
    int64_t columns = a.starts != nullptr ? a.stride : (a.groups - 1) * a.pitch + a.tokens;
    int64_t head = a.head_dim * a.stride;
    int failed = describe(a.k, columns, a.head_dim, a.heads, a.stride, head, C::D, &with->keys);
    return failed != 0 ? failed
                       : describe(a.v, columns, a.head_dim, a.heads, a.stride, head, C::D, &with->values);
}
template <class C> int describe_keys(const gpu_attention_prefill &a, typename C::maps *with)
{
    int64_t head = a.capacity * a.head_dim;
    int failed = describe(a.keys, a.head_dim, a.capacity, a.kv_heads, a.head_dim, head, C::KEYS, &with->keys);
    return failed != 0 ? failed
                       : describe(a.values, a.head_dim, a.capacity, a.kv_heads, a.head_dim, head,
                                  C::KEYS, &with->values);
}

template <class C, class A> int launch_described(const A &a, void *stream)
{
    typename C::maps with;
    int failed = describe_keys<C>(a, &with);
    return failed != 0 ? failed : launch<C>(a, with, stream);
}

constexpr int MANY_TOKENS = 1024; // of a prefill

// One warpgroup or two: what was faster on an H100.
template <bool BF16, int D> int launch_groups_sm90(const gpu_attention_groups &a, void *stream)
{
    using two = warpgroups_of<BF16, COLUMNS, D, false, false, 2>;
    if (a.row_table != nullptr) {
        return launch_described<warpgroups_of<BF16, COLUMNS, D, false, true, 1>>(a, stream);
    }
    if constexpr (D == 64) {
        if (rounds_of<two>(a) == 1) {
            return launch_described<warpgroups_of<BF16, COLUMNS, D, false, false, 1>>(a, stream);
        }
    }
    return launch_described<two>(a, stream);
}
template <bool BF16, int D> int launch_prefill_sm90(const gpu_attention_prefill &a, void *stream)
{
    return a.tokens >= MANY_TOKENS ? launch_described<warpgroups_of<BF16, ROWS, D, true, false, 1>>(a, stream)
                                   : launch_described<warpgroups_of<BF16, ROWS, D, true, false, 2>>(a, stream);
}

#define ESP_SM90_BY_HEAD_DIM(LAUNCH, BF16)                                                         \
    (a->head_dim <= 32   ? LAUNCH<BF16, 32>(*a, stream)                                            \
     : a->head_dim <= 64 ? LAUNCH<BF16, 64>(*a, stream)                                            \
     : a->head_dim <= 80 ? LAUNCH<BF16, 80>(*a, stream)                                            \
     : a->head_dim <= 96 ? LAUNCH<BF16, 96>(*a, stream)                                            \
                         : LAUNCH<BF16, 128>(*a, stream))

} // namespace attention

#endif
