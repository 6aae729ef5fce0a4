/* Random numbers and random weights of every pattern, with contents that the format allows: each
 * pattern's mask is drawn, not pruned, so that any set of kept columns can come up. */
#include "product.h"

/* ---- numbers ---- */

int64_t random_range(esp_random *random, int64_t low, int64_t high)
{
    return low + (int64_t)esp_random_below(random, (uint64_t)(high - low + 1));
}

int64_t random_log(esp_random *random, int64_t low, int64_t high)
{
    double ratio = (double)(high + 1) / (double)low;
    int64_t value = (int64_t)((double)low * pow(ratio, esp_random_uniform(random)));
    return value > high ? high : value;
}

float random_value(esp_random *random, inputs kind, bool zeros)
{
    if (zeros && esp_random_below(random, 8) == 0) {
        return 0;
    }
    if (kind == INTEGERS) {
        float value = (float)random_range(random, 1, 4);
        return esp_random_below(random, 2) == 0 ? value : -value;
    }
    int smallest = kind == ADVERSARIAL ? -20 : -3;
    return (float)(2 * esp_random_uniform(random) - 1) *
           ldexpf(1, (int)random_range(random, smallest, 1));
}

/* Fisher and Yates; writes 0..count-1 in random order. */
void random_order(esp_random *random, uint32_t *order, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        int64_t j = random_range(random, 0, i);
        order[i] = order[j];
        order[j] = (uint32_t)i;
    }
}

static int by_number(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* ---- weights ---- */

/* Columns of one panel: groups of four ascending, missing ones UINT32_MAX. */
static void random_columns(esp_random *random, const esp_pattern *pattern, int64_t in, int64_t kept,
                           uint32_t *columns)
{
    uint32_t *order = malloc((size_t)(in + 4) * sizeof *order);
    if (pattern->m == 0) {
        random_order(random, order, in);
        for (int64_t j = 0; j < kept; j++) {
            columns[j] = j < in ? order[j] : UINT32_MAX;
        }
    } else {
        for (int64_t group = 0; group < kept / 4; group++) {
            int64_t first = group * pattern->m, count = ESP_MIN(pattern->m, in - first);
            random_order(random, order, count);
            for (int64_t j = 0; j < 4; j++) {
                columns[4 * group + j] = j < count ? (uint32_t)first + order[j] : UINT32_MAX;
            }
        }
    }
    for (int64_t j = 0; j < kept; j += 4) {
        qsort(columns + j, 4, sizeof *columns, by_number);
    }
    free(order);
}

/* Two of each four columns of a row. */
static void mask_panel_row(esp_random *random, esp_mask *mask, int64_t row, const uint32_t *columns,
                           int64_t kept)
{
    for (int64_t j = 0; j < kept; j += 4) {
        uint32_t order[4];
        random_order(random, order, 4);
        for (int k = 0; k < 2; k++) {
            if (columns[j + order[k]] != UINT32_MAX) {
                esp_mask_set(mask, row, columns[j + order[k]], true);
            }
        }
    }
}

static esp_status mask_panels(esp_random *random, const esp_pattern *pattern, esp_mask *mask,
                              bool reorder, esp_error *error)
{
    int64_t out = esp_mask_out_features(mask), in = esp_mask_in_features(mask);
    int64_t kept = esp_pattern_kept(pattern, in), v = esp_pattern_panel_rows(pattern, out);
    int64_t panel_rows = v > 0 ? v : out, panels = esp_ceil_div(out, panel_rows);
    uint32_t *columns = malloc((size_t)(panels * kept) * sizeof *columns);
    uint32_t *rows = malloc((size_t)out * sizeof *rows);
    random_order(random, rows, out);
    for (int64_t p = 0; p < panels; p++) {
        for (int64_t j = 0; v == 0 && j < kept; j++) {
            columns[j] = j < in ? (uint32_t)j : UINT32_MAX;
        }
        if (v > 0) {
            random_columns(random, pattern, in, kept, columns + p * kept);
        }
        for (int64_t i = p * panel_rows; i < ESP_MIN(out, (p + 1) * panel_rows); i++) {
            mask_panel_row(random, mask, reorder ? rows[i] : i, columns + p * kept, kept);
        }
    }
    esp_status status = v > 0 ? esp_mask_set_columns(mask, v, kept, columns, error) : ESP_OK;
    if (status == ESP_OK && reorder) {
        status = esp_mask_set_rows(mask, rows, error);
    }
    free(columns);
    free(rows);
    return status;
}

static void mask_groups(esp_random *random, const esp_pattern *pattern, esp_mask *mask)
{
    int64_t out = esp_mask_out_features(mask), in = esp_mask_in_features(mask);
    uint32_t *order = malloc((size_t)pattern->group * sizeof *order);
    for (int64_t row = 0; row < out; row++) {
        for (int64_t first = 0; first < in; first += pattern->group) {
            int64_t count = ESP_MIN(pattern->group, in - first);
            random_order(random, order, count);
            for (int64_t k = 0; k < ESP_MIN(pattern->keep, count); k++) {
                esp_mask_set(mask, row, first + order[k], true);
            }
        }
    }
    free(order);
}

/* Blocks, rows, columns or single entries, as many as the pattern keeps. */
static void mask_units(esp_random *random, const esp_pattern *pattern, esp_mask *mask)
{
    int64_t out = esp_mask_out_features(mask), in = esp_mask_in_features(mask);
    bool block = pattern->kind == ESP_PATTERN_BLOCK;
    int64_t rows = block ? pattern->block_rows : pattern->kind == ESP_PATTERN_COLS ? out : 1;
    int64_t columns = block ? pattern->block_cols : pattern->kind == ESP_PATTERN_ROWS ? in : 1;
    int64_t across = esp_ceil_div(in, columns), units = across * esp_ceil_div(out, rows);
    int64_t kept = units - (int64_t)(pattern->sparsity * (double)units + 0.5);
    uint32_t *order = malloc((size_t)units * sizeof *order);
    random_order(random, order, units);
    for (int64_t i = 0; i < ESP_MAX(1, kept); i++) {
        int64_t row = order[i] / across * rows, column = order[i] % across * columns;
        for (int64_t r = row; r < ESP_MIN(out, row + rows); r++) {
            for (int64_t c = column; c < ESP_MIN(in, column + columns); c++) {
                esp_mask_set(mask, r, c, true);
            }
        }
    }
    free(order);
}

esp_sparse *random_weight(test_run *run, esp_context *context, esp_random *random,
                          const esp_matmul_problem *problem, inputs kind, bool reorder)
{
    esp_error error_ = {0}, *error = &error_;
    int64_t out = problem->out_features, in = problem->in_features;
    const esp_pattern *pattern = &problem->pattern;
    esp_tensor dense = {0};
    esp_mask *mask = NULL;
    esp_sparse *sparse = NULL;
    esp_status status = esp_tensor_create(context, problem->weight_type, 2,
                                          (const int64_t[]){out, in}, &dense, error);
    for (int64_t i = 0; status == ESP_OK && i < out * in; i++) {
        float value = random_value(random, kind, true);
        size_t width = esp_dtype_bytes(problem->weight_type);
        esp_narrow(problem->weight_type, &value, 1, (char *)dense.data + (size_t)i * width);
    }
    if (status == ESP_OK && pattern->kind != ESP_PATTERN_DENSE) {
        status = esp_mask_create(context, out, in, &mask, error);
    }
    if (status == ESP_OK && pattern->kind == ESP_PATTERN_PANEL) {
        status = mask_panels(random, pattern, mask, reorder, error);
    } else if (status == ESP_OK && pattern->kind == ESP_PATTERN_NM) {
        mask_groups(random, pattern, mask);
    } else if (status == ESP_OK && pattern->kind >= ESP_PATTERN_BLOCK) {
        mask_units(random, pattern, mask);
    }
    if (status == ESP_OK && kind == ADVERSARIAL) {
        adversarial_weights(random, mask, &dense);
    }
    if (status == ESP_OK) {
        status = esp_sparse_encode(context, pattern, &dense, mask, &sparse, error);
    }
    if (status == ESP_OK) {
        status = esp_sparse_check(sparse, error);
    }
    if (status != ESP_OK) {
        test_fail(run, __FILE__, __LINE__, "weight: %s", error_.message);
    }
    esp_mask_free(mask);
    esp_tensor_free(context, &dense);
    return sparse;
}
