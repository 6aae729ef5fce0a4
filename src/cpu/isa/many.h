/* Products for many tokens. X lies in packed tiles (level.h): one input feature of a tile is a few
 * whole vectors, so a stored weight costs a broadcast and one fused multiply-add per vector,
 * wherever its column is. Depth is walked in blocks: a block's weights of all rows are decoded once
 * into scratch, then used for every tile; sums live in registers inside a block and in `sums`
 * between blocks. Each sum is built in the order of its entries, whatever the shape of the piece.
 *
 * dense:  R rows x V vectors of sums in registers; V loads of X serve R rows.
 * sparse: rows choose their own columns, so each multiply-add loads its X: limit 2 loads a cycle,
 * not 2 multiply-adds. Wide tiles (8 vectors a row) keep the other loads rare. */
#ifndef ESP_CPU_ISA_MANY_H
#define ESP_CPU_ISA_MANY_H

#include "cpu/isa/nm.h"
#include "cpu/isa/vec.h"
#include "cpu/level.h"

#if LANES == 16
#define DENSE_ROWS 6
#define DENSE_VECTORS 4
#elif LANES == 8
#define DENSE_ROWS 6
#define DENSE_VECTORS 2
#else
#define DENSE_ROWS 4
#define DENSE_VECTORS 2
#endif
#define SPARSE_VECTORS 8

/* Vectors of the tile that begins with `left` vectors still to do. */
ALWAYS_INLINE int tile_vectors(int most, int64_t left)
{
    int vectors = most;
    while (vectors > left) {
        vectors /= 2;
    }
    return vectors;
}

/* count <= room weights of a row widened, the rest of `to` up to whole vectors zero. */
ALWAYS_INLINE void decode_values_as(esp_dtype dtype, bool rounds, const void *values, int64_t at,
                                    int64_t count, float *to)
{
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        vec wide = vec_load_weights(dtype, values, at + i);
        vec_store(to + i, rounds ? vec_round_bf16(wide) : wide);
    }
    if (i < count) {
        unsigned char tail[4 * LANES] = {0};
        size_t width = dtype == ESP_F32 ? 4 : 2;
        memcpy(tail, (const char *)values + (size_t)(at + i) * width, (size_t)(count - i) * width);
        vec wide = vec_load_weights(dtype, tail, 0);
        vec_store(to + i, rounds ? vec_round_bf16(wide) : wide);
    }
}

static void decode_values(const cpu_piece *piece, int64_t at, int64_t count, float *to)
{
    const esp_host_weight *weight = piece->weight;
    switch (weight->dtype) {
    case ESP_F32:
        decode_values_as(ESP_F32, piece->rounds, weight->values, at, count, to);
        break;
    case ESP_BF16:
        decode_values_as(ESP_BF16, false, weight->values, at, count, to);
        break;
    default:
        decode_values_as(ESP_F16, piece->rounds, weight->values, at, count, to);
    }
}

/* ---- dense ---- */

/* R rows of weights [R][CPU_DENSE_DEPTH] times a tile [depth][V vectors]. */
#define DENSE_TILE(R, V)                                                                           \
    static void dense_tile_##R##x##V(const float *weights, const float *x, int64_t depth,          \
                                     float *sums, int64_t stride, bool first)                      \
    {                                                                                              \
        vec sum[R][V];                                                                             \
        _Pragma("GCC unroll 8") for (int r = 0; r < R; r++)                                        \
        {                                                                                          \
            _Pragma("GCC unroll 8") for (int v = 0; v < V; v++)                                    \
            {                                                                                      \
                sum[r][v] = first ? (vec){0} : vec_load(sums + r * stride + v * LANES);            \
            }                                                                                      \
        }                                                                                          \
        for (int64_t k = 0; k < depth; k++) {                                                      \
            vec row[V];                                                                            \
            _Pragma("GCC unroll 8") for (int v = 0; v < V; v++)                                    \
            {                                                                                      \
                row[v] = vec_load(x + (k * V + v) * LANES);                                        \
            }                                                                                      \
            _Pragma("GCC unroll 8") for (int r = 0; r < R; r++)                                    \
            {                                                                                      \
                vec w = vec_set(weights[r * CPU_DENSE_DEPTH + k]);                                 \
                _Pragma("GCC unroll 8") for (int v = 0; v < V; v++)                                \
                {                                                                                  \
                    sum[r][v] = vec_fma(w, row[v], sum[r][v]);                                     \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
        _Pragma("GCC unroll 8") for (int r = 0; r < R; r++)                                        \
        {                                                                                          \
            _Pragma("GCC unroll 8") for (int v = 0; v < V; v++)                                    \
            {                                                                                      \
                vec_store(sums + r * stride + v * LANES, sum[r][v]);                               \
            }                                                                                      \
        }                                                                                          \
    }

typedef void (*dense_tile_fn)(const float *weights, const float *x, int64_t depth, float *sums,
                              int64_t stride, bool first);

DENSE_TILE(1, 1)
DENSE_TILE(2, 1)
DENSE_TILE(1, 2)
DENSE_TILE(2, 2)
#if DENSE_ROWS == 6
DENSE_TILE(6, 1)
DENSE_TILE(6, 2)
#else
DENSE_TILE(4, 1)
DENSE_TILE(4, 2)
#endif
#if DENSE_VECTORS == 4
DENSE_TILE(1, 4)
DENSE_TILE(2, 4)
DENSE_TILE(6, 4)
#endif

/* [log2 of vectors][rows: DENSE_ROWS, 2, 1] */
static const dense_tile_fn dense_tiles[][3] = {
#if DENSE_ROWS == 6
    {dense_tile_6x1, dense_tile_2x1, dense_tile_1x1},
    {dense_tile_6x2, dense_tile_2x2, dense_tile_1x2},
#else
    {dense_tile_4x1, dense_tile_2x1, dense_tile_1x1},
    {dense_tile_4x2, dense_tile_2x2, dense_tile_1x2},
#endif
#if DENSE_VECTORS == 4
    {dense_tile_6x4, dense_tile_2x4, dense_tile_1x4},
#endif
};

static void dense_tile_rows(const cpu_piece *piece, int vectors, const float *x, int64_t depth,
                            float *sums, bool first)
{
    static const int rows_of[3] = {DENSE_ROWS, 2, 1};
    const dense_tile_fn *tiles = dense_tiles[vectors == 4 ? 2 : vectors - 1];
    int64_t row = 0;
    for (int kind = 0; kind < 3; kind++) {
        for (; row + rows_of[kind] <= piece->rows; row += rows_of[kind]) {
            tiles[kind](piece->scratch + row * CPU_DENSE_DEPTH, x, depth,
                        sums + row * piece->sums_stride, piece->sums_stride, first);
        }
    }
}

static void many_dense(const cpu_piece *piece)
{
    const esp_host_weight *weight = piece->weight;
    int64_t in = cpu_dense_columns(weight);
    for (int64_t k = 0; k < in; k += CPU_DENSE_DEPTH) {
        int64_t depth = ESP_MIN(CPU_DENSE_DEPTH, in - k);
        for (int64_t r = 0; r < piece->rows; r++) {
            decode_values(piece, (piece->row + r) * in + k, depth,
                          piece->scratch + r * CPU_DENSE_DEPTH);
        }
        for (int64_t done = 0; done < piece->tokens;) {
            int vectors = tile_vectors(DENSE_VECTORS, (piece->tokens - done) / LANES);
            const float *tile = piece->x + (piece->token + done) * piece->x_rows;
            dense_tile_rows(piece, vectors, tile + k * vectors * LANES, depth, piece->sums + done,
                            k == 0);
            done += vectors * LANES;
        }
    }
}

/* ---- sparse ---- */

/* Decoded entries of a block: values [rows][CPU_SPARSE_DEPTH], and the byte offset of each entry's
 * X in a tile of one vector (a tile of V vectors: times V). */
typedef struct sparse_block {
    float *values;
    uint32_t *offsets;
    int64_t depth;
} sparse_block;

/* R rows of a block times a tile of V vectors. */
#define SPARSE_TILE(R, V)                                                                          \
    static void sparse_tile_##R##x##V(const float *values, const uint32_t *offsets, int64_t depth, \
                                      const char *x, float *sums, int64_t stride, bool first)      \
    {                                                                                              \
        vec sum[R][V];                                                                             \
        _Pragma("GCC unroll 8") for (int r = 0; r < R; r++)                                        \
        {                                                                                          \
            _Pragma("GCC unroll 8") for (int v = 0; v < V; v++)                                    \
            {                                                                                      \
                sum[r][v] = first ? (vec){0} : vec_load(sums + r * stride + v * LANES);            \
            }                                                                                      \
        }                                                                                          \
        for (int64_t j = 0; j < depth; j++) {                                                      \
            _Pragma("GCC unroll 8") for (int r = 0; r < R; r++)                                    \
            {                                                                                      \
                vec w = vec_set(values[r * CPU_SPARSE_DEPTH + j]);                                 \
                const float *row =                                                                 \
                    (const void *)(x + (size_t)offsets[r * CPU_SPARSE_DEPTH + j] * V);             \
                __asm__("" : "+r"(row)); /* one address, constant offsets: cheaper than indexed */ \
                _Pragma("GCC unroll 8") for (int v = 0; v < V; v++)                                \
                {                                                                                  \
                    sum[r][v] = vec_fma(w, vec_load(row + v * LANES), sum[r][v]);                  \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
        _Pragma("GCC unroll 8") for (int r = 0; r < R; r++)                                        \
        {                                                                                          \
            _Pragma("GCC unroll 8") for (int v = 0; v < V; v++)                                    \
            {                                                                                      \
                vec_store(sums + r * stride + v * LANES, sum[r][v]);                               \
            }                                                                                      \
        }                                                                                          \
    }

typedef void (*sparse_tile_fn)(const float *values, const uint32_t *offsets, int64_t depth,
                               const char *x, float *sums, int64_t stride, bool first);

SPARSE_TILE(1, 1)
SPARSE_TILE(8, 1)
SPARSE_TILE(1, 2)
SPARSE_TILE(4, 2)
SPARSE_TILE(1, 4)
SPARSE_TILE(2, 4)
SPARSE_TILE(1, 8)

/* Eight vectors of sums, and what is left row by row. */
static const struct {
    int rows;
    sparse_tile_fn full, single;
} sparse_tiles[] = {{8, sparse_tile_8x1, sparse_tile_1x1},
                    {4, sparse_tile_4x2, sparse_tile_1x2},
                    {2, sparse_tile_2x4, sparse_tile_1x4},
                    {1, sparse_tile_1x8, sparse_tile_1x8}};

static void sparse_tiles_run(const cpu_piece *piece, const sparse_block *block, bool first)
{
    for (int64_t done = 0; done < piece->tokens;) {
        int vectors = tile_vectors(SPARSE_VECTORS, (piece->tokens - done) / LANES);
        int kind = vectors == 8 ? 3 : vectors / 2;
        int rows = sparse_tiles[kind].rows;
        const char *x = (const char *)(piece->x + (piece->token + done) * piece->x_rows);
        float *sums = piece->sums + done;
        for (int64_t r = 0; r < piece->rows;) {
            bool full = r + rows <= piece->rows;
            (full ? sparse_tiles[kind].full : sparse_tiles[kind].single)(
                block->values + r * CPU_SPARSE_DEPTH, block->offsets + r * CPU_SPARSE_DEPTH,
                block->depth, x, sums + r * piece->sums_stride, piece->sums_stride, first);
            r += full ? rows : 1;
        }
        done += vectors * LANES;
    }
}

#define VECTOR_BYTES (4u * LANES)

static void many_nm(const cpu_piece *piece)
{
    const esp_host_weight *weight = piece->weight;
    sparse_block block = {.values = piece->scratch};
    block.offsets = (uint32_t *)(void *)(piece->scratch + CPU_MAX_ROWS * CPU_SPARSE_DEPTH);
    for (int64_t j = 0; j < weight->row_values; j += CPU_SPARSE_DEPTH) {
        block.depth = ESP_MIN(CPU_SPARSE_DEPTH, weight->row_values - j);
        uint32_t bases[CPU_SPARSE_DEPTH];
        nm_bases(weight, j, block.depth, VECTOR_BYTES, bases);
        for (int64_t r = 0; r < piece->rows; r++) {
            int64_t row = piece->row + r;
            decode_values(piece, row * weight->row_values + j, block.depth,
                          block.values + r * CPU_SPARSE_DEPTH);
            nm_columns(weight, row, j, block.depth, VECTOR_BYTES, bases,
                       block.offsets + r * CPU_SPARSE_DEPTH);
        }
        sparse_tiles_run(piece, &block, j == 0);
    }
}

#endif
