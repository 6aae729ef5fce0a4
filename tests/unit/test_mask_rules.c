/* What holds of every pruning method: ties, NaN, threads, what must follow when columns of a group
 * change places, reports, and refusals. */
#include "mask_tools.h"

/* ---- ties, special values, invariances ---- */

static void ties_keep_the_lowest(test_run *run)
{
    static const struct {
        const char *pattern;
        esp_search search;
        uint64_t live; /* of each row of 20 equal weights */
    } rows[] = {
        {"2:4", ESP_SEARCH_AUTO, 0x33333},    {"4:8", ESP_SEARCH_AUTO, 0xf0f0f},
        {"1:16", ESP_SEARCH_AUTO, 0x10001},   {"3:17", ESP_SEARCH_AUTO, 0xe0007},
        {"4:2:8", ESP_SEARCH_EXACT, 0x30303}, {"4:2:8", ESP_SEARCH_GREEDY, 0x30303},
        {"4:2:8", ESP_SEARCH_SWAPS, 0x30303}, {"64:2:5", ESP_SEARCH_EXACT, 0x18c63},
        {"2:2:16", ESP_SEARCH_AUTO, 0x30003}, {"panel:4@0.75", ESP_SEARCH_GREEDY, 0x00333},
    };
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        for (int zero = 0; zero < 2; zero++) {
            test_sub(run, "%s search %d of %s", rows[i].pattern, rows[i].search,
                     zero ? "zeros" : "equal weights");
            esp_tensor dense = make_tensor(run, context, ESP_BF16, 6, 20);
            for (int k = 0; k < 120 && !zero; k++) {
                put_bits_at(ESP_BF16, dense.data, k, k % 3 == 0 ? 0xbf80 : 0x3f80);
            }
            esp_mask_report report;
            esp_mask *mask = prune(run, context, &dense, rows[i].pattern, ESP_SCORE_ABS,
                                   rows[i].search, &report);
            for (int r = 0; r < 6; r++) {
                CHECK(esp_mask_row(mask, r)[0] == rows[i].live);
            }
            CHECK_INT(report.kept, 6 * __builtin_popcountll(rows[i].live));
            CHECK_INT(report.weights, 120);
            CHECK(report.sparsity == 1 - (double)report.kept / 120);
            if (zero) {
                CHECK(report.retained_energy == 1);
            }
            esp_mask_free(mask);
            esp_tensor_free(context, &dense);
        }
    }
    test_context_free(run, context);
}

/* One NaN among infinities is always kept, and an infinity among numbers. */
static void nan_is_never_hidden(test_run *run)
{
    static const struct {
        const char *pattern;
        esp_search search;
    } rows[] = {{"2:4", ESP_SEARCH_AUTO},         {"1:16", ESP_SEARCH_AUTO},
                {"2:18", ESP_SEARCH_AUTO},        {"4:2:8", ESP_SEARCH_EXACT},
                {"4:2:8", ESP_SEARCH_GREEDY},     {"4:2:18", ESP_SEARCH_SWAPS},
                {"panel:4@0.75", ESP_SEARCH_AUTO}};
    static const uint32_t nan[] = {0xffc00123u, 0xfe01u, 0xff81u};
    static const uint32_t infinity[] = {0x7f800000u, 0x7c00u, 0x7f80u};
    esp_context *context = test_context(run, 2);
    for (int i = 0; i < 3 * 2 * ESP_COUNT(rows); i++) {
        const char *pattern = rows[i % ESP_COUNT(rows)].pattern;
        int t = i / ESP_COUNT(rows) % 3;
        esp_score score = i / ESP_COUNT(rows) / 3 == 0 ? ESP_SCORE_ABS : ESP_SCORE_SQUARE;
        test_sub(run, "%s search %d %s %s", pattern, rows[i % ESP_COUNT(rows)].search,
                 esp_dtype_short_name(dtypes[t]), score == ESP_SCORE_ABS ? "|w|" : "w^2");
        esp_tensor dense = make_tensor(run, context, dtypes[t], 4, 36);
        for (int k = 0; k < 4 * 36; k++) {
            put_bits_at(dtypes[t], dense.data, k, infinity[t]);
        }
        put_bits_at(dtypes[t], dense.data, 2 * 36 + 17,
                    nan[t]); /* the highest index of its group */
        esp_mask *mask =
            prune(run, context, &dense, pattern, score, rows[i % ESP_COUNT(rows)].search, NULL);
        CHECK(esp_mask_get(mask, 2, 17));
        esp_mask_free(mask);
        for (int k = 0; k < 4 * 36; k++) {
            put_bits_at(dtypes[t], dense.data, k, dtypes[t] == ESP_F32 ? 0x7f7fffffu : 0x7bffu);
        }
        put_bits_at(dtypes[t], dense.data, 1 * 36 + 17, infinity[t]);
        esp_mask_report report;
        mask =
            prune(run, context, &dense, pattern, score, rows[i % ESP_COUNT(rows)].search, &report);
        CHECK(esp_mask_get(mask, 1, 17));
        CHECK(report.retained_energy > 0 && report.retained_energy < 1);
        esp_mask_free(mask);
        esp_tensor_free(context, &dense);
    }
    test_context_free(run, context);
}

/* One thread, many threads, and with or without AVX2: the same mask and the same report. */
static void threads_and_vectors_do_not_matter(test_run *run)
{
    static const char *const patterns[] = {"2:4",    "4:8",     "2:40",    "16:2:8",
                                           "64:2:5", "32:2:10", "16:2:40", "panel:16@0.75"};
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    esp_context *many = test_context(run, 5), *plain = NULL;
    esp_context_options options = {.threads = 1, .cpu_level = "portable"};
    REQUIRE_OK(esp_context_create(&options, &plain, error));
    for (int i = 0; i < 3 * ESP_COUNT(patterns); i++) {
        const char *pattern = patterns[i % ESP_COUNT(patterns)];
        esp_dtype dtype = dtypes[i / ESP_COUNT(patterns)];
        test_sub(run, "%s %s", pattern, esp_dtype_short_name(dtype));
        esp_tensor dense = normal_tensor(run, plain, &random, dtype, 203, 517);
        esp_mask_report a, b;
        esp_mask *x = prune(run, plain, &dense, pattern, i % 2, ESP_SEARCH_AUTO, &a);
        esp_mask *y = prune(run, many, &dense, pattern, i % 2, ESP_SEARCH_AUTO, &b);
        CHECK(same_masks(x, y));
        CHECK(memcmp(&a.retained_energy, &b.retained_energy, sizeof(double)) == 0);
        CHECK_INT(a.kept, b.kept);
        CHECK_INT(a.kept, esp_mask_count(x));
        esp_mask_free(x);
        esp_mask_free(y);
        esp_tensor_free(plain, &dense);
    }
    esp_context_free(plain);
    test_context_free(run, many);
}

/* Columns permuted inside their groups, rows inside their panels: the mask moves along. */
static void permutations_commute(test_run *run)
{
    static const struct {
        const char *pattern;
        int v, m;
    } rows[] = {{"2:4", 1, 4},   {"4:8", 1, 8},     {"3:20", 1, 20},   {"8:2:8", 8, 8},
                {"8:2:5", 8, 5}, {"4:2:10", 4, 10}, {"8:2:16", 8, 16}, {"40:2:20", 40, 20}};
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    esp_context *context = test_context(run, 2);
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s", rows[i].pattern);
        int out = 40, in = 80, v = rows[i].v, m = rows[i].m;
        esp_tensor dense = normal_tensor(run, context, &random, ESP_F32, out, in);
        esp_tensor moved = make_tensor(run, context, ESP_F32, out, in);
        uint32_t column[80], row[40];
        for (int c = 0; c < in; c++) {
            column[c] = (uint32_t)c;
        }
        for (int r = 0; r < out; r++) {
            row[r] = (uint32_t)r;
        }
        for (int c = 0; c < in; c += m) {
            shuffle(&random, column + c, m);
        }
        for (int r = 0; r < out; r += v) {
            shuffle(&random, row + r, v);
        }
        for (int k = 0; k < out * in; k++) {
            int64_t from = (int64_t)row[k / in] * in + (int64_t)column[k % in];
            put_bits_at(ESP_F32, moved.data, k, bits_at(ESP_F32, dense.data, from));
        }
        esp_mask *a = prune(run, context, &dense, rows[i].pattern, 0, ESP_SEARCH_AUTO, NULL);
        esp_mask *b = prune(run, context, &moved, rows[i].pattern, 0, ESP_SEARCH_AUTO, NULL);
        for (int k = 0; k < out * in; k++) {
            CHECK(esp_mask_get(b, k / in, k % in) == esp_mask_get(a, row[k / in], column[k % in]));
        }
        esp_mask_free(a);
        esp_mask_free(b);
        esp_tensor_free(context, &dense);
        esp_tensor_free(context, &moved);
    }
    test_context_free(run, context);
}

/* Scaling by a power of two changes nothing, nor does pruning what is pruned already. */
static void scale_and_repeat(test_run *run)
{
    static const char *const patterns[] = {"2:4", "4:8", "8:2:8", "8:2:16", "panel:8@0.75"};
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    esp_context *context = test_context(run, 2);
    for (int i = 0; i < ESP_COUNT(patterns); i++) {
        test_sub(run, "%s", patterns[i]);
        esp_tensor dense = normal_tensor(run, context, &random, ESP_F32, 30, 70);
        esp_mask_report report;
        esp_mask *a = prune(run, context, &dense, patterns[i], 1, ESP_SEARCH_AUTO, NULL);
        for (int k = 0; k < 30 * 70; k++) {
            ((float *)dense.data)[k] *= 0x1p-90f; /* w^2 would vanish in f32 */
        }
        esp_mask *b = prune(run, context, &dense, patterns[i], 1, ESP_SEARCH_AUTO, NULL);
        CHECK(same_masks(a, b));
        CHECK_OK(esp_mask_apply(a, &dense, error));
        esp_mask *c = prune(run, context, &dense, patterns[i], 1, ESP_SEARCH_AUTO, &report);
        CHECK(report.retained_energy == 1);
        esp_mask_free(a);
        esp_mask_free(b);
        esp_mask_free(c);
        esp_tensor_free(context, &dense);
    }
    test_context_free(run, context);
}

/* ---- report and refusals ---- */

static double ln_choose(int n, int k)
{
    return lgamma(n + 1.0) - lgamma(k + 1.0) - lgamma(n - k + 1.0);
}

static void log_mask_diversity(test_run *run)
{
    static const struct {
        const char *pattern;
        int out, in, panels, whole, m, rest;
    } rows[] = {{"4:2:8", 8, 32, 2, 4, 8, 0},   {"4:2:8", 9, 37, 3, 4, 8, 5},
                {"64:2:8", 10, 34, 1, 4, 8, 2}, {"2:2:5", 5, 13, 3, 2, 5, 3},
                {"2:2:16", 4, 20, 2, 1, 16, 4}, {"1:2:10", 3, 1, 3, 0, 10, 1}};
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s %dx%d", rows[i].pattern, rows[i].out, rows[i].in);
        esp_tensor dense = make_tensor(run, context, ESP_F16, rows[i].out, rows[i].in);
        esp_mask_report report;
        esp_mask *mask = prune(run, context, &dense, rows[i].pattern, 0, ESP_SEARCH_AUTO, &report);
        double expected =
            rows[i].whole * (rows[i].panels * ln_choose(rows[i].m, 4) + rows[i].out * log(6));
        int rest = rows[i].rest, kept = ESP_MIN(4, rest);
        if (rest > 0) {
            expected += rows[i].panels * ln_choose(rest, kept) +
                        rows[i].out * ln_choose(kept, ESP_MIN(2, kept));
        }
        CHECK(fabs(report.log_mask_diversity - expected) <= 1e-9 * (1 + expected));
        esp_mask_free(mask);
        esp_tensor_free(context, &dense);
    }
    static const char *const others[] = {"dense", "2:4", "4:8", "panel:4@0.75"};
    for (int i = 0; i < ESP_COUNT(others); i++) {
        test_sub(run, "%s has none", others[i]);
        esp_tensor dense = make_tensor(run, context, ESP_F16, 4, 8);
        esp_mask_report report;
        esp_mask *mask = prune(run, context, &dense, others[i], 0, ESP_SEARCH_AUTO, &report);
        CHECK(isnan(report.log_mask_diversity));
        CHECK(i != 0 || report.kept == 32);
        esp_mask_free(mask);
        esp_tensor_free(context, &dense);
    }
    test_context_free(run, context);
}

static void empty_tensors(test_run *run)
{
    static const char *const patterns[] = {"dense", "2:4", "4:8", "1:100", "4:2:8", "panel:4@0.75"};
    static const int shapes[][2] = {{0, 0}, {0, 9}, {9, 0}};
    esp_context *context = test_context(run, 2);
    for (int i = 0; i < ESP_COUNT(patterns); i++) {
        for (int s = 0; s < 3; s++) {
            esp_tensor dense = make_tensor(run, context, ESP_F32, shapes[s][0], shapes[s][1]);
            esp_mask_report report;
            esp_mask *mask = prune(run, context, &dense, patterns[i], 0, ESP_SEARCH_AUTO, &report);
            CHECK_INT(report.kept, 0);
            CHECK(report.retained_energy == 1);
            esp_mask_free(mask);
            esp_tensor_free(context, &dense);
        }
    }
    test_context_free(run, context);
}

static void refusals(test_run *run)
{
    static const struct {
        const char *pattern, *code;
        esp_status status;
        esp_mask_options options;
        esp_dtype dtype;
        int rank;
    } rows[] = {
        {"2:4", "prune.bad_tensor", ESP_BAD_ARGUMENT, {0}, ESP_I32, 2},
        {"2:4", "prune.bad_tensor", ESP_BAD_ARGUMENT, {0}, ESP_F32, 1},
        {"64:2:11",
         "prune.exact_too_wide",
         ESP_BAD_ARGUMENT,
         {.search = ESP_SEARCH_EXACT},
         ESP_F32,
         2},
        {"2:4", "prune.bad_score", ESP_BAD_ARGUMENT, {.score = (esp_score)9}, ESP_F32, 2},
        {"2:4", "prune.bad_search", ESP_BAD_ARGUMENT, {.search = (esp_search)9}, ESP_F32, 2},
        {"2:4", "prune.bad_scope", ESP_BAD_ARGUMENT, {.scope = (esp_scope)9}, ESP_F32, 2},
    };
    esp_context *context = test_context(run, 1);
    float data[64] = {0};
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s: %s", rows[i].pattern, rows[i].code);
        esp_tensor dense = {
            .dtype = rows[i].dtype, .rank = rows[i].rank, .shape = {8, 8}, .data = data};
        esp_pattern pattern = pattern_of(run, rows[i].pattern);
        esp_mask *mask = NULL;
        esp_mask_report report = {.weights = 77};
        CHECK_FAILS(
            esp_prune_mask(context, &dense, &pattern, &rows[i].options, &mask, &report, error),
            rows[i].status, rows[i].code);
        CHECK(mask == NULL && report.weights == 77);
    }
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"ties keep the lowest", ties_keep_the_lowest},
    {"NaN is never hidden", nan_is_never_hidden},
    {"threads and vectors do not matter", threads_and_vectors_do_not_matter},
    {"permutations commute", permutations_commute},
    {"scale and repeat", scale_and_repeat},
    {"log mask diversity", log_mask_diversity},
    {"empty tensors", empty_tensors},
    {"refusals", refusals},
};
TEST_MAIN(cases)
