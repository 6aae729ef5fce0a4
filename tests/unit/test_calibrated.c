/* Pruning with knowledge of inputs: masks and values against an implementation straight from the
 * papers' formulas (tests/golden/prune/calibrated.txt, made by tools/golden/make_calibrated.py),
 * the refit against a dense solver, the error against outputs that are really computed. Everything
 * by the library and by plain loops. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "prune/eigen.h"
#include "prune/prune.h"
#include "prune/tableau.h"
#include "test.h"

enum { OUT = 8, IN = 136, TOKENS = 300 };

/* ---- the layer of the golden file ---- */

static void make_numbers(uint64_t seed, int64_t count, double *numbers)
{
    uint64_t state = seed;
    for (int64_t i = 0; i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        numbers[i] = ((double)((state >> 40) % 401) - 200) / 64;
    }
}

typedef struct bench {
    esp_context *context;
    esp_algebra *algebra;
    int64_t out, in, tokens;
    double *weights, *x, *gram, *goal, *result;
    float *narrow; /* x */
    esp_layer_inputs inputs;
} bench;

static double *doubles(int64_t count)
{
    return calloc((size_t)count, sizeof(double));
}

static void sum_gram(bench *b)
{
    float *scratch = malloc(esp_algebra_gram_floats(b->algebra, b->in) * sizeof *scratch);
    for (int64_t i = 0; i < b->in * b->tokens; i++) {
        b->narrow[i] = (float)b->x[i];
    }
    esp_algebra_add_gram(b->algebra, b->narrow, b->in, b->narrow, b->in, b->tokens, scratch,
                         b->gram);
    esp_algebra_mirror(b->gram, b->in);
    free(scratch);
}

static void multiply(const bench *b, const double *w, const double *by, double *to)
{
    const esp_algebra_product product = {.rows = b->out,
                                         .columns = b->in,
                                         .depth = b->in,
                                         .alpha = 1,
                                         .a = w,
                                         .a_stride = b->in,
                                         .b = by,
                                         .b_stride = b->in,
                                         .c = to,
                                         .c_stride = b->in};
    esp_algebra_multiply(b->algebra, &product);
}

/* Neighbouring inputs are correlated; all numbers are small multiples of 1/64. */
static bool bench_open(test_run *run, bench *b, int64_t out, int64_t in, int64_t tokens, bool plain,
                       uint64_t seed)
{
    esp_error error;
    *b = (bench){.context = test_context(run, 2), .out = out, .in = in, .tokens = tokens};
    b->weights = doubles(out * in);
    b->goal = doubles(out * in);
    b->result = doubles(out * in);
    b->x = doubles(in * tokens);
    b->gram = doubles(in * in);
    b->narrow = malloc((size_t)(in * tokens) * sizeof *b->narrow);
    if ((plain ? esp_algebra_open_plain(b->context, &b->algebra, &error)
               : esp_algebra_open(b->context, &b->algebra, &error)) != ESP_OK) {
        test_fail(run, __FILE__, __LINE__, "%s", error.message);
        return false;
    }
    make_numbers(seed, out * in, b->weights);
    make_numbers(seed + 1, in * tokens, b->x);
    for (int64_t i = in - 1; i > 0; i--) {
        for (int64_t t = 0; t < tokens; t++) {
            b->x[i * tokens + t] += b->x[(i - 1) * tokens + t];
        }
    }
    sum_gram(b);
    multiply(b, b->weights, b->gram, b->goal);
    b->inputs = (esp_layer_inputs){in, tokens, b->gram};
    return true;
}

static void bench_close(test_run *run, bench *b)
{
    esp_algebra_close(b->algebra);
    test_context_free(run, b->context);
    double *const areas[] = {b->weights, b->x, b->gram, b->goal, b->result};
    for (int i = 0; i < ESP_COUNT(areas); i++) {
        free(areas[i]);
    }
    free(b->narrow);
}

/* ---- golden masks and values ---- */

/* "NAME PATTERN 0110...", then rows of values for sparsegpt and refit. */
typedef struct golden {
    char name[32], pattern[32], bits[OUT * IN + 1];
    double values[OUT * IN];
    bool has_values;
} golden;

static bool read_golden(FILE *file, golden *read)
{
    if (fscanf(file, "%31s %31s %1088s", read->name, read->pattern, read->bits) != 3) {
        return false;
    }
    read->has_values = strcmp(read->name, "sparsegpt") == 0 || strcmp(read->name, "refit") == 0 ||
                       strcmp(read->name, "panels") == 0;
    for (int i = 0; read->has_values && i < OUT * IN; i++) {
        if (fscanf(file, "%lf", &read->values[i]) != 1) {
            return false;
        }
    }
    return strlen(read->bits) == OUT * IN;
}

static double *invert(const bench *b)
{
    double *inverse = doubles(b->in * b->in);
    memcpy(inverse, b->gram, (size_t)(b->in * b->in) * sizeof *inverse);
    if (esp_algebra_factor(b->algebra, inverse, b->in)) {
        esp_algebra_invert(b->algebra, inverse, b->in);
    }
    return inverse;
}

static esp_status by_score(bench *b, esp_layer_score score, const esp_pattern *pattern,
                           esp_mask **mask, esp_error *error)
{
    double *inverse = invert(b), *diagonal = doubles(b->in);
    float *scores = malloc((size_t)(b->out * b->in) * sizeof *scores);
    for (int64_t j = 0; j < b->in; j++) {
        diagonal[j] = inverse[j * b->in + j];
    }
    esp_status status = esp_score_layer(b->context, score, &b->inputs, diagonal, b->out, b->in,
                                        b->weights, scores, error);
    const esp_tensor tensor = {
        .dtype = ESP_F32, .rank = 2, .shape = {b->out, b->in}, .data = scores};
    const esp_mask_options options = {.scope = ESP_SCOPE_ROW};
    if (status == ESP_OK) {
        status = esp_prune_mask(b->context, &tensor, pattern, &options, mask, NULL, error);
    }
    free(inverse);
    free(diagonal);
    free(scores);
    return status;
}

static esp_status by_sparse_gpt(bench *b, const esp_pattern *pattern, esp_mask **mask,
                                esp_error *error)
{
    static const esp_mask_options options = {0};
    double *factor = invert(b);
    esp_status status = ESP_FAILED;
    if (esp_algebra_factor(b->algebra, factor, b->in)) {
        for (int64_t i = 0; i < b->in; i++) {
            for (int64_t j = i + 1; j < b->in; j++) {
                factor[i * b->in + j] = factor[j * b->in + i];
            }
        }
        memcpy(b->result, b->weights, (size_t)(b->out * b->in) * sizeof *b->result);
        status = esp_sparse_gpt(b->algebra, pattern, &options, b->out, b->in, factor, b->result,
                                mask, error);
    }
    free(factor);
    return status;
}

static esp_status by_panels(bench *b, const esp_pattern *pattern, esp_mask **mask, esp_error *error)
{
    double *inverse = invert(b);
    memcpy(b->result, b->weights, (size_t)(b->out * b->in) * sizeof *b->result);
    esp_status status =
        esp_panel_obs(b->algebra, pattern, b->out, b->in, inverse, b->result, mask, error);
    free(inverse);
    return status;
}

static esp_status make(bench *b, const golden *wanted, esp_mask **mask, esp_error *error)
{
    static const char *const names[] = {"abs", "square", "obd", "wanda", "ria", "obs"};
    esp_pattern pattern;
    ESP_TRY(esp_pattern_parse(wanted->pattern, &pattern, error));
    if (strcmp(wanted->name, "sparsegpt") == 0) {
        return by_sparse_gpt(b, &pattern, mask, error);
    }
    if (strcmp(wanted->name, "panels") == 0) {
        return by_panels(b, &pattern, mask, error);
    }
    for (int i = 0; i < ESP_COUNT(names); i++) {
        if (strcmp(names[i], wanted->name) == 0) {
            return by_score(b, (esp_layer_score)i, &pattern, mask, error);
        }
    }
    ESP_TRY(by_score(b, ESP_LAYER_WANDA, &pattern, mask, error));
    return esp_refit(b->algebra, &b->inputs, *mask, b->goal, b->result,
                     &(esp_refit_options){.tolerance = 1e-13}, NULL, error);
}

static void check_golden(test_run *run, const golden *wanted, bool plain)
{
    bench b;
    esp_mask *mask = NULL;
    REQUIRE(bench_open(run, &b, OUT, IN, TOKENS, plain, 1));
    CHECK_OK(make(&b, wanted, &mask, error));
    int differ = 0;
    double worst = 0;
    for (int i = 0; mask != NULL && i < OUT * IN; i++) {
        differ += esp_mask_get(mask, i / IN, i % IN) != (wanted->bits[i] == '1');
        test_note_largest(&worst, fabs(b.result[i] - wanted->values[i]));
    }
    CHECK_INT(differ, 0);
    CHECK(!wanted->has_values || worst < 1e-7); /* of values up to 5, cond(H) about 1e4 */
    esp_mask_free(mask);
    bench_close(run, &b);
}

static void papers(test_run *run)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/golden/prune/calibrated.txt", test_source_dir());
    for (int plain = 0; plain < 2; plain++) {
        FILE *file = fopen(path, "r");
        static golden wanted;
        int count = 0;
        REQUIRE(file != NULL && fscanf(file, "#%*[^\n]") == 0);
        while (read_golden(file, &wanted)) {
            test_sub(run, "%s %s%s", wanted.name, wanted.pattern, plain ? ", plain loops" : "");
            check_golden(run, &wanted, plain);
            count++;
        }
        fclose(file);
        test_sub(run, "all of the file");
        CHECK_INT(count, 18);
    }
}

/* ---- refit against elimination ---- */

/* A x = b by Gaussian elimination with pivots; destroys both; x in b. */
static void eliminate(double *a, double *b, int64_t n)
{
    for (int64_t k = 0; k < n; k++) {
        int64_t pivot = k;
        for (int64_t i = k + 1; i < n; i++) {
            pivot = fabs(a[i * n + k]) > fabs(a[pivot * n + k]) ? i : pivot;
        }
        for (int64_t j = 0; j < n; j++) {
            double held = a[k * n + j];
            a[k * n + j] = a[pivot * n + j];
            a[pivot * n + j] = held;
        }
        double held = b[k];
        b[k] = b[pivot];
        b[pivot] = held;
        for (int64_t i = 0; i < n; i++) {
            double times = i == k ? 0 : a[i * n + k] / a[k * n + k];
            for (int64_t j = k; j < n; j++) {
                a[i * n + j] -= times * a[k * n + j];
            }
            b[i] -= times * b[k];
        }
    }
    for (int64_t k = 0; k < n; k++) {
        b[k] /= a[k * n + k];
    }
}

/* Largest difference of row r from least squares over its live weights. */
static double row_differs(const bench *b, const esp_mask *mask, int64_t r)
{
    int64_t in = b->in, n = 0;
    int64_t *live = malloc((size_t)in * sizeof *live);
    for (int64_t j = 0; j < in; j++) {
        if (esp_mask_get(mask, r, j)) {
            live[n++] = j;
        }
    }
    double *a = doubles(n * n + 1), *x = doubles(n + 1), worst = 0;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++) {
            a[i * n + j] = b->gram[live[i] * in + live[j]];
        }
        x[i] = b->goal[r * in + live[i]];
    }
    eliminate(a, x, n);
    for (int64_t j = 0, k = 0; j < in; j++) {
        double wanted = k < n && live[k] == j ? x[k++] : 0;
        test_note_largest(&worst, fabs(b->result[r * in + j] - wanted));
    }
    free(live);
    free(a);
    free(x);
    return worst;
}

static void solver(test_run *run)
{
    static const struct {
        const char *pattern;
        int64_t out, in;
    } layers[] = {{"2:4", 70, 40},           {"16:2:8", 80, 64},
                  {"64:2:8", 130, 50},       {"32:2:5", 40, 33},
                  {"panel:16@0.75", 48, 64}, {"unstructured@0.7", 67, 31},
                  {"block:8x8@0.5", 64, 48}, {"rows@0.5", 20, 16},
                  {"cols@0.5", 20, 16},      {"1:16", 9, 35}};
    for (int i = 0; i < ESP_COUNT(layers); i++) {
        for (int plain = 0; plain < 2; plain++) {
            test_sub(run, "%s%s", layers[i].pattern, plain ? ", plain loops" : "");
            bench b;
            esp_mask *mask = NULL;
            esp_pattern pattern;
            esp_refit_report report = {0};
            CHECK_OK(esp_pattern_parse(layers[i].pattern, &pattern, error));
            REQUIRE(bench_open(run, &b, layers[i].out, layers[i].in, 200, plain,
                               test_seed(run) + (uint64_t)i));
            CHECK_OK(by_score(&b, ESP_LAYER_OBD, &pattern, &mask, error));
            CHECK_OK(esp_refit(b.algebra, &b.inputs, mask, b.goal, b.result,
                               &(esp_refit_options){.tolerance = 1e-12}, &report, error));
            CHECK(report.residual <= 1e-12 && report.iterations > 0);
            double worst = 0;
            for (int64_t r = 0; r < b.out; r++) {
                test_note_largest(&worst, row_differs(&b, mask, r));
            }
            CHECK(worst < 1e-7);
            esp_mask_free(mask);
            bench_close(run, &b);
        }
    }
}

/* ---- errors ---- */

/* |(W - T) X|^2 of outputs that are really computed. */
static double error_of_outputs(const bench *b, const double *weights)
{
    double squared = 0;
    for (int64_t r = 0; r < b->out; r++) {
        for (int64_t t = 0; t < b->tokens; t++) {
            double y = 0;
            for (int64_t j = 0; j < b->in; j++) {
                double of_weights = weights != NULL ? weights[r * b->in + j] : 0;
                y += (of_weights - b->weights[r * b->in + j]) * b->x[j * b->tokens + t];
            }
            squared += y * y;
        }
    }
    return squared;
}

static void outputs(test_run *run)
{
    bench b;
    double squared = 0, energy = 0, refitted = 0, updated = 0;
    esp_mask *mask = NULL, *other = NULL;
    esp_pattern pattern;
    REQUIRE(bench_open(run, &b, 70, 40, 90, false, test_seed(run)));
    CHECK_OK(esp_pattern_parse("16:2:8", &pattern, error));
    CHECK_OK(by_score(&b, ESP_LAYER_WANDA, &pattern, &mask, error));
    for (int64_t i = 0; i < b.out * b.in; i++) {
        b.result[i] = esp_mask_get(mask, i / b.in, i % b.in) ? b.weights[i] : 0;
    }
    CHECK_OK(esp_layer_error(b.algebra, &b.inputs, b.out, b.result, b.weights, &squared, error));
    CHECK_OK(esp_layer_energy(b.algebra, &b.inputs, b.out, b.weights, &energy, error));
    double expected = error_of_outputs(&b, b.result);
    CHECK(fabs(squared - expected) < 1e-6 * expected);
    CHECK(fabs(energy - error_of_outputs(&b, NULL)) < 1e-6 * energy);
    CHECK_OK(esp_refit(b.algebra, &b.inputs, mask, b.goal, b.result, NULL, NULL, error));
    CHECK_OK(esp_layer_error(b.algebra, &b.inputs, b.out, b.result, b.weights, &refitted, error));
    CHECK(refitted < squared); /* it is the least of all for this mask */
    CHECK_OK(by_sparse_gpt(&b, &pattern, &other, error));
    CHECK_OK(esp_layer_error(b.algebra, &b.inputs, b.out, b.result, b.weights, &updated, error));
    CHECK(updated < squared);
    esp_mask_free(mask);
    esp_mask_free(other);
    bench_close(run, &b);
}

/* A fixed mask is kept by SparseGPT, whatever the pattern. */
static void fixed_masks(test_run *run)
{
    static const char *const patterns[] = {"panel:16@0.75", "unstructured@0.6", "block:8x8@0.5"};
    for (int i = 0; i < ESP_COUNT(patterns); i++) {
        test_sub(run, "%s", patterns[i]);
        bench b;
        esp_mask *mask = NULL;
        esp_pattern pattern;
        CHECK_OK(esp_pattern_parse(patterns[i], &pattern, error));
        CHECK(!esp_sparse_gpt_chooses(&pattern));
        REQUIRE(bench_open(run, &b, 64, 150, 400, false, test_seed(run)));
        CHECK_OK(by_score(&b, ESP_LAYER_OBS, &pattern, &mask, error));
        const esp_mask *given = mask;
        CHECK_OK(by_sparse_gpt(&b, &pattern, &mask, error));
        CHECK(mask == given);
        double squared = 0, masked = 0;
        CHECK_OK(
            esp_layer_error(b.algebra, &b.inputs, b.out, b.result, b.weights, &squared, error));
        int64_t astray = 0;
        for (int64_t k = 0; k < b.out * b.in; k++) {
            bool live = esp_mask_get(mask, k / b.in, k % b.in);
            astray += !live && b.result[k] != 0;
            b.result[k] = live ? b.weights[k] : 0;
        }
        CHECK_INT(astray, 0);
        CHECK_OK(esp_layer_error(b.algebra, &b.inputs, b.out, b.result, b.weights, &masked, error));
        CHECK(squared < masked);
        esp_mask_free(mask);
        bench_close(run, &b);
    }
}

/* Panels of any shape: what is written fits the pattern, and costs less than SparseGPT. */
static void panels(test_run *run)
{
    static const struct {
        const char *pattern;
        int64_t out, in;
    } layers[] = {{"16:2:8", 50, 96},        {"64:2:5", 70, 63},  {"8:2:16", 20, 50},
                  {"panel:16@0.75", 40, 80}, {"1:2:8", 3, 40},    {"panel:64@0.9", 10, 30},
                  {"16:2:8", 17, 5},         {"32:2:100", 33, 64}};
    for (int i = 0; i < ESP_COUNT(layers); i++) {
        test_sub(run, "%s of %dx%d", layers[i].pattern, (int)layers[i].out, (int)layers[i].in);
        bench b;
        esp_mask *mask = NULL, *other = NULL;
        esp_pattern pattern;
        esp_sparse *sparse = NULL;
        double squared = 0, by_gpt = 0;
        CHECK_OK(esp_pattern_parse(layers[i].pattern, &pattern, error));
        REQUIRE(bench_open(run, &b, layers[i].out, layers[i].in, 250, i % 2 == 1, test_seed(run)));
        CHECK_OK(by_panels(&b, &pattern, &mask, error));
        float *values = malloc((size_t)(b.out * b.in) * sizeof *values);
        int64_t astray = 0;
        for (int64_t k = 0; mask != NULL && k < b.out * b.in; k++) {
            values[k] = (float)b.result[k];
            astray += b.result[k] != 0 && !esp_mask_get(mask, k / b.in, k % b.in);
        }
        CHECK_INT(astray, 0);
        const esp_tensor dense = {
            .dtype = ESP_F32, .rank = 2, .shape = {b.out, b.in}, .data = values};
        CHECK_OK(esp_sparse_encode(b.context, &pattern, &dense, mask, &sparse, error));
        CHECK_OK(
            esp_layer_error(b.algebra, &b.inputs, b.out, b.result, b.weights, &squared, error));
        if (esp_sparse_gpt_chooses(&pattern)) {
            CHECK_OK(by_sparse_gpt(&b, &pattern, &other, error));
            CHECK_OK(
                esp_layer_error(b.algebra, &b.inputs, b.out, b.result, b.weights, &by_gpt, error));
            CHECK(squared <= 1.1 * by_gpt); /* greedy both: less as a rule */
        }
        esp_sparse_free(sparse);
        free(values);
        esp_mask_free(mask);
        esp_mask_free(other);
        bench_close(run, &b);
    }
}

/* ---- the joint search ---- */

static esp_status by_joint(bench *b, const esp_pattern *pattern, esp_mask **mask, esp_error *error)
{
    double *inverse = invert(b);
    memcpy(b->result, b->weights, (size_t)(b->out * b->in) * sizeof *b->result);
    esp_status status =
        esp_joint_panels(b->algebra, pattern, b->out, b->in, inverse, b->result, mask, error);
    free(inverse);
    return status;
}

/* The least squared error of row 0 with `live` alone, by elimination; x: [in]. */
static double least_error(const bench *b, const bool *live, double *x)
{
    int64_t in = b->in, n = 0, place[64];
    double a[64 * 64], best[64], squared = 0;
    for (int64_t j = 0; j < in; j++) {
        x[j] = 0;
        if (live[j]) {
            place[n++] = j;
        }
    }
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++) {
            a[i * n + j] = b->gram[place[i] * in + place[j]];
        }
        best[i] = b->goal[place[i]];
    }
    eliminate(a, best, n);
    for (int64_t i = 0; i < n; i++) {
        x[place[i]] = best[i];
    }
    for (int64_t i = 0; i < in; i++) {
        for (int64_t j = 0; j < in; j++) {
            squared += (x[i] - b->weights[i]) * b->gram[i * in + j] * (x[j] - b->weights[j]);
        }
    }
    return squared;
}

static bool near(double a, double b, double scale)
{
    return fabs(a - b) <= 1e-7 * scale;
}

/* Weights go and come back in any order; values, costs and errors stay those of elimination. */
static void pivots(test_run *run)
{
    enum { N = 40, PIVOTS = 150 };
    bench b;
    bool live[N];
    double x[N];
    esp_random random;
    esp_tableau_group groups[N / 4];
    REQUIRE(bench_open(run, &b, 1, N, 400, false, test_seed(run)));
    double *inverse = invert(&b), *room = doubles((int64_t)esp_tableau_doubles(N));
    esp_tableau t = {.algebra = b.algebra};
    for (int g = 0; g < N / 4; g++) {
        groups[g] = (esp_tableau_group){g * 4, 4};
    }
    for (int j = 0; j < N; j++) {
        live[j] = true;
    }
    esp_random_seed(&random, test_seed(run));
    esp_tableau_bind(&t, N, groups, N / 4, room);
    esp_tableau_load(&t, inverse, N, b.weights);
    double scale = least_error(&b, (bool[N]){false}, x), before = 0;
    for (int i = 0; i < PIVOTS; i++) {
        int64_t k = (int64_t)esp_random_below(&random, N), other = k ^ 1;
        double cost = esp_tableau_cost(&t, k), swap = 0;
        bool swaps = live[k] && !live[other];
        swap = swaps ? esp_tableau_swap_cost(&t, &groups[k / 4], k, other) : 0;
        if (swaps) {
            live[k] = false;
            live[other] = true;
            CHECK(near(before + swap, least_error(&b, live, x), scale));
            live[k] = true;
            live[other] = false;
        }
        esp_tableau_pivot(&t, k);
        live[k] = !live[k];
        double error = least_error(&b, live, x);
        CHECK(near(before + cost, error, scale) && near(t.error, error, scale));
        for (int j = 0; j < N; j++) {
            CHECK(esp_tableau_lives(&t, j) == live[j]);
            CHECK(!live[j] || near(t.values[j], x[j], 10));
        }
        before = error;
    }
    free(inverse);
    free(room);
    bench_close(run, &b);
}

/* A row whose masks can all be tried: the search ends where no exchange within a four gains, and
 * comes near the best of all. */
static void best_of_all(test_run *run)
{
    enum { N = 12, MASKS = 6 * 6 * 6, ROWS = 40 };
    static const int pairs[6][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};
    int best_found = 0;
    for (int row = 0; row < ROWS; row++) {
        bench b;
        esp_mask *mask = NULL;
        esp_pattern pattern;
        double errors[MASKS], x[N], least = (double)INFINITY, found = 0;
        int mine = -1;
        CHECK_OK(esp_pattern_parse("2:4", &pattern, error));
        REQUIRE(bench_open(run, &b, 1, N, 60, row % 2 == 1, test_seed(run) + (uint64_t)row));
        CHECK_OK(by_joint(&b, &pattern, &mask, error));
        for (int m = 0; m < MASKS; m++) {
            bool live[N] = {false}, same = true;
            for (int g = 0, code = m; g < 3; g++, code /= 6) {
                live[g * 4 + pairs[code % 6][0]] = live[g * 4 + pairs[code % 6][1]] = true;
            }
            for (int j = 0; j < N; j++) {
                same &= esp_mask_get(mask, 0, j) == live[j];
            }
            errors[m] = least_error(&b, live, x);
            least = ESP_MIN(least, errors[m]);
            mine = same ? m : mine;
            for (int j = 0; j < N && same; j++) {
                CHECK(near(b.result[j], x[j], 10)); /* nothing is left to a refit */
            }
        }
        REQUIRE(mine >= 0);
        found = errors[mine];
        best_found += found <= least * (1 + 1e-9);
        for (int g = 0, step = 1; g < 3; g++, step *= 6) { /* one pair for another: two exchanges */
            for (int k = 0; k < 6; k++) {
                int now = mine / step % 6, other = mine + (k - now) * step;
                bool one = pairs[k][0] == pairs[now][0] || pairs[k][0] == pairs[now][1] ||
                           pairs[k][1] == pairs[now][0] || pairs[k][1] == pairs[now][1];
                CHECK(!one || errors[other] >= found * (1 - 1e-6));
            }
        }
        esp_mask_free(mask);
        bench_close(run, &b);
    }
    CHECK(best_found >= ROWS / 2);
}

/* Of any shape: what is written fits the pattern, is least squares, and costs less than what OBS or
 * SparseGPT chooses, refitted. The last ones go block by block. */
static void joint(test_run *run)
{
    static const struct {
        const char *pattern;
        int64_t out, in;
        bool exact; /* one block */
    } layers[] = {{"16:2:8", 50, 96, true},     {"64:2:5", 70, 63, true},
                  {"8:2:16", 20, 50, true},     {"panel:16@0.75", 40, 80, true},
                  {"1:2:8", 3, 40, true},       {"panel:64@0.9", 10, 30, true},
                  {"16:2:8", 17, 5, true},      {"2:4", 37, 43, true},
                  {"panel:8@0.5", 9, 27, true}, {"2:4", 5, 1, true},
                  {"2:4", 3, 1100, false},      {"8:2:5", 9, 1500, false}};
    for (int i = 0; i < ESP_COUNT(layers); i++) {
        test_sub(run, "%s of %dx%d", layers[i].pattern, (int)layers[i].out, (int)layers[i].in);
        bench b;
        esp_mask *mask = NULL, *other = NULL;
        esp_pattern pattern;
        esp_sparse *sparse = NULL;
        double squared = 0, refitted = 0, by_other = 0;
        CHECK_OK(esp_pattern_parse(layers[i].pattern, &pattern, error));
        REQUIRE(bench_open(run, &b, layers[i].out, layers[i].in, 4 * layers[i].in + 100,
                           layers[i].exact && i % 2 == 1, test_seed(run)));
        CHECK_OK(by_joint(&b, &pattern, &mask, error));
        int64_t count = b.out * b.in, astray = 0;
        float *values = malloc((size_t)count * sizeof *values);
        for (int64_t k = 0; mask != NULL && k < count; k++) {
            values[k] = (float)b.result[k];
            astray += b.result[k] != 0 && !esp_mask_get(mask, k / b.in, k % b.in);
        }
        CHECK_INT(astray, 0);
        const esp_tensor dense = {
            .dtype = ESP_F32, .rank = 2, .shape = {b.out, b.in}, .data = values};
        CHECK_OK(esp_sparse_encode(b.context, &pattern, &dense, mask, &sparse, error));
        CHECK_OK(
            esp_layer_error(b.algebra, &b.inputs, b.out, b.result, b.weights, &squared, error));
        const esp_refit_options exact = {.tolerance = 1e-12, .max_iterations = 5000};
        CHECK_OK(esp_refit(b.algebra, &b.inputs, mask, b.goal, b.result, &exact, NULL, error));
        CHECK_OK(
            esp_layer_error(b.algebra, &b.inputs, b.out, b.result, b.weights, &refitted, error));
        CHECK(refitted <= squared * (1 + 1e-9) + 1e-9);
        CHECK(!layers[i].exact || squared <= refitted * (1 + 1e-6) + 1e-6);
        CHECK_OK(esp_panel_obs_takes(&pattern) ? by_panels(&b, &pattern, &other, error)
                                               : by_sparse_gpt(&b, &pattern, &other, error));
        CHECK_OK(esp_refit(b.algebra, &b.inputs, other, b.goal, b.result, &exact, NULL, error));
        CHECK_OK(
            esp_layer_error(b.algebra, &b.inputs, b.out, b.result, b.weights, &by_other, error));
        CHECK(refitted <= 1.01 * by_other + 1e-6);
        esp_sparse_free(sparse);
        free(values);
        esp_mask_free(mask);
        esp_mask_free(other);
        bench_close(run, &b);
    }
}

/* ---- principal axes ---- */

static void axes_of(test_run *run)
{
    static const int64_t sizes[] = {1, 2, 3, 5, 64, 80, 333};
    for (int i = 0; i < ESP_COUNT(sizes); i++) {
        int64_t n = sizes[i];
        test_sub(run, "%d", (int)n);
        double *a = doubles(n * n), *left = doubles(n * n), *axes = doubles(n * n);
        double *x = doubles(n * (n + 2)), *room = doubles(3 * n), worst = 0, scale = 0;
        make_numbers(test_seed(run) + (uint64_t)i, n * (n + 2), x);
        for (int64_t r = 0; r < n; r++) {
            for (int64_t c = 0; c < n; c++) {
                for (int64_t t = 0; t < n + 2; t++) { /* the last channel is never seen */
                    a[r * n + c] += r == n - 1 || c == n - 1 ? 0 : x[t * n + r] * x[t * n + c];
                }
                left[r * n + c] = a[r * n + c];
                scale = ESP_MAX(scale, fabs(a[r * n + c]));
            }
        }
        esp_principal_axes(left, n, axes, room);
        for (int64_t r = 0; r < n; r++) {
            CHECK(r == 0 || left[r * n + r] <= left[(r - 1) * n + r - 1]);
            for (int64_t c = 0; c < n; c++) { /* A v = l v, and axes are orthonormal */
                double image = 0, product = 0;
                for (int64_t k = 0; k < n; k++) {
                    image += a[c * n + k] * axes[r * n + k];
                    product += axes[r * n + k] * axes[c * n + k];
                }
                test_note_largest(&worst, fabs(image - left[r * n + r] * axes[r * n + c]) /
                                              ESP_MAX(scale, 1));
                test_note_largest(&worst, fabs(product - (r == c)));
            }
        }
        CHECK(worst < 1e-11);
        free(a);
        free(left);
        free(axes);
        free(room);
        free(x);
    }
}

/* Weights that are not finite are never hidden, and a matrix without an inverse is told. */
static void odd_numbers(test_run *run)
{
    bench b;
    float scores[8];
    esp_error error;
    REQUIRE(bench_open(run, &b, 2, 4, 20, false, 1));
    b.weights[1] = (double)INFINITY;
    b.weights[2] = (double)NAN;
    for (int score = 0; score <= ESP_LAYER_RIA; score++) {
        CHECK_INT(esp_score_layer(b.context, (esp_layer_score)score, &b.inputs, NULL, 2, 4,
                                  b.weights, scores, &error),
                  ESP_OK);
        CHECK(isinf(scores[1]) && isnan(scores[2]));
        CHECK(isfinite(scores[0]) && scores[0] <= 1 && isfinite(scores[7]));
    }
    memset(b.gram, 0, 16 * sizeof *b.gram);
    CHECK(!esp_algebra_factor(b.algebra, b.gram, 4));
    bench_close(run, &b);
}

static const test_case cases[] = {
    {"masks and values of the papers", papers},
    {"refit and a dense solver", solver},
    {"errors and outputs", outputs},
    {"fixed masks", fixed_masks},
    {"panels by second order", panels},
    {"pivots of a tableau", pivots},
    {"all masks of a row", best_of_all},
    {"joint search", joint},
    {"principal axes", axes_of},
    {"odd numbers", odd_numbers},
};

TEST_MAIN(cases)
