/* For the tests of formats and pruning: hostile weights, masks that fit a pattern by construction
 * (without src/prune), and the plain meaning of "masked". */
#ifndef ESP_TESTS_WEIGHTS_H
#define ESP_TESTS_WEIGHTS_H

#include <espalier/sparse.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "format/format.h"
#include "test.h"

/* One weight's bits of any kind: zeros of both signs, NaN payloads, infinities, subnormals,
 * numbers. */
static inline uint32_t weight_bits(esp_random *random, esp_dtype dtype)
{
    unsigned exponent_bits = dtype == ESP_F16 ? 5 : 8;
    unsigned fraction_bits = dtype == ESP_F32 ? 23 : dtype == ESP_F16 ? 10 : 7;
    uint32_t sign = (uint32_t)esp_random_below(random, 2) << (exponent_bits + fraction_bits);
    uint32_t fraction = (uint32_t)esp_random_u64(random) & ((1u << fraction_bits) - 1);
    uint32_t all_exponents = (1u << exponent_bits) - 1;
    switch (esp_random_below(random, 12)) {
    case 0:
        return sign; /* +0.0, -0.0 */
    case 1:
        return sign | fraction; /* subnormal */
    case 2:
        return sign | all_exponents << fraction_bits; /* infinity */
    case 3:
        return sign | all_exponents << fraction_bits | fraction | 1; /* NaN with a payload */
    default:
        return sign | ((uint32_t)esp_random_u64(random) & all_exponents) << fraction_bits |
               fraction;
    }
}

static inline void put_bits_at(esp_dtype dtype, void *data, int64_t index, uint32_t bits)
{
    if (dtype == ESP_F32) {
        memcpy((char *)data + 4 * index, &bits, 4);
    } else {
        uint16_t half = (uint16_t)bits;
        memcpy((char *)data + 2 * index, &half, 2);
    }
}

static inline uint32_t bits_at(esp_dtype dtype, const void *data, int64_t index)
{
    uint32_t bits = 0;
    memcpy(&bits, (const char *)data + (int64_t)esp_dtype_bytes(dtype) * index,
           esp_dtype_bytes(dtype));
    return bits;
}

static inline size_t tensor_bytes(const esp_tensor *tensor)
{
    size_t bytes = 0;
    return esp_tensor_size(tensor, NULL, &bytes, NULL) == ESP_OK ? bytes : 0;
}

static inline esp_tensor make_tensor(test_run *run, esp_context *context, esp_dtype dtype,
                                     int64_t out, int64_t in)
{
    esp_tensor tensor = {0};
    int64_t shape[2] = {out, in};
    CHECK_OK(esp_tensor_create(context, dtype, 2, shape, &tensor, error));
    return tensor;
}

static inline esp_tensor hostile_tensor(test_run *run, esp_context *context, esp_random *random,
                                        esp_dtype dtype, int64_t out, int64_t in)
{
    esp_tensor tensor = make_tensor(run, context, dtype, out, in);
    for (int64_t i = 0; i < out * in; i++) {
        put_bits_at(dtype, tensor.data, i, weight_bits(random, dtype));
    }
    return tensor;
}

static inline esp_pattern pattern_of(test_run *run, const char *text)
{
    esp_pattern pattern = {0};
    CHECK_OK(esp_pattern_parse(text, &pattern, error));
    return pattern;
}

static inline void shuffle(esp_random *random, uint32_t *items, int64_t count)
{
    for (int64_t i = count - 1; i > 0; i--) {
        int64_t other = (int64_t)esp_random_below(random, (uint64_t)i + 1);
        uint32_t held = items[i];
        items[i] = items[other];
        items[other] = held;
    }
}

static inline void sort_four(uint32_t *items)
{
    for (int i = 1; i < 4; i++) {
        for (int j = i; j > 0 && items[j - 1] > items[j]; j--) {
            uint32_t held = items[j];
            items[j] = items[j - 1];
            items[j - 1] = held;
        }
    }
}

/* Lets up to `keep` of the listed columns live (UINT32_MAX entries are passed over). */
static inline void live_some(esp_random *random, esp_mask *mask, int64_t row, uint32_t *columns,
                             int64_t count, int64_t keep)
{
    shuffle(random, columns, count);
    int64_t wanted = esp_random_below(random, 4) == 0
                         ? (int64_t)esp_random_below(random, (uint64_t)keep + 1)
                         : keep;
    for (int64_t i = 0; i < count && i < wanted; i++) {
        if (columns[i] != UINT32_MAX) {
            esp_mask_set(mask, row, columns[i], true);
        }
    }
}

/* Columns of one panel: kept entries, groups of four ascending, padding last. */
static inline void random_panel(esp_random *random, const esp_pattern *pattern, int64_t in,
                                int64_t kept, uint32_t *all, uint32_t *columns)
{
    int64_t m = pattern->m;
    for (int64_t g = 0; m != 0 && g < kept / 4; g++) {
        int64_t width = ESP_MIN(m, in - g * m);
        for (int64_t i = 0; i < width; i++) {
            all[i] = (uint32_t)(g * m + i);
        }
        shuffle(random, all, width);
        for (int64_t i = 0; i < 4; i++) {
            columns[4 * g + i] = i < width ? all[i] : UINT32_MAX;
        }
    }
    if (m == 0) {
        for (int64_t i = 0; i < ESP_MAX(in, kept); i++) {
            all[i] = i < in ? (uint32_t)i : UINT32_MAX;
        }
        shuffle(random, all, ESP_MAX(in, kept));
        memcpy(columns, all, (size_t)kept * sizeof *columns);
    }
    for (int64_t g = 0; g < kept / 4; g++) {
        sort_four(columns + 4 * g);
    }
}

static inline void fill_panels(test_run *run, esp_random *random, const esp_pattern *pattern,
                               esp_mask *mask, const uint32_t *rows)
{
    int64_t out = esp_mask_out_features(mask), in = esp_mask_in_features(mask);
    int64_t v = esp_pattern_panel_rows(pattern, out), kept = esp_pattern_kept(pattern, in);
    int64_t panels = esp_ceil_div(out, v);
    uint32_t *all = malloc((size_t)(in + kept + pattern->m) * sizeof *all);
    uint32_t *columns = malloc((size_t)(panels * kept) * sizeof *columns);
    for (int64_t panel = 0; panel < panels; panel++) {
        uint32_t *own = columns + panel * kept;
        random_panel(random, pattern, in, kept, all, own);
        for (int64_t i = panel * v; i < ESP_MIN(out, (panel + 1) * v); i++) {
            for (int64_t g = 0; g < kept / 4; g++) {
                uint32_t quad[4];
                memcpy(quad, own + 4 * g, sizeof quad);
                live_some(random, mask, rows != NULL ? rows[i] : i, quad, 4, 2);
            }
        }
    }
    if (pattern->m == 0) {
        CHECK_OK(esp_mask_set_columns(mask, v, kept, columns, error));
    }
    free(all);
    free(columns);
}

/* Whole units of rows x columns at random: as many as the pattern keeps, or fewer, with holes. */
static inline void fill_units(esp_random *random, const esp_pattern *pattern, esp_mask *mask)
{
    int64_t out = esp_mask_out_features(mask), in = esp_mask_in_features(mask);
    bool block = pattern->kind == ESP_PATTERN_BLOCK;
    int64_t rows = block ? pattern->block_rows : pattern->kind == ESP_PATTERN_COLS ? out : 1;
    int64_t columns = block ? pattern->block_cols : pattern->kind == ESP_PATTERN_ROWS ? in : 1;
    int64_t across = esp_ceil_div(in, ESP_MAX(1, columns));
    int64_t units = esp_ceil_div(out, ESP_MAX(1, rows)) * across;
    if (out == 0 || in == 0) {
        return;
    }
    uint32_t *order = malloc((size_t)(units + 1) * sizeof *order);
    for (int64_t i = 0; i < units; i++) {
        order[i] = (uint32_t)i;
    }
    shuffle(random, order, units);
    int64_t kept = units - (int64_t)(pattern->sparsity * (double)units + 0.5);
    kept = kept < 1 ? 1 : kept;
    kept = esp_random_below(random, 3) == 0 ? (int64_t)esp_random_below(random, (uint64_t)kept + 1)
                                            : kept;
    for (int64_t i = 0; i < kept; i++) {
        int64_t row = order[i] / across * rows, column = order[i] % across * columns;
        bool holes = units > 1 && esp_random_below(random, 4) == 0;
        for (int64_t r = row; r < ESP_MIN(out, row + rows); r++) {
            for (int64_t c = column; c < ESP_MIN(in, column + columns); c++) {
                esp_mask_set(mask, r, c, !holes || esp_random_below(random, 2) == 0);
            }
        }
    }
    free(order);
}

/* A mask that fits the pattern; panels get a random row order when with_rows. */
static inline esp_mask *random_mask(test_run *run, esp_context *context, esp_random *random,
                                    const esp_pattern *pattern, int64_t out, int64_t in,
                                    bool with_rows)
{
    esp_mask *mask = NULL;
    CHECK_OK(esp_mask_create(context, out, in, &mask, error));
    uint32_t *rows = NULL;
    if (with_rows && pattern->kind == ESP_PATTERN_PANEL) {
        rows = malloc((size_t)(out + 1) * sizeof *rows);
        for (int64_t i = 0; i < out; i++) {
            rows[i] = (uint32_t)i;
        }
        shuffle(random, rows, out);
        CHECK_OK(esp_mask_set_rows(mask, rows, error));
    }
    if (pattern->kind == ESP_PATTERN_PANEL && pattern->v != 0) {
        fill_panels(run, random, pattern, mask, rows);
        free(rows);
        return mask;
    }
    if (pattern->kind >= ESP_PATTERN_BLOCK) {
        fill_units(random, pattern, mask);
        return mask;
    }
    bool nm = pattern->kind == ESP_PATTERN_NM;
    int64_t group = nm ? pattern->group : 4, keep = nm ? pattern->keep : 2;
    uint32_t *columns = malloc((size_t)group * sizeof *columns);
    for (int64_t row = 0; row < out; row++) {
        for (int64_t first = 0; first < in; first += group) {
            int64_t width = ESP_MIN(group, in - first);
            for (int64_t i = 0; i < width; i++) {
                columns[i] = (uint32_t)(first + i);
            }
            live_some(random, mask, row, columns, width,
                      pattern->kind == ESP_PATTERN_DENSE ? width : keep);
        }
    }
    free(columns);
    free(rows);
    return mask;
}

/* What compressing under the mask means, entry by entry. */
static inline esp_tensor masked_copy(test_run *run, esp_context *context, const esp_tensor *dense,
                                     const esp_mask *mask)
{
    int64_t out = dense->shape[0], in = dense->shape[1];
    esp_tensor copy = make_tensor(run, context, dense->dtype, out, in);
    uint32_t magnitude = dense->dtype == ESP_F32 ? 0x7fffffffu : 0x7fffu;
    for (int64_t i = 0; i < out * in; i++) {
        uint32_t bits = bits_at(dense->dtype, dense->data, i);
        bool live = esp_mask_get(mask, i / in, i % in) && (bits & magnitude) != 0;
        put_bits_at(dense->dtype, copy.data, i, live ? bits : 0);
    }
    return copy;
}

#endif
