/* Products of unstructured weights: lists of (column, value), row by row.
 *
 * Many tokens: no two rows share columns, so each multiply-add loads its own X. It has to come from
 * L1: columns are walked in chunks whose rows of X fill two thirds of L1, and for each chunk all
 * rows of the piece (up to CPU_LIST_ROWS) add what they hold there, from a cursor on; their sums
 * wait in L2 meanwhile. So X passes by once a piece, and sums once a chunk.
 *
 *   chunk of columns, tile of V vectors of tokens             x: [columns][V] 32 KiB, L1
 *     CPU_LIST_BLOCK rows: entries of the chunk into scratch        values f32, offsets bytes
 *       rows in order of their counts                         the loop's end is foreseen
 *         V sums in registers += value * x[column]            sums: [rows][V], L2
 *
 * Limit: loads, two a cycle: V + 2 for V multiply-adds, and V more and V stores a row and chunk.
 *
 * Few tokens: a row's columns are gathered LANES at a time. Limit: the gather, about two thirds of
 * a cycle a value, or the memory that lists and values stream from. */
#ifndef ESP_CPU_ISA_CSR_H
#define ESP_CPU_ISA_CSR_H

#include "cpu/isa/few.h"
#include "cpu/isa/many.h"
#include "cpu/isa/vec.h"
#include "cpu/level.h"

#define CSR_CHUNK 32768 /* bytes of X */

/* ---- reading lists ---- */

ALWAYS_INLINE uvec csr_lanes(void)
{
    uvec lanes;
    for (unsigned i = 0; i < LANES; i++) {
        lanes[i] = i;
    }
    return lanes;
}

/* How many of a are below the limit. */
ALWAYS_INLINE uint32_t csr_count_below(uvec a, uint32_t limit)
{
#if LANES == 16
    return (uint32_t)__builtin_popcount(
        _mm512_cmplt_epu32_mask((__m512i)a, _mm512_set1_epi32((int)limit)));
#else
    uvec below = (uvec)(a < limit);
#if LANES == 8
    return (uint32_t)__builtin_popcount((unsigned)_mm256_movemask_ps((__m256)below));
#else
    uint32_t count = 0;
    for (int i = 0; i < LANES; i++) {
        count += below[i] & 1u;
    }
    return count;
#endif
#endif
}

/* LANES columns from entry `at` on, of which `left` belong to the row: UINT32_MAX behind it. */
ALWAYS_INLINE uvec csr_columns(const esp_host_weight *weight, int64_t at, int64_t left)
{
    uvec columns;
    if (at + LANES > weight->listed) { /* nothing may be read behind the list */
        columns = (uvec){0} + UINT32_MAX;
        for (int64_t i = 0; i < ESP_MIN(left, LANES); i++) {
            columns[i] = esp_host_index(weight->list, weight->list_wide, at + i);
        }
        return columns;
    }
    if (weight->list_wide) {
        memcpy(&columns, (const uint32_t *)weight->list + at, sizeof columns);
    } else {
        hvec half;
        memcpy(&half, (const uint16_t *)weight->list + at, sizeof half);
        columns = __builtin_convertvector(half, uvec);
    }
    if (left < LANES) {
        columns |= (uvec)(vec_lanes() >= (uint32_t)left);
    }
    return columns;
}

/* LANES values from entry `at` on, of which `left` belong to the row; what is behind it is not
 * meant to be used. */
ALWAYS_INLINE vec csr_values(const esp_host_weight *weight, esp_dtype dtype, int64_t at,
                             int64_t left)
{
    return at + LANES <= weight->listed
               ? vec_load_weights(dtype, weight->values, at)
               : load_last_weights(dtype, weight->values, at, ESP_MIN(left, LANES));
}

/* ---- many tokens ---- */

/* Entries of CPU_LIST_BLOCK rows in one chunk, and the rows in order of their counts. */
typedef struct csr_block {
    float *values;
    uint32_t *offsets; /* bytes from the chunk's first column on */
    uint32_t first[CPU_LIST_BLOCK], count[CPU_LIST_BLOCK];
    uint8_t order[CPU_LIST_BLOCK];
    uint32_t most; /* largest count */
} csr_block;

/* What row `row` holds in front of column `end`, from entry *cursor on. */
ALWAYS_INLINE uint32_t csr_decode_row(const cpu_piece *piece, esp_dtype dtype, bool rounds,
                                      int64_t row_end, uint32_t begin, uint32_t end, uint32_t step,
                                      int64_t *cursor, float *values, uint32_t *offsets)
{
    uint32_t count = 0;
    for (int64_t at = *cursor; at < row_end; at += LANES) {
        uvec columns = csr_columns(piece->weight, at, row_end - at);
        vec value = csr_values(piece->weight, dtype, at, row_end - at);
        uvec offset = (columns - begin) * step;
        vec_store(values + count, rounds ? vec_round_bf16(value) : value);
        memcpy(offsets + count, &offset, sizeof offset);
        uint32_t here = csr_count_below(columns, end);
        count += here;
        if (here < LANES) {
            break;
        }
    }
    *cursor += count;
    return count;
}

/* Counting sort. */
ALWAYS_INLINE void csr_order(csr_block *block, int64_t rows)
{
    uint8_t places[CPU_LIST_CHUNK + 1];
    memset(places, 0, block->most + 1);
    for (int64_t r = 0; r < rows; r++) {
        places[block->count[r]]++;
    }
    uint8_t place = 0;
    for (uint32_t n = 0; n <= block->most; n++) {
        uint8_t here = places[n];
        places[n] = place;
        place = (uint8_t)(place + here);
    }
    for (int64_t r = 0; r < rows; r++) {
        block->order[places[block->count[r]]++] = (uint8_t)r;
    }
}

ALWAYS_INLINE void csr_decode(const cpu_piece *piece, esp_dtype dtype, bool rounds, int64_t row,
                              int64_t rows, uint32_t begin, uint32_t end, uint32_t step,
                              int64_t *cursors, csr_block *block)
{
    uint32_t used = 0;
    block->most = 0;
    for (int64_t r = 0; r < rows; r++) {
        int64_t row_end = esp_host_offset(piece->weight, piece->row + row + r + 1);
        uint32_t count =
            csr_decode_row(piece, dtype, rounds, row_end, begin, end, step, &cursors[row + r],
                           block->values + used, block->offsets + used);
        block->first[r] = used;
        block->count[r] = count;
        block->most = ESP_MAX(block->most, count);
        used += count;
    }
    csr_order(block, rows);
}

/* One row's entries of a chunk, n of them; x: the chunk's first column. */
#define CSR_ROW(V)                                                                                 \
    ALWAYS_INLINE void csr_row_##V(const float *values, const uint32_t *offsets, uint32_t n,       \
                                   const char *x, float *sums, bool first)                         \
    {                                                                                              \
        vec sum[V];                                                                                \
        _Pragma("GCC unroll 8") for (int v = 0; v < V; v++)                                        \
        {                                                                                          \
            sum[v] = first ? (vec){0} : vec_load(sums + v * LANES);                                \
        }                                                                                          \
        for (uint32_t i = 0; i < n; i++) {                                                         \
            vec w = vec_set(values[i]);                                                            \
            const float *row = (const void *)(x + offsets[i]);                                     \
            _Pragma("GCC unroll 8") for (int v = 0; v < V; v++)                                    \
            {                                                                                      \
                sum[v] = vec_fma(w, vec_load(row + v * LANES), sum[v]);                            \
            }                                                                                      \
        }                                                                                          \
        _Pragma("GCC unroll 8") for (int v = 0; v < V; v++)                                        \
        {                                                                                          \
            vec_store(sums + v * LANES, sum[v]);                                                   \
        }                                                                                          \
    }                                                                                              \
    static void csr_rows_##V(const csr_block *block, int64_t rows, const char *x, float *sums,     \
                             int64_t stride, bool first)                                           \
    {                                                                                              \
        for (int64_t i = 0; i < rows; i++) {                                                       \
            int r = block->order[i];                                                               \
            if (first || block->count[r] > 0) {                                                    \
                csr_row_##V(block->values + block->first[r], block->offsets + block->first[r],     \
                            block->count[r], x, sums + r * stride, first);                         \
            }                                                                                      \
        }                                                                                          \
    }

CSR_ROW(1)
CSR_ROW(2)
CSR_ROW(4)
CSR_ROW(8)

typedef void (*csr_rows_fn)(const csr_block *block, int64_t rows, const char *x, float *sums,
                            int64_t stride, bool first);

/* All rows of the piece, one tile of tokens. Scratch: cursors, then offsets and values. */
ALWAYS_INLINE void csr_tile(const cpu_piece *piece, esp_dtype dtype, bool rounds, int64_t done,
                            int vectors)
{
    static const csr_rows_fn functions[4] = {csr_rows_1, csr_rows_2, csr_rows_4, csr_rows_8};
    csr_rows_fn run = functions[vectors == 8 ? 3 : vectors / 2];
    int64_t in = piece->weight->in_features;
    uint32_t step = 4u * LANES * (uint32_t)vectors;
    int64_t chunk = ESP_MIN(CSR_CHUNK / step, CPU_LIST_CHUNK);
    const char *x = (const char *)(piece->x + (piece->token + done) * piece->x_rows);
    int64_t *cursors = (int64_t *)(void *)piece->scratch;
    csr_block block = {.values = piece->scratch + 2 * CPU_LIST_ROWS};
    block.offsets = (uint32_t *)(void *)(block.values + CPU_LIST_BLOCK * CPU_LIST_CHUNK + LANES);
    for (int64_t r = 0; r < piece->rows; r++) {
        cursors[r] = esp_host_offset(piece->weight, piece->row + r);
    }
    for (int64_t begin = 0; begin < in; begin += chunk) {
        int64_t end = ESP_MIN(in, begin + chunk);
        for (int64_t r = 0; r < piece->rows; r += CPU_LIST_BLOCK) {
            int64_t rows = ESP_MIN(CPU_LIST_BLOCK, piece->rows - r);
            csr_decode(piece, dtype, rounds, r, rows, (uint32_t)begin, (uint32_t)end, step, cursors,
                       &block);
            run(&block, rows, x + begin * step, piece->sums + r * piece->sums_stride + done,
                piece->sums_stride, begin == 0);
        }
    }
}

static void many_csr(const cpu_piece *piece)
{
    for (int64_t done = 0; done < piece->tokens;) {
        int vectors = tile_vectors(SPARSE_VECTORS, (piece->tokens - done) / LANES);
        switch (piece->weight->dtype) {
        case ESP_F32:
            csr_tile(piece, ESP_F32, piece->rounds, done, vectors);
            break;
        case ESP_BF16:
            csr_tile(piece, ESP_BF16, false, done, vectors);
            break;
        default:
            csr_tile(piece, ESP_F16, piece->rounds, done, vectors);
        }
        done += vectors * LANES;
    }
}

/* ---- few tokens ---- */

ALWAYS_INLINE void csr_dots(const cpu_piece *piece, esp_dtype dtype, int tokens, int64_t r)
{
    const esp_host_weight *weight = piece->weight;
    int64_t at = esp_host_offset(weight, piece->row + r);
    int64_t end = esp_host_offset(weight, piece->row + r + 1);
    vec sum[CPU_FEW_TOKENS] = {0};
    for (; at < end; at += LANES) {
        uvec columns = csr_columns(weight, at, end - at);
        vec w = csr_values(weight, dtype, at, end - at);
        if (end - at < LANES) {
            uvec outside = (uvec)(vec_lanes() >= (uint32_t)(end - at));
            columns = (columns & ~outside) | (outside & (uint32_t)weight->in_features); /* zero */
            w = (vec)((uvec)w & ~outside);
        }
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) {
            sum[t] = vec_fma(w, vec_gather(piece->x + t * piece->x_stride, columns), sum[t]);
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < tokens; t++) {
        piece->sums[r * piece->sums_stride + t] = vec_sum(sum[t]);
    }
}

ALWAYS_INLINE void csr_dots_of(const cpu_piece *piece, esp_dtype dtype)
{
    for (int64_t r = 0; r < piece->rows; r++) {
        switch (piece->tokens) {
        case 1:
            csr_dots(piece, dtype, 1, r);
            break;
        case 2:
            csr_dots(piece, dtype, 2, r);
            break;
        case 3:
            csr_dots(piece, dtype, 3, r);
            break;
        default:
            csr_dots(piece, dtype, 4, r);
        }
    }
}

static void few_csr(const cpu_piece *piece)
{
    switch (piece->weight->dtype) {
    case ESP_F32:
        csr_dots_of(piece, ESP_F32);
        break;
    case ESP_F16:
        csr_dots_of(piece, ESP_F16);
        break;
    default:
        csr_dots_of(piece, ESP_BF16);
    }
}

#endif
