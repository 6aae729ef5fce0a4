/* The dense products of libraries, where they are installed: bit-equal to the reference on small
 * integers, for every layout, epilogue, thread count and for shapes on both sides of the sizes at
 * which libraries change their method; and refused with a reason where they do not fit. */
#include "product.h"

static const char *const kernels[] = {"matmul_dense_f32_f32__cpu_openblas",
                                      "matmul_dense_f32_f32__cpu_onednn",
                                      "matmul_dense_bf16_f32__cpu_onednn"};

static int index_of(const char *kernel)
{
    for (int i = 0; i < esp_kernel_count(); i++) {
        if (strcmp(esp_kernel_get(i).name, kernel) == 0) {
            return i;
        }
    }
    return -1;
}

static const char *why_not(esp_context *context, const char *kernel,
                           const esp_matmul_problem *problem)
{
    esp_device *device = NULL;
    if (esp_device_open(context, "cpu", &device, NULL) != ESP_OK) {
        return "no device";
    }
    const char *why = esp_kernel_why_not(index_of(kernel), device, problem);
    esp_device_close(device);
    return why;
}

static bool is_absent(const char *why)
{
    return why != NULL && (strstr(why, "not found") != NULL || strstr(why, "absent") != NULL);
}

static void compare_libraries(test_run *run, const char *text, int threads, bool wide)
{
    esp_matmul_problem problem = problem_of(run, text);
    esp_context *context = test_context(run, threads);
    product p = product_make(run, context, &problem, test_seed(run), INTEGERS, false, wide);
    float *expected = result_of(&p), *actual = result_of(&p);
    bool is_f32 = problem.weight_type == ESP_F32;
    run_kernel(run, &p, "ref", NULL, expected);
    for (int i = 0; i < ESP_COUNT(kernels); i++) {
        if ((strstr(kernels[i], "dense_f32") != NULL) != is_f32) {
            continue;
        }
        const char *why = why_not(context, kernels[i], &problem);
        test_sub(run, "%s threads %d %s", text, threads, kernels[i]);
        CHECK(why == NULL || is_absent(why));
        if (why == NULL) {
            run_kernel(run, &p, "cpu", kernels[i], actual);
            size_t bytes = (size_t)(p.out_rows * problem.tokens) * sizeof *actual;
            CHECK(memcmp(expected, actual, bytes) == 0);
        }
    }
    free(expected);
    free(actual);
    product_free(&p);
    test_context_free(run, context);
}

static void both_types(test_run *run, const char *sizes, const char *options, int threads)
{
    char text[160];
    snprintf(text, sizeof text, "matmul/dense/f32/%s/a:f32%s", sizes, options);
    compare_libraries(run, text, threads, threads % 2 == 0);
    snprintf(text, sizeof text, "matmul/dense/bf16/%s/a:f32/c:bf16%s", sizes, options);
    compare_libraries(run, text, threads, threads % 2 == 1);
}

static void shapes_and_layouts(test_run *run)
{
    static const char *const layouts[] = {"", "/x:tok", "/y:tok", "/x:tok/y:tok"};
    static const char *const sizes[] = {"1x1x1",     "1x7x5",     "9x1x4",     "3x2x1",
                                        "33x65x1",   "400x515x1", "257x130x2", "48x64x16",
                                        "65x300x33", "100x33x130"};
    for (int i = 0; i < ESP_COUNT(sizes); i++) {
        for (int j = 0; j < ESP_COUNT(layouts); j++) {
            both_types(run, sizes[i], layouts[j], 1 + (i + j) % 3);
        }
    }
    both_types(run, "500x700x70", "", 2);
    both_types(run, "130x2100x20", "/x:tok/y:tok", 5);
}

static void epilogues(test_run *run)
{
    static const char *const epilogue[] = {"scale", "bias", "relu", "scale+bias+relu"};
    for (int i = 0; i < ESP_COUNT(epilogue); i++) {
        for (int j = 0; j < 4; j++) {
            char options[64];
            snprintf(options, sizeof options, "%s/ep:%s", j % 2 == 0 ? "" : "/y:tok", epilogue[i]);
            both_types(run, j < 2 ? "50x33x1" : "50x33x70", options, 2);
        }
    }
    compare_libraries(run, "matmul/dense/bf16/40x50x9/a:f16/o:f32/c:bf16/x:tok", 2, true);
    compare_libraries(run, "matmul/dense/bf16/40x50x9/a:bf16/o:f32/c:bf16", 2, true);
}

static void what_does_not_fit(test_run *run)
{
    static const struct {
        const char *kernel, *text, *reason;
    } rows[] = {
        {"matmul_dense_f32_f32__cpu_onednn", "matmul/2:4/f32/8x8x8", "dense weights only"},
        {"matmul_dense_f32_f32__cpu_onednn", "matmul/dense/bf16/8x8x8/a:f32", "f32 from f32"},
        {"matmul_dense_f32_f32__cpu_onednn", "matmul/dense/f32/8x8x8/c:bf16", "f32 from f32"},
        {"matmul_dense_f32_f32__cpu_openblas", "matmul/dense/f32/8x8x8/o:f16", "writes f32"},
        {"matmul_dense_f32_f32__cpu_openblas", "matmul/dense/f32/8x8x8/ep:residual", "residual"},
        {"matmul_dense_bf16_f32__cpu_onednn", "matmul/dense/f32/8x8x8/c:bf16", "bf16 weights"},
        {"matmul_dense_bf16_f32__cpu_onednn", "matmul/dense/bf16/8x8x8/a:f32/c:f32",
         "bf16 weights only"},
    };
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        esp_matmul_problem problem = problem_of(run, rows[i].text);
        test_sub(run, "%s %s", rows[i].text, rows[i].kernel);
        const char *why = why_not(context, rows[i].kernel, &problem);
        CHECK(why != NULL && (strstr(why, rows[i].reason) != NULL || is_absent(why)));
    }
    test_context_free(run, context);
}

static const test_case cases[] = {{"shapes_and_layouts", shapes_and_layouts},
                                  {"epilogues", epilogues},
                                  {"what_does_not_fit", what_does_not_fit}};
TEST_MAIN(cases)
