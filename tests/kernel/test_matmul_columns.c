/* Which columns of X a product reads: a column that no stored entry stands at, and the padding of a
 * column list, must have no influence, whatever they hold; a stored zero does multiply (0 * Inf is
 * NaN), in the reference and in every kernel alike. */
#include "product.h"

/* Columns of X that hold Inf or NaN where `taken` is false, ordinary numbers elsewhere. */
static void poison(product *p, const bool *taken)
{
    for (int64_t f = 0; f < p->problem.in_features; f++) {
        for (int64_t t = 0; !taken[f] && t < p->problem.tokens; t++) {
            bool by_feature = p->problem.x_layout == ESP_FEATURE_MAJOR;
            put(p->problem.act_type, p->x, element_at(by_feature, p->x_stride, f, t),
                (f + t) % 3 == 0   ? NAN
                : (f + t) % 3 == 1 ? INFINITY
                                   : -INFINITY);
        }
    }
}

/* Columns that some stored entry of some row stands at, fill entries included. */
static bool *taken_columns(const product *p)
{
    int64_t in = p->problem.in_features;
    bool *taken = calloc((size_t)in, sizeof *taken);
    esp_device *device = NULL;
    esp_packed *packed = NULL;
    if (esp_device_open(p->context, "ref", &device, NULL) != ESP_OK ||
        esp_pack(device, p->sparse, &packed, NULL) != ESP_OK) {
        abort();
    }
    const esp_host_weight *weight = packed->state;
    for (int64_t i = 0; i < weight->out_features; i++) {
        int64_t first = 0;
        int64_t runs = weight->format >= ESP_HOST_CSR ? esp_host_runs(weight, i, &first) : 0;
        for (int64_t k = first; k < first + runs; k++) {
            esp_host_run held = esp_host_run_at(weight, i, k);
            memset(taken + held.column, true, (size_t)held.length);
        }
        for (int64_t j = 0; j < weight->row_values; j++) {
            int64_t column = j;
            if (weight->format == ESP_HOST_NM) {
                column = esp_host_nm_column(weight, i, j);
            } else if (weight->format == ESP_HOST_PANEL) {
                unsigned byte = weight->positions[i * weight->position_bytes + j / 4];
                column = esp_host_column(weight, i / weight->panel_rows,
                                         j / 2 * 4 + (byte >> (j % 4 * 2) & 3));
            }
            if (column < in) {
                taken[column] = true;
            }
        }
    }
    esp_packed_free(packed);
    esp_device_close(device);
    return taken;
}

static void untaken_columns_are_not_read(test_run *run)
{
    static const char *const texts[] = {
        "matmul/16:2:16/f32/16x103x1",
        "matmul/unstructured@0.99/f32/3x103x1",
        "matmul/unstructured@0.99/bf16/3x103x37/a:f32",
        "matmul/cols@0.8/f16/16x103x5/a:f32",
        "matmul/block:16x4@0.8/f32/16x103x17",
        "matmul/block:3x5@0.8/f32/16x103x1",
        "matmul/block:3x40@0.6/bf16/16x103x2/a:f32",
        "matmul/block:2x150@0.5/f32/6x700x20",
        "matmul/cols@0.8/f32/16x103x40",
        "matmul/rows@0.8/f32/16x10x1",
        "matmul/3:20/bf16/5x95x1/a:f32",
        "matmul/3:8/f32/5x95x1",
        "matmul/1:4/f32/5x25x2",
        "matmul/16:2:16/bf16/16x103x3/a:f32",
        "matmul/16:2:16/f32/16x103x37",
        "matmul/16:2:16/f16/16x103x130/a:f32/x:tok",
        /* one column left over: its group has one entry more than columns, so padding is read */
        "matmul/16:2:16/f32/16x49x1",
        "matmul/16:2:16/bf16/16x65x3/a:f32",
        "matmul/4:2:24/f16/4x73x1/a:f32",
        "matmul/16:2:16/f32/16x49x40",
        "matmul/4:2:24/bf16/4x73x130/a:f32",
        "matmul/3:2:32/f32/9x33x17/x:tok",
        "matmul/8:2:7/f32/8x30x1",
        "matmul/8:2:7/f32/8x30x20",
        "matmul/40:2:6/f32/40x7x4",
        "matmul/40:2:6/f32/40x7x40",
        "matmul/panel:8@0.9/f32/8x90x2",
        "matmul/panel:8@0.9/f32/8x90x64",
        "matmul/panel:8@0.5/f32/20x6x2",
        "matmul/panel:8@0.5/f32/20x6x64",
        "matmul/1:16/f32/2x100x1",
        "matmul/1:16/f32/2x100x33",
        "matmul/2:4/f32/4x3x1",
        "matmul/2:4/f32/4x3x20",
        "matmul/2:4/bf16/4x9x1/a:f32",
        "matmul/2:4/bf16/4x9x70/a:bf16",
        /* rows that share kept columns of which each takes its own, in bf16 */
        "matmul/16:2:16/bf16/16x103x5/a:f32/c:bf16",
        "matmul/16:2:16/f32/16x103x37/a:f32/c:bf16",
        "matmul/16:2:16/f16/16x49x530/a:f32/c:bf16/x:tok",
        "matmul/8:2:7/bf16/8x30x20/c:bf16",
        "matmul/panel:8@0.5/bf16/20x6x64/c:bf16/y:tok",
        "matmul/2:4/bf16/4x9x70/a:bf16/c:bf16",
        "matmul/2:4/f32/4x3x20/c:bf16",
    };
    for (int i = 0; i < ESP_COUNT(texts); i++) {
        esp_matmul_problem problem = problem_of(run, texts[i]);
        esp_context *context = test_context(run, 2);
        product p = product_make(run, context, &problem, test_seed(run) + (uint64_t)i, INTEGERS,
                                 i % 2 == 0, true);
        float *clean = result_of(&p), *actual = result_of(&p);
        bool *taken = taken_columns(&p);
        run_kernel(run, &p, "ref", NULL, clean);
        poison(&p, taken);
        const char *names[64];
        int count = usable_kernels(context, &problem, names);
        for (int k = -1; k < count; k++) {
            test_sub(run, "%s %s", texts[i], k < 0 ? "ref" : names[k]);
            run_kernel(run, &p, k < 0 ? "ref" : "cpu", k < 0 ? NULL : names[k], actual);
            for (int64_t at = 0; at < p.out_rows * problem.tokens; at++) {
                CHECK(actual[at] == clean[at]);
            }
        }
        free(clean);
        free(actual);
        free(taken);
        product_free(&p);
        test_context_free(run, context);
    }
}

/* One infinite activation: the reference says which outputs it reaches, as Inf or as NaN. */
static void infinities_reach_the_same_outputs(test_run *run)
{
    static const char *const texts[] = {
        "matmul/dense/f32/33x40x1",
        "matmul/dense/bf16/33x40x20/a:f32",
        "matmul/2:4/f32/33x40x2",
        "matmul/2:4/bf16/33x40x30/a:f32",
        "matmul/16:2:8/f32/33x40x1",
        "matmul/16:2:8/f16/33x40x70/a:f32",
        "matmul/3:8/f32/33x40x3",
        "matmul/3:8/f32/33x40x19",
        "matmul/dense/bf16/33x40x20/a:f32/c:bf16",
        "matmul/2:4/bf16/33x40x30/a:f32/c:bf16",
        "matmul/2:4/f32/33x40x600/c:bf16/y:tok",
        "matmul/16:2:8/bf16/33x40x70/a:f32/c:bf16",
        "matmul/16:2:8/f16/33x40x5/a:f32/c:bf16",
        "matmul/block:4x4@0.3/f32/33x40x1",
        "matmul/block:8x20@0.3/f32/33x40x30",
        "matmul/unstructured@0.5/f32/33x40x1",
        "matmul/unstructured@0.5/f32/33x40x30",
        "matmul/cols@0.3/f32/33x40x1",
        "matmul/rows@0.3/f32/33x40x30",
    };
    for (int i = 0; i < ESP_COUNT(texts); i++) {
        esp_matmul_problem problem = problem_of(run, texts[i]);
        esp_context *context = test_context(run, 2);
        product p = product_make(run, context, &problem, test_seed(run) + (uint64_t)i, INTEGERS,
                                 true, false);
        bool taken[40];
        for (int f = 0; f < 40; f++) {
            taken[f] = f != 21;
        }
        poison(&p, taken);
        float *expected = result_of(&p), *actual = result_of(&p);
        run_kernel(run, &p, "ref", NULL, expected);
        const char *names[64];
        int count = usable_kernels(context, &problem, names);
        for (int k = 0; k < count; k++) {
            test_sub(run, "%s %s", texts[i], names[k]);
            run_kernel(run, &p, "cpu", names[k], actual);
            for (int64_t at = 0; at < p.out_rows * problem.tokens; at++) {
                bool both_nan = actual[at] != actual[at] && expected[at] != expected[at];
                CHECK(both_nan || actual[at] == expected[at]);
            }
        }
        free(expected);
        free(actual);
        product_free(&p);
        test_context_free(run, context);
    }
}

/* An infinite weight makes its own row infinite, and no other: values behind the end of a row are
 * not multiplied, not even by zero. */
static void infinite_weights_stay_in_their_rows(test_run *run)
{
    static const char *const texts[] = {
        "matmul/dense/f32/9x37x1",
        "matmul/dense/bf16/9x37x20/a:f32",
        "matmul/3:8/f32/9x37x1",
        "matmul/1:4/bf16/9x37x3/a:f32",
        "matmul/3:8/f16/9x37x30/a:f32",
        "matmul/unstructured@0.6/f32/9x37x1",
        "matmul/unstructured@0.6/bf16/9x37x3/a:f32",
        "matmul/unstructured@0.6/f32/9x37x30",
        "matmul/block:3x5@0.5/f32/9x37x1",
        "matmul/block:3x19@0.3/bf16/9x60x2/a:f32",
        "matmul/block:3x19@0.3/f32/9x60x1",
        "matmul/block:3x5@0.5/f16/9x37x20/a:f32",
        "matmul/block:5x40@0.3/f32/9x90x3",
        "matmul/rows@0.5/f32/9x37x1",
        "matmul/cols@0.5/f32/9x37x1",
        "matmul/cols@0.5/bf16/9x37x20/a:f32",
    };
    for (int i = 0; i < ESP_COUNT(texts); i++) {
        esp_matmul_problem problem = problem_of(run, texts[i]);
        esp_context *context = test_context(run, 2);
        product p = product_make(run, context, &problem, test_seed(run) + (uint64_t)i, INTEGERS,
                                 false, false);
        float *expected = result_of(&p), *actual = result_of(&p);
        esp_tensor values = esp_sparse_get_part(p.sparse, 0).tensor;
        int64_t count = 1;
        for (int axis = 0; axis < values.rank; axis++) {
            count *= values.shape[axis];
        }
        for (int64_t at = 0; at < count; at += 53) { /* stored entries of several rows */
            if (esp_weight_at(values.dtype, values.data, at) != 0) {
                put(values.dtype, values.data, at, INFINITY);
            }
        }
        run_kernel(run, &p, "ref", NULL, expected);
        const char *names[64];
        int kernels = usable_kernels(context, &problem, names);
        for (int k = 0; k < kernels; k++) {
            test_sub(run, "%s %s", texts[i], names[k]);
            run_kernel(run, &p, "cpu", names[k], actual);
            for (int64_t at = 0; at < p.out_rows * problem.tokens; at++) {
                bool both_nan = actual[at] != actual[at] && expected[at] != expected[at];
                CHECK(both_nan || actual[at] == expected[at]);
            }
        }
        free(expected);
        free(actual);
        product_free(&p);
        test_context_free(run, context);
    }
}

static const test_case cases[] = {
    {"infinite_weights_stay_in_their_rows", infinite_weights_stay_in_their_rows},
    {"untaken_columns_are_not_read", untaken_columns_are_not_read},
    {"infinities_reach_the_same_outputs", infinities_reach_the_same_outputs}};
TEST_MAIN(cases)
