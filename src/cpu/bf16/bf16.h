/* Private to src/cpu: products of bf16 with bf16, summed in f32, on processors that have them; and
 * products in f32 made of them (split.h).
 *
 * X is packed once per pass to bf16 in tiles of 32 tokens. Two forms:
 *   rows   [x_rows][32]: one feature after another. Tokens are permuted (four by four) so that the
 *          unpack instructions, which work inside 128 bits, put pairs of rows into natural order;
 *   pairs  [x_rows / 2][32 tokens][2], 32 features at a time: the first 16 tokens of all 16 pairs,
 *          then the others: two operands of a tile product as they lie.
 * Row `in` and those behind it are zero: padding of a column list and the end of a row read them.
 */
#ifndef ESP_CPU_BF16_H
#define ESP_CPU_BF16_H

#include <stdatomic.h>

#include "cpu/matmul.h"

#define BF16_TILE_TOKENS 32
#define BF16_TILE_BYTES 64 /* of one row of a tile */
#define BF16_ROWS 64       /* most stored rows of a piece */
#define BF16_SPLIT_PARTS 3 /* bf16 numbers that make an f32 */
#define BF16_SPLIT_ROWS 512
#define BF16_SPLIT_TOKENS 128 /* rows and tokens of a piece of a split product */

typedef enum bf16_form { BF16_AS_ROWS, BF16_AS_PAIRS } bf16_form;

/* What is packed: features begin..end-1 of all tokens of a pass. */
typedef struct bf16_pack {
    const esp_matmul_call *call;
    int64_t token, tokens; /* of the pass */
    bf16_form form;
    int64_t x_rows;
    uint16_t *x;
    atomic_bool *not_finite; /* set when a packed number is Inf or NaN */
} bf16_pack;

typedef struct bf16_piece {
    const esp_host_weight *weight;
    const uint16_t *x; /* tile t at x + t * parts * x_rows * 32; t = 0: first token of the piece */
    int64_t x_rows;
    int64_t row, rows; /* stored rows, at most bf16_level.rows; one part: all of one panel */
    int64_t tokens;
    float *sums; /* [rows][sums_stride] results; whole tiles are written */
    int64_t sums_stride;
    void *scratch; /* bf16_level.scratch_bytes */
} bf16_piece;

typedef struct bf16_level {
    const char *name;
    esp_compute compute;
    int parts;    /* bf16 numbers of one X: 1, or BF16_SPLIT_PARTS with compute f32 */
    int64_t rows; /* most rows of a piece; beyond BF16_ROWS they may be of several panels */
    void (*pack)(const bf16_pack *pack, int64_t begin, int64_t end);
    void (*product)(const bf16_piece *piece);
    size_t (*scratch_bytes)(esp_host_format format, int64_t kept);
    bf16_form (*form)(esp_host_format format, bool listed);
    /* Rows choose among their panel's columns by weights of zero, which an infinite activation
     * would turn into NaN, and parts of an infinite number do not sum up to it: a pass that holds
     * one is computed another way. */
    bool wants_finite;
} bf16_level;

extern const bf16_level esp_cpu_bf16_avx512, esp_cpu_bf16_amx, esp_cpu_bf16_split;

/* X rows of a packed tile. */
static inline int64_t bf16_x_rows(int64_t in)
{
    return esp_ceil_div(in + 1, 32) * 32;
}

#endif
