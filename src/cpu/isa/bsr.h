/* Products of weights of blocks RxC.
 *
 * Many tokens: a block row is a small dense product whose depth is the list of its blocks. A few
 * rows x V vectors of sums stay in registers while a batch of blocks of about CPU_DENSE_DEPTH
 * columns passes by, so that the rows of X that a batch reads (32 KiB) come from L1 for all rows
 * but the first few; f32 values are read where they lie, others are widened into scratch first.
 * Limit: multiply-adds, as dense; blocks of few rows load X from L2 for as few multiply-adds.
 *
 * Few tokens: values stream past once, in the order in which they lie. Blocks of at most LANES
 * columns are taken as flat vectors: x of the block's columns is one vector, permuted to the
 * columns that stand under LANES consecutive values; the flat sums of a block row are added up at
 * its end. Wider blocks go row by row. Limit: the memory that values stream from. */
#ifndef ESP_CPU_ISA_BSR_H
#define ESP_CPU_ISA_BSR_H

#include "cpu/isa/few.h"
#include "cpu/isa/many.h"
#include "cpu/isa/vec.h"
#include "cpu/level.h"

/* ---- many tokens ---- */

/* Blocks side by side in memory: value (r, c) of block k is values[k * block + r * row + c]. */
typedef struct bsr_batch {
    const float *values;
    int64_t block, row; /* strides */
    int64_t count, width;
    const uint32_t *columns; /* [count] first columns */
} bsr_batch;

typedef void (*bsr_tile_fn)(const bsr_batch *batch, const float *values, const float *x,
                            float *sums, int64_t stride, bool first);

/* R rows of all blocks of a batch times a tile of V vectors; values: of the first of the rows. */
#define BSR_TILE(R, V)                                                                             \
    static void bsr_tile_##R##x##V(const bsr_batch *batch, const float *values, const float *x,    \
                                   float *sums, int64_t stride, bool first)                        \
    {                                                                                              \
        vec sum[R][V];                                                                             \
        _Pragma("GCC unroll 8") for (int r = 0; r < R; r++)                                        \
        {                                                                                          \
            _Pragma("GCC unroll 8") for (int v = 0; v < V; v++)                                    \
            {                                                                                      \
                sum[r][v] = first ? (vec){0} : vec_load(sums + r * stride + v * LANES);            \
            }                                                                                      \
        }                                                                                          \
        for (int64_t k = 0; k < batch->count; k++, values += batch->block) {                       \
            const float *row = x + (size_t)batch->columns[k] * (V * LANES);                        \
            for (int64_t c = 0; c < batch->width; c++, row += V * LANES) {                         \
                vec in[V];                                                                         \
                _Pragma("GCC unroll 8") for (int v = 0; v < V; v++)                                \
                {                                                                                  \
                    in[v] = vec_load(row + v * LANES);                                             \
                }                                                                                  \
                _Pragma("GCC unroll 8") for (int r = 0; r < R; r++)                                \
                {                                                                                  \
                    vec w = vec_set(values[r * batch->row + c]);                                   \
                    _Pragma("GCC unroll 8") for (int v = 0; v < V; v++)                            \
                    {                                                                              \
                        sum[r][v] = vec_fma(w, in[v], sum[r][v]);                                  \
                    }                                                                              \
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

#define BSR_TILES(V)                                                                               \
    BSR_TILE(1, V)                                                                                 \
    BSR_TILE(2, V)                                                                                 \
    BSR_TILE(3, V)                                                                                 \
    BSR_TILE(4, V)                                                                                 \
    BSR_TILE(6, V)                                                                                 \
    static const bsr_tile_fn bsr_tiles_##V[7] = {NULL,           bsr_tile_1x##V, bsr_tile_2x##V,   \
                                                 bsr_tile_3x##V, bsr_tile_4x##V, NULL,             \
                                                 bsr_tile_6x##V};

BSR_TILES(1)
BSR_TILES(2)
#if DENSE_VECTORS == 4
BSR_TILES(4)
#endif

/* Rows of the next tile when `left` remain: none has so few sums that multiply-adds wait for each
 * other, if that can be had. */
ALWAYS_INLINE int bsr_rows(int64_t left)
{
    return left == 7 || left == 8 ? 4 : left == 5 ? 3 : left >= 6 ? 6 : (int)left;
}

/* rows: of the piece that are in the block row, from its row `row` on. */
static void bsr_batch_run(const cpu_piece *piece, const bsr_batch *batch, int64_t row, int64_t rows,
                          bool first)
{
    for (int64_t done = 0; done < piece->tokens;) {
        int vectors = tile_vectors(DENSE_VECTORS, (piece->tokens - done) / LANES);
        const bsr_tile_fn *tiles = vectors == 1 ? bsr_tiles_1 : bsr_tiles_2;
#if DENSE_VECTORS == 4
        tiles = vectors == 4 ? bsr_tiles_4 : tiles;
#endif
        const float *x = piece->x + (piece->token + done) * piece->x_rows;
        for (int64_t r = 0; r < rows;) {
            int some = bsr_rows(rows - r);
            tiles[some](batch, batch->values + r * batch->row, x,
                        piece->sums + (row + r) * piece->sums_stride + done, piece->sums_stride,
                        first);
            r += some;
        }
        done += vectors * LANES;
    }
}

/* Columns c .. c + width - 1 of `count` blocks from block k on, row `skip` of the blocks first. */
static bsr_batch bsr_batch_of(const cpu_piece *piece, int64_t k, int64_t count, int64_t c,
                              int64_t width, int64_t skip, int64_t rows, uint32_t *columns)
{
    const esp_host_weight *weight = piece->weight;
    int64_t block = weight->block_rows * weight->block_cols;
    int64_t at = k * block + skip * weight->block_cols + c;
    for (int64_t i = 0; i < count; i++) {
        columns[i] =
            esp_host_index(weight->list, weight->list_wide, k + i) * (uint32_t)weight->block_cols +
            (uint32_t)c;
    }
    bsr_batch batch = {.count = count, .width = width, .columns = columns};
    if (weight->dtype == ESP_F32 && !piece->rounds) {
        batch.values = (const float *)weight->values + at;
        batch.block = block;
        batch.row = weight->block_cols;
        return batch;
    }
    batch.values = piece->scratch;
    if (width == weight->block_cols) { /* rows follow each other: one long row */
        batch.row = width;
        batch.block = (rows * width + 15) / 16 * 16;
        for (int64_t i = 0; i < count; i++) {
            decode_values(piece, at + i * block, rows * width, piece->scratch + i * batch.block);
        }
    } else {
        batch.row = CPU_DENSE_DEPTH;
        for (int64_t r = 0; r < rows; r++) {
            decode_values(piece, at + r * weight->block_cols, width,
                          piece->scratch + r * CPU_DENSE_DEPTH);
        }
    }
    return batch;
}

/* The rows of the piece from its row `row` on that lie in block row `line`. */
static void bsr_line(const cpu_piece *piece, int64_t line, int64_t row, int64_t rows)
{
    const esp_host_weight *weight = piece->weight;
    int64_t width = weight->block_cols, skip = piece->row + row - line * weight->block_rows;
    int64_t k = esp_host_offset(weight, line), end = esp_host_offset(weight, line + 1);
    uint32_t columns[CPU_DENSE_DEPTH];
    bool first = true;
    int64_t whole = end; /* the last block may hang over the right edge */
    if (k < end) {
        int64_t last = esp_host_index(weight->list, weight->list_wide, end - 1);
        whole -= width > CPU_DENSE_DEPTH ? end - k : (last + 1) * width > weight->in_features;
    }
    for (; k < whole; first = false) {
        int64_t count = ESP_MIN(whole - k, CPU_DENSE_DEPTH / width);
        bsr_batch batch = bsr_batch_of(piece, k, count, 0, width, skip, rows, columns);
        bsr_batch_run(piece, &batch, row, rows, first);
        k += count;
    }
    for (; k < end; k++) {
        int64_t column = width * esp_host_index(weight->list, weight->list_wide, k);
        int64_t held = ESP_MIN(width, weight->in_features - column);
        for (int64_t c = 0; c < held; c += CPU_DENSE_DEPTH, first = false) {
            int64_t some = ESP_MIN(CPU_DENSE_DEPTH, held - c);
            bsr_batch batch = bsr_batch_of(piece, k, 1, c, some, skip, rows, columns);
            bsr_batch_run(piece, &batch, row, rows, first);
        }
    }
    for (int64_t r = row; first && r < row + rows; r++) {
        memset(piece->sums + r * piece->sums_stride, 0, (size_t)piece->tokens * sizeof(float));
    }
}

static void many_bsr(const cpu_piece *piece)
{
    int64_t height = piece->weight->block_rows;
    for (int64_t row = 0; row < piece->rows;) {
        int64_t line = (piece->row + row) / height;
        int64_t rows = ESP_MIN(piece->rows - row, (line + 1) * height - piece->row - row);
        bsr_line(piece, line, row, rows);
        row += rows;
    }
}

/* ---- few tokens ---- */

/* LANES weights from `at` on; behind the last value of the weight nothing is read. */
ALWAYS_INLINE vec bsr_values(esp_dtype dtype, const void *values, int64_t at, int64_t all)
{
    return at + LANES <= all ? vec_load_weights(dtype, values, at)
                             : load_last_weights(dtype, values, at, all - at);
}

ALWAYS_INLINE int64_t bsr_all_values(const esp_host_weight *weight)
{
    return weight->listed * weight->block_rows * weight->block_cols;
}

/* LANES of 1..LANES floats of which the first lie at x. */
ALWAYS_INLINE vec bsr_permute(vec x, uvec index)
{
#if LANES == 16
    return (vec)_mm512_permutexvar_ps((__m512i)index, (__m512)x);
#elif LANES == 8
    return (vec)_mm256_permutevar8x32_ps((__m256)x, (__m256i)index);
#else
    return __builtin_shuffle(x, index);
#endif
}

/* Blocks k..end-1 of a block row of narrow blocks: `count` vectors of values of each, from value
 * `skip` of the block on; sums: [count][tokens]. */
ALWAYS_INLINE void bsr_flat(const cpu_piece *piece, esp_dtype dtype, int tokens, int64_t count,
                            int64_t k, int64_t end, int64_t skip, const uvec *index, vec *sums)
{
    const esp_host_weight *weight = piece->weight;
    int64_t block = weight->block_rows * weight->block_cols, all = bsr_all_values(weight);
    for (; k < end; k++) {
        int64_t column = esp_host_index(weight->list, weight->list_wide, k) * weight->block_cols;
        vec x[CPU_FEW_TOKENS];
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) {
            x[t] = vec_load(piece->x + t * piece->x_stride + column);
        }
#pragma GCC unroll 4
        for (int64_t v = 0; v < count; v++) {
            vec w = bsr_values(dtype, weight->values, k * block + skip + v * LANES, all);
            vec_prefetch(dtype, weight->values, k * block + skip + v * LANES, VEC_AHEAD);
#pragma GCC unroll 4
            for (int t = 0; t < tokens; t++) {
                sums[v * tokens + t] =
                    vec_fma(w, bsr_permute(x[t], index[v]), sums[v * tokens + t]);
            }
        }
    }
}

/* The same with the sums of a few vectors in registers. */
ALWAYS_INLINE void bsr_flat_held(const cpu_piece *piece, esp_dtype dtype, int tokens, int count,
                                 int64_t k, int64_t end, int64_t skip, const uvec *index, vec *sums)
{
    vec held[4 * CPU_FEW_TOKENS] = {0};
    uvec indices[4];
    for (int v = 0; v < count; v++) {
        indices[v] = index[v];
    }
    bsr_flat(piece, dtype, tokens, count, k, end, skip, indices, held);
    for (int i = 0; i < count * tokens; i++) {
        sums[i] = held[i];
    }
}

/* Rows row .. row + rows - 1 of the piece, all of block row `line`, of blocks of <= LANES columns.
 * index: which column of a block stands under the values of each vector. */
ALWAYS_INLINE void bsr_narrow(const cpu_piece *piece, esp_dtype dtype, int tokens, int64_t line,
                              int64_t row, int64_t rows, const uvec *index, vec *sums)
{
    const esp_host_weight *weight = piece->weight;
    int64_t width = weight->block_cols, count = esp_ceil_div(rows * width, LANES);
    int64_t k = esp_host_offset(weight, line), end = esp_host_offset(weight, line + 1);
    int64_t skip = (piece->row + row - line * weight->block_rows) * width;
    if (count == 1) {
        bsr_flat_held(piece, dtype, tokens, 1, k, end, skip, index, sums);
    } else if (count == 2) {
        bsr_flat_held(piece, dtype, tokens, 2, k, end, skip, index, sums);
    } else if (count == 4) {
        bsr_flat_held(piece, dtype, tokens, 4, k, end, skip, index, sums);
    } else {
        memset(sums, 0, (size_t)(count * tokens) * sizeof *sums);
        bsr_flat(piece, dtype, tokens, count, k, end, skip, index, sums);
    }
    for (int64_t r = 0; r < rows; r++) {
        for (int t = 0; t < tokens; t++) {
            float sum = 0;
            for (int64_t i = r * width; i < (r + 1) * width; i++) {
                sum += ((const float *)&sums[i / LANES * tokens + t])[i % LANES];
            }
            piece->sums[(row + r) * piece->sums_stride + t] = sum;
        }
    }
}

/* The same of wider blocks: each row of a block by itself. sums: [rows][tokens]. */
ALWAYS_INLINE void bsr_wide(const cpu_piece *piece, esp_dtype dtype, int tokens, int64_t line,
                            int64_t row, int64_t rows, vec *sums)
{
    const esp_host_weight *weight = piece->weight;
    int64_t width = weight->block_cols, all = bsr_all_values(weight);
    int64_t k = esp_host_offset(weight, line), end = esp_host_offset(weight, line + 1);
    int64_t skip = piece->row + row - line * weight->block_rows;
    memset(sums, 0, (size_t)(rows * tokens) * sizeof *sums);
    for (; k < end; k++) {
        int64_t column = esp_host_index(weight->list, weight->list_wide, k) * width;
        int64_t held = ESP_MIN(width, weight->in_features - column);
        uvec outside = (uvec)(vec_lanes() >= (uint32_t)(held % LANES));
        for (int64_t r = 0; r < rows; r++) {
            int64_t at = (k * weight->block_rows + skip + r) * width, c = 0;
            for (; c + LANES <= held; c += LANES) {
                vec w = vec_load_weights(dtype, weight->values, at + c);
                vec_prefetch(dtype, weight->values, at + c, VEC_AHEAD);
#pragma GCC unroll 4
                for (int t = 0; t < tokens; t++) {
                    vec x = vec_load(piece->x + t * piece->x_stride + column + c);
                    sums[r * tokens + t] = vec_fma(w, x, sums[r * tokens + t]);
                }
            }
            if (c < held) {
                vec w = bsr_values(dtype, weight->values, at + c, all);
                w = (vec)((uvec)w & ~outside);
#pragma GCC unroll 4
                for (int t = 0; t < tokens; t++) {
                    uvec x = (uvec)vec_load(piece->x + t * piece->x_stride + column + c) & ~outside;
                    sums[r * tokens + t] = vec_fma(w, (vec)x, sums[r * tokens + t]);
                }
            }
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        for (int t = 0; t < tokens; t++) {
            piece->sums[(row + r) * piece->sums_stride + t] = vec_sum(sums[r * tokens + t]);
        }
    }
}

ALWAYS_INLINE void few_bsr_of(const cpu_piece *piece, esp_dtype dtype, int tokens)
{
    const esp_host_weight *weight = piece->weight;
    int64_t height = weight->block_rows, width = weight->block_cols;
    vec *sums = (vec *)(void *)piece->scratch;
    uvec index[CPU_MAX_ROWS];
    if (width <= LANES) {
        int64_t flat = ESP_MIN(height, CPU_MAX_ROWS) * width;
        for (int64_t i = 0; i < esp_ceil_div(flat, LANES) * LANES; i++) {
            index[i / LANES][i % LANES] = (uint32_t)(i % width);
        }
    }
    for (int64_t row = 0; row < piece->rows;) {
        int64_t line = (piece->row + row) / height;
        int64_t rows = ESP_MIN(piece->rows - row, (line + 1) * height - piece->row - row);
        if (width <= LANES) {
            bsr_narrow(piece, dtype, tokens, line, row, rows, index, sums);
        } else {
            bsr_wide(piece, dtype, tokens, line, row, rows, sums);
        }
        row += rows;
    }
}

#define FEW_BSR(name, dtype)                                                                       \
    static void name(const cpu_piece *piece)                                                       \
    {                                                                                              \
        switch (piece->tokens) {                                                                   \
        case 1:                                                                                    \
            few_bsr_of(piece, dtype, 1);                                                           \
            break;                                                                                 \
        case 2:                                                                                    \
            few_bsr_of(piece, dtype, 2);                                                           \
            break;                                                                                 \
        case 3:                                                                                    \
            few_bsr_of(piece, dtype, 3);                                                           \
            break;                                                                                 \
        default:                                                                                   \
            few_bsr_of(piece, dtype, 4);                                                           \
        }                                                                                          \
    }

FEW_BSR(few_bsr_f32, ESP_F32)
FEW_BSR(few_bsr_f16, ESP_F16)
FEW_BSR(few_bsr_bf16, ESP_BF16)

static void few_bsr(const cpu_piece *piece)
{
    static void (*const functions[3])(const cpu_piece *) = {few_bsr_f32, few_bsr_f16, few_bsr_bf16};
    functions[few_type(piece->weight->dtype)](piece);
}

#endif
