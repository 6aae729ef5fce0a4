/* Products of unstructured weights: lists of (column, value), row by row.
 *
 * Many tokens: no two rows share columns, so each multiply-add loads its own X; what is near can
 * be shared. Columns are walked in chunks; for each chunk all rows of the piece (CPU_LIST_ROWS) add
 * what they hold there, entry after entry where they lie.
 *
 *   chunk of columns: enough for CSR_ENTRIES of a row, X between two thirds of L1 and 128 KiB
 *     find each row's entries of the chunk; order rows by count: then a loop's end is foreseen
 *     for each tile of V vectors of tokens, for each row
 *         V sums in registers += value (broadcast) * x[column]     sums: [rows][tokens], L2
 *
 * Limit: loads, two a cycle: V + 2 for V multiply-adds, if X came from L1 and sums cost nothing.
 * Small chunks keep X in L1 but visit sums in L2 too often, large ones the other way round: at
 * density 0.1 half of the limit is reached, at 0.9 nearly all.
 *
 * Few tokens: a row's columns are gathered LANES at a time. Limit: the gather, about two thirds of
 * a cycle a value, or the memory that lists and values stream from. */
#ifndef ESP_CPU_ISA_CSR_H
#define ESP_CPU_ISA_CSR_H

#include "cpu/isa/few.h"
#include "cpu/isa/many.h"
#include "cpu/isa/vec.h"
#include "cpu/level.h"

#define CSR_ENTRIES 24  /* of a row that a chunk of columns should hold */
#define CSR_LEAST 32768 /* bytes of X of a chunk, tile by tile: two thirds of a common L1 */
#define CSR_MOST 131072 /* and little enough for L2 beside the sums */
#define CSR_AHEAD 2     /* rows whose sums are fetched in advance: no prefetcher sees their order */

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

/* What the rows of a piece hold in one chunk of columns. */
typedef struct csr_block {
    int64_t rows, most; /* most: the largest count */
    int64_t *starts;    /* [rows] first entry in the chunk */
    uint16_t counts[CPU_LIST_ROWS];
    uint16_t order[CPU_LIST_ROWS + CSR_AHEAD]; /* rows by count */
} csr_block;

/* Entries in front of column `end`, from the last chunk's on. */
static void csr_find(const cpu_piece *piece, uint32_t end, csr_block *block)
{
    const esp_host_weight *weight = piece->weight;
    block->most = 0;
    for (int64_t r = 0; r < block->rows; r++) {
        int64_t at = block->starts[r];
        int64_t row_end = esp_host_offset(weight, piece->row + r + 1), held = 0;
        uint32_t here = LANES;
        for (; at + held < row_end && here == LANES; held += here) {
            here = csr_count_below(csr_columns(weight, at + held, row_end - at - held), end);
        }
        block->counts[r] = (uint16_t)held;
        block->most = ESP_MAX(block->most, held);
    }
}

/* Counting sort. */
static void csr_order(csr_block *block)
{
    uint16_t places[CPU_LIST_CHUNK + 1];
    memset(places, 0, (size_t)(block->most + 1) * sizeof places[0]);
    for (int64_t r = 0; r < block->rows; r++) {
        places[block->counts[r]]++;
    }
    uint16_t place = 0;
    for (int64_t n = 0; n <= block->most; n++) {
        uint16_t here = places[n];
        places[n] = place;
        place = (uint16_t)(place + here);
    }
    for (int64_t r = 0; r < block->rows; r++) {
        block->order[places[block->counts[r]]++] = (uint16_t)r;
    }
}

ALWAYS_INLINE vec csr_set(esp_dtype dtype, bool rounds, const void *values, int64_t at)
{
    float value = esp_weight_at(dtype, values, at);
    return vec_set(rounds ? esp_float_of_bf16(esp_bf16_of_float(value)) : value);
}

/* The entries of one row in a chunk: `count` from `at` on; x: the tile. */
ALWAYS_INLINE void csr_row(const cpu_piece *piece, esp_dtype dtype, int vectors, int64_t at,
                           int64_t count, const float *x, float *sums, bool first)
{
    const esp_host_weight *weight = piece->weight;
    vec sum[SPARSE_VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) {
        sum[v] = first ? (vec){0} : vec_load(sums + v * LANES);
    }
    for (int64_t i = at; i < at + count; i++) {
        vec w = csr_set(dtype, piece->rounds, weight->values, i);
        size_t column = esp_host_index(weight->list, weight->list_wide, i);
        const float *row = x + column * (size_t)(vectors * LANES);
        __asm__(""
                : "+r"(row)); /* one address with constant offsets: an indexed one costs an
                                 instruction more for each vector */
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            sum[v] = vec_fma(w, vec_load(row + v * LANES), sum[v]);
        }
    }
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) {
        vec_store(sums + v * LANES, sum[v]);
    }
}

ALWAYS_INLINE void csr_rows(const cpu_piece *piece, esp_dtype dtype, int vectors,
                            const csr_block *block, const float *x, float *sums, bool first)
{
    for (int64_t i = 0; i < block->rows; i++) {
        int64_t r = block->order[i];
        const float *next = sums + block->order[i + CSR_AHEAD] * piece->sums_stride;
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            __builtin_prefetch(next + v * LANES, 1, 3);
        }
        if (first || block->counts[r] > 0) {
            csr_row(piece, dtype, vectors, block->starts[r], block->counts[r], x,
                    sums + r * piece->sums_stride, first);
        }
    }
}

typedef void (*csr_rows_fn)(const cpu_piece *piece, const csr_block *block, const float *x,
                            float *sums, bool first);

#define CSR_ROWS(name, dtype, vectors)                                                             \
    static void name##_##vectors(const cpu_piece *piece, const csr_block *block, const float *x,   \
                                 float *sums, bool first)                                          \
    {                                                                                              \
        csr_rows(piece, dtype, vectors, block, x, sums, first);                                    \
    }
#define CSR_ROWS_OF_TYPE(name, dtype)                                                              \
    CSR_ROWS(name, dtype, 1)                                                                       \
    CSR_ROWS(name, dtype, 2)                                                                       \
    CSR_ROWS(name, dtype, 4)                                                                       \
    CSR_ROWS(name, dtype, 8)

CSR_ROWS_OF_TYPE(csr_rows_f32, ESP_F32)
CSR_ROWS_OF_TYPE(csr_rows_f16, ESP_F16)
CSR_ROWS_OF_TYPE(csr_rows_bf16, ESP_BF16)

static void csr_tiles(const cpu_piece *piece, const csr_block *block, bool first)
{
#define CSR_ROW_OF(name)                                                                           \
    {                                                                                              \
        name##_1, name##_2, name##_4, name##_8                                                     \
    }
    static const csr_rows_fn functions[3][4] = {CSR_ROW_OF(csr_rows_f32), CSR_ROW_OF(csr_rows_f16),
                                                CSR_ROW_OF(csr_rows_bf16)};
    for (int64_t done = 0; done < piece->tokens;) {
        int vectors = tile_vectors(SPARSE_VECTORS, (piece->tokens - done) / LANES);
        const float *x = piece->x + (piece->token + done) * piece->x_rows;
        functions[few_type(piece->weight->dtype)][vectors == 8 ? 3 : vectors / 2](
            piece, block, x, piece->sums + done, first);
        done += vectors * LANES;
    }
}

/* Columns of a chunk for tiles of `width` tokens. */
static int64_t csr_chunk(const esp_host_weight *weight, int64_t width)
{
    int64_t row = 1 + weight->listed / weight->out_features;
    int64_t columns = CSR_ENTRIES * weight->in_features / row, bytes = 4 * width;
    columns = ESP_MAX(CSR_LEAST / bytes, ESP_MIN(CSR_MOST / bytes, columns));
    return ESP_MIN(CPU_LIST_CHUNK, columns);
}

static void many_csr(const cpu_piece *piece)
{
    int64_t in = piece->weight->in_features;
    int64_t chunk =
        csr_chunk(piece->weight, LANES * tile_vectors(SPARSE_VECTORS, piece->tokens / LANES));
    csr_block block = {.rows = piece->rows, .starts = (int64_t *)(void *)piece->scratch};
    for (int64_t r = 0; r < piece->rows; r++) {
        block.starts[r] = esp_host_offset(piece->weight, piece->row + r);
    }
    for (int64_t begin = 0; begin < in; begin += chunk) {
        csr_find(piece, (uint32_t)ESP_MIN(in, begin + chunk), &block);
        csr_order(&block);
        csr_tiles(piece, &block, begin == 0);
        for (int64_t r = 0; r < piece->rows; r++) {
            block.starts[r] += block.counts[r];
        }
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
        vec_prefetch(dtype, weight->values, at, VEC_AHEAD);
        vec_prefetch(weight->list_wide ? ESP_F32 : ESP_F16, weight->list, at, VEC_AHEAD);
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
