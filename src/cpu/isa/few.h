/* Products for 1..CPU_FEW_TOKENS tokens: every weight is used a few times only, so the limit is the
 * memory that weights stream from. X is [token][in], each row is a dot product over vectors of its
 * stored values; several rows go side by side for independent sums and shared loads of X.
 *
 * A panel's activations are gathered once for all its rows; then a vector of LANES stored values
 * takes its activations from 2 * LANES neighbours by one permutation, made from the 2-bit
 * positions. */
#ifndef ESP_CPU_ISA_FEW_H
#define ESP_CPU_ISA_FEW_H

#include "cpu/isa/vec.h"
#include "cpu/level.h"

#define FEW_ROWS 4 /* side by side */

/* LANES weights from the end of a row: what is behind it is not read and counts as zero. */
ALWAYS_INLINE vec load_last_weights(esp_dtype dtype, const void *values, int64_t at, int64_t count)
{
    unsigned char tail[4 * LANES] = {0};
    size_t width = dtype == ESP_F32 ? 4 : 2;
    memcpy(tail, (const char *)values + (size_t)at * width, (size_t)count * width);
    return vec_load_weights(dtype, tail, 0);
}

/* Bytes from a value to what is wanted soon: the same place of the rows that come next, which
 * hardware does not foresee at the start of each short row; long rows a little ahead of themselves.
 */
ALWAYS_INLINE int64_t few_distance(int64_t row_bytes)
{
    return FEW_ROWS * row_bytes <= 16384 ? FEW_ROWS * row_bytes : 2048;
}

/* ---- dense ---- */

/* One vector of columns from k on; whole: all LANES of them exist. */
ALWAYS_INLINE void dense_step(const cpu_piece *piece, esp_dtype dtype, int rows, int tokens,
                              int64_t row, int64_t k, bool whole, vec sum[FEW_ROWS][CPU_FEW_TOKENS])
{
    const esp_host_weight *weight = piece->weight;
    int64_t in = cpu_dense_columns(weight);
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        int64_t at = (piece->row + row + r) * in + k;
        vec w = whole ? vec_load_weights(dtype, weight->values, at)
                      : load_last_weights(dtype, weight->values, at, in - k);
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) {
            sum[r][t] = vec_fma(w, vec_load(piece->x + t * piece->x_stride + k), sum[r][t]);
        }
    }
}

ALWAYS_INLINE void store_dots(const cpu_piece *piece, int rows, int tokens, int64_t row,
                              vec sum[FEW_ROWS][CPU_FEW_TOKENS])
{
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) {
            piece->sums[(row + r) * piece->sums_stride + t] = vec_sum(sum[r][t]);
        }
    }
}

ALWAYS_INLINE void dense_dots(const cpu_piece *piece, esp_dtype dtype, int rows, int tokens,
                              int64_t row)
{
    int64_t in = cpu_dense_columns(piece->weight), k = 0;
    vec sum[FEW_ROWS][CPU_FEW_TOKENS] = {0};
    for (; k + LANES <= in; k += LANES) {
        dense_step(piece, dtype, rows, tokens, row, k, true, sum);
    }
    if (k < in) {
        dense_step(piece, dtype, rows, tokens, row, k, false, sum);
    }
    store_dots(piece, rows, tokens, row, sum);
}

/* ---- panel ---- */

/* gathered: [tokens][stride] activations of the panel's kept columns, zero behind them. */
typedef struct gathered_x {
    const float *x;
    int64_t stride;
} gathered_x;

ALWAYS_INLINE uvec load_last_index(const uint8_t *positions, int64_t count)
{
    uint8_t bytes[4] = {0};
    memcpy(bytes, positions, (size_t)(count + 3) / 4);
    return vec_kept_index(bytes);
}

/* One vector of stored values from j on; whole: all LANES of them exist. */
ALWAYS_INLINE void panel_step(const cpu_piece *piece, const gathered_x *gathered, esp_dtype dtype,
                              int rows, int tokens, int64_t row, int64_t j, bool whole,
                              vec sum[FEW_ROWS][CPU_FEW_TOKENS])
{
    const esp_host_weight *weight = piece->weight;
    int64_t left = weight->row_values - j;
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        int64_t stored = piece->row + row + r, at = stored * weight->row_values + j;
        const uint8_t *positions = weight->positions + stored * weight->position_bytes + j / 4;
        int64_t width = dtype == ESP_F32 ? 4 : 2;
        __builtin_prefetch((const char *)weight->values + at * width +
                           few_distance(weight->row_values * width));
        if (j % 256 == 0) {
            __builtin_prefetch(positions + few_distance(weight->position_bytes));
        }
        vec w = whole ? vec_load_weights(dtype, weight->values, at)
                      : load_last_weights(dtype, weight->values, at, left);
        uvec index = whole ? vec_kept_index(positions) : load_last_index(positions, left);
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) {
            vec x = vec_pick(gathered->x + t * gathered->stride + 2 * j, index);
            sum[r][t] = vec_fma(w, x, sum[r][t]);
        }
    }
}

ALWAYS_INLINE void panel_dots(const cpu_piece *piece, const gathered_x *gathered, esp_dtype dtype,
                              int rows, int tokens, int64_t row)
{
    int64_t count = piece->weight->row_values, j = 0;
    vec sum[FEW_ROWS][CPU_FEW_TOKENS] = {0};
    for (; j + LANES <= count; j += LANES) {
        panel_step(piece, gathered, dtype, rows, tokens, row, j, true, sum);
    }
    if (j < count) {
        panel_step(piece, gathered, dtype, rows, tokens, row, j, false, sum);
    }
    store_dots(piece, rows, tokens, row, sum);
}

/* LANES columns of a list from j on; padding, and what is behind the list, is column `in`. */
ALWAYS_INLINE uvec load_columns(const esp_host_weight *weight, int64_t panel, int64_t j)
{
    uvec in = (uvec){0} + (uint32_t)weight->in_features, columns = in;
    int64_t at = panel * weight->kept + j;
    if (weight->kept - j < LANES) {
        for (int64_t i = 0; i < weight->kept - j; i++) {
            columns[i] = (uint32_t)esp_host_column(weight, panel, j + i);
        }
        return columns;
    }
    if (weight->columns_wide) {
        memcpy(&columns, (const uint32_t *)weight->columns + at, sizeof columns);
    } else {
        hvec half;
        memcpy(&half, (const uint16_t *)weight->columns + at, sizeof half);
        columns = vec_widen_u16(half);
    }
    uvec padding = (uvec)(columns == (weight->columns_wide ? UINT32_MAX : UINT16_MAX));
    return (columns & ~padding) | (in & padding);
}

/* 2:4 keeps all columns: X itself is the gathered form. */
static gathered_x gather_panel(const cpu_piece *piece)
{
    const esp_host_weight *weight = piece->weight;
    if (weight->columns == NULL) {
        return (gathered_x){piece->x, piece->x_stride};
    }
    int64_t panel = piece->row / weight->panel_rows;
    int64_t stride = (weight->kept + 4 * LANES - 1) / (2 * LANES) * (2 * LANES);
    for (int64_t j = 0; j < stride; j += LANES) {
        uvec columns = (uvec){0} + (uint32_t)weight->in_features; /* zero */
        if (j < weight->kept) {
            columns = load_columns(weight, panel, j);
            __builtin_prefetch((const char *)weight->columns + /* the next panel's list */
                               ((panel + 1) * weight->kept + j) * (weight->columns_wide ? 4 : 2));
        }
        for (int64_t t = 0; t < piece->tokens; t++) {
            vec_store(piece->scratch + t * stride + j,
                      vec_gather(piece->x + t * piece->x_stride, columns));
        }
    }
    return (gathered_x){piece->scratch, stride};
}

/* ---- each weight type and token count its own copy of the loops ---- */

#define FEW_LOOPS(dots, dtype, tokens)                                                             \
    for (; row + FEW_ROWS <= piece->rows; row += FEW_ROWS) {                                       \
        dots(dtype, FEW_ROWS, tokens, row);                                                        \
    }                                                                                              \
    for (; row < piece->rows; row++) {                                                             \
        dots(dtype, 1, tokens, row);                                                               \
    }

#define FEW_FUNCTIONS(name, dtype, dense_or_panel)                                                 \
    static void name##_1(const cpu_piece *piece, const gathered_x *gathered)                       \
    {                                                                                              \
        int64_t row = 0;                                                                           \
        (void)gathered;                                                                            \
        FEW_LOOPS(dense_or_panel, dtype, 1)                                                        \
    }                                                                                              \
    static void name##_2(const cpu_piece *piece, const gathered_x *gathered)                       \
    {                                                                                              \
        int64_t row = 0;                                                                           \
        (void)gathered;                                                                            \
        FEW_LOOPS(dense_or_panel, dtype, 2)                                                        \
    }                                                                                              \
    static void name##_3(const cpu_piece *piece, const gathered_x *gathered)                       \
    {                                                                                              \
        int64_t row = 0;                                                                           \
        (void)gathered;                                                                            \
        FEW_LOOPS(dense_or_panel, dtype, 3)                                                        \
    }                                                                                              \
    static void name##_4(const cpu_piece *piece, const gathered_x *gathered)                       \
    {                                                                                              \
        int64_t row = 0;                                                                           \
        (void)gathered;                                                                            \
        FEW_LOOPS(dense_or_panel, dtype, 4)                                                        \
    }

#define DENSE_DOTS(dtype, rows, tokens, row) dense_dots(piece, dtype, rows, tokens, row)
#define PANEL_DOTS(dtype, rows, tokens, row) panel_dots(piece, gathered, dtype, rows, tokens, row)

FEW_FUNCTIONS(few_dense_f32, ESP_F32, DENSE_DOTS)
FEW_FUNCTIONS(few_dense_f16, ESP_F16, DENSE_DOTS)
FEW_FUNCTIONS(few_dense_bf16, ESP_BF16, DENSE_DOTS)
FEW_FUNCTIONS(few_panel_f32, ESP_F32, PANEL_DOTS)
FEW_FUNCTIONS(few_panel_f16, ESP_F16, PANEL_DOTS)
FEW_FUNCTIONS(few_panel_bf16, ESP_BF16, PANEL_DOTS)

typedef void (*few_fn)(const cpu_piece *piece, const gathered_x *gathered);

#define FEW_ROW(name)                                                                              \
    {                                                                                              \
        name##_1, name##_2, name##_3, name##_4                                                     \
    }

static int few_type(esp_dtype dtype)
{
    return dtype == ESP_F32 ? 0 : dtype == ESP_F16 ? 1 : 2;
}

static void few_dense(const cpu_piece *piece)
{
    static const few_fn functions[3][CPU_FEW_TOKENS] = {
        FEW_ROW(few_dense_f32), FEW_ROW(few_dense_f16), FEW_ROW(few_dense_bf16)};
    functions[few_type(piece->weight->dtype)][piece->tokens - 1](piece, NULL);
}

static void few_panel(const cpu_piece *piece)
{
    static const few_fn functions[3][CPU_FEW_TOKENS] = {
        FEW_ROW(few_panel_f32), FEW_ROW(few_panel_f16), FEW_ROW(few_panel_bf16)};
    gathered_x gathered = gather_panel(piece);
    functions[few_type(piece->weight->dtype)][piece->tokens - 1](piece, &gathered);
}

#endif
