/* Numbers that are hard on the GPU's kernels of products: sums that cancel, sizes far apart,
 * subnormal numbers, results near the largest that Y holds (product_adversarial.c); NaN and
 * infinities in columns that a row must not see. Without a GPU every case is skipped; TEST_KERNEL
 * names a part of the kernels to which the run is limited. */
#include "product_device.h"

/* ---- adversarial numbers ---- */

static int index_of(const char *kernel)
{
    int found = 0;
    while (strcmp(esp_kernel_get(found).name, kernel) != 0) {
        found++;
    }
    return found;
}

/* Each kernel that can run the product, against the reference; ran: by its place in the catalogue.
 */
static void compare_bounded_kernels(test_run *run, esp_device *device, esp_context *context,
                                    const char *text, uint64_t seed, bool *ran)
{
    esp_matmul_problem problem = problem_of(run, text);
    const char *names[64];
    int count = usable_on(device, &problem, names);
    product p = product_make(run, context, &problem, seed, ADVERSARIAL, seed % 3 == 0, false);
    float *expected = result_of(&p), *actual = result_of(&p);
    double *sums = magnitudes(run, &p);
    run_kernel(run, &p, "ref", NULL, expected);
    for (int i = 0; i < count; i++) {
        device_layout layout = layout_draw(&p, seed + (uint64_t)i);
        test_sub(run, "%s seed %llu strides %lld %lld %s", text, (unsigned long long)seed,
                 (long long)layout.x_stride, (long long)layout.y_stride, names[i]);
        run_on_gpu(run, &p, device, names[i], &layout, actual);
        compare_bounded(run, &p, sums, expected, actual);
        ran[index_of(names[i])] = true;
    }
    free(sums);
    free(expected);
    free(actual);
    product_free(&p);
}

/* A level of which one record ran is one that the GPU has: all its records must have run. */
static void check_all_ran(test_run *run, const bool *ran)
{
    test_sub(run, "every record");
    for (int i = 0; i < esp_kernel_count(); i++) {
        esp_kernel_info info = esp_kernel_get(i);
        bool has_level = false;
        for (int j = 0; j < esp_kernel_count(); j++) {
            has_level = has_level || (ran[j] && strcmp(esp_kernel_get(j).level, info.level) == 0);
        }
        if (strcmp(info.device, "cuda") == 0 && has_level && !ran[i]) {
            test_fail(run, __FILE__, __LINE__, "no product is for %s", info.name);
        }
    }
}

static void adversarial_numbers(test_run *run)
{
    static const char *const texts[] = {"matmul/dense/f16/192x264x40",
                                        "matmul/dense/bf16/256x520x136/o:f32/ep:bias",
                                        "matmul/dense/f16/64x1000x5/o:f32/ep:silu",
                                        "matmul/dense/bf16/130x336x9/ep:scale+residual",
                                        "matmul/dense/bf16/77x333x33/x:tok/y:tok",
                                        "matmul/dense/f32/130x200x33/ep:scale+bias",
                                        "matmul/dense/f32/64x1000x7/o:f16",
                                        "matmul/2:4/f16/256x520x296",
                                        "matmul/2:4/bf16/130x264x72/x:tok/y:tok",
                                        "matmul/2:4/f16/300x1000x9/ep:scale+residual",
                                        "matmul/2:4/bf16/70x3000x3/o:f32",
                                        "matmul/64:2:8/f16/200x1400x136/ep:bias+relu",
                                        "matmul/128:2:8/bf16/256x600x264",
                                        "matmul/256:2:8/f16/300x1200x8/o:bf16",
                                        "matmul/64:2:16/bf16/256x2000x12/o:f16",
                                        "matmul/64:2:5/f16/256x640x136",
                                        "matmul/128:2:5/bf16/130x333x300/x:tok/o:f32",
                                        "matmul/32:2:8/f16/100x400x300/ep:gelu",
                                        "matmul/5:2:16/bf16/22x4000x33/o:f32",
                                        "matmul/panel:96@0.7/f16/200x700x13/ep:residual",
                                        "matmul/block:64x64@0.7/f16/256x512x264",
                                        "matmul/block:32x32@0.8/bf16/200x700x13/o:f32",
                                        "matmul/block:16x16@0.8/bf16/96x400x33/ep:scale+bias",
                                        "matmul/block:32x64@0.7/f16/128x600x5/ep:bias+gelu"};
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    bool *ran = calloc((size_t)esp_kernel_count(), sizeof *ran);
    for (int i = 0; device != NULL && i < 2 * ESP_COUNT(texts); i++) {
        compare_bounded_kernels(run, device, context, texts[i / 2], test_seed(run) + (uint64_t)i,
                                ran);
    }
    if (device != NULL && getenv("TEST_KERNEL") == NULL) {
        check_all_ran(run, ran);
    }
    free(ran);
    esp_device_close(device);
    test_context_free(run, context);
}

/* ---- columns that a panel does not keep ---- */

/* Which rows and columns are those of each panel. */
typedef struct panel_lists {
    esp_tensor columns, rows; /* of 16 bits; rows: none where they are in order */
    int64_t panels, panel_rows;
} panel_lists;

static panel_lists lists_of(test_run *run, const product *p)
{
    panel_lists found = {0};
    for (int i = 0; i < esp_sparse_part_count(p->sparse); i++) {
        esp_sparse_part part = esp_sparse_get_part(p->sparse, i);
        found.columns = strcmp(part.name, "columns") == 0 ? part.tensor : found.columns;
        found.rows = strcmp(part.name, "rows") == 0 ? part.tensor : found.rows;
    }
    CHECK_INT(found.columns.dtype, ESP_U16);
    CHECK(found.rows.data == NULL || found.rows.dtype == ESP_U16);
    found.panels = found.columns.shape[0];
    found.panel_rows = esp_pattern_panel_rows(&p->problem.pattern, p->problem.out_features);
    return found;
}

static void note_kept(const panel_lists *lists, int64_t panel, bool *kept)
{
    int64_t count = lists->columns.shape[1];
    const uint16_t *columns = (const uint16_t *)lists->columns.data + panel * count;
    for (int64_t j = 0; j < count; j++) {
        if (columns[j] != UINT16_MAX) {
            kept[columns[j]] = true;
        }
    }
}

/* NaN and infinities in all columns that the panel does not keep, although others may. */
static void spoil_columns(test_run *run, product *p, const panel_lists *lists, int64_t panel)
{
    const esp_matmul_problem *problem = &p->problem;
    bool *kept = calloc((size_t)problem->in_features, sizeof *kept);
    bool *by_others = calloc((size_t)problem->in_features, sizeof *by_others);
    int64_t spoiled = 0, shared = 0;
    for (int64_t other = 0; other < lists->panels; other++) {
        note_kept(lists, other, other == panel ? kept : by_others);
    }
    for (int64_t f = 0; f < problem->in_features; f++) {
        for (int64_t t = 0; !kept[f] && t < problem->tokens; t++) {
            int64_t at = element_at(problem->x_layout == ESP_FEATURE_MAJOR, p->x_stride, f, t);
            put(problem->act_type, p->x, at, (f + t) % 2 == 0 ? NAN : INFINITY);
        }
        spoiled += !kept[f];
        shared += !kept[f] && by_others[f];
    }
    CHECK(spoiled > 0 && (lists->panels == 1 || shared > 0));
    free(kept);
    free(by_others);
}

static void compare_panel(test_run *run, const product *p, const panel_lists *lists, int64_t panel,
                          const float *expected, const float *actual)
{
    const uint16_t *rows = lists->rows.data;
    int64_t first = panel * lists->panel_rows, tokens = p->problem.tokens;
    for (int64_t place = first; place < ESP_MIN(p->out_rows, first + lists->panel_rows); place++) {
        int64_t row = rows != NULL ? rows[place] : place;
        for (int64_t at = row * tokens; at < (row + 1) * tokens; at++) {
            if (!(actual[at] == expected[at])) {
                test_fail(run, __FILE__, __LINE__, "row %lld token %lld: %.9g, reference %.9g",
                          (long long)row, (long long)(at % tokens), (double)actual[at],
                          (double)expected[at]);
                return;
            }
        }
    }
}

static void spoil_each_panel(test_run *run, esp_device *device, product *p, const char *text)
{
    const char *names[64];
    int count = usable_on(device, &p->problem, names);
    size_t bytes = (size_t)x_elements(p) * esp_dtype_bytes(p->problem.act_type);
    panel_lists lists = lists_of(run, p);
    float *expected = result_of(p), *actual = result_of(p);
    char *right = malloc(bytes);
    memcpy(right, p->x, bytes);
    run_kernel(run, p, "ref", NULL, expected);
    for (int64_t panel = 0; panel < lists.panels; panel++) {
        spoil_columns(run, p, &lists, panel);
        for (int k = 0; k < count; k++) {
            device_layout layout = layout_draw(p, (uint64_t)(panel + k));
            test_sub(run, "%s panel %lld%s %s", text, (long long)panel,
                     lists.rows.data != NULL ? " row order" : "", names[k]);
            run_on_gpu(run, p, device, names[k], &layout, actual);
            compare_panel(run, p, &lists, panel, expected, actual);
        }
        memcpy(p->x, right, bytes);
    }
    free(right);
    free(expected);
    free(actual);
}

/* Columns that a panel does not keep may hold NaN and infinities: its rows never see them, whatever
 * other panels do. */
static void unkept_columns(test_run *run)
{
    static const char *const texts[] = {
        "matmul/500:2:8/f16/150x700x40/o:f32",        "matmul/500:2:5/bf16/150x703x300/x:tok/o:f32",
        "matmul/panel:500@0.9/f16/150x700x8/o:f32",   "matmul/500:2:16/bf16/150x700x1/o:f32",
        "matmul/64:2:8/f16/300x700x40/o:f32",         "matmul/128:2:8/bf16/300x640x296/o:f32",
        "matmul/64:2:5/f16/200x333x136/o:f32",        "matmul/5:2:16/bf16/22x400x33/x:tok/o:f32",
        "matmul/32:2:8/f16/100x400x300/o:f32",        "matmul/panel:96@0.7/bf16/300x500x9/o:f32",
        "matmul/256:2:16/f16/600x700x264/y:tok/o:f32"};
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(texts); i++) {
        esp_matmul_problem problem = problem_of(run, texts[i]);
        product p =
            product_make(run, context, &problem, test_seed(run), INTEGERS, i % 3 == 2, false);
        spoil_each_panel(run, device, &p, texts[i]);
        product_free(&p);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

static const test_case cases[] = {{"adversarial_numbers", adversarial_numbers},
                                  {"unkept_columns", unkept_columns}};
TEST_MAIN(cases)
