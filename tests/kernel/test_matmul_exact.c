/* Every kernel against the reference on small integers: all sums are exact in f32, so results must
 * be equal to the last bit. Shapes that divide nothing, every tail of tokens, all layouts, types
 * and the epilogues that stay exact; outputs and workspaces guarded and poisoned. */
#include "product.h"

static void compare_all(test_run *run, const char *text, uint64_t seed, bool reorder, bool in_place)
{
    esp_matmul_problem problem = problem_of(run, text);
    esp_context *context = test_context(run, 2);
    bool wide = esp_splitmix64(&(uint64_t){seed}) % 2 == 0; /* cut loose from the loops' numbers */
    product p = product_make(run, context, &problem, seed, INTEGERS, reorder, wide);
    float *expected = result_of(&p), *actual = result_of(&p);
    const char *names[64];
    int count = usable_kernels(context, &problem, names);
    CHECK(count > 0);
    run_kernel(run, &p, "ref", NULL, expected);
    p.in_place = in_place;
    for (int i = 0; i < count; i++) {
        test_sub(run, "%s%s%s %s", text, reorder ? " row order" : "", in_place ? " in place" : "",
                 names[i]);
        run_kernel(run, &p, "cpu", names[i], actual);
        compare_exact(run, &p, expected, actual);
    }
    free(expected);
    free(actual);
    product_free(&p);
    test_context_free(run, context);
}

static const char *const patterns[] = {"dense",
                                       "2:4",
                                       "1:4",
                                       "4:8",
                                       "3:7",
                                       "64:2:8",
                                       "16:2:5",
                                       "5:2:16",
                                       "128:2:8",
                                       "1:2:9",
                                       "panel:24@0.8",
                                       "panel:7@0.5",
                                       "unstructured@0.7",
                                       "block:4x8@0.5",
                                       "block:16x3@0.3",
                                       "rows@0.4",
                                       "cols@0.6"};

static void token_tails(test_run *run)
{
    static const int tokens[] = {1,  2,  3,  4,  5,  7,   8,   9,   15,  16,  17,
                                 31, 33, 63, 64, 65, 100, 127, 129, 200, 513, 530};
    for (int i = 0; i < ESP_COUNT(tokens); i++) {
        for (int j = 0; j < ESP_COUNT(patterns); j++) {
            if (tokens[i] > 129 && j % 3 != 0) {
                continue;
            }
            char text[128];
            snprintf(text, sizeof text, "matmul/%s/%s/37x85x%d/a:f32", patterns[j],
                     (i + j) % 3 == 0   ? "f32"
                     : (i + j) % 3 == 1 ? "f16"
                                        : "bf16",
                     tokens[i]);
            compare_all(run, text, test_seed(run) + (uint64_t)(100 * i + j), (i + j) % 2 == 0,
                        false);
        }
    }
}

static void shapes(test_run *run)
{
    static const int sizes[][3] = {{1, 1, 1},    {1, 1, 17},     {2, 3, 2},     {3, 5, 33},
                                   {7, 9, 5},    {97, 31, 18},   {100, 64, 1},  {193, 130, 20},
                                   {64, 384, 3}, {130, 257, 40}, {6, 1000, 16}, {300, 7, 1}};
    for (int i = 0; i < ESP_COUNT(sizes); i++) {
        for (int j = 0; j < ESP_COUNT(patterns); j++) {
            char text[128];
            snprintf(text, sizeof text, "matmul/%s/%s/%dx%dx%d/a:f32", patterns[j],
                     (i + j) % 2 == 0 ? "f32" : "bf16", sizes[i][0], sizes[i][1], sizes[i][2]);
            compare_all(run, text, test_seed(run) + (uint64_t)(100 * i + j), (i + j) % 3 == 0,
                        false);
        }
    }
}

static void layouts_and_types(test_run *run)
{
    static const char *const options[] = {
        "/x:tok/a:f32", "/y:tok/a:f32",        "/x:tok/y:tok/a:f32", "",        "/x:tok/y:tok",
        "/a:f16/o:f32", "/a:bf16/o:f16/y:tok", "/c:bf16/a:f32",      "/c:bf16", "/a:f32/o:bf16"};
    static const char *const some[] = {"dense",         "2:4",          "4:8",
                                       "16:2:7",        "panel:24@0.8", "unstructured@0.7",
                                       "block:4x8@0.5", "rows@0.4",     "cols@0.6"};
    for (int i = 0; i < ESP_COUNT(options); i++) {
        for (int j = 0; j < ESP_COUNT(some); j++) {
            for (int k = 0; k < 2; k++) {
                char text[128];
                snprintf(text, sizeof text, "matmul/%s/%s/45x70x%d%s", some[j],
                         (i + j) % 3 == 0   ? "f32"
                         : (i + j) % 3 == 1 ? "f16"
                                            : "bf16",
                         k == 0 ? 3 : 37, options[i]);
                compare_all(run, text, test_seed(run) + (uint64_t)(100 * i + 10 * j + k), k == 1,
                            false);
            }
        }
    }
}

static void epilogues(test_run *run)
{
    static const char *const epilogue[] = {"scale",
                                           "bias",
                                           "relu",
                                           "residual",
                                           "scale+bias+relu",
                                           "bias+residual",
                                           "scale+bias+relu+residual"};
    static const char *const some[] = {
        "dense",         "2:4",      "1:4",     "16:2:7", "unstructured@0.7",
        "block:4x8@0.5", "rows@0.4", "cols@0.6"};
    for (int i = 0; i < ESP_COUNT(epilogue); i++) {
        for (int j = 0; j < ESP_COUNT(some); j++) {
            for (int k = 0; k < 4; k++) {
                char text[128];
                snprintf(text, sizeof text, "matmul/%s/f32/50x33x%d%s/ep:%s", some[j],
                         k % 2 == 0 ? 1 : 34, k < 2 ? "" : "/y:tok", epilogue[i]);
                compare_all(run, text, test_seed(run) + (uint64_t)(100 * i + 10 * j + k), true,
                            i % 2 == 1);
            }
        }
    }
}

/* Kernels that multiply bf16 themselves: tails of tokens, of rows and of columns, more than one
 * block of columns, more than one pass of tokens, every type of weights. */
static void bf16_inputs(test_run *run)
{
    static const char *const some[] = {"dense",  "2:4",    "64:2:8",
                                       "16:2:5", "5:2:16", "panel:24@0.8"};
    static const int sizes[][3] = {{37, 85, 1},    {37, 85, 5},    {64, 128, 16}, {65, 257, 17},
                                   {97, 31, 33},   {130, 96, 48},  {1, 1, 49},    {16, 384, 64},
                                   {200, 70, 130}, {33, 4200, 20}, {70, 2177, 7}, {34, 66, 545}};
    for (int i = 0; i < ESP_COUNT(sizes); i++) {
        for (int j = 0; j < ESP_COUNT(some); j++) {
            char text[128];
            snprintf(text, sizeof text, "matmul/%s/%s/%dx%dx%d/c:bf16%s", some[j],
                     (i + j) % 4 == 0   ? "f32"
                     : (i + j) % 4 == 1 ? "f16"
                                        : "bf16",
                     sizes[i][0], sizes[i][1], sizes[i][2],
                     (i + j) % 3 == 0   ? "/x:tok/a:f32"
                     : (i + j) % 3 == 1 ? "/a:f32"
                                        : "/y:tok/a:bf16/ep:scale+bias+relu+residual");
            compare_all(run, text, test_seed(run) + (uint64_t)(100 * i + j), (i + j) % 2 == 0,
                        i % 2 == 0);
        }
    }
}

/* What matters to lists: blocks that hang over both edges, blocks narrower and wider than vectors,
 * than a batch of columns and than a piece of rows; rows without entries, full rows, rows of one
 * weight that differ a hundredfold; more columns than a chunk, more rows than a piece. */
static void listed_shapes(test_run *run)
{
    static const char *const texts[] = {
        "block:1x1@0.6/f32/37x85",        "block:1x16@0.5/bf16/40x130",
        "block:3x5@0.5/f16/37x83",        "block:5x3@0.5/f32/33x40",
        "block:6x6@0.5/bf16/31x50",       "block:7x17@0.3/f32/36x70",
        "block:8x8@0.7/f32/60x61",        "block:8x24@0.5/bf16/21x100",
        "block:16x16@0.5/f16/50x90",      "block:32x32@0.7/f32/100x150",
        "block:32x32@0.7/bf16/96x128",    "block:64x64@0.5/f32/130x200",
        "block:100x4@0.4/f32/250x30",     "block:97x33@0.3/f16/200x70",
        "block:200x130@0.5/bf16/300x300", "block:2x300@0.5/f32/9x700",
        "block:4x129@0.3/bf16/10x400",    "block:300x300@0.1/f32/20x20",
        "block:4x4@0.95/f32/300x64",      "unstructured@0.01/f32/70x600",
        "unstructured@0.01/bf16/70x600",  "unstructured@0.5/f16/530x300",
        "unstructured@0.97/f32/600x900",  "unstructured@0.999/f32/50x300",
        "unstructured@0.9/bf16/1100x40",  "rows@0.9/f32/200x50",
        "rows@0.01/bf16/100x30",          "cols@0.95/f16/50x200",
        "cols@0.01/f32/30x129",
    };
    static const int tokens[] = {1, 3, 4, 6, 9, 40, 150};
    static const char *const options[] = {"/a:f32", "/x:tok/y:tok", "/c:bf16/a:f32",
                                          "/a:f32/ep:scale+bias"};
    for (int i = 0; i < ESP_COUNT(texts); i++) {
        for (int j = 0; j < ESP_COUNT(tokens); j++) {
            char text[128];
            snprintf(text, sizeof text, "matmul/%sx%d%s", texts[i], tokens[j],
                     options[(i + j) % ESP_COUNT(options)]);
            compare_all(run, text, test_seed(run) + (uint64_t)(10 * i + j), false, false);
        }
    }
}

static void wide_inputs(test_run *run)
{
    compare_all(run, "matmul/2:4/bf16/3x70001x2/a:f32", test_seed(run), false, false);
    compare_all(run, "matmul/4:2:8/f32/6x70001x17", test_seed(run), true, false);
    compare_all(run, "matmul/1:8/f32/3x70001x17", test_seed(run), false, false);
    compare_all(run, "matmul/5:300/bf16/7x1000x2/a:f32", test_seed(run), false, false);
    compare_all(run, "matmul/5:200/f32/7x1001x3", test_seed(run), false, false);
    compare_all(run, "matmul/5:6/f32/7x101x4", test_seed(run), false, false);
    compare_all(run, "matmul/20:24/f16/7x99x1/a:f32", test_seed(run), false, false);
    compare_all(run, "matmul/dense/f16/3x70001x1/a:f32", test_seed(run), false, false);
    compare_all(run, "matmul/unstructured@0.9/f32/3x70001x17", test_seed(run), false, false);
    compare_all(run, "matmul/cols@0.5/f32/3x70001x1", test_seed(run), false, false);
    compare_all(run, "matmul/block:2x3@0.5/f32/5x70001x2", test_seed(run), false, false);
    compare_all(run, "matmul/rows@0.5/f32/70001x3x2", test_seed(run), false, false);
}

static const test_case cases[] = {{"token_tails", token_tails},
                                  {"shapes", shapes},
                                  {"layouts_and_types", layouts_and_types},
                                  {"epilogues", epilogues},
                                  {"bf16_inputs", bf16_inputs},
                                  {"listed_shapes", listed_shapes},
                                  {"wide_inputs", wide_inputs}};
TEST_MAIN(cases)
