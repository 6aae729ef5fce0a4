/* Calibration's algebra on a GPU against the host's: second moments of integers bit for bit, of
 * random numbers within another order of sums; inverses by what they invert; masks of SparseGPT, of
 * panels and of the joint search equal, values and errors to what f64 carries through a solve. Odd
 * sizes, tails of slabs, panels and blocks, gaps between rows full of NaN. Without a GPU all is
 * skipped. */
#ifdef ESP_HAVE_CUDA
#include <math.h>
#include <stdlib.h>

#include "op/op.h"
#include "product_device.h"
#include "prune/prune.h"
#include "test.h"

/* A layer that both know: T at random, H of correlated inputs, damped. */
typedef struct bed {
    test_run *run;
    esp_context *context;
    esp_device *device;
    esp_algebra *host, *both; /* both: with the GPU */
    esp_device_algebra *gpu;
    int64_t out, in;
    double *target, *gram, *inverse, *goal;
} bed;

static double *doubles(int64_t count)
{
    return calloc((size_t)ESP_MAX(count, 1), sizeof(double));
}

static double uniform(esp_random *random)
{
    return (double)esp_random_below(random, 1u << 24) / (1u << 23) - 1;
}

static double *drawn(esp_random *random, int64_t count)
{
    double *made = doubles(count);
    for (int64_t i = 0; i < count; i++) {
        made[i] = uniform(random);
    }
    return made;
}

/* ---- second moments ---- */

typedef struct moments {
    float *x, *less;
    esp_token_rows rows;
} moments;

static int64_t place_of(const esp_token_rows *rows, int64_t token)
{
    return rows->run > 0 ? token / rows->run * rows->pitch + token % rows->run : token;
}

/* Integers up to 8 or numbers of f32, in rows of a wider stride with NaN between them and between
 * runs of tokens, none behind the last. */
static moments make_rows(esp_random *random, esp_dtype type, int64_t features, int64_t tokens,
                         int64_t run, bool integers, bool with_less)
{
    moments made = {.rows = {.type = type, .features = features, .run = run, .pitch = run + 7}};
    int64_t line = place_of(&made.rows, tokens - 1) + 1, stride = made.rows.stride = line + 3;
    int64_t count = (features - 1) * stride + line;
    size_t width = esp_dtype_bytes(type);
    for (int side = 0; side < (with_less ? 2 : 1); side++) {
        float *wide = malloc((size_t)count * sizeof *wide);
        void *data = malloc((size_t)count * width);
        for (int64_t i = 0; i < count; i++) {
            wide[i] = NAN;
        }
        for (int64_t i = 0; i < features * tokens; i++) {
            wide[i / tokens * stride + place_of(&made.rows, i % tokens)] =
                integers ? (float)((int)esp_random_below(random, 17) - 8) : (float)uniform(random);
        }
        esp_narrow(type, wide, count, data);
        esp_widen(type, data, count, wide);
        *(side == 0 ? &made.x : &made.less) = wide;
        *(side == 0 ? &made.rows.data : &made.rows.less) = data;
    }
    return made;
}

static void free_rows(moments *m)
{
    free((void *)(uintptr_t)m->rows.data);
    free((void *)(uintptr_t)m->rows.less);
    free(m->x);
    free(m->less);
}

static double at(const moments *m, int64_t feature, int64_t token)
{
    int64_t i = feature * m->rows.stride + place_of(&m->rows, token);
    return (double)m->x[i] - (m->less != NULL ? (double)m->less[i] : 0);
}

/* All of it where y is not x, else what is not above the diagonal; twice, as two samples. */
static void check_gram(bed *b, const moments *x, const moments *y, int64_t tokens, double bound)
{
    test_run *run = b->run;
    int64_t rows = x->rows.features, columns = y->rows.features;
    double *h = doubles(rows * columns), worst = 0;
    REQUIRE_OK(b->gpu->ops->hold(b->gpu, h, rows * columns, true, error));
    for (int sample = 0; sample < 2; sample++) {
        CHECK_OK(b->gpu->ops->add_gram(b->gpu, &x->rows, &y->rows, tokens, h, error));
    }
    if (x == y) {
        CHECK_OK(b->gpu->ops->mirror(b->gpu, h, rows, error));
    }
    CHECK_OK(b->gpu->ops->fetch(b->gpu, h, error));
    b->gpu->ops->drop(b->gpu, h);
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < columns; j++) {
            double sum = 0, size = 0;
            for (int64_t t = 0; t < tokens; t++) {
                double term = at(x, i, t) * at(y, j, t);
                sum += term;
                size += fabs(term);
            }
            double apart = fabs(h[i * columns + j] - 2 * sum);
            test_note_largest(&worst, bound > 0 ? apart / (bound * size + 1e-300) : apart);
        }
    }
    if (!(worst <= (bound > 0 ? 1 : 0))) {
        test_fail(run, __FILE__, __LINE__, "sums are %g of their bound apart", worst);
    }
    free(h);
}

static void gram_cases(bed *b)
{
    static const esp_dtype types[] = {ESP_F32, ESP_F16, ESP_BF16};
    static const int64_t sizes[][3] = {{1, 1, 1}, {33, 70, 129}, {130, 65, 1}, {257, 96, 700}};
    esp_random random;
    esp_random_seed(&random, test_seed(b->run));
    for (int type = 0; type < ESP_COUNT(types); type++) {
        for (int size = 0; size < ESP_COUNT(sizes); size++) {
            for (int kind = 0; kind < 3; kind++) {
                const int64_t *s = sizes[size], length = kind == 2 ? 17 : 0;
                test_sub(b->run, "%s %lldx%lld of %lld, %s", esp_dtype_name(types[type]),
                         (long long)s[0], (long long)s[1], (long long)s[2],
                         kind == 0   ? "integers"
                         : kind == 1 ? "random"
                                     : "integers in runs");
                moments x = make_rows(&random, types[type], s[0], s[2], length, kind != 1, false);
                moments y = make_rows(&random, types[type], s[1], s[2], length, kind != 1, true);
                double bound = kind != 1 ? 0 : 4 * (double)(s[2] + 2) * 0x1p-53;
                check_gram(b, &x, &x, s[2], bound);
                check_gram(b, &y, &x, s[2], bound);
                free_rows(&x);
                free_rows(&y);
            }
        }
    }
}

/* ---- a layer ---- */

static void multiply(const esp_algebra *algebra, int64_t out, int64_t in, const double *a,
                     const double *b, double *c)
{
    const esp_algebra_product by_matrix = {.rows = out,
                                           .columns = in,
                                           .depth = in,
                                           .alpha = 1,
                                           .a = a,
                                           .a_stride = in,
                                           .b = b,
                                           .b_stride = in,
                                           .c = c,
                                           .c_stride = in};
    esp_algebra_multiply(algebra, &by_matrix);
}

/* Of inputs that lean on the one before: H of their mixing, not of samples. */
static void make_layer(bed *b, int64_t out, int64_t in, uint64_t seed)
{
    esp_random random;
    esp_random_seed(&random, seed);
    int64_t tokens = ESP_MIN(2 * in, in + 200);
    double *x = drawn(&random, in * tokens);
    float *narrow = malloc((size_t)(in * tokens) * sizeof *narrow);
    float *scratch = malloc(esp_algebra_gram_floats(b->host, in) * sizeof *scratch);
    b->out = out;
    b->in = in;
    b->target = drawn(&random, out * in);
    b->gram = doubles(in * in);
    b->goal = doubles(out * in);
    for (int64_t i = 0; i < in; i++) {
        for (int64_t t = 0; t < tokens; t++) {
            double before = i > 0 ? x[(i - 1) * tokens + t] : 0;
            x[i * tokens + t] = 0.8 * before + x[i * tokens + t];
            narrow[i * tokens + t] = (float)x[i * tokens + t];
        }
    }
    esp_algebra_add_gram(b->host, narrow, in, narrow, in, tokens, scratch, b->gram);
    esp_algebra_mirror(b->gram, in);
    double trace = 0;
    for (int64_t j = 0; j < in; j++) {
        trace += b->gram[j * in + j];
    }
    for (int64_t j = 0; j < in; j++) {
        b->gram[j * in + j] += 0.01 * trace / (double)in;
    }
    multiply(b->host, out, in, b->target, b->gram, b->goal);
    b->inverse = doubles(in * in);
    memcpy(b->inverse, b->gram, (size_t)(in * in) * sizeof *b->inverse);
    if (esp_algebra_factor(b->host, b->inverse, in)) {
        esp_algebra_invert(b->host, b->inverse, in);
    }
    free(x);
    free(narrow);
    free(scratch);
}

static void free_layer(bed *b)
{
    free(b->target);
    free(b->gram);
    free(b->inverse);
    free(b->goal);
}

/* Largest |a - b| as a share of b's largest. */
static double apart(const double *a, const double *b, int64_t count)
{
    double most = 1e-300, worst = 0;
    for (int64_t i = 0; i < count; i++) {
        most = fmax(most, fabs(b[i]));
    }
    for (int64_t i = 0; i < count; i++) {
        test_note_largest(&worst, fabs(a[i] - b[i]) / most);
    }
    return worst;
}

static void check_near(bed *b, const char *what, const double *a, const double *wanted,
                       int64_t count, double bound)
{
    double worst = apart(a, wanted, count);
    if (!(worst <= bound)) {
        test_fail(b->run, __FILE__, __LINE__, "%s: %g apart, allowed %g", what, worst, bound);
    }
}

/* Both results of one call: values and mask. */
typedef struct result {
    double *values;
    esp_mask *mask;
} result;

static int64_t masks_differ(const bed *b, const result *a, const result *c)
{
    int64_t differ = 0;
    for (int64_t r = 0; r < b->out; r++) {
        for (int64_t j = 0; j < b->in; j++) {
            differ += esp_mask_get(a->mask, r, j) != esp_mask_get(c->mask, r, j);
        }
    }
    return differ;
}

static double error_of(bed *b, const double *values)
{
    const esp_layer_inputs read = {.in = b->in, .tokens = b->in, .gram = b->gram};
    test_run *run = b->run;
    double squared = -1;
    CHECK_OK(esp_layer_error(b->host, &read, b->out, values, b->target, &squared, error));
    return squared;
}

static void compare(bed *b, result *by_host, result *by_device, double bound)
{
    int64_t differ = masks_differ(b, by_device, by_host);
    if (differ != 0) {
        test_fail(b->run, __FILE__, __LINE__, "%lld of %lld places differ; errors %.9g and %.9g",
                  (long long)differ, (long long)(b->out * b->in), error_of(b, by_host->values),
                  error_of(b, by_device->values));
    } else {
        check_near(b, "values", by_device->values, by_host->values, b->out * b->in, bound);
    }
}

static void free_result(result *r)
{
    free(r->values);
    esp_mask_free(r->mask);
}

static const int64_t shapes[][2] = {{1, 4}, {70, 33}, {129, 136}, {200, 320}};

/* ---- products, inverse, errors ---- */

static void algebra_cases(bed *b)
{
    test_run *run = b->run;
    for (int i = 0; i < ESP_COUNT(shapes); i++) {
        int64_t out = shapes[i][0], in = shapes[i][1];
        test_sub(run, "algebra %lldx%lld", (long long)out, (long long)in);
        make_layer(b, out, in, test_seed(run) + (uint64_t)i);
        double *made = doubles(out * in), *inverse = doubles(in * in), by_host = 0, by_device = 0;
        const esp_algebra_product by_matrix = {.rows = out,
                                               .columns = in,
                                               .depth = in,
                                               .alpha = 1,
                                               .a = b->target,
                                               .a_stride = in,
                                               .b = b->gram,
                                               .b_stride = in,
                                               .c = made,
                                               .c_stride = in};
        CHECK_OK(b->gpu->ops->multiply(b->gpu, &by_matrix, error));
        check_near(b, "a product", made, b->goal, out * in, 1e-13);
        if (b->gpu->ops->invert != NULL) {
            bool definite = false;
            CHECK_OK(b->gpu->ops->invert(b->gpu, b->gram, in, inverse, &definite, error));
            CHECK(definite);
            check_near(b, "an inverse", inverse, b->inverse, in * in, 1e-10);
            b->gpu->ops->drop(b->gpu, inverse);
            b->gram[0] = -1;
            CHECK_OK(b->gpu->ops->invert(b->gpu, b->gram, in, inverse, &definite, error));
            CHECK(!definite);
        }
        const esp_layer_inputs read = {.in = in, .tokens = in, .gram = b->gram};
        CHECK_OK(esp_layer_error(b->host, &read, out, made, b->target, &by_host, error));
        CHECK_OK(esp_layer_error(b->both, &read, out, made, b->target, &by_device, error));
        check_near(b, "an error", &by_device, &by_host, 1, 1e-11);
        CHECK_OK(esp_layer_energy(b->host, &read, out, b->target, &by_host, error));
        CHECK_OK(esp_layer_energy(b->both, &read, out, b->target, &by_device, error));
        check_near(b, "an energy", &by_device, &by_host, 1, 1e-11);
        free(made);
        free(inverse);
        free_layer(b);
    }
}

/* ---- refit ---- */

static esp_pattern pattern_of(bed *b, const char *text)
{
    esp_pattern pattern = {.kind = ESP_PATTERN_DENSE};
    test_run *run = b->run;
    CHECK_OK(esp_pattern_parse(text, &pattern, error));
    return pattern;
}

static esp_mask *mask_of(bed *b, const char *text)
{
    test_run *run = b->run;
    esp_pattern pattern = pattern_of(b, text);
    esp_mask *mask = NULL;
    float *narrow = malloc((size_t)(b->out * b->in) * sizeof *narrow);
    for (int64_t i = 0; i < b->out * b->in; i++) {
        narrow[i] = (float)b->target[i];
    }
    const esp_tensor dense = {
        .dtype = ESP_F32, .rank = 2, .shape = {b->out, b->in}, .data = narrow};
    const esp_mask_options options = {.score = ESP_SCORE_ABS};
    CHECK_OK(esp_prune_mask(b->context, &dense, &pattern, &options, &mask, NULL, error));
    free(narrow);
    return mask;
}

static void refit_cases(bed *b)
{
    static const char *const patterns[] = {"2:4", "64:2:8", "32:2:16", "unstructured@0.9"};
    test_run *run = b->run;
    for (int i = 0; i < ESP_COUNT(shapes) * ESP_COUNT(patterns); i++) {
        int64_t out = shapes[i / ESP_COUNT(patterns)][0], in = shapes[i / ESP_COUNT(patterns)][1];
        const char *text = patterns[i % ESP_COUNT(patterns)];
        test_sub(run, "refit %s %lldx%lld", text, (long long)out, (long long)in);
        make_layer(b, out, in, test_seed(run) + (uint64_t)i);
        const esp_layer_inputs read = {.in = in, .tokens = in, .gram = b->gram};
        esp_mask *mask = mask_of(b, text);
        double *by_host = doubles(out * in), *by_device = doubles(out * in);
        esp_refit_report told = {0}, seen = {0};
        memcpy(by_host, b->target, (size_t)(out * in) * sizeof *by_host);
        memcpy(by_device, b->target, (size_t)(out * in) * sizeof *by_device);
        CHECK_OK(esp_refit(b->host, &read, mask, b->goal, by_host, NULL, &told, error));
        CHECK_OK(esp_refit(b->both, &read, mask, b->goal, by_device, NULL, &seen, error));
        check_near(b, "weights", by_device, by_host, out * in, 1e-5);
        double squared[2] = {error_of(b, by_device), error_of(b, by_host)};
        check_near(b, "the error", squared, squared + 1, 1, 1e-9);
        CHECK(seen.residual <= 1e-7 && llabs(seen.iterations - told.iterations) <= 2);
        free(by_host);
        free(by_device);
        esp_mask_free(mask);
        free_layer(b);
    }
}

/* ---- masks with updates ---- */

static void sweep_case(bed *b, const char *text, int64_t out, int64_t in)
{
    test_run *run = b->run;
    esp_pattern pattern = pattern_of(b, text);
    const esp_mask_options options = {.score = ESP_SCORE_ABS};
    test_sub(run, "sparsegpt %s %lldx%lld", text, (long long)out, (long long)in);
    make_layer(b, out, in, test_seed(run) + (uint64_t)(out * in));
    result results[2] = {{doubles(out * in), NULL}, {doubles(out * in), NULL}};
    for (int i = 0; i < 2; i++) {
        memcpy(results[i].values, b->target, (size_t)(out * in) * sizeof(double));
        if (!esp_sparse_gpt_chooses(&pattern)) {
            results[i].mask = mask_of(b, text);
        }
        REQUIRE_OK(esp_sparse_gpt_of(i == 0 ? b->host : b->both, &pattern, &options, out, in,
                                     b->inverse, results[i].values, &results[i].mask, error));
    }
    compare(b, &results[0], &results[1], 1e-9);
    free_result(&results[0]);
    free_result(&results[1]);
    free_layer(b);
}

static void sweep_cases(bed *b)
{
    static const char *const patterns[] = {
        "2:4", "4:8", "1:16", "3:70", "64:2:8", "16:2:5", "unstructured@0.6"};
    for (int i = 0; i < ESP_COUNT(patterns); i++) {
        for (int s = 0; s < ESP_COUNT(shapes); s++) {
            sweep_case(b, patterns[i], shapes[s][0], shapes[s][1]);
        }
    }
}

static void panel_case(bed *b, const char *text, bool joint, int64_t out, int64_t in)
{
    test_run *run = b->run;
    esp_pattern pattern = pattern_of(b, text);
    test_sub(run, "%s %s %lldx%lld", joint ? "joint" : "obs", text, (long long)out, (long long)in);
    make_layer(b, out, in, test_seed(run) + (uint64_t)(out * in));
    result results[2] = {{doubles(out * in), NULL}, {doubles(out * in), NULL}};
    for (int i = 0; i < 2; i++) {
        const esp_algebra *algebra = i == 0 ? b->host : b->both;
        memcpy(results[i].values, b->target, (size_t)(out * in) * sizeof(double));
        REQUIRE_OK(joint ? esp_joint_panels(algebra, &pattern, out, in, b->inverse,
                                            results[i].values, &results[i].mask, error)
                         : esp_panel_obs(algebra, &pattern, out, in, b->inverse, results[i].values,
                                         &results[i].mask, error));
    }
    compare(b, &results[0], &results[1], 1e-8);
    free_result(&results[0]);
    free_result(&results[1]);
    free_layer(b);
}

static void panel_cases(bed *b)
{
    static const char *const patterns[] = {"64:2:8", "16:2:5", "panel:32@0.6"};
    for (int i = 0; i < ESP_COUNT(patterns); i++) {
        for (int s = 1; s < ESP_COUNT(shapes); s++) {
            panel_case(b, patterns[i], false, shapes[s][0], shapes[s][1]);
            panel_case(b, patterns[i], true, shapes[s][0], shapes[s][1]);
        }
    }
    for (int s = 1; s < ESP_COUNT(shapes); s++) {
        panel_case(b, "2:4", true, shapes[s][0], shapes[s][1]);
    }
}

/* More places than a block has. */
static void wide_cases(bed *b)
{
    panel_case(b, "2:4", true, 5, 1090);
    panel_case(b, "8:2:5", true, 20, 1366);
    panel_case(b, "8:2:5", false, 20, 1366);
}

/* Few panels and rows, but some flushes of each kernel: racecheck takes a minute for what runs in
 * milliseconds. */
static void panels_few(bed *b)
{
    panel_case(b, "2:4", true, 2, 140);
    panel_case(b, "4:2:5", true, 6, 131);
    panel_case(b, "4:2:5", false, 6, 131);
    panel_case(b, "panel:4@0.6", true, 6, 70);
}

static void wide_few(bed *b)
{
    panel_case(b, "2:4", true, 1, 1028);
}

/* More places than a block has, and a last panel that is short; too long for racecheck. */
static void short_few(bed *b)
{
    panel_case(b, "3:2:5", true, 4, 1290);
}

/* ---- running ---- */

static void on_gpu(test_run *run, void (*body)(bed *))
{
    bed b = {.run = run, .context = test_context(run, 4)};
    b.device = open_gpu(run, b.context);
    if (b.device != NULL) {
        REQUIRE_OK(esp_algebra_open(b.context, &b.host, error));
        REQUIRE_OK(esp_algebra_open(b.context, &b.both, error));
        REQUIRE_OK(b.device->backend->algebra_open(b.device, &b.gpu, error));
        esp_algebra_set_device(b.both, b.gpu);
        body(&b);
        esp_algebra_close(b.host);
        esp_algebra_close(b.both);
    }
    esp_device_close(b.device);
    test_context_free(run, b.context);
}

static void gram_on_gpu(test_run *run)
{
    on_gpu(run, gram_cases);
}

static void algebra_on_gpu(test_run *run)
{
    on_gpu(run, algebra_cases);
}

static void refit_on_gpu(test_run *run)
{
    on_gpu(run, refit_cases);
}

static void sweep_on_gpu(test_run *run)
{
    on_gpu(run, sweep_cases);
}

static void panels_on_gpu(test_run *run)
{
    on_gpu(run, panel_cases);
}

static void wide_on_gpu(test_run *run)
{
    on_gpu(run, wide_cases);
}

static void panels_for_sanitizers(test_run *run)
{
    on_gpu(run, panels_few);
}

static void wide_for_sanitizers(test_run *run)
{
    on_gpu(run, wide_few);
}

static void short_for_sanitizers(test_run *run)
{
    on_gpu(run, short_few);
}

static const test_case cases[] = {{"gram", gram_on_gpu},
                                  {"algebra", algebra_on_gpu},
                                  {"refit", refit_on_gpu},
                                  {"sweep", sweep_on_gpu},
                                  {"panels", panels_on_gpu},
                                  {"wide", wide_on_gpu},
                                  {"panels_for_sanitizers", panels_for_sanitizers},
                                  {"wide_for_sanitizers", wide_for_sanitizers},
                                  {"short_for_sanitizers", short_for_sanitizers}};
#else
#include "without_cuda.h"
#endif
TEST_MAIN(cases)
