/* Every kernel of the GPU that reads blocks against the reference: small integers bit for bit, real
 * numbers within the derived bound; block shapes that divide nothing, every tail of tokens, aligned
 * and unaligned operands, NaN and infinities where a row must not see them, lists that are wrong.
 * Without a GPU every case is skipped. TEST_ROUNDS sets how many random problems are drawn. */
#include "product_device.h"

static const char *const types[] = {"f16", "bf16"};

/* ---- comparing ---- */

/* Strides tight, a multiple of 16 bytes with gaps, or odd; bases aligned or not. */
static device_layout draw_layout(const product *p, uint64_t seed)
{
    const esp_matmul_problem *problem = &p->problem;
    esp_random random;
    esp_random_seed(&random, seed ^ 0xb10c);
    int64_t x_row = problem->x_layout == ESP_FEATURE_MAJOR ? problem->tokens : problem->in_features;
    int64_t y_row = problem->y_layout == ESP_FEATURE_MAJOR ? problem->tokens : p->out_rows;
    device_layout layout = {x_row, y_row, 0, 0};
    switch (esp_random_below(&random, 4)) {
    case 0:
        break;
    case 1:
        layout.x_stride += random_range(&random, 1, 5);
        layout.y_stride += random_range(&random, 1, 5);
        layout.x_offset = random_range(&random, 0, 2);
        layout.y_offset = random_range(&random, 0, 2);
        break;
    default:
        layout.x_stride = (x_row + 7) / 8 * 8 + 8 * random_range(&random, 0, 1);
        layout.y_stride = (y_row + 7) / 8 * 8 + 8 * random_range(&random, 0, 2);
    }
    return layout;
}

/* As compare_exact, but numbers that are not finite come up on both sides. */
static void compare_all_numbers(test_run *run, const product *p, const float *expected,
                                const float *actual)
{
    for (int64_t i = 0; i < p->out_rows * p->problem.tokens; i++) {
        if (!(actual[i] == expected[i]) && !(isnan(actual[i]) && isnan(expected[i]))) {
            test_fail(run, __FILE__, __LINE__, "row %lld token %lld: %.9g, reference %.9g",
                      (long long)(i / p->problem.tokens), (long long)(i % p->problem.tokens),
                      (double)actual[i], (double)expected[i]);
            return;
        }
    }
}

typedef enum comparing { EXACTLY, BOUNDED, ALL_NUMBERS } comparing;

/* Each kernel that can run the product, against the reference. */
static void compare_kernels(test_run *run, esp_device *device, product *p, const char *text,
                            uint64_t seed, comparing how)
{
    const char *names[64];
    int count = usable_on(device, &p->problem, names);
    float *expected = result_of(p), *actual = result_of(p);
    double *sums = how == BOUNDED ? magnitudes(run, p) : NULL;
    CHECK(count > 0);
    bool in_place = p->in_place;
    p->in_place = false;
    run_kernel(run, p, "ref", NULL, expected);
    p->in_place = in_place;
    for (int i = 0; i < count; i++) {
        device_layout layout = draw_layout(p, seed + (uint64_t)i);
        test_sub(run, "%s seed %llu%s strides %lld %lld offsets %lld %lld %s", text,
                 (unsigned long long)seed, in_place ? " in place" : "", (long long)layout.x_stride,
                 (long long)layout.y_stride, (long long)layout.x_offset, (long long)layout.y_offset,
                 names[i]);
        run_on_gpu(run, p, device, names[i], &layout, actual);
        if (how == BOUNDED) {
            compare_bounded(run, p, sums, expected, actual);
        } else if (how == EXACTLY) {
            compare_exact(run, p, expected, actual);
        } else {
            compare_all_numbers(run, p, expected, actual);
        }
    }
    free(sums);
    free(expected);
    free(actual);
}

static void compare(test_run *run, esp_device *device, esp_context *context, const char *text,
                    uint64_t seed, inputs kind, bool in_place)
{
    esp_matmul_problem problem = problem_of(run, text);
    product p = product_make(run, context, &problem, seed, kind, false, false);
    p.in_place = in_place;
    compare_kernels(run, device, &p, text, seed, kind == REALS ? BOUNDED : EXACTLY);
    product_free(&p);
}

/* ---- cases ---- */

static const char *const patterns[] = {
    "block:64x64@0.8",  "block:32x32@0.9",   "block:16x16@0.85", "block:128x128@0.7",
    "block:16x64@0.8",  "block:64x16@0.6",   "block:128x32@0.5", "block:32x128@0.75",
    "block:48x80@0.6",  "block:256x256@0.5", "block:16x128@0.9", "block:128x16@0.99",
    "block:96x224@0.3", "block:64x32@0.95"};

static void token_tails(test_run *run)
{
    static const int tokens[] = {1,  2,  3,  7,   8,   9,   15,  16,  17,  24,  31, 63,
                                 64, 65, 96, 127, 128, 129, 255, 256, 257, 300, 513};
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(tokens); i++) {
        for (int j = 0; j < ESP_COUNT(patterns); j++) {
            char text[128];
            snprintf(text, sizeof text, "matmul/%s/%s/%dx%dx%d%s/o:f32", patterns[j],
                     types[(i + j) % 2], 200 + i, 300 + j, tokens[i], i % 3 == 1 ? "/x:tok" : "");
            compare(run, device, context, text, test_seed(run) + (uint64_t)(100 * i + j), INTEGERS,
                    false);
        }
    }
    esp_device_close(device);
    test_context_free(run, context);
}

static void shapes(test_run *run)
{
    static const int sizes[][3] = {{1, 1, 1},      {1, 1, 17},     {15, 17, 33},   {16, 16, 16},
                                   {17, 15, 40},   {130, 64, 1},   {193, 130, 20}, {64, 384, 3},
                                   {6, 1000, 16},  {300, 7, 8},    {513, 640, 24}, {128, 4096, 8},
                                   {640, 70, 600}, {1000, 520, 72}};
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(sizes); i++) {
        for (int j = 0; j < ESP_COUNT(patterns); j++) {
            char text[128];
            snprintf(text, sizeof text, "matmul/%s/%s/%dx%dx%d%s", patterns[j], types[(i + j) % 2],
                     sizes[i][0], sizes[i][1], sizes[i][2], (i + j) % 3 == 0 ? "/x:tok" : "");
            compare(run, device, context, text, test_seed(run) + (uint64_t)(100 * i + j), INTEGERS,
                    false);
        }
    }
    esp_device_close(device);
    test_context_free(run, context);
}

static void layouts_types_epilogues(test_run *run)
{
    static const char *const options[] = {"",
                                          "/x:tok",
                                          "/y:tok",
                                          "/x:tok/y:tok",
                                          "/o:f32",
                                          "/y:tok/o:f32",
                                          "/o:f16/x:tok",
                                          "/o:bf16/y:tok",
                                          "/o:bf16",
                                          "/ep:scale",
                                          "/ep:bias+relu",
                                          "/ep:scale+bias",
                                          "/ep:residual",
                                          "/y:tok/ep:residual",
                                          "/o:f32/ep:residual",
                                          "/x:tok/y:tok/ep:scale+bias+relu+residual",
                                          "/ep:scale+bias+relu+residual"};
    static const int tokens[] = {3, 16, 37, 296};
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(options); i++) {
        for (int j = 0; j < 6; j++) {
            for (int k = 0; k < ESP_COUNT(tokens); k++) {
                char text[160];
                snprintf(text, sizeof text, "matmul/%s/%s/144x200x%d%s", patterns[j],
                         types[(i + j + k) % 2], tokens[k], options[i]);
                compare(run, device, context, text,
                        test_seed(run) + (uint64_t)(100 * i + 10 * j + k), INTEGERS,
                        (i + k) % 2 == 1);
            }
        }
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* One shape of each class, few enough for the tools that watch every access to memory. */
static void shapes_for_sanitizers(test_run *run)
{
    static const char *const texts[] = {
        "matmul/block:64x64@0.7/f16/200x200x300",
        "matmul/block:32x32@0.8/bf16/300x264x264/x:tok/y:tok",
        "matmul/block:16x16@0.8/f16/200x400x72/ep:bias+silu",
        "matmul/block:128x128@0.5/bf16/300x400x301/x:tok/o:f32",
        "matmul/block:16x64@0.7/f16/96x400x33/ep:swiglu",
        "matmul/block:64x64@0.7/f16/300x600x8/ep:scale+gelu",
        "matmul/block:32x32@0.7/bf16/100x600x13/x:tok/y:tok",
        "matmul/block:64x32@0.7/f16/300x500x1",
        "matmul/block:64x64@0.8/f16/200x300x520/ep:bias+gelu+residual",
        "matmul/block:32x64@0.8/bf16/160x200x512/ep:swiglu+residual"};
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(texts); i++) {
        compare(run, device, context, texts[i], test_seed(run) + (uint64_t)i, REALS, false);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* What the copy engine stores: activations, residuals that it loads, features of pairs of rows. */
static void epilogues_by_engine(test_run *run)
{
    static const char *const options[] = {"/ep:bias+gelu",
                                          "/ep:scale+gelu_tanh+residual",
                                          "/ep:bias+residual",
                                          "/ep:bias+silu+residual",
                                          "/ep:relu+residual",
                                          "/ep:swiglu",
                                          "/ep:scale+bias+swiglu+residual",
                                          "/y:tok/ep:bias+gelu+residual",
                                          "/x:tok/y:tok/ep:scale+silu"};
    static const int tokens[] = {72, 264, 520, 1032};
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(options); i++) {
        for (int j = 0; j < 4; j++) {
            for (int k = 0; k < ESP_COUNT(tokens); k++) {
                char text[160];
                snprintf(text, sizeof text, "matmul/%s/%s/%dx200x%d%s", patterns[j],
                         types[(i + j + k) % 2], 144 + 64 * k, tokens[k], options[i]);
                compare(run, device, context, text,
                        test_seed(run) + (uint64_t)(100 * i + 10 * j + k), REALS, (i + k) % 2 == 1);
            }
        }
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* More tiles than multiprocessors, long sums; X that is walked in several slabs, the last of them
 * narrower, of single tiles and of pairs. */
static void several_rounds(test_run *run)
{
    static const char *const texts[] = {"matmul/block:64x64@0.92/f16/2048x512x2600/o:f32",
                                        "matmul/block:32x32@0.95/bf16/1500x700x3000/x:tok/o:f32",
                                        "matmul/block:16x16@0.95/f16/1000x1000x2304",
                                        "matmul/block:128x64@0.95/bf16/3000x500x2304/y:tok",
                                        "matmul/block:64x64@0.97/f16/512x20000x1792/o:f32",
                                        "matmul/block:128x64@0.97/bf16/384x9000x2560/x:tok",
                                        "matmul/block:32x32@0.98/f16/256x9000x1400"};
    esp_context *context = test_context(run, 4);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(texts); i++) {
        compare(run, device, context, texts[i], test_seed(run) + (uint64_t)i, INTEGERS, false);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* ---- random problems ---- */

static void random_problem(esp_random *random, char *text, size_t capacity)
{
    static const char *const outs[] = {"", "", "/o:f32", "/o:f16", "/o:bf16"};
    static const char *const activations[] = {"",           "+relu", "+gelu",
                                              "+gelu_tanh", "+silu", "+swiglu"};
    char epilogue[96] = "/ep:scale";
    int64_t rows = 16 << random_range(random, 0, 3), columns = 16 << random_range(random, 0, 3);
    if (esp_random_below(random, 8) == 0) {
        rows = 16 * random_range(random, 1, 20);
        columns = 16 * random_range(random, 1, 20);
    }
    int64_t out, in, tokens;
    do {
        out = random_log(random, 1, 1500);
        in = random_log(random, 1, 2500);
        tokens = esp_random_below(random, 3) == 0 ? random_range(random, 1, 16)
                                                  : random_log(random, 1, 1200);
    } while (out * in * tokens > 8000000);
    const char *activation = activations[esp_random_below(random, ESP_COUNT(activations))];
    if (strcmp(activation, "+swiglu") == 0) {
        out += out % 2;
    }
    snprintf(epilogue + strlen(epilogue), sizeof epilogue - strlen(epilogue), "%s%s%s",
             esp_random_below(random, 2) == 0 ? "" : "+bias", activation,
             esp_random_below(random, 2) == 0 ? "" : "+residual");
    snprintf(text, capacity, "matmul/block:%lldx%lld@%.2f/%s/%lldx%lldx%lld%s%s%s%s",
             (long long)rows, (long long)columns, 0.02 + 0.96 * esp_random_uniform(random),
             types[esp_random_below(random, 2)], (long long)out, (long long)in, (long long)tokens,
             esp_random_below(random, 3) == 0 ? "/x:tok" : "",
             esp_random_below(random, 3) == 0 ? "/y:tok" : "",
             outs[esp_random_below(random, ESP_COUNT(outs))],
             esp_random_below(random, 3) == 0 ? "" : epilogue);
}

static void random_problems(test_run *run)
{
    const char *wanted = getenv("TEST_ROUNDS");
    int rounds = wanted != NULL ? atoi(wanted) : 60;
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int round = 0; device != NULL && round < rounds; round++) {
        char text[256];
        random_problem(&random, text, sizeof text);
        compare(run, device, context, text, esp_random_u64(&random), REALS, round % 4 == 0);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* ---- numbers that are not finite ---- */

/* A row sees the columns of its own blocks and no other, whatever X holds there. */
static void infinite_columns(test_run *run)
{
    static const char *const texts[] = {"matmul/block:64x64@0.8/f16/400x700x40/o:f32",
                                        "matmul/block:32x32@0.9/f16/300x703x300/o:f32",
                                        "matmul/block:32x32@0.8/bf16/300x700x264/x:tok",
                                        "matmul/block:16x16@0.9/bf16/200x400x272/y:tok",
                                        "matmul/block:16x64@0.8/f16/200x400x13/o:f32",
                                        "matmul/block:128x32@0.8/f16/600x320x520/ep:bias+relu",
                                        "matmul/block:32x32@0.8/f16/300x320x520/ep:residual"};
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(texts); i++) {
        esp_matmul_problem problem = problem_of(run, texts[i]);
        uint64_t seed = test_seed(run) + (uint64_t)i;
        product p = product_make(run, context, &problem, seed, INTEGERS, false, false);
        for (int64_t f = 0; f < problem.in_features; f += 61) {
            for (int64_t t = f % 5; t < problem.tokens; t += 5) {
                int64_t at = element_at(problem.x_layout == ESP_FEATURE_MAJOR, p.x_stride, f, t);
                put(problem.act_type, p.x, at, t % 2 == 0 ? NAN : INFINITY);
            }
        }
        compare_kernels(run, device, &p, texts[i], seed, ALL_NUMBERS);
        product_free(&p);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* ---- wrong contents ---- */

/* The weight's parts with indices drawn anew, most of them out of range, repeated, out of order. */
static esp_sparse *wreck_lists(test_run *run, esp_context *context, esp_random *random,
                               const esp_sparse *from)
{
    esp_sparse_part parts[ESP_SPARSE_MAX_PARTS];
    esp_pattern pattern = esp_sparse_pattern(from);
    esp_sparse *made = NULL;
    int count = esp_sparse_part_count(from);
    for (int i = 0; i < count; i++) {
        size_t bytes = 0;
        parts[i] = esp_sparse_get_part(from, i);
        CHECK_OK(esp_tensor_size(&parts[i].tensor, NULL, &bytes, error));
        char *copy = malloc(bytes);
        memcpy(copy, parts[i].tensor.data, bytes);
        for (size_t at = 0; strcmp(parts[i].name, "values") != 0 && at + 4 <= bytes; at += 2) {
            uint16_t wild = (uint16_t)esp_random_below(random, 1u << random_range(random, 1, 16));
            if (esp_random_below(random, 2) == 0) {
                memcpy(copy + at, &wild, sizeof wild);
            }
        }
        parts[i].tensor.data = copy;
    }
    CHECK_OK(esp_sparse_from_parts(context, &pattern, esp_sparse_dtype(from),
                                   esp_sparse_out_features(from), esp_sparse_in_features(from),
                                   parts, count, &made, error));
    for (int i = 0; i < count; i++) {
        free(parts[i].tensor.data);
    }
    return made;
}

/* Contents that nobody checked lead to wrong numbers at most: every access stays in bounds. */
static void wrong_lists(test_run *run)
{
    static const char *const texts[] = {"matmul/block:64x64@0.5/f16/400x700x300",
                                        "matmul/block:16x16@0.7/bf16/200x300x40",
                                        "matmul/block:32x128@0.6/f16/300x1000x8"};
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; device != NULL && i < 4 * ESP_COUNT(texts); i++) {
        const char *names[64], *text = texts[i % ESP_COUNT(texts)];
        esp_matmul_problem problem = problem_of(run, text);
        product p =
            product_make(run, context, &problem, esp_random_u64(&random), INTEGERS, false, false);
        esp_sparse *wrecked = wreck_lists(run, context, &random, p.sparse);
        float *result = result_of(&p);
        int count = usable_on(device, &problem, names);
        if (wrecked != NULL) {
            esp_sparse_free(p.sparse);
            p.sparse = wrecked;
        }
        for (int k = 0; k < count; k++) {
            device_layout layout = draw_layout(&p, (uint64_t)(i + k));
            test_sub(run, "%s round %d %s", text, i, names[k]);
            run_on_gpu(run, &p, device, names[k], &layout, result);
        }
        free(result);
        product_free(&p);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* Blocks that are no multiple of 16 are refused by name. */
static void other_blocks(test_run *run)
{
    static const char *const texts[] = {"matmul/block:8x8@0.5/f16/64x64x4",
                                        "matmul/block:16x24@0.5/bf16/64x64x4"};
    esp_context *context = test_context(run, 1);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(texts); i++) {
        esp_matmul_problem problem = problem_of(run, texts[i]);
        product p = product_make(run, context, &problem, test_seed(run), INTEGERS, false, false);
        esp_packed *none = NULL;
        esp_plan *no_plan = NULL;
        CHECK_FAILS(esp_pack(device, p.sparse, &none, error), ESP_UNSUPPORTED,
                    "pack.unsupported_pattern");
        CHECK_FAILS(esp_plan_create(device, &problem, NULL, &no_plan, error), ESP_UNSUPPORTED,
                    "plan.no_kernel");
        product_free(&p);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

static const test_case cases[] = {{"token_tails", token_tails},
                                  {"shapes", shapes},
                                  {"layouts_types_epilogues", layouts_types_epilogues},
                                  {"shapes_for_sanitizers", shapes_for_sanitizers},
                                  {"epilogues_by_engine", epilogues_by_engine},
                                  {"several_rounds", several_rounds},
                                  {"random_problems", random_problems},
                                  {"infinite_columns", infinite_columns},
                                  {"wrong_lists", wrong_lists},
                                  {"other_blocks", other_blocks}};
TEST_MAIN(cases)
