/* What the GPU's kernels of panels and dense weights do to finished sums, where the other cases do
 * not reach: activations at every size of their argument, to nearly the rounding of Y, and products
 * of several tiles on each multiprocessor, whose sums leave while the next ones are computed.
 * Without a GPU every case is skipped; TEST_KERNEL names a part of the kernels to which the run is
 * limited. */
#include "product_device.h"

/* ---- activations ---- */

/* Sums are zero and the bias is the argument: -40 to 40, finer near zero. A result may be off by
 * half a step of its type, by what sm90_activate.cuh allows itself, and by rounding 1 + erf in
 * f32. */
static void check_activation(test_run *run, esp_device *device, product *p, const char *kernel)
{
    const esp_matmul_problem *problem = &p->problem;
    float *actual = result_of(p);
    device_layout layout = {problem->tokens, problem->tokens, 0, 0};
    run_on_gpu(run, p, device, kernel, &layout, actual);
    for (int64_t o = 0; o < p->out_rows; o++) {
        double v = (double)p->bias[o], want = activated(problem->epilogue, v);
        double allowed =
            half_step(problem->out_type, want) + 0x1p-14 * fabs(want) + 0x1p-23 * fabs(v);
        for (int64_t t = 0; t < problem->tokens; t++) {
            double have = (double)actual[o * problem->tokens + t];
            if (!(fabs(have - want) <= allowed)) {
                test_fail(run, __FILE__, __LINE__, "of %.9g: %.9g, expected %.9g within %.3g", v,
                          have, want, allowed);
                free(actual);
                return;
            }
        }
    }
    free(actual);
}

static void activations(test_run *run)
{
    static const char *const texts[] = {
        "matmul/2:4/f16/8192x8x24/ep:bias+gelu",       "matmul/2:4/bf16/8192x8x24/ep:bias+gelu",
        "matmul/2:4/f16/8192x8x24/ep:bias+gelu_tanh",  "matmul/2:4/f16/8192x8x24/ep:bias+silu",
        "matmul/64:2:8/bf16/8192x8x24/ep:bias+silu",   "matmul/64:2:8/f16/8192x8x24/ep:bias+gelu",
        "matmul/2:4/bf16/8192x8x24/ep:bias+gelu_tanh", "matmul/2:4/f16/8192x8x24/ep:bias+relu",
        "matmul/dense/f16/8192x8x24/ep:bias+gelu",     "matmul/dense/bf16/8192x8x24/ep:bias+silu",
        "matmul/dense/f16/8192x8x24/ep:bias+gelu_tanh"};
    esp_context *context = test_context(run, 1);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(texts); i++) {
        esp_matmul_problem problem = problem_of(run, texts[i]);
        const char *names[64];
        int count = usable_on(device, &problem, names);
        product p = product_make(run, context, &problem, test_seed(run), REALS, false, false);
        fill(problem.act_type, p.x, x_elements(&p), 0);
        for (int64_t o = 0; o < p.out_rows; o++) {
            double place = 2.0 * (double)o / (double)(p.out_rows - 1) - 1;
            p.bias[o] = (float)(40 * place * fabs(place));
        }
        for (int k = 0; k < count; k++) {
            test_sub(run, "%s %s", texts[i], names[k]);
            check_activation(run, device, &p, names[k]);
        }
        product_free(&p);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* NaN and infinities of one token and of one row stay there. */
static void not_finite(test_run *run)
{
    static const char *const texts[] = {"matmul/2:4/f16/192x64x320/ep:bias+gelu",
                                        "matmul/2:4/f16/192x64x320/ep:bias+silu",
                                        "matmul/2:4/f16/192x64x320/ep:bias+relu",
                                        "matmul/2:4/f16/192x64x320/ep:bias+gelu_tanh",
                                        "matmul/64:2:8/bf16/192x64x320/ep:bias+residual",
                                        "matmul/2:4/bf16/192x64x320/ep:bias+swiglu",
                                        "matmul/dense/f16/192x64x320/ep:bias+gelu",
                                        "matmul/dense/bf16/192x64x320/ep:bias+residual",
                                        "matmul/dense/f16/192x64x320/ep:bias+swiglu"};
    esp_context *context = test_context(run, 1);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(texts); i++) {
        esp_matmul_problem problem = problem_of(run, texts[i]);
        const char *names[64];
        int count = usable_on(device, &problem, names);
        product p = product_make(run, context, &problem, test_seed(run), INTEGERS, false, false);
        float *actual = result_of(&p);
        for (int64_t f = 0; f < problem.in_features; f++) {
            put(problem.act_type, p.x, element_at(true, p.x_stride, f, 77), NAN);
        }
        p.bias[100] = INFINITY;
        bool pairs = (problem.epilogue & ESP_EP_SWIGLU) != 0;
        int64_t row = pairs ? 50 : 100;
        for (int k = 0; k < count; k++) {
            device_layout layout = {problem.tokens, problem.tokens, 0, 0};
            test_sub(run, "%s %s", texts[i], names[k]);
            run_on_gpu(run, &p, device, names[k], &layout, actual);
            for (int64_t o = 0; o < p.out_rows; o++) {
                for (int64_t t = 0; t < problem.tokens; t++) {
                    float v = actual[o * problem.tokens + t];
                    bool right = t == 77    ? isnan(v)
                                 : o != row ? isfinite(v)
                                 : pairs    ? !isfinite(v)
                                            : v == INFINITY;
                    if (!right) {
                        test_fail(run, __FILE__, __LINE__, "row %lld token %lld: %g", (long long)o,
                                  (long long)t, (double)v);
                        o = p.out_rows - 1;
                        break;
                    }
                }
            }
        }
        free(actual);
        product_free(&p);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* ---- several tiles on each multiprocessor, by samples and by signed sums ---- */

typedef struct tiled {
    const char *text;
    bool in_place;
} tiled;

/* By the kernels whose names contain `which`. */
static void check_tiles(test_run *run, const tiled *cases, int case_count, const char *which)
{
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < case_count; i++) {
        esp_matmul_problem problem = problem_of(run, cases[i].text);
        const char *names[64];
        int count = usable_on(device, &problem, names);
        product p =
            product_make(run, context, &problem, test_seed(run) + (uint64_t)i, REALS, false, false);
        const unsigned linear = ESP_EP_SCALE | ESP_EP_BIAS | ESP_EP_RESIDUAL;
        bool adds_up = (problem.epilogue & ~linear) == 0;
        p.in_place = cases[i].in_place;
        float *actual = result_of(&p);
        signed_sums sums = {0};
        if (adds_up) {
            sums = signed_sums_make(run, &p, 3e8);
        }
        for (int k = 0; k < count; k++) {
            bool by_token = problem.y_layout == ESP_TOKEN_MAJOR;
            int64_t stride = (by_token ? p.out_rows : problem.tokens) + k % 2 * 8;
            device_layout layout = {problem.x_layout == ESP_FEATURE_MAJOR
                                        ? (problem.tokens + 7) / 8 * 8
                                        : (problem.in_features + 7) / 8 * 8,
                                    stride, 0, 0};
            if (strstr(names[k], which) == NULL) {
                continue;
            }
            test_sub(run, "%s%s stride %lld %s", cases[i].text, p.in_place ? " in place" : "",
                     (long long)stride, names[k]);
            run_on_gpu(run, &p, device, names[k], &layout, actual);
            check_samples(run, &p, actual, 8000);
            if (adds_up) {
                check_signed_sums(run, &sums, &p, actual);
            }
        }
        signed_sums_free(&sums);
        free(actual);
        product_free(&p);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* Tiles of one step, of fewer steps than parts are put off, and of more than there are chunks. */
static void tiles(test_run *run)
{
    static const tiled cases[] = {
        {"matmul/2:4/f16/2302x520x2056/ep:bias+gelu", false},
        {"matmul/2:4/bf16/2304x64x2056/ep:bias+residual", true},
        {"matmul/2:4/f16/2432x1000x2184/ep:scale+bias+gelu_tanh+residual", false},
        {"matmul/2:4/f16/2432x300x2184/x:tok/ep:swiglu", false},
        {"matmul/2:4/bf16/2430x840x2136/ep:bias+swiglu+residual", true},
        {"matmul/128:2:8/f16/2304x1100x2064/ep:bias+residual", true},
        {"matmul/128:2:8/bf16/2304x130x2072/ep:bias+silu", false},
        {"matmul/64:2:8/f16/2304x1100x2120/ep:bias+residual", true},
        {"matmul/64:2:8/bf16/2304x500x2120/ep:bias+swiglu", false},
        {"matmul/192:2:8/f16/2304x700x2056/ep:bias+gelu+residual", false},
        {"matmul/192:2:16/bf16/2304x1000x2056/ep:scale+relu", false},
        /* Y by token: no bound on tokens, rows by eights */
        {"matmul/2:4/f16/2312x520x2057/x:tok/y:tok/ep:bias+gelu", false},
        {"matmul/2:4/bf16/2344x64x2049/y:tok/ep:bias+residual", true},
        {"matmul/2:4/f16/2448x300x2187/y:tok/ep:bias+swiglu", false},
        {"matmul/2:4/f16/2306x300x2187/y:tok/ep:bias+residual", false},
        {"matmul/128:2:8/f16/2328x1100x2071/y:tok/ep:scale+residual", true},
        {"matmul/128:2:8/bf16/2304x130x2050/y:tok/ep:relu", false},
        {"matmul/64:2:8/f16/2304x1100x2121/y:tok/ep:bias+residual", true},
        {"matmul/64:2:8/bf16/2320x500x2121/y:tok/ep:bias+swiglu", false},
        {"matmul/192:2:16/bf16/2312x1000x2059/y:tok", false},
        /* few tiles, whose steps a cluster shares out */
        {"matmul/2:4/f16/768x3072x200/ep:bias+swiglu", false},
        {"matmul/2:4/bf16/768x3072x200/ep:bias+residual", true},
        {"matmul/2:4/f16/776x3072x203/y:tok/ep:bias+residual", true},
        {"matmul/128:2:8/f16/768x6144x136/ep:swiglu", false},
        {"matmul/128:2:8/bf16/768x6144x135/y:tok/ep:swiglu", false},
        {"matmul/dense/f16/2304x520x2056/ep:bias+gelu", false},
        {"matmul/dense/bf16/2304x64x2056/ep:bias+residual", true},
        {"matmul/dense/f16/2416x1000x2184/ep:scale+bias+residual", true},
        {"matmul/dense/bf16/2304x504x2120/ep:bias+residual", false},
        {"matmul/dense/f16/2304x328x2056/ep:swiglu", false},
        {"matmul/dense/bf16/2304x16x2056", false},
        {"matmul/dense/f16/2304x328x2053/y:tok/ep:bias+residual", true},
        {"matmul/dense/bf16/2304x328x2056/y:tok/ep:bias", false}};
    check_tiles(run, cases, ESP_COUNT(cases), "");
}

/* Few steps, but several tiles on each multiprocessor of Hopper: what leaves while the next tile is
 * computed, few enough for the tools that watch every access to memory. Strips, by which the other
 * kernels finish, are in test_cuda.c's cases for them. */
static void tiles_for_sanitizers(test_run *run)
{
    static const tiled cases[] = {{"matmul/2:4/f16/2304x64x2056/ep:bias+gelu", false},
                                  {"matmul/2:4/bf16/2304x64x2056/y:tok/ep:bias+residual", true},
                                  {"matmul/128:2:8/f16/2304x300x2056/ep:swiglu", false},
                                  {"matmul/128:2:8/f16/384x3000x136/ep:bias", false},
                                  {"matmul/dense/bf16/2304x64x2056/ep:bias+residual", true}};
    check_tiles(run, cases, ESP_COUNT(cases), "128x256");
}

static const test_case cases[] = {{"activations", activations},
                                  {"not_finite", not_finite},
                                  {"tiles", tiles},
                                  {"tiles_for_sanitizers", tiles_for_sanitizers}};
TEST_MAIN(cases)
