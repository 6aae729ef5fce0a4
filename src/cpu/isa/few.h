/* Products for 1..CPU_FEW_TOKENS tokens: every weight is used a few times only, so the limit is the
 * memory that weights stream from. X is [token][in], each row is a dot product over vectors of its
 * stored values; several rows go side by side for independent sums and shared loads of X.
 *
 * A panel's activations are gathered once for all its rows; then a vector of LANES stored values
 * takes its activations from 2 * LANES neighbours by one permutation, made from the 2-bit
 * positions. */
#ifndef ESP_CPU_ISA_FEW_H
#define ESP_CPU_ISA_FEW_H

#include "cpu/isa/nm.h"
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

ALWAYS_INLINE vec load_weights_upto(esp_dtype dtype, const void *values, int64_t at, int64_t count)
{
    return count >= LANES ? vec_load_weights(dtype, values, at)
                          : load_last_weights(dtype, values, at, count);
}

/* ---- dense ---- */

ALWAYS_INLINE void dense_dots(const cpu_piece *piece, esp_dtype dtype, int rows, int tokens,
                              int64_t row)
{
    const esp_host_weight *weight = piece->weight;
    int64_t in = weight->in_features;
    vec sum[FEW_ROWS][CPU_FEW_TOKENS] = {0};
    for (int64_t k = 0; k < in; k += LANES) {
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            vec w =
                load_weights_upto(dtype, weight->values, (piece->row + row + r) * in + k, in - k);
#pragma GCC unroll 4
            for (int t = 0; t < tokens; t++) {
                sum[r][t] = vec_fma(w, vec_load(piece->x + t * piece->x_stride + k), sum[r][t]);
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) {
            piece->sums[(row + r) * piece->sums_stride + t] = vec_sum(sum[r][t]);
        }
    }
}

/* ---- panel ---- */

/* gathered: [tokens][stride] activations of the panel's kept columns, zero behind them. */
typedef struct gathered_x {
    const float *x;
    int64_t stride;
} gathered_x;

ALWAYS_INLINE uvec load_index_upto(const uint8_t *positions, int64_t count)
{
    if (count >= LANES) {
        return vec_kept_index(positions);
    }
    uint8_t bytes[4] = {0};
    memcpy(bytes, positions, (size_t)(count + 3) / 4);
    return vec_kept_index(bytes);
}

ALWAYS_INLINE void panel_dots(const cpu_piece *piece, const gathered_x *gathered, esp_dtype dtype,
                              int rows, int tokens, int64_t row)
{
    const esp_host_weight *weight = piece->weight;
    vec sum[FEW_ROWS][CPU_FEW_TOKENS] = {0};
    for (int64_t j = 0; j < weight->row_values; j += LANES) {
        int64_t left = weight->row_values - j;
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            int64_t stored = piece->row + row + r;
            vec w = load_weights_upto(dtype, weight->values, stored * weight->row_values + j, left);
            uvec index =
                load_index_upto(weight->positions + stored * weight->position_bytes + j / 4, left);
#pragma GCC unroll 4
            for (int t = 0; t < tokens; t++) {
                vec x = vec_pick(gathered->x + t * gathered->stride + 2 * j, index);
                sum[r][t] = vec_fma(w, x, sum[r][t]);
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) {
            piece->sums[(row + r) * piece->sums_stride + t] = vec_sum(sum[r][t]);
        }
    }
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
    for (int64_t j = 0; j < weight->kept; j++) {
        int64_t column = esp_host_column(weight, panel, j);
        for (int64_t t = 0; t < piece->tokens; t++) {
            piece->scratch[t * stride + j] = piece->x[t * piece->x_stride + column];
        }
    }
    for (int64_t t = 0; t < piece->tokens; t++) {
        for (int64_t j = weight->kept; j < stride; j++) {
            piece->scratch[t * stride + j] = 0;
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

/* ---- nm: columns entry by entry ---- */

ALWAYS_INLINE void nm_dots(const cpu_piece *piece, esp_dtype dtype, int64_t r)
{
    const esp_host_weight *weight = piece->weight;
    int64_t row = piece->row + r;
    vec sum[CPU_FEW_TOKENS] = {0};
    for (int64_t j = 0; j < weight->row_values; j += LANES) {
        uint32_t columns[LANES];
        int64_t count = ESP_MIN(LANES, weight->row_values - j);
        vec w = load_weights_upto(dtype, weight->values, row * weight->row_values + j, count);
        nm_columns(weight, row, j, count, 1, columns);
        for (int64_t i = count; i < LANES; i++) {
            columns[i] = (uint32_t)weight->in_features; /* zero */
        }
        for (int64_t t = 0; t < piece->tokens; t++) {
            const float *x = piece->x + t * piece->x_stride;
            float lanes[LANES];
            for (int i = 0; i < LANES; i++) {
                lanes[i] = x[columns[i]];
            }
            sum[t] = vec_fma(w, vec_load(lanes), sum[t]);
        }
    }
    for (int64_t t = 0; t < piece->tokens; t++) {
        piece->sums[r * piece->sums_stride + t] = vec_sum(sum[t]);
    }
}

static void few_nm(const cpu_piece *piece)
{
    for (int64_t r = 0; r < piece->rows; r++) {
        switch (piece->weight->dtype) {
        case ESP_F32:
            nm_dots(piece, ESP_F32, r);
            break;
        case ESP_F16:
            nm_dots(piece, ESP_F16, r);
            break;
        default:
            nm_dots(piece, ESP_BF16, r);
        }
    }
}

#endif
