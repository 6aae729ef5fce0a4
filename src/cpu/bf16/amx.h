/* Products on AMX tiles. Dense rows, or panel rows spread to the panel's kept columns: half of the
 * products are with zeros, which is still the fastest way to multiply two of four here.
 *
 * A piece is 64 rows x a group of tokens whose X stays in the second-level cache.
 *
 *   for each block of 2048 (kept) columns       its 64 rows made: 256 KiB, in the same cache
 *       for each 32 tokens
 *           panel: kept rows of X interleaved in pairs: 128 KiB, in the same cache
 *           for each 32 rows                    sums of 32 x 32 in four tiles
 *               for each 32 columns             2 tiles of rows, 2 of X, 4 products: 64 clocks
 *
 * Limit: the second-level cache, 64 lines for four products, 1.4 clocks each. Blocks that stay in
 * the first-level cache were slower: sums are then loaded and stored so often that it costs more
 * (docs/kernels.md). */
#ifndef ESP_CPU_BF16_AMX_H
#define ESP_CPU_BF16_AMX_H

#include "cpu/bf16/weights.h"

#define AMX_DEPTH 2048 /* (kept) columns between two visits of the sums */
#define BLOCK_STEPS (AMX_DEPTH / 32)
#define STEP_BYTES 2048 /* two tiles of rows, or of X */

/* 512 bits of configuration: eight tiles of 16 rows x 64 bytes. */
typedef struct tile_shapes {
    uint8_t palette, start, zero[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_shapes;

ALWAYS void tiles_begin(void)
{
    static const tile_shapes shapes = {.palette = 1,
                                       .bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                                       .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    __asm__ volatile("ldtilecfg %0" ::"m"(shapes));
}

ALWAYS void tiles_end(void)
{
    __asm__ volatile("tilerelease");
}

/* Every one names memory: the buffers behind the tiles are written by plain stores. */
#define TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile ::: "memory")
#define TILE_LOAD(tile, from, stride)                                                              \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"((int64_t)(stride))        \
                     : "memory")
#define TILE_STORE(tile, to, stride)                                                               \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"((int64_t)(stride))      \
                     : "memory")
#define TILE_PRODUCT(sum, rows, x)                                                                 \
    __asm__ volatile("tdpbf16ps %%tmm" #x ", %%tmm" #rows ", %%tmm" #sum ::: "memory")

typedef struct amx_scratch {
    char rows[BF16_ROWS / 32][BLOCK_STEPS * STEP_BYTES]; /* a block of weights, 32 rows each */
    char x[BLOCK_STEPS * STEP_BYTES];                    /* a block of kept columns, 32 tokens */
    uint32_t offsets[];                                  /* of kept columns in a tile of X, bytes */
} amx_scratch;

/* A block of 16 rows from `row` on. */
ALWAYS void make_tile(const esp_host_weight *weight, esp_host_format format, esp_dtype dtype,
                      int64_t row, int64_t rows, int64_t column, int64_t steps, char *to)
{
    for (int64_t step = 0; step < steps; step += ROW_STEPS) {
        for (int64_t r = 0; r < rows; r++) {
            char *at = to + step * STEP_BYTES + r * 64;
            if (format == ESP_HOST_DENSE) {
                copy_row(weight, dtype, row + r, column + step * 32, at, STEP_BYTES);
            } else {
                spread_row(weight, dtype, row + r, column + step * 32, at, STEP_BYTES);
            }
        }
    }
}

ALWAYS void make_rows(const bf16_piece *piece, esp_host_format format, esp_dtype dtype,
                      int64_t column, int64_t steps)
{
    amx_scratch *scratch = piece->scratch;
    for (int64_t r = 0; r < piece->rows; r += 16) {
        make_tile(piece->weight, format, dtype, piece->row + r, ESP_MIN(16, piece->rows - r),
                  column, steps, scratch->rows[r / 32] + r % 32 * 64);
    }
}

/* Kept rows of a tile of X in interleaved pairs: one step. */
ALWAYS void gather_step(const char *x, const uint32_t *offsets, char *to)
{
    _Pragma("GCC unroll 16") for (int p = 0; p < 16; p++)
    {
        __m512i a = _mm512_load_si512(x + offsets[2 * p]);
        __m512i b = _mm512_load_si512(x + offsets[2 * p + 1]);
        _mm512_store_si512(to + 64 * p, _mm512_unpacklo_epi16(a, b));
        _mm512_store_si512(to + 64 * p + 1024, _mm512_unpackhi_epi16(a, b));
    }
}

/* Where the X of a sweep comes from, if it is made on the way. */
typedef struct amx_gather {
    const char *x;
    const uint32_t *offsets;
    char *to;
} amx_gather;

/* Sums of `tiles` x `halves` tiles, rows x tokens, in tiles 0 to 3. */
ALWAYS void begin_sums(int tiles, int halves, const float *sums, int64_t stride, bool first)
{
    if (first) {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
        return;
    }
    TILE_LOAD(0, sums, 4 * stride);
    if (halves > 1) {
        TILE_LOAD(1, sums + 16, 4 * stride);
    }
    if (tiles > 1) {
        TILE_LOAD(2, sums + 16 * stride, 4 * stride);
    }
    if (tiles > 1 && halves > 1) {
        TILE_LOAD(3, sums + 16 * stride + 16, 4 * stride);
    }
}

ALWAYS void end_sums(int tiles, int halves, float *sums, int64_t stride)
{
    TILE_STORE(0, sums, 4 * stride);
    if (halves > 1) {
        TILE_STORE(1, sums + 16, 4 * stride);
    }
    if (tiles > 1) {
        TILE_STORE(2, sums + 16 * stride, 4 * stride);
    }
    if (tiles > 1 && halves > 1) {
        TILE_STORE(3, sums + 16 * stride + 16, 4 * stride);
    }
}

/* `tiles` x `halves` tiles of sums: rows x tokens. */
ALWAYS void multiply(int tiles, int halves, const char *rows, const char *x, int64_t steps,
                     float *sums, int64_t stride, bool first, bool gathers, amx_gather gather)
{
    begin_sums(tiles, halves, sums, stride, first);
    if (gathers) {
        for (int64_t s = 0; s < ESP_MIN(2, steps); s++) {
            gather_step(gather.x, gather.offsets + 32 * s, gather.to + s * STEP_BYTES);
        }
    }
    for (int64_t s = 0; s < steps; s++, rows += STEP_BYTES, x += STEP_BYTES) {
        if (gathers) { /* behind the last step: once more, to spare a branch */
            int64_t ahead = ESP_MIN(s + 2, steps - 1);
            gather_step(gather.x, gather.offsets + 32 * ahead, gather.to + ahead * STEP_BYTES);
        }
        TILE_LOAD(4, rows, 64);
        TILE_LOAD(6, x, 64);
        TILE_PRODUCT(0, 4, 6);
        if (halves > 1) {
            TILE_LOAD(7, x + 1024, 64);
            TILE_PRODUCT(1, 4, 7);
        }
        if (tiles > 1) {
            TILE_LOAD(5, rows + 1024, 64);
            TILE_PRODUCT(2, 5, 6);
        }
        if (tiles > 1 && halves > 1) {
            TILE_PRODUCT(3, 5, 7);
        }
    }
    end_sums(tiles, halves, sums, stride);
}

/* All rows of the piece times one tile of X. */
ALWAYS void multiply_rows(const bf16_piece *piece, int64_t token, const char *x, int64_t steps,
                          bool first, bool gathers, amx_gather gather)
{
    const amx_scratch *scratch = piece->scratch;
    bool wide = piece->tokens - token > 16;
    for (int64_t r = 0; r < piece->rows; r += 32) {
        float *sums = piece->sums + r * piece->sums_stride + token;
        const char *rows = scratch->rows[r / 32];
        bool tall = piece->rows - r > 16;
        if (tall && wide) {
            multiply(2, 2, rows, x, steps, sums, piece->sums_stride, first, gathers && r == 0,
                     gather);
        } else if (tall) {
            multiply(2, 1, rows, x, steps, sums, piece->sums_stride, first, gathers && r == 0,
                     gather);
        } else if (wide) {
            multiply(1, 2, rows, x, steps, sums, piece->sums_stride, first, gathers && r == 0,
                     gather);
        } else {
            multiply(1, 1, rows, x, steps, sums, piece->sums_stride, first, gathers && r == 0,
                     gather);
        }
    }
}

static void multiply_packed(const bf16_piece *piece, int64_t token, const char *x, int64_t steps,
                            bool first)
{
    multiply_rows(piece, token, x, steps, first, false, (amx_gather){0});
}

static void multiply_gathered(const bf16_piece *piece, int64_t token, int64_t steps, bool first,
                              amx_gather gather)
{
    multiply_rows(piece, token, gather.to, steps, first, true, gather);
}

/* Kept columns of a panel to byte offsets in a tile of X; behind them, the row of zeros. */
static void list_offsets(const esp_host_weight *weight, int64_t panel, uint32_t *offsets)
{
    int64_t kept = weight->kept, padded = esp_ceil_div(kept, 32) * 32;
    for (int64_t j = 0; j < kept; j++) {
        offsets[j] = (uint32_t)esp_host_column(weight, panel, j) * BF16_TILE_BYTES;
    }
    for (int64_t j = kept; j < padded; j++) {
        offsets[j] = (uint32_t)weight->in_features * BF16_TILE_BYTES;
    }
}

static size_t amx_scratch_bytes(esp_host_format format, int64_t kept)
{
    int64_t listed = format == ESP_HOST_PANEL ? esp_ceil_div(kept, 32) * 32 : 0;
    return sizeof(amx_scratch) + (size_t)listed * sizeof(uint32_t);
}

static bf16_form amx_form(esp_host_format format, bool listed)
{
    return format == ESP_HOST_PANEL && listed ? BF16_AS_ROWS : BF16_AS_PAIRS;
}

static void make_block(const bf16_piece *piece, int64_t column, int64_t steps)
{
    bool panel = piece->weight->format == ESP_HOST_PANEL;
    switch (piece->weight->dtype) {
    case ESP_F32:
        panel ? make_rows(piece, ESP_HOST_PANEL, ESP_F32, column, steps)
              : make_rows(piece, ESP_HOST_DENSE, ESP_F32, column, steps);
        break;
    case ESP_F16:
        panel ? make_rows(piece, ESP_HOST_PANEL, ESP_F16, column, steps)
              : make_rows(piece, ESP_HOST_DENSE, ESP_F16, column, steps);
        break;
    default:
        panel ? make_rows(piece, ESP_HOST_PANEL, ESP_BF16, column, steps)
              : make_rows(piece, ESP_HOST_DENSE, ESP_BF16, column, steps);
    }
}

static void amx_product(const bf16_piece *piece)
{
    const esp_host_weight *weight = piece->weight;
    amx_scratch *scratch = piece->scratch;
    bool panel = weight->format == ESP_HOST_PANEL, listed = panel && weight->columns != NULL;
    int64_t columns = panel ? weight->kept : weight->in_features;
    if (listed) {
        list_offsets(weight, piece->row / weight->panel_rows, scratch->offsets);
    }
    tiles_begin();
    for (int64_t column = 0; column < columns; column += AMX_DEPTH) {
        int64_t steps = ESP_MIN(BLOCK_STEPS, esp_ceil_div(columns - column, 32));
        make_block(piece, column, steps);
        for (int64_t token = 0; token < piece->tokens; token += BF16_TILE_TOKENS) {
            const char *x = (const char *)(piece->x + token * piece->x_rows);
            if (listed) {
                multiply_gathered(piece, token, steps, column == 0,
                                  (amx_gather){x, scratch->offsets + column, scratch->x});
            } else {
                multiply_packed(piece, token, x + column * BF16_TILE_BYTES, steps, column == 0);
            }
        }
    }
    tiles_end();
}

#endif
