/* Random products for the checkers of this folder: weights of every pattern with valid contents, X
 * and residual with NaN in all gaps, Y and workspace poisoned and guarded, results as plain f32
 * rows. */
#ifndef ESP_TESTS_PRODUCT_H
#define ESP_TESTS_PRODUCT_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "op/op.h"
#include "plan/plan.h"
#include "test.h"

#define GUARD 64 /* elements before and behind Y, bytes behind the workspace */

typedef enum inputs { INTEGERS, REALS } inputs; /* integers: sums are exact in f32 */

typedef struct product {
    esp_matmul_problem problem;
    esp_context *context;
    esp_sparse *sparse;
    int64_t x_stride, y_stride, out_rows; /* out_rows: of Y (half for swiglu) */
    char *x;
    float *scale, *bias;
    float *residual; /* [out_rows][tokens], exact in the output type */
    bool in_place;   /* residual is Y itself */
} product;

/* ---- numbers ---- */

static inline int64_t random_range(esp_random *random, int64_t low, int64_t high)
{
    return low + (int64_t)esp_random_below(random, (uint64_t)(high - low + 1));
}

static inline int64_t random_log(esp_random *random, int64_t low, int64_t high)
{
    double ratio = (double)(high + 1) / (double)low;
    int64_t value = (int64_t)((double)low * pow(ratio, esp_random_uniform(random)));
    return value > high ? high : value;
}

static inline float random_value(esp_random *random, inputs kind, bool zeros)
{
    if (zeros && esp_random_below(random, 8) == 0) {
        return 0;
    }
    if (kind == INTEGERS) {
        float value = (float)random_range(random, 1, 4);
        return esp_random_below(random, 2) == 0 ? value : -value;
    }
    return (float)(2 * esp_random_uniform(random) - 1) *
           ldexpf(1, (int)random_range(random, -3, 1));
}

/* Fisher and Yates; writes 0..count-1 in random order. */
static inline void random_order(esp_random *random, uint32_t *order, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        int64_t j = random_range(random, 0, i);
        order[i] = order[j];
        order[j] = (uint32_t)i;
    }
}

static inline int by_number(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* ---- weights ---- */

/* Columns of one panel: groups of four ascending, missing ones UINT32_MAX. */
static inline void random_columns(esp_random *random, const esp_pattern *pattern, int64_t in,
                                  int64_t kept, uint32_t *columns)
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
static inline void mask_panel_row(esp_random *random, esp_mask *mask, int64_t row,
                                  const uint32_t *columns, int64_t kept)
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

static inline esp_status mask_panels(esp_random *random, const esp_pattern *pattern, esp_mask *mask,
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

static inline void mask_groups(esp_random *random, const esp_pattern *pattern, esp_mask *mask)
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
static inline void mask_units(esp_random *random, const esp_pattern *pattern, esp_mask *mask)
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

static inline esp_sparse *random_weight(test_run *run, esp_context *context, esp_random *random,
                                        const esp_matmul_problem *problem, inputs kind,
                                        bool reorder)
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

/* ---- operands ---- */

static inline int64_t element_at(bool by_feature, int64_t stride, int64_t feature, int64_t token)
{
    return by_feature ? feature * stride + token : token * stride + feature;
}

static inline void put(esp_dtype dtype, char *data, int64_t at, float value)
{
    esp_narrow(dtype, &value, 1, data + at * (int64_t)esp_dtype_bytes(dtype));
}

static inline void fill(esp_dtype dtype, char *data, int64_t count, float value)
{
    for (int64_t i = 0; i < count; i++) {
        put(dtype, data, i, value);
    }
}

static inline int64_t x_elements(const product *p)
{
    bool by_feature = p->problem.x_layout == ESP_FEATURE_MAJOR;
    return (by_feature ? p->problem.in_features : p->problem.tokens) * p->x_stride;
}

static inline int64_t y_elements(const product *p)
{
    bool by_feature = p->problem.y_layout == ESP_FEATURE_MAJOR;
    return (by_feature ? p->out_rows : p->problem.tokens) * p->y_stride;
}

/* Everything is made from seed alone. wide: strides above tight. */
static inline product product_make(test_run *run, esp_context *context,
                                   const esp_matmul_problem *problem, uint64_t seed, inputs kind,
                                   bool reorder, bool wide)
{
    esp_random random;
    esp_random_seed(&random, seed);
    product p = {.problem = *problem, .context = context};
    bool x_by_feature = problem->x_layout == ESP_FEATURE_MAJOR;
    bool y_by_feature = problem->y_layout == ESP_FEATURE_MAJOR;
    p.out_rows = problem->out_features >> ((problem->epilogue & ESP_EP_SWIGLU) != 0);
    p.x_stride = (x_by_feature ? problem->tokens : problem->in_features) + (wide ? 5 : 0);
    p.y_stride = (y_by_feature ? problem->tokens : p.out_rows) + (wide ? 3 : 0);
    p.sparse = random_weight(run, context, &random, problem, kind,
                             reorder && problem->pattern.kind == ESP_PATTERN_PANEL);
    p.x = malloc((size_t)x_elements(&p) * esp_dtype_bytes(problem->act_type));
    fill(problem->act_type, p.x, x_elements(&p), NAN);
    for (int64_t f = 0; f < problem->in_features; f++) {
        for (int64_t t = 0; t < problem->tokens; t++) {
            put(problem->act_type, p.x, element_at(x_by_feature, p.x_stride, f, t),
                random_value(&random, kind, false));
        }
    }
    p.scale = malloc((size_t)problem->out_features * sizeof(float));
    p.bias = malloc((size_t)problem->out_features * sizeof(float));
    p.residual = malloc((size_t)(p.out_rows * problem->tokens) * sizeof(float));
    for (int64_t o = 0; o < problem->out_features; o++) {
        p.scale[o] = kind == INTEGERS ? ldexpf(1, (int)random_range(&random, -1, 2))
                                      : random_value(&random, kind, false);
        p.bias[o] = random_value(&random, kind, false);
    }
    for (int64_t i = 0; i < p.out_rows * problem->tokens; i++) {
        uint16_t half[2];
        float value = random_value(&random, kind, false);
        esp_narrow(problem->out_type, &value, 1, half);
        esp_widen(problem->out_type, half, 1, &p.residual[i]);
    }
    return p;
}

static inline void product_free(product *p)
{
    esp_sparse_free(p->sparse);
    free(p->x);
    free(p->scale);
    free(p->bias);
    free(p->residual);
}

/* ---- running ---- */

typedef struct operands {
    char *y, *residual; /* with GUARD elements on both sides */
    char *workspace;
} operands;

static inline void lay_residual(const product *p, char *to)
{
    bool by_feature = p->problem.y_layout == ESP_FEATURE_MAJOR;
    for (int64_t o = 0; o < p->out_rows; o++) {
        for (int64_t t = 0; t < p->problem.tokens; t++) {
            put(p->problem.out_type, to, element_at(by_feature, p->y_stride, o, t),
                p->residual[o * p->problem.tokens + t]);
        }
    }
}

/* Elements of Y outside its rows still hold what was laid there. */
static inline bool gaps_untouched(const product *p, const char *y, const char *before)
{
    size_t width = esp_dtype_bytes(p->problem.out_type);
    bool by_feature = p->problem.y_layout == ESP_FEATURE_MAJOR;
    int64_t row = by_feature ? p->problem.tokens : p->out_rows;
    for (int64_t i = -GUARD; i < y_elements(p) + GUARD; i++) {
        bool inside = i >= 0 && i < y_elements(p) && i % p->y_stride < row;
        if (!inside && memcmp(y + i * (int64_t)width, before + i * (int64_t)width, width) != 0) {
            return false;
        }
    }
    return true;
}

static inline void run_plan(test_run *run, const product *p, const esp_plan *plan,
                            const esp_packed *weight, float *result)
{
    esp_dtype type = p->problem.out_type;
    size_t width = esp_dtype_bytes(type), count = (size_t)(y_elements(p) + 2 * GUARD);
    size_t workspace_bytes = esp_plan_workspace_bytes(plan);
    char *y_block = malloc(count * width), *before = malloc(count * width);
    char *residual = malloc(count * width);
    char *workspace = aligned_alloc(64, (workspace_bytes + GUARD + 63) / 64 * 64);
    char *y = y_block + GUARD * width;
    fill(type, y_block, (int64_t)count, NAN);
    fill(type, residual, (int64_t)count, NAN);
    lay_residual(p, p->in_place ? y : residual);
    memcpy(before, y_block, count * width);
    memset(workspace, 0xff, workspace_bytes + GUARD); /* NaN in every type */
    esp_matmul_args args = {.weight = weight,
                            .x = p->x,
                            .x_stride = p->x_stride,
                            .y = y,
                            .y_stride = p->y_stride,
                            .scale = p->scale,
                            .bias = p->bias,
                            .residual = p->in_place ? y : residual,
                            .workspace = workspace};
    CHECK_OK(esp_matmul_run(plan, &args, error));
    CHECK(gaps_untouched(p, y, before + GUARD * width));
    for (size_t i = 0; i < GUARD; i++) {
        CHECK((unsigned char)workspace[workspace_bytes + i] == 0xff);
    }
    bool by_feature = p->problem.y_layout == ESP_FEATURE_MAJOR;
    for (int64_t o = 0; o < p->out_rows; o++) {
        for (int64_t t = 0; t < p->problem.tokens; t++) {
            result[o * p->problem.tokens + t] =
                esp_weight_at(type, y, element_at(by_feature, p->y_stride, o, t));
        }
    }
    free(y_block);
    free(before);
    free(residual);
    free(workspace);
}

/* result: [out_rows][tokens]. The kernel is forced by name. */
static inline void run_kernel(test_run *run, const product *p, const char *device_name,
                              const char *kernel, float *result)
{
    esp_device *device = NULL;
    esp_packed *packed = NULL;
    esp_plan *plan = NULL;
    REQUIRE_OK(esp_device_open(p->context, device_name, &device, error));
    CHECK_OK(esp_pack(device, p->sparse, &packed, error));
    CHECK_OK(esp_plan_create(device, &p->problem, kernel, &plan, error));
    if (packed != NULL && plan != NULL) {
        run_plan(run, p, plan, packed, result);
    }
    esp_plan_free(plan);
    esp_packed_free(packed);
    esp_device_close(device);
}

/* Kernels of the cpu that can run the problem, by name. */
static inline int usable_kernels(esp_context *context, const esp_matmul_problem *problem,
                                 const char *names[64])
{
    esp_device *device = NULL;
    int count = 0;
    if (esp_device_open(context, "cpu", &device, NULL) != ESP_OK) {
        return 0;
    }
    for (int i = 0; i < esp_kernel_count() && count < 64; i++) {
        if (esp_kernel_why_not(i, device, problem) == NULL) {
            names[count++] = esp_kernel_get(i).name;
        }
    }
    esp_device_close(device);
    return count;
}

static inline float *result_of(const product *p)
{
    return malloc((size_t)(p->out_rows * p->problem.tokens) * sizeof(float));
}

static inline esp_matmul_problem problem_of(test_run *run, const char *text)
{
    esp_matmul_problem problem = {0};
    CHECK_OK(esp_matmul_problem_parse(text, &problem, error));
    return problem;
}

#endif
