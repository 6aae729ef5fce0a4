/* Calibrated pruning of one layer: masks and values as the papers' formulas have them, the refit
 * against a dense solver, errors of outputs, fixed masks, panels. The joint search: test_joint.c.
 */
#include "calibrated_layer.h"

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
                       strcmp(read->name, "panels") == 0 || strcmp(read->name, "venom") == 0;
    for (int i = 0; read->has_values && i < OUT * IN; i++) {
        if (fscanf(file, "%lf", &read->values[i]) != 1) {
            return false;
        }
    }
    return strlen(read->bits) == OUT * IN;
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
    if (strcmp(wanted->name, "venom") == 0) {
        return by_groups(b, &pattern, ESP_SEARCH_EXACT, mask, error);
    }
    if (strcmp(wanted->name, "torchao") == 0) {
        b->inputs.norm_power = 2;
        return by_score(b, ESP_LAYER_WANDA, &pattern, mask, error);
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
        CHECK_INT(count, 22);
    }
}

/* ---- refit against elimination ---- */

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

/* ---- groups by second order ---- */

static double error_by_groups(test_run *run, bench *b, const esp_pattern *pattern,
                              esp_search search)
{
    esp_mask *mask = NULL;
    double squared = 0, worst = 0;
    esp_error why = {0};
    if (by_groups(b, pattern, search, &mask, &why) != ESP_OK) {
        test_fail(run, __FILE__, __LINE__, "%s", why.message);
        return 0;
    }
    for (int64_t r = 0; r < b->out && pattern->m >= b->in; r++) { /* all follow */
        test_note_largest(&worst, row_differs(b, mask, r));
    }
    CHECK(worst < 1e-8);
    CHECK_OK(
        esp_layer_error(b->algebra, &b->inputs, b->out, b->result, b->weights, &squared, error));
    esp_mask_free(mask);
    return squared;
}

/* Of one group: least squares of its mask, and no search is worse than a narrower one. Of several,
 * with rows and columns left over: the pattern is kept to, and less is lost than by SparseGPT. */
static void groups(test_run *run)
{
    static const struct {
        const char *pattern;
        int64_t out, in;
    } layers[] = {{"4:2:8", 10, 8},   {"16:2:5", 16, 5},  {"4:2:10", 7, 10}, {"8:2:12", 24, 12},
                  {"8:2:40", 20, 40}, {"16:2:8", 40, 93}, {"8:2:5", 21, 57}, {"4:2:16", 33, 150},
                  {"64:2:8", 64, 1},  {"64:2:8", 64, 6}};
    for (int i = 0; i < ESP_COUNT(layers); i++) {
        test_sub(run, "%s of %lld x %lld", layers[i].pattern, (long long)layers[i].out,
                 (long long)layers[i].in);
        bench b;
        esp_pattern pattern;
        esp_mask *mask = NULL;
        double swept = 0;
        CHECK_OK(esp_pattern_parse(layers[i].pattern, &pattern, error));
        CHECK(esp_group_obs_takes(&pattern));
        REQUIRE(bench_open(run, &b, layers[i].out, layers[i].in, 300, false,
                           test_seed(run) + (uint64_t)i));
        double greedy = error_by_groups(run, &b, &pattern, ESP_SEARCH_GREEDY);
        double swaps = error_by_groups(run, &b, &pattern, ESP_SEARCH_SWAPS);
        bool one = pattern.m >= b.in;
        CHECK(!one || swaps <= greedy * (1 + 1e-9));
        if (pattern.m <= 10) {
            double exact = error_by_groups(run, &b, &pattern, ESP_SEARCH_EXACT);
            CHECK(!one || exact <= swaps * (1 + 1e-9));
        } else {
            CHECK_FAILS(by_groups(&b, &pattern, ESP_SEARCH_EXACT, &mask, error), ESP_BAD_ARGUMENT,
                        "prune.exact_too_wide");
        }
        double found = error_by_groups(run, &b, &pattern, ESP_SEARCH_AUTO);
        CHECK_OK(by_groups(&b, &pattern, ESP_SEARCH_AUTO, &mask, error));
        esp_tensor values = {.dtype = ESP_F32, .rank = 2, .shape = {b.out, b.in}};
        values.data = calloc((size_t)(b.out * b.in), sizeof(float));
        for (int64_t k = 0; k < b.out * b.in; k++) {
            ((float *)values.data)[k] = (float)b.result[k];
        }
        esp_sparse *sparse = NULL; /* which refuses what does not fit */
        CHECK_OK(esp_sparse_encode(b.context, &pattern, &values, mask, &sparse, error));
        esp_sparse_free(sparse);
        free(values.data);
        esp_mask_free(mask);
        mask = NULL;
        CHECK_OK(by_sparse_gpt(&b, &pattern, &mask, error));
        CHECK_OK(esp_layer_error(b.algebra, &b.inputs, b.out, b.result, b.weights, &swept, error));
        CHECK(found <= swept * (1 + 1e-9));
        esp_mask_free(mask);
        bench_close(run, &b);
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

static const test_case cases[] = {
    {"masks and values of the papers", papers},
    {"refit and a dense solver", solver},
    {"groups by second order", groups},
    {"errors and outputs", outputs},
    {"fixed masks", fixed_masks},
    {"panels by second order", panels},
};
TEST_MAIN(cases)
