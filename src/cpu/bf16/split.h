/* Products in f32 on AMX tiles, which multiply bf16 only: a number of 24 bits is the sum of three
 * of 8 bits, x = x0 + x1 + x2, each the rest of the one before rounded to bf16. Of the products of
 * parts the six largest are summed in f32; those left out are below 2^-25 |w x|, less than half a
 * rounding of an f32 product. bf16 weights are one part (three products), f16 weights two (five).
 *
 *   piece: up to BF16_SPLIT_ROWS rows x BF16_SPLIT_TOKENS tokens
 *   for each block of SPLIT_DEPTH (kept) columns, whose X stays in the second-level cache
 *       for each 64 rows of one panel                                    a strip
 *           for each 32 tokens, each 32 rows                             a sweep: sums in 2 x 2
 * tiles for each step of 32 columns: products of parts           24 x 16 clocks beside them: a row
 * of the next strip, and in the first sweep of a panel with a list its kept rows of X, two steps
 * ahead
 *
 * Limit: the tile unit, 16 clocks for 16 x 16 x 32 products. Operands come from the second-level
 * cache: 12 KiB for those 384 clocks. */
#ifndef ESP_CPU_BF16_SPLIT_H
#define ESP_CPU_BF16_SPLIT_H

#include "cpu/bf16/amx.h"

#define PARTS BF16_SPLIT_PARTS
#define SPLIT_DEPTH 256
#define SPLIT_STEPS (SPLIT_DEPTH / 32)
#define GROUP_BYTES (SPLIT_STEPS * STEP_BYTES)    /* one part of 32 rows of a strip */
#define PART_BYTES (BF16_ROWS / 32 * GROUP_BYTES) /* one part of a strip */
#define X_PART_BYTES (SPLIT_STEPS * STEP_BYTES)   /* one part of 32 tokens */
#define STRIP_BYTES (PARTS * PART_BYTES)

typedef struct split_scratch {
    char rows[2][STRIP_BYTES];     /* [part][32 rows][step][32][64 bytes]: this strip, the next */
    char x[PARTS * X_PART_BYTES];  /* [part][step][two halves of 16 tokens][16][64 bytes] */
    uint32_t offsets[SPLIT_DEPTH]; /* of the strip's kept columns in a tile of X */
} split_scratch;

/* Rows of one panel, one block of columns. */
typedef struct split_strip {
    int64_t row, rows, block;
    char *made;
} split_strip;

ALWAYS int weight_parts(esp_dtype dtype)
{
    return dtype == ESP_BF16 ? 1 : dtype == ESP_F16 ? 2 : PARTS;
}

/* ---- rows ---- */

ALWAYS __m512 widen_part(__m256i part)
{
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(part), 16);
}

/* 16 stored values in parts. */
ALWAYS void split_16(esp_dtype dtype, const void *values, int64_t at, __mmask16 valid,
                     __m256i part[PARTS])
{
    if (dtype == ESP_BF16) {
        part[0] = _mm256_maskz_loadu_epi16(valid, (const uint16_t *)values + at);
        return;
    }
    __m512 rest;
    if (dtype == ESP_F32) {
        rest = _mm512_maskz_loadu_ps(valid, (const float *)values + at);
    } else {
        rest = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(valid, (const uint16_t *)values + at));
    }
    _Pragma("GCC unroll 3") for (int p = 0; p < weight_parts(dtype); p++)
    {
        part[p] = (__m256i)_mm512_cvtneps_pbh(rest);
        rest = _mm512_sub_ps(rest, widen_part(part[p]));
    }
}

/* 32 columns of a row: two of four spread under a mask, or 32 values as they lie. */
ALWAYS void make_split_step(const esp_host_weight *weight, esp_host_format format, esp_dtype dtype,
                            int64_t at, int64_t left, uint32_t mask, char *to)
{
    __m256i low[PARTS], high[PARTS];
    split_16(dtype, weight->values, at, left >= 16 ? 0xffff : first_16(left), low);
    if (format == ESP_HOST_DENSE) {
        split_16(dtype, weight->values, at + 16, left >= 32 ? 0xffff : first_16(left - 16), high);
    }
    _Pragma("GCC unroll 3") for (int p = 0; p < weight_parts(dtype); p++)
    {
        __m512i row = _mm512_castsi256_si512(low[p]);
        row = format == ESP_HOST_DENSE ? _mm512_inserti64x4(row, high[p], 1)
                                       : _mm512_maskz_expand_epi16(mask, row);
        _mm512_store_si512(to + p * PART_BYTES, row);
    }
}

ALWAYS void make_split_row(const esp_host_weight *weight, esp_host_format format, esp_dtype dtype,
                           const split_strip *strip, int64_t r)
{
    int64_t stored = format == ESP_HOST_DENSE ? 32 : 16; /* values of a step */
    int64_t row = strip->row + r, first = strip->block * SPLIT_STEPS * stored;
    int64_t left = weight->row_values - first, at = row * weight->row_values + first;
    char *to = strip->made + r / 32 * GROUP_BYTES + r % 32 * 64;
    uint32_t masks[SPLIT_STEPS] = {0};
    if (format != ESP_HOST_DENSE) {
        const uint8_t *positions =
            weight->positions + row * weight->position_bytes + strip->block * (SPLIT_DEPTH / 8);
        uint8_t held[SPLIT_DEPTH / 8] = {0};
        if (left < SPLIT_STEPS * stored) {
            memcpy(held, positions, (size_t)esp_ceil_div(ESP_MAX(left, 0), 4));
            positions = held;
        }
        const __m128i *from = (const __m128i *)(const void *)positions;
        __m128i *bits = (__m128i *)(void *)masks;
        _Pragma("GCC unroll 4") for (int i = 0; i < SPLIT_STEPS / 4; i++)
        {
            _mm_storeu_si128(bits + i, kept_bits(_mm_loadu_si128(from + i)));
        }
    }
    _Pragma("GCC unroll 8") for (int s = 0; s < SPLIT_STEPS; s++)
    {
        make_split_step(weight, format, dtype, at + s * stored, left - s * stored, masks[s],
                        to + s * STEP_BYTES);
    }
}

/* Rows between the last of a strip and the end of its tile: they add zeros to the sums of others.
 */
static void clear_missing_rows(const split_strip *strip)
{
    for (int64_t r = strip->rows; r % 16 != 0; r++) {
        for (int64_t p = 0; p < PARTS; p++) {
            for (int64_t s = 0; s < SPLIT_STEPS; s++) {
                memset(strip->made + p * PART_BYTES + r / 32 * GROUP_BYTES + s * STEP_BYTES +
                           r % 32 * 64,
                       0, 64);
            }
        }
    }
}

/* ---- products ---- */

/* The next strip's rows, made one a step. */
typedef struct split_making {
    split_strip strip;
    int64_t next;
} split_making;

ALWAYS void make_next_row(const bf16_piece *piece, esp_host_format format, esp_dtype dtype,
                          split_making *making)
{
    if (making->next < making->strip.rows) {
        make_split_row(piece->weight, format, dtype, &making->strip, making->next++);
    }
}

ALWAYS void load_split_rows(int tiles, const char *from)
{
    TILE_LOAD(4, from, 64);
    if (tiles > 1) {
        TILE_LOAD(5, from + 1024, 64);
    }
}

ALWAYS void four_products(int tiles, int halves)
{
    TILE_PRODUCT(0, 4, 6);
    if (halves > 1) {
        TILE_PRODUCT(1, 4, 7);
    }
    if (tiles > 1) {
        TILE_PRODUCT(2, 5, 6);
    }
    if (tiles > 1 && halves > 1) {
        TILE_PRODUCT(3, 5, 7);
    }
}

/* X of a sweep: packed in pairs, or gathered from packed rows on the way. */
typedef struct split_x {
    const char *from; /* of the sweep */
    int64_t part_bytes;
    const char *rows; /* packed rows to gather */
    int64_t rows_part_bytes;
    const uint32_t *offsets;
    char *to;
} split_x;

/* Pairs of kept rows first .. first + count - 1, of 16 in each part, of step s. */
ALWAYS void gather_split_pairs(const split_x *x, int64_t s, int first, int count)
{
    const uint32_t *offsets = x->offsets + 32 * s;
    int end = ESP_MIN(first + count, 16 * PARTS);
    _Pragma("GCC unroll 48") for (int i = first; i < end; i++)
    {
        const char *rows = x->rows + i / 16 * x->rows_part_bytes;
        char *to = x->to + i / 16 * X_PART_BYTES + s * STEP_BYTES + i % 16 * 64;
        uint32_t even = offsets[i % 16 * 2], odd = offsets[i % 16 * 2 + 1];
        __asm__("" : "+r"(even), "+r"(odd)); /* no vector of offsets, taken apart again */
        __m512i a = _mm512_load_si512(rows + even), b = _mm512_load_si512(rows + odd);
        _mm512_store_si512(to, _mm512_unpacklo_epi16(a, b));
        _mm512_store_si512(to + 1024, _mm512_unpackhi_epi16(a, b));
    }
}

ALWAYS int terms_of(esp_dtype dtype)
{
    return dtype == ESP_BF16 ? 3 : dtype == ESP_F16 ? 5 : 6;
}

/* One step of 32 columns, small products first; between them, step `ahead` of X is gathered. */
ALWAYS void split_step(esp_dtype dtype, int tiles, int halves, const char *rows, const split_x *x,
                       int64_t s, bool gathers, int64_t ahead)
{
    const char *from = x->from + s * STEP_BYTES;
    int pairs = (16 * PARTS + terms_of(dtype) - 1) / terms_of(dtype), gathered = 0;
    _Pragma("GCC unroll 3") for (int p = PARTS - 1; p >= 0; p--)
    {
        TILE_LOAD(6, from + p * x->part_bytes, 64);
        if (halves > 1) {
            TILE_LOAD(7, from + p * x->part_bytes + 1024, 64);
        }
        _Pragma("GCC unroll 3") for (int w = ESP_MIN(PARTS - 1 - p, weight_parts(dtype) - 1);
                                     w >= 0; w--)
        {
            if (weight_parts(dtype) > 1 || p == PARTS - 1) { /* else it is still there */
                load_split_rows(tiles, rows + w * PART_BYTES);
            }
            four_products(tiles, halves);
            if (gathers) {
                gather_split_pairs(x, ahead, gathered, pairs);
                gathered += pairs;
            }
        }
    }
}

/* 32 rows x 32 tokens x a block, or what is left of them. */
ALWAYS void sweep(const bf16_piece *piece, esp_host_format format, esp_dtype dtype, int tiles,
                  int halves, const char *rows, int64_t steps, const split_x *x, bool gathers,
                  float *sums, bool first, split_making *making)
{
    begin_sums(tiles, halves, sums, piece->sums_stride, first);
    for (int64_t s = 0; gathers && s < ESP_MIN(2, steps); s++) {
        gather_split_pairs(x, s, 0, 16 * PARTS);
    }
    for (int64_t s = 0; s < steps; s++) { /* behind the last: once more, to spare a branch */
        split_step(dtype, tiles, halves, rows + s * STEP_BYTES, x, s, gathers,
                   ESP_MIN(s + 2, steps - 1));
        make_next_row(piece, format, dtype, making);
    }
    end_sums(tiles, halves, sums, piece->sums_stride);
}

/* A whole sweep is compiled for itself; tails share one body. */
ALWAYS void sweep_any(const bf16_piece *piece, esp_host_format format, esp_dtype dtype,
                      const char *rows, int64_t left_rows, int64_t left_tokens, int64_t steps,
                      const split_x *x, bool gathers, float *sums, bool first, split_making *making)
{
    int tiles = left_rows > 16 ? 2 : 1, halves = left_tokens > 16 ? 2 : 1;
    if (tiles == 2 && halves == 2) {
        sweep(piece, format, dtype, 2, 2, rows, steps, x, gathers, sums, first, making);
    } else {
        sweep(piece, format, dtype, tiles, halves, rows, steps, x, gathers, sums, first, making);
    }
}

/* ---- strips ---- */

static void list_strip_offsets(const bf16_piece *piece, const split_strip *strip, uint32_t *offsets)
{
    const esp_host_weight *weight = piece->weight;
    int64_t panel = strip->row / weight->panel_rows, first = strip->block * SPLIT_DEPTH;
    for (int64_t j = 0; j < SPLIT_DEPTH; j++) {
        int64_t column = first + j < weight->kept ? esp_host_column(weight, panel, first + j)
                                                  : weight->in_features;
        offsets[j] = (uint32_t)column * BF16_TILE_BYTES;
    }
}

ALWAYS void run_strip(const bf16_piece *piece, esp_host_format format, esp_dtype dtype, bool listed,
                      const split_strip *strip, int64_t steps, split_making *making)
{
    split_scratch *scratch = piece->scratch;
    int64_t part_bytes = piece->x_rows * BF16_TILE_BYTES;
    if (listed) {
        list_strip_offsets(piece, strip, scratch->offsets);
    }
    for (int64_t token = 0; token < piece->tokens; token += BF16_TILE_TOKENS) {
        const char *tile = (const char *)(piece->x + token * PARTS * piece->x_rows);
        split_x x = {tile + strip->block * SPLIT_DEPTH * BF16_TILE_BYTES,
                     part_bytes,
                     tile,
                     part_bytes,
                     scratch->offsets,
                     scratch->x};
        if (listed) {
            x.from = scratch->x;
            x.part_bytes = X_PART_BYTES;
        }
        float *sums = piece->sums + (strip->row - piece->row) * piece->sums_stride + token;
        for (int64_t r = 0; r < strip->rows; r += 32) {
            const char *rows = strip->made + r / 32 * GROUP_BYTES;
            float *own = sums + r * piece->sums_stride;
            if (listed && r == 0) {
                sweep_any(piece, format, dtype, rows, strip->rows - r, piece->tokens - token, steps,
                          &x, true, own, strip->block == 0, making);
            } else {
                sweep_any(piece, format, dtype, rows, strip->rows - r, piece->tokens - token, steps,
                          &x, false, own, strip->block == 0, making);
            }
        }
    }
}

/* The strip behind this one: the next rows of the piece, or the first of the next block. */
static split_strip next_strip(const bf16_piece *piece, const split_strip *strip, int64_t blocks)
{
    const esp_host_weight *weight = piece->weight;
    int64_t panel_rows =
        weight->format == ESP_HOST_PANEL ? weight->panel_rows : weight->out_features;
    split_scratch *scratch = piece->scratch;
    split_strip next = {.row = strip->row + strip->rows, .block = strip->block};
    int64_t end = piece->row + piece->rows;
    if (next.row >= end) {
        next.row = piece->row;
        next.block++;
    }
    if (next.block < blocks) {
        int64_t border = (next.row / panel_rows + 1) * panel_rows;
        next.rows = ESP_MIN(BF16_ROWS, ESP_MIN(end, border) - next.row);
    }
    next.made = strip->made == scratch->rows[0] ? scratch->rows[1] : scratch->rows[0];
    return next;
}

ALWAYS void run_split(const bf16_piece *piece, esp_host_format format, esp_dtype dtype, bool listed)
{
    split_scratch *scratch = piece->scratch;
    int64_t columns =
        listed || format == ESP_HOST_PANEL ? piece->weight->kept : piece->weight->in_features;
    int64_t blocks = esp_ceil_div(columns, SPLIT_DEPTH);
    split_strip before = {.row = piece->row, .made = scratch->rows[1]};
    split_making making = {.strip = next_strip(piece, &before, blocks)};
    while (making.next < making.strip.rows) {
        make_next_row(piece, format, dtype, &making);
    }
    while (making.strip.block < blocks) {
        split_strip strip = making.strip;
        int64_t steps = ESP_MIN(SPLIT_STEPS, esp_ceil_div(columns - strip.block * SPLIT_DEPTH, 32));
        making = (split_making){.strip = next_strip(piece, &strip, blocks)};
        clear_missing_rows(&strip);
        run_strip(piece, format, dtype, listed, &strip, steps, &making);
        while (making.next < making.strip.rows) {
            make_next_row(piece, format, dtype, &making);
        }
    }
}

#define SPLIT_TYPES(word, format, listed)                                                          \
    static void split_##word##_f32(const bf16_piece *piece)                                        \
    {                                                                                              \
        run_split(piece, format, ESP_F32, listed);                                                 \
    }                                                                                              \
    static void split_##word##_f16(const bf16_piece *piece)                                        \
    {                                                                                              \
        run_split(piece, format, ESP_F16, listed);                                                 \
    }                                                                                              \
    static void split_##word##_bf16(const bf16_piece *piece)                                       \
    {                                                                                              \
        run_split(piece, format, ESP_BF16, listed);                                                \
    }

SPLIT_TYPES(dense, ESP_HOST_DENSE, false)
SPLIT_TYPES(whole, ESP_HOST_PANEL, false)
SPLIT_TYPES(panel, ESP_HOST_PANEL, true)

static void split_product(const bf16_piece *piece)
{
    static void (*const functions[3][3])(const bf16_piece *) = {
        {split_dense_f32, split_dense_f16, split_dense_bf16},
        {split_whole_f32, split_whole_f16, split_whole_bf16},
        {split_panel_f32, split_panel_f16, split_panel_bf16}};
    const esp_host_weight *weight = piece->weight;
    bool panel = weight->format == ESP_HOST_PANEL, listed = panel && weight->columns != NULL;
    int type = weight->dtype == ESP_F32 ? 0 : weight->dtype == ESP_F16 ? 1 : 2;
    tiles_begin();
    functions[panel + listed][type](piece);
    tiles_end();
}

static size_t split_scratch_bytes(esp_host_format format, int64_t kept)
{
    (void)format, (void)kept;
    return sizeof(split_scratch);
}

/* ---- X ---- */

/* 32 numbers, low and high, in parts; flags Inf and NaN, and what rounds to Inf. */
ALWAYS __mmask32 split_32(__m512 low, __m512 high, __m512i part[PARTS])
{
    _Pragma("GCC unroll 3") for (int p = 0; p < PARTS; p++)
    {
        __m256i a = (__m256i)_mm512_cvtneps_pbh(low), b = (__m256i)_mm512_cvtneps_pbh(high);
        low = _mm512_sub_ps(low, widen_part(a));
        high = _mm512_sub_ps(high, widen_part(b));
        part[p] = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
    }
    return not_finite(part[0]);
}

/* 32 features x 32 tokens to all parts; to: where part 0 of them begins. */
static __mmask32 pack_split_rows(const bf16_pack *pack, const float *from, int64_t stride,
                                 uint16_t *to)
{
    static const uint16_t interleaved[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                             21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                             11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i fours = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    const __m512i pairs = _mm512_loadu_si512(interleaved);
    int64_t part_step = pack->x_rows * BF16_TILE_TOKENS;
    bool rows = pack->form == BF16_AS_ROWS;
    __mmask32 odd = 0;
    for (int64_t i = 0; i < PACK_FEATURES; i++) { /* a row, or a half of a pair of rows */
        const float *low = rows ? from + i * stride : from + i / 2 * 2 * stride + i % 2 * 16;
        const float *high = rows ? low + 16 : low + stride;
        uint16_t *at = to + (rows ? i * 32 : i % 2 * 512 + i / 2 * 32);
        __m512i part[PARTS];
        odd |= split_32(_mm512_loadu_ps(low), _mm512_loadu_ps(high), part);
        for (int p = 0; p < PARTS; p++) {
            __m512i ordered = rows ? _mm512_permutexvar_epi64(fours, part[p])
                                   : _mm512_permutexvar_epi16(pairs, part[p]);
            _mm512_store_si512(at + p * part_step, ordered);
        }
    }
    return odd;
}

/* As pack_x, in parts. */
static void split_pack_x(const bf16_pack *pack, int64_t begin, int64_t end)
{
    __mmask32 odd = 0;
    for (int64_t first = begin; first < end; first += PACK_FEATURES) {
        for (int64_t t = 0; t < pack->tokens; t += BF16_TILE_TOKENS) {
            float buffer[PACK_FEATURES][BF16_TILE_TOKENS];
            int64_t stride;
            const float *from = tile_of_x(pack, first, t, buffer, &stride);
            uint16_t *to = pack->x + (t / BF16_TILE_TOKENS * PARTS * pack->x_rows + first) * 32;
            odd |= pack_split_rows(pack, from, stride, to);
        }
    }
    if (odd != 0) {
        atomic_store_explicit(pack->not_finite, true, memory_order_relaxed);
    }
}

#endif
