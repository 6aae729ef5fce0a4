/* Products by the instruction that multiplies pairs of bf16 and adds both to an f32 (vdpbf16ps),
 * for processors without tiles; exact two of four, so that no row meets a column it did not choose.
 *
 * dense  pairs of X lie side by side (bf16.h); a pair of weights is one 32-bit broadcast. 6 rows x
 *        4 vectors of 16 tokens in registers. Limit: the multiply-adds.
 * panel  of four kept rows of X a row chooses two: one of six pairs. The six are interleaved once
 *        for all rows of the piece, 8 groups of four at a time (24 KiB for 128 tokens); then a
 * row's two values are one broadcast and its X is one load per vector. Limit: loads, 10 for 8. */
#ifndef ESP_CPU_BF16_DOT_H
#define ESP_CPU_BF16_DOT_H

#include "cpu/bf16/weights.h"

#define DENSE_PAIRS 64 /* of a block: 128 columns */
#define QUADS 8        /* of a block: 32 kept columns */
#define PANEL_TILES 4  /* tiles of 32 tokens side by side */
#define PAIR_WAYS 6
#define PAIR_BYTES (PANEL_TILES * 128) /* one interleaved pair: two vectors a tile */
#define QUAD_BYTES (PAIR_WAYS * PAIR_BYTES)

typedef struct dot_scratch {
    uint32_t weights[BF16_ROWS][DENSE_PAIRS]; /* pairs; panel: a row's QUADS */
    uint16_t ways[BF16_ROWS][QUADS];          /* byte offsets of the pair that a row takes */
    char pairs[QUADS * QUAD_BYTES];
} dot_scratch;

ALWAYS __m512 dot(__m512 sum, __m512i x, __m512i w)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
}

/* `count` stored values of a row in bf16, zero up to a multiple of 16. */
ALWAYS void narrow_row(const esp_host_weight *weight, esp_dtype dtype, int64_t at, int64_t count,
                       uint32_t *to)
{
    for (int64_t i = 0; i < count; i += 16) {
        __m256i values = load_16(dtype, weight->values, at + i, first_16(count - i));
        _mm256_storeu_si256((__m256i *)(void *)(to + i / 2), values);
    }
}

static void narrow_rows(const bf16_piece *piece, int64_t first, int64_t count)
{
    dot_scratch *scratch = piece->scratch;
    const esp_host_weight *weight = piece->weight;
    for (int64_t r = 0; r < piece->rows; r++) {
        int64_t at = (piece->row + r) * weight->row_values + first;
        switch (weight->dtype) {
        case ESP_F32:
            narrow_row(weight, ESP_F32, at, count, scratch->weights[r]);
            break;
        case ESP_F16:
            narrow_row(weight, ESP_F16, at, count, scratch->weights[r]);
            break;
        default:
            narrow_row(weight, ESP_BF16, at, count, scratch->weights[r]);
        }
    }
}

/* ---- dense ---- */

/* `rows` rows x `tiles` tiles of 32 tokens; x_tile: bytes from tile to tile. */
ALWAYS void dense_dots(int rows, int tiles, const uint32_t *weights, const char *x, int64_t x_tile,
                       int64_t pairs, float *sums, int64_t stride, bool first)
{
    __m512 sum[6][4];
    for (int r = 0; r < rows; r++) {
        for (int v = 0; v < 2 * tiles; v++) {
            sum[r][v] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + r * stride + 16 * v);
        }
    }
    for (int64_t k = 0; k < pairs; k++) {
        const char *at = x + k / 16 * 2048 + k % 16 * 64;
        __m512i columns[4];
        for (int v = 0; v < 2 * tiles; v++) {
            columns[v] = _mm512_load_si512(at + v / 2 * x_tile + v % 2 * 1024);
        }
        for (int r = 0; r < rows; r++) {
            __m512i w = _mm512_set1_epi32((int)weights[r * DENSE_PAIRS + k]);
            for (int v = 0; v < 2 * tiles; v++) {
                sum[r][v] = dot(sum[r][v], columns[v], w);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int v = 0; v < 2 * tiles; v++) {
            _mm512_storeu_ps(sums + r * stride + 16 * v, sum[r][v]);
        }
    }
}

#define DENSE_DOTS(rows, tiles)                                                                    \
    static void dense_dots_##rows##x##tiles(const uint32_t *weights, const char *x,                \
                                            int64_t x_tile, int64_t pairs, float *sums,            \
                                            int64_t stride, bool first)                            \
    {                                                                                              \
        dense_dots(rows, tiles, weights, x, x_tile, pairs, sums, stride, first);                   \
    }

DENSE_DOTS(6, 2)
DENSE_DOTS(6, 1)
DENSE_DOTS(1, 2)
DENSE_DOTS(1, 1)

static void dot_dense(const bf16_piece *piece)
{
    const dot_scratch *scratch = piece->scratch;
    int64_t in = piece->weight->in_features, stride = piece->sums_stride;
    int64_t x_tile = piece->x_rows * BF16_TILE_BYTES;
    for (int64_t k = 0; k < in; k += 2 * DENSE_PAIRS) {
        int64_t count = ESP_MIN(2 * DENSE_PAIRS, in - k), pairs = (count + 1) / 2;
        narrow_rows(piece, k, count);
        for (int64_t t = 0; t < piece->tokens;) {
            bool two = piece->tokens - t > BF16_TILE_TOKENS;
            const char *x = (const char *)(piece->x + t * piece->x_rows) + k * BF16_TILE_BYTES;
            for (int64_t r = 0; r < piece->rows;) {
                bool six = piece->rows - r >= 6;
                float *sums = piece->sums + r * stride + t;
                const uint32_t *weights = scratch->weights[r];
                (six   ? two ? dense_dots_6x2 : dense_dots_6x1
                 : two ? dense_dots_1x2
                       : dense_dots_1x1)(weights, x, x_tile, pairs, sums, stride, k == 0);
                r += six ? 6 : 1;
            }
            t += two ? 2 * BF16_TILE_TOKENS : BF16_TILE_TOKENS;
        }
    }
}

/* ---- two of four kept columns ---- */

/* Which pair a row takes of each of `count` <= QUADS groups from group `first` on. */
static void choose_ways(const bf16_piece *piece, int64_t first, int64_t count)
{
    /* by nibble (lower position | upper << 2): 01 02 12 03 13 23 */
    const __m128i numbers = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 3, 4, 5, 0);
    const __m128i nibble = _mm_set1_epi8(15);
    dot_scratch *scratch = piece->scratch;
    const esp_host_weight *weight = piece->weight;
    for (int64_t r = 0; r < piece->rows; r++) {
        uint32_t bytes = 0;
        memcpy(&bytes, weight->positions + (piece->row + r) * weight->position_bytes + first / 2,
               (size_t)esp_ceil_div(count, 2));
        __m128i packed = _mm_cvtsi32_si128((int)bytes);
        __m128i nibbles = _mm_unpacklo_epi8(_mm_and_si128(packed, nibble),
                                            _mm_and_si128(_mm_srli_epi16(packed, 4), nibble));
        __m128i ways = _mm_cvtepu8_epi16(_mm_shuffle_epi8(numbers, nibbles));
        ways = _mm_mullo_epi16(ways, _mm_set1_epi16(PAIR_BYTES));
        _mm_storeu_si128((__m128i *)(void *)scratch->ways[r], ways);
    }
}

/* The six pairs of each group's rows of X, for `tiles` tiles from x on. */
static void interleave(const bf16_piece *piece, int64_t panel, const char *x, int64_t tiles,
                       int64_t first, int64_t count)
{
    static const uint8_t of[PAIR_WAYS][2] = {{0, 1}, {0, 2}, {1, 2}, {0, 3}, {1, 3}, {2, 3}};
    char *to = ((dot_scratch *)piece->scratch)->pairs;
    int64_t x_tile = piece->x_rows * BF16_TILE_BYTES;
    for (int64_t q = 0; q < count; q++, to += QUAD_BYTES) {
        const char *columns[4];
        for (int64_t j = 0; j < 4; j++) {
            columns[j] =
                x + esp_host_column(piece->weight, panel, 4 * (first + q) + j) * BF16_TILE_BYTES;
        }
        for (int64_t tile = 0; tile < tiles; tile++) {
            __m512i row[4];
            for (int j = 0; j < 4; j++) {
                row[j] = _mm512_load_si512(columns[j] + tile * x_tile);
            }
            _Pragma("GCC unroll 6") for (int way = 0; way < PAIR_WAYS; way++)
            {
                char *at = to + way * PAIR_BYTES + tile * 128;
                __m512i a = row[of[way][0]], b = row[of[way][1]];
                _mm512_storeu_si512(at, _mm512_unpacklo_epi16(a, b));
                _mm512_storeu_si512(at + 64, _mm512_unpackhi_epi16(a, b));
            }
        }
    }
}

/* One row x `tiles` tiles. */
ALWAYS void panel_dots(int tiles, const uint32_t *weights, const uint16_t *ways, const char *pairs,
                       int64_t quads, float *sums, bool first)
{
    __m512 sum[2 * PANEL_TILES];
    for (int v = 0; v < 2 * tiles; v++) {
        sum[v] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + 16 * v);
    }
    for (int64_t q = 0; q < quads; q++, pairs += QUAD_BYTES) {
        __m512i w = _mm512_set1_epi32((int)weights[q]);
        for (int v = 0; v < 2 * tiles; v++) {
            sum[v] = dot(sum[v], _mm512_loadu_si512(pairs + ways[q] + 64 * v), w);
        }
    }
    for (int v = 0; v < 2 * tiles; v++) {
        _mm512_storeu_ps(sums + 16 * v, sum[v]);
    }
}

ALWAYS void panel_tile(int tiles, const bf16_piece *piece, int64_t token, int64_t quads, bool first)
{
    const dot_scratch *scratch = piece->scratch;
    for (int64_t r = 0; r < piece->rows; r++) {
        panel_dots(tiles, scratch->weights[r], scratch->ways[r], scratch->pairs, quads,
                   piece->sums + r * piece->sums_stride + token, first);
    }
}

static void dot_panel(const bf16_piece *piece)
{
    const esp_host_weight *weight = piece->weight;
    int64_t quads = weight->kept / 4, panel = piece->row / weight->panel_rows;
    for (int64_t first = 0; first < quads; first += QUADS) {
        int64_t count = ESP_MIN(QUADS, quads - first);
        narrow_rows(piece, 2 * first, 2 * count);
        choose_ways(piece, first, count);
        for (int64_t t = 0; t < piece->tokens;) {
            int64_t left = esp_ceil_div(piece->tokens - t, BF16_TILE_TOKENS);
            int tiles = left >= 4 ? 4 : left >= 2 ? 2 : 1;
            interleave(piece, panel, (const char *)(piece->x + t * piece->x_rows), tiles, first,
                       count);
            switch (tiles) {
            case 4:
                panel_tile(4, piece, t, count, first == 0);
                break;
            case 2:
                panel_tile(2, piece, t, count, first == 0);
                break;
            default:
                panel_tile(1, piece, t, count, first == 0);
            }
            t += tiles * BF16_TILE_TOKENS;
        }
    }
}

static void dot_product(const bf16_piece *piece)
{
    piece->weight->format == ESP_HOST_PANEL ? dot_panel(piece) : dot_dense(piece);
}

static size_t dot_scratch_bytes(esp_host_format format, int64_t kept)
{
    (void)format, (void)kept;
    return sizeof(dot_scratch);
}

static bf16_form dot_form(esp_host_format format, bool listed)
{
    (void)listed;
    return format == ESP_HOST_PANEL ? BF16_AS_ROWS : BF16_AS_PAIRS;
}

#endif
