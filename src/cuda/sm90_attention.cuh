// Attention of a block of queries by warpgroup products, on compute capability 9.0: as attention_block.cuh, but a
// warpgroup has 64 queries, and keys and values stand in shared memory as wgmma reads them: blocks of rows of 128
// bytes, the 16-byte piece c of row r at c ^ (r & 7). Either way round is a descriptor's matter, so nothing is turned.
//
// One product waits for the other inside a warpgroup; warpgroups of two blocks or more share the tensor cores, so that
// some multiply while others take powers.
#ifndef ESP_CUDA_SM90_ATTENTION_CUH
#define ESP_CUDA_SM90_ATTENTION_CUH

#include "cuda/attention_general.cuh"
#include "cuda/sm90_attention_ptx.cuh"

#ifndef ATT_STAGES
#define ATT_STAGES 4
#endif
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
        return ptx::descriptor(tile + at, BLOCK_BYTES, 1024, 1);
    }
};

template <bool IS_BF16, layout KEYS_AS, int FEATURES, bool IS_CAUSAL, bool HAS_GRID>
struct warpgroups_of {
    static constexpr bool BF16 = IS_BF16, CAUSAL = IS_CAUSAL, GRID = HAS_GRID;
    static constexpr layout L = KEYS_AS;
    static constexpr int D = FEATURES, M = 1, KEYS = 64, TOGETHER = 4;
    static constexpr int LAST_KEYS = CAUSAL ? KEYS : 16; // 197 tokens are three tiles and a little
    static constexpr int STAGES = GRID && D <= 64 ? 2 : ATT_STAGES; // short groups have all their keys under way
    static constexpr int WARPS = 8, THREADS = WARPS * 32, QUERIES = WARPS * 16;
    using tile = swizzled_tile<L, D>;
    static constexpr int QUERY_ROW = QUERIES + GAP;
    static constexpr uint32_t QUERY_BYTES = D * QUERY_ROW * 2, STAGE_BYTES = 2 * tile::BYTES;
    // Queries whose registers would be held from tile to tile are given away by ptxas 13.0 where D is 64: keys of the
    // second tile then met numerators. So they are read again for each tile there, and keep their room.
    static constexpr bool RELOADS = D == 64 && !GRID, WHOLE = RELOADS && !CAUSAL;
    static constexpr uint32_t QUERIES_AT = (RELOADS ? STAGES : STAGES - 1) * STAGE_BYTES; // else in the last stage's
    static constexpr uint32_t BIAS_AT =
        QUERIES_AT + (RELOADS                     ? (WHOLE ? 2 : 1) * QUERY_BYTES
                      : QUERY_BYTES > STAGE_BYTES ? QUERY_BYTES
                                                  : STAGE_BYTES);
    static constexpr int BLOCKS = D <= 64 ? 2 : 1;
    static constexpr uint32_t ALIGNMENT = 1024;

    static __device__ __forceinline__ void load(const piece &p, uint32_t stage, int key)
    {
        int64_t at = L == COLUMNS ? key : (int64_t)key * p.features;
        int64_t stride = L == COLUMNS ? p.key_stride : p.features;
        load_tile(stage, p.keys + at, stride, p.features, p.keys_count - key);
        load_tile(stage + tile::BYTES, p.values + at, stride, p.features, p.keys_count - key);
    }
    // What the tensor cores read was written by ordinary copies.
    static __device__ __forceinline__ void arrived()
    {
        ptx::async_fence();
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
    static __device__ __forceinline__ void load_tile(uint32_t to, const uint16_t *from, int64_t stride,
                                                     int features, int valid)
    {
        constexpr int PIECES = (L == COLUMNS ? KEYS : D) / 8, ALL = tile::HEIGHT * PIECES;
        constexpr int STEP = THREADS / PIECES; // rows
        if (THREADS % PIECES == 0 && STEP % 8 == 0 && features == D && valid >= KEYS) {
            int row = threadIdx.x / PIECES, column = threadIdx.x % PIECES * 8;
            uint32_t at = to + tile::place(row, column);
            const uint16_t *piece = from + row * stride + column;
#pragma unroll
            for (int i = 0; i < (ALL + THREADS - 1) / THREADS; i++) { // swizzled alike every eight rows
                if (ALL % THREADS == 0 || row + i * STEP < tile::HEIGHT) {
                    ptx::copy_16(at + i * STEP * 128, piece + i * STEP * stride);
                }
            }
            return;
        }
#pragma unroll 1
        for (int i = threadIdx.x; i < ALL; i += THREADS) {
            int row = i / PIECES, column = i % PIECES * 8;
            int key = L == COLUMNS ? column : row, feature = L == COLUMNS ? row : column;
            int bytes = feature >= features ? 0
                        : L == ROWS         ? (key < valid ? 16 : 0)
                                            : min(max(valid - key, 0), 8) * 2;
            const uint16_t *piece = from + row * stride + column;
            ptx::copy_16(to + tile::place(row, column), bytes > 0 ? piece : from, (uint32_t)bytes);
        }
    }
};

template <bool BF16, int D> int launch_groups_sm90(const gpu_attention_groups &a, void *stream)
{
    return a.row_table != nullptr
               ? launch<warpgroups_of<BF16, COLUMNS, D, false, true>>(a, stream)
               : launch<warpgroups_of<BF16, COLUMNS, D, false, false>>(a, stream);
}
template <bool BF16, int D> int launch_prefill_sm90(const gpu_attention_prefill &a, void *stream)
{
    return launch<warpgroups_of<BF16, ROWS, D, true, false>>(a, stream);
}

#define ESP_SM90_BY_HEAD_DIM(LAUNCH, BF16)                                                         \
    (a->head_dim <= 32   ? LAUNCH<BF16, 32>(*a, stream)                                            \
     : a->head_dim <= 64 ? LAUNCH<BF16, 64>(*a, stream)                                            \
     : a->head_dim <= 80 ? LAUNCH<BF16, 80>(*a, stream)                                            \
     : a->head_dim <= 96 ? LAUNCH<BF16, 96>(*a, stream)                                            \
                         : LAUNCH<BF16, 128>(*a, stream))

} // namespace attention

#endif
