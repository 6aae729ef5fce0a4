/* Every kernel of the GPU against the reference: small integers bit for bit, real numbers within
 * the derived bound, large ones by samples and signed sums of all rows; shapes that divide nothing,
 * every tail of tokens, aligned and unaligned operands, NaN in all gaps. Without a
 * GPU every case is skipped. TEST_ROUNDS sets how many random problems each random case draws,
 * TEST_KERNEL names a part of the kernels to which the run is limited. */
#include "product_device.h"

/* ---- comparing ---- */

/* Each kernel that can run the product, against the reference; name: of the product. */
static void compare_kernels(test_run *run, esp_device *device, product *p, const char *name,
                            uint64_t seed, inputs kind, bool in_place)
{
    const char *names[64];
    int count = usable_on(device, &p->problem, names);
    float *expected = result_of(p), *actual = result_of(p);
    double *sums = kind == REALS ? magnitudes(run, p) : NULL;
    CHECK(count > 0 || getenv("TEST_KERNEL") != NULL);
    if (count > 0) {
        run_kernel(run, p, "ref", NULL, expected);
    }
    p->in_place = in_place;
    for (int i = 0; i < count; i++) {
        device_layout layout = layout_draw(p, seed + (uint64_t)i);
        test_sub(run, "%s seed %llu%s strides %lld %lld %s", name, (unsigned long long)seed,
                 in_place ? " in place" : "", (long long)layout.x_stride,
                 (long long)layout.y_stride, names[i]);
        run_on_gpu(run, p, device, names[i], &layout, actual);
        if (kind == REALS) {
            compare_bounded(run, p, sums, expected, actual);
        } else {
            compare_exact(run, p, expected, actual);
        }
    }
    free(sums);
    free(expected);
    free(actual);
}

static void compare_all(test_run *run, esp_device *device, esp_context *context, const char *text,
                        uint64_t seed, inputs kind, bool reorder, bool in_place)
{
    esp_matmul_problem problem = problem_of(run, text);
    product p = product_make(run, context, &problem, seed, kind, reorder, false);
    char name[256];
    snprintf(name, sizeof name, "%s%s", text, reorder ? " row order" : "");
    compare_kernels(run, device, &p, name, seed, kind, in_place);
    product_free(&p);
}

static const char *const patterns[] = {
    "dense",   "2:4",   "64:2:8",       "32:2:5",   "5:2:16", "128:2:8", "panel:24@0.8", "256:2:7",
    "300:2:9", "1:2:6", "panel:96@0.5", "100:2:64", "33:2:8", "17:2:7",  "dense/f32"};
static const char *const types[] = {"f16", "bf16", "f32"}; /* the last of dense weights alone */

/* The pattern with a type of 16 bits, by turns, where it names none. */
static void name_weight(const char *pattern, int turn, char text[32])
{
    bool typed = strchr(pattern, '/') != NULL;
    snprintf(text, 32, "%s%s%s", pattern, typed ? "" : "/", typed ? "" : types[turn % 2]);
}

static void token_tails(test_run *run)
{
    static const int tokens[] = {1,  2,  3,  4,   7,   8,   9,   15,  16,  17,  24,
                                 31, 64, 65, 100, 127, 129, 255, 256, 300, 513, 530};
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(tokens); i++) {
        for (int j = 0; j < ESP_COUNT(patterns); j++) {
            char text[128], weight[32];
            name_weight(patterns[j], i + j, weight);
            snprintf(text, sizeof text, "matmul/%s/77x85x%d/o:f32", weight, tokens[i]);
            compare_all(run, device, context, text, test_seed(run) + (uint64_t)(100 * i + j),
                        INTEGERS, (i + j) % 3 == 0, false);
        }
    }
    esp_device_close(device);
    test_context_free(run, context);
}

static void shapes(test_run *run)
{
    /* The last ones have lists and row orders of 32 bits. */
    static const int sizes[][3] = {{1, 1, 1},       {1, 1, 17},     {2, 3, 2},       {3, 5, 33},
                                   {7, 9, 5},       {97, 31, 18},   {130, 64, 1},    {193, 130, 20},
                                   {64, 384, 3},    {130, 257, 40}, {6, 1000, 16},   {300, 7, 8},
                                   {513, 640, 24},  {64, 4096, 8},  {1100, 70, 600}, {9, 66000, 3},
                                   {70, 66000, 18}, {66000, 9, 3},  {66001, 8, 20},  {66001, 8, 3},
                                   {20000, 200, 16}};
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(sizes); i++) {
        for (int j = 0; j < ESP_COUNT(patterns); j++) {
            char text[128], weight[32];
            name_weight(patterns[j], i + j, weight);
            snprintf(text, sizeof text, "matmul/%s/%dx%dx%d/o:f32", weight, sizes[i][0],
                     sizes[i][1], sizes[i][2]);
            compare_all(run, device, context, text, test_seed(run) + (uint64_t)(100 * i + j),
                        INTEGERS, (i + j) % 3 == 0, false);
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
                                          "/ep:scale",
                                          "/ep:bias+relu",
                                          "/ep:residual",
                                          "/y:tok/ep:residual",
                                          "/o:f32/ep:residual",
                                          "/x:tok/y:tok/ep:scale+bias+relu+residual",
                                          "/ep:scale+bias+relu+residual"};
    static const char *const some[] = {"dense",   "2:4",     "64:2:8",   "panel:24@0.8",
                                       "128:2:5", "32:2:16", "dense/f32"};
    static const int tokens[] = {3, 16, 37, 296};
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(options); i++) {
        for (int j = 0; j < ESP_COUNT(some); j++) {
            for (int k = 0; k < ESP_COUNT(tokens); k++) {
                char text[160], weight[32];
                name_weight(some[j], i + j + k, weight);
                snprintf(text, sizeof text, "matmul/%s/144x72x%d%s", weight, tokens[k], options[i]);
                compare_all(run, device, context, text,
                            test_seed(run) + (uint64_t)(100 * i + 10 * j + k), INTEGERS, k % 2 == 1,
                            (i + k) % 2 == 1);
            }
        }
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* Whole numbers of 13 bits whose sums are exact in f32: TF32, of 11 bits, would round each. */
static void dense_f32_is_whole(test_run *run)
{
    static const char *const texts[] = {
        "matmul/dense/f32/130x64x1", "matmul/dense/f32/77x85x33/x:tok",
        "matmul/dense/f32/512x128x256/y:tok", "matmul/dense/f32/200x100x40/ep:scale+bias",
        "matmul/dense/f32/256x120x512/x:tok/y:tok/ep:residual"};
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(texts); i++) {
        esp_matmul_problem problem = problem_of(run, texts[i]);
        uint64_t seed = test_seed(run) + (uint64_t)i;
        product p = product_make(run, context, &problem, seed, INTEGERS, false, false);
        esp_random random;
        esp_random_seed(&random, seed);
        for (int64_t f = 0; f < problem.in_features; f++) {
            for (int64_t t = 0; t < problem.tokens; t++) {
                bool by_feature = problem.x_layout == ESP_FEATURE_MAJOR;
                float odd = (float)(2 * random_range(&random, 2048, 4095) + 1);
                put(ESP_F32, p.x, element_at(by_feature, p.x_stride, f, t),
                    esp_random_below(&random, 2) == 0 ? odd : -odd);
            }
        }
        compare_kernels(run, device, &p, texts[i], seed, INTEGERS, i % 2 == 0);
        product_free(&p);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* Tiles of panels that are cut along their tokens, behind whole ones and in the last round: every
 * width of a part, aligned for the copy engine and not. */
static void parts_of_tiles(test_run *run)
{
    static const int tokens[] = {8,   40,  56,  72,  120, 130, 192, 200, 248, 264,  312, 321,
                                 376, 440, 500, 520, 584, 640, 711, 769, 896, 1000, 1032};
    static const char *const some[] = {"2:4", "64:2:8", "128:2:8", "5:2:7", "48:2:5"};
    static const char *const options[] = {"",           "/ep:bias+gelu", "/x:tok", "/ep:residual",
                                          "/ep:swiglu", "/y:tok",        "/o:f32"};
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(tokens); i++) {
        for (int j = 0; j < ESP_COUNT(some); j++) {
            char text[160];
            int in = j == 4 ? 161 + i % 5 : 136; /* a last five of any length, in any place */
            snprintf(text, sizeof text, "matmul/%s/%s/%dx%dx%d%s", some[j], types[(i + j) % 2],
                     j == 3 ? 690 : 320, in, tokens[i], options[(i + j) % ESP_COUNT(options)]);
            compare_all(run, device, context, text, test_seed(run) + (uint64_t)(100 * i + j), REALS,
                        false, false);
        }
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* Few rows and many features: multiprocessors share out the steps of a tile. */
static void shared_steps(test_run *run)
{
    static const int sizes[][3] = {{128, 520, 64},   {130, 1100, 200}, {64, 2100, 17},
                                   {300, 1000, 128}, {256, 3072, 200}, {66, 9000, 33},
                                   {640, 4096, 256}, {18, 6000, 1}};
    static const char *const some[] = {"2:4", "64:2:8", "128:2:8", "128:2:16", "192:2:5"};
    static const char *const options[] = {"",       "/ep:scale+bias", "/x:tok", "/ep:bias+residual",
                                          "/y:tok", "/o:f32"};
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(sizes); i++) {
        for (int j = 0; j < ESP_COUNT(some); j++) {
            char text[160];
            snprintf(text, sizeof text, "matmul/%s/%s/%dx%dx%d%s", some[j], types[(i + j) % 2],
                     sizes[i][0], sizes[i][1], sizes[i][2],
                     options[(i + 2 * j) % ESP_COUNT(options)]);
            compare_all(run, device, context, text, test_seed(run) + (uint64_t)(100 * i + j),
                        INTEGERS, (i + j) % 4 == 0, false);
        }
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* One shape of each class, few enough for the tools that watch every access to memory. */
static void shapes_for_sanitizers(test_run *run)
{
    static const char *const texts[] = {
        "matmul/2:4/f16/200x200x300/o:f32", "matmul/2:4/bf16/130x264x72/x:tok/y:tok",
        "matmul/64:2:8/f16/200x1400x296/ep:bias", "matmul/2:4/f16/200x1100x72/ep:bias",
        "matmul/128:2:5/bf16/300x400x301/x:tok", "matmul/5:2:16/f16/22x4000x33/ep:swiglu",
        "matmul/256:2:8/f16/300x1200x8/ep:scale+gelu", "matmul/64:2:8/bf16/100x1200x13/x:tok/y:tok",
        "matmul/2:4/f16/300x1000x1", "matmul/dense/f16/100x200x33/ep:bias+silu",
        "matmul/32:2:8/f16/100x400x300/ep:bias", "matmul/32:2:5/bf16/100x333x13/x:tok/y:tok",
        "matmul/dense/bf16/100x203x7/ep:swiglu", "matmul/dense/f16/70x1000x16",
        /* few steps: blocks without a cluster */
        "matmul/dense/bf16/100x72x5/ep:bias", "matmul/dense/f16/64x40x1", "matmul/2:4/f16/100x72x3",
        "matmul/64:2:8/bf16/130x200x9/ep:residual"};
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(texts); i++) {
        compare_all(run, device, context, texts[i], test_seed(run) + (uint64_t)i, REALS, i % 2 == 0,
                    false);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* ---- random problems ---- */

/* The kernels of a family are chosen by the weight's pattern, the length of its panels and whether
 * there are few tokens. */
typedef enum family { DENSE, TWO_OF_FOUR, PANELS, SHORT_PANELS } family;

static void random_pattern(esp_random *random, family kind, char *text, size_t capacity)
{
    int64_t low = kind == SHORT_PANELS ? 1 : 33, high = kind == SHORT_PANELS ? 32 : 400;
    int64_t rows = random_log(random, low, high), group = random_log(random, 5, 64);
    group = esp_random_below(random, 4) == 0 ? 5 : group; /* which has kernels of its own */
    if (kind == DENSE || kind == TWO_OF_FOUR) {
        snprintf(text, capacity, kind == DENSE ? "dense" : "2:4");
        return;
    }
    if (esp_random_below(random, 2) == 0) { /* lengths that users choose */
        rows = kind == SHORT_PANELS ? 32 : 64 << random_range(random, 0, 2);
    }
    if (esp_random_below(random, 4) == 0) {
        snprintf(text, capacity, "panel:%lld@%.2f", (long long)rows,
                 0.5 + 0.49 * esp_random_uniform(random));
    } else {
        snprintf(text, capacity, "%lld:2:%lld", (long long)rows, (long long)group);
    }
}

static void random_problem(esp_random *random, family kind, bool few, char *text, size_t capacity)
{
    static const char *const outs[] = {"", "", "/o:f32", "/o:f16", "/o:bf16"};
    static const char *const activations[] = {"",           "+relu", "+gelu",
                                              "+gelu_tanh", "+silu", "+swiglu"};
    char pattern[64], epilogue[96] = "/ep:scale";
    random_pattern(random, kind, pattern, sizeof pattern);
    int64_t out, in, tokens;
    do {
        out = random_log(random, 1, 1200);
        in = random_log(random, 1, 2000);
        tokens = few ? random_range(random, 1, 16) : random_log(random, 17, 1200);
    } while (out * in * tokens > 4000000);
    const char *activation = activations[esp_random_below(random, ESP_COUNT(activations))];
    if (strcmp(activation, "+swiglu") == 0) {
        out += out % 2;
    }
    snprintf(epilogue + strlen(epilogue), sizeof epilogue - strlen(epilogue), "%s%s%s",
             esp_random_below(random, 2) == 0 ? "" : "+bias", activation,
             esp_random_below(random, 2) == 0 ? "" : "+residual");
    snprintf(text, capacity, "matmul/%s/%s/%lldx%lldx%lld%s%s%s%s", pattern,
             types[esp_random_below(random, kind == DENSE ? 3 : 2)], (long long)out, (long long)in,
             (long long)tokens, esp_random_below(random, 3) == 0 ? "/x:tok" : "",
             esp_random_below(random, 3) == 0 ? "/y:tok" : "",
             outs[esp_random_below(random, ESP_COUNT(outs))],
             esp_random_below(random, 3) == 0 ? "" : epilogue);
}

static void random_problems(test_run *run, family kind, bool few)
{
    const char *wanted = getenv("TEST_ROUNDS");
    int rounds = wanted != NULL ? atoi(wanted) : 20;
    esp_random random;
    esp_random_seed(&random, test_seed(run) + 2 * (uint64_t)kind + few);
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int round = 0; device != NULL && round < rounds; round++) {
        char text[256];
        random_problem(&random, kind, few, text, sizeof text);
        compare_all(run, device, context, text, esp_random_u64(&random), REALS, round % 3 == 0,
                    round % 4 == 0);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

static void random_dense(test_run *run)
{
    random_problems(run, DENSE, false);
}

static void random_dense_few(test_run *run)
{
    random_problems(run, DENSE, true);
}

static void random_24(test_run *run)
{
    random_problems(run, TWO_OF_FOUR, false);
}

static void random_24_few(test_run *run)
{
    random_problems(run, TWO_OF_FOUR, true);
}

static void random_panels(test_run *run)
{
    random_problems(run, PANELS, false);
}

static void random_panels_few(test_run *run)
{
    random_problems(run, PANELS, true);
}

static void random_short_panels(test_run *run)
{
    random_problems(run, SHORT_PANELS, false);
}

static void random_short_panels_few(test_run *run)
{
    random_problems(run, SHORT_PANELS, true);
}

/* ---- large problems, by samples and by signed sums ---- */

static void check_large(test_run *run, const char *const *texts, int text_count)
{
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < text_count; i++) {
        esp_matmul_problem problem = problem_of(run, texts[i]);
        const char *names[64];
        int count = usable_on(device, &problem, names);
        product p = product_make(run, context, &problem, test_seed(run) + (uint64_t)i, REALS,
                                 i % 2 == 0, false);
        float *actual = result_of(&p);
        signed_sums sums = signed_sums_make(run, &p, 3e8);
        for (int k = 0; k < count; k++) {
            device_layout layout = layout_draw(&p, (uint64_t)(i + k));
            test_sub(run, "%s %s", texts[i], names[k]);
            run_on_gpu(run, &p, device, names[k], &layout, actual);
            check_samples(run, &p, actual, 4000);
            check_signed_sums(run, &sums, &p, actual);
        }
        signed_sums_free(&sums);
        free(actual);
        product_free(&p);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* Several rounds of tiles on every multiprocessor. */
static void large_problems(test_run *run)
{
    static const char *const texts[] = {
        "matmul/2:4/f16/2200x1000x2500/o:f32",      "matmul/2:4/bf16/2200x1000x2504/x:tok/o:f32",
        "matmul/128:2:8/f16/3072x256x12608",        "matmul/2:4/f16/1280x256x4168",
        "matmul/64:2:5/f16/3072x768x12608",         "matmul/48:2:5/bf16/2000x2051x1000/x:tok",
        "matmul/128:2:8/f16/4096x1024x1800/o:f32",  "matmul/64:2:5/bf16/2050x1024x4096/o:f32",
        "matmul/256:2:16/f16/4096x2048x1000/o:f32", "matmul/dense/f16/1500x1000x1000/o:f32",
        "matmul/32:2:8/bf16/4096x1024x1800/o:f32"};
    check_large(run, texts, ESP_COUNT(texts));
}

static void large_weights_few_tokens(test_run *run)
{
    static const char *const texts[] = {
        "matmul/64:2:8/f16/11008x4096x8/o:f32", "matmul/2:4/bf16/11008x4096x16/o:f32",
        "matmul/32:2:16/f16/4096x11008x1/o:f32", "matmul/dense/f16/11008x4096x1/o:f32",
        "matmul/dense/bf16/4096x11008x16/x:tok/o:f32"};
    check_large(run, texts, ESP_COUNT(texts));
}

static const test_case cases[] = {{"token_tails", token_tails},
                                  {"parts_of_tiles", parts_of_tiles},
                                  {"shared_steps", shared_steps},
                                  {"shapes", shapes},
                                  {"layouts_types_epilogues", layouts_types_epilogues},
                                  {"dense_f32_is_whole", dense_f32_is_whole},
                                  {"shapes_for_sanitizers", shapes_for_sanitizers},
                                  {"random_dense", random_dense},
                                  {"random_dense_few", random_dense_few},
                                  {"random_24", random_24},
                                  {"random_24_few", random_24_few},
                                  {"random_panels", random_panels},
                                  {"random_panels_few", random_panels_few},
                                  {"random_short_panels", random_short_panels},
                                  {"random_short_panels_few", random_short_panels_few},
                                  {"large_problems", large_problems},
                                  {"large_weights_few_tokens", large_weights_few_tokens}};
TEST_MAIN(cases)
