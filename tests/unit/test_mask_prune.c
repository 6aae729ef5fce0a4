/* Pruning methods against brute force over all masks on tiny shapes, their order (greedy <= swaps
 * <= exact), ties, NaN, threads, and what must follow when columns of a group change places. */
#include <math.h>

#include "prune/prune.h"
#include "weights.h"

static const esp_dtype dtypes[] = {ESP_F32, ESP_F16, ESP_BF16};

/* Small integers times a power of two: sums are exact, ties are common. */
static esp_tensor integer_tensor(test_run *run, esp_context *context, esp_random *random,
                                 esp_dtype dtype, int64_t out, int64_t in)
{
    esp_tensor tensor = make_tensor(run, context, dtype, out, in);
    for (int64_t i = 0; i < out * in; i++) {
        float weight = (float)((int)esp_random_below(random, 21) - 10) * 0.25f;
        esp_narrow(dtype, &weight, 1, (char *)tensor.data + (size_t)i * esp_dtype_bytes(dtype));
    }
    return tensor;
}

static esp_tensor normal_tensor(test_run *run, esp_context *context, esp_random *random,
                                esp_dtype dtype, int64_t out, int64_t in)
{
    esp_tensor tensor = make_tensor(run, context, dtype, out, in);
    for (int64_t i = 0; i < out * in; i++) {
        double sum = -2;
        for (int k = 0; k < 4; k++) {
            sum += esp_random_uniform(random);
        }
        float weight = (float)sum;
        esp_narrow(dtype, &weight, 1, (char *)tensor.data + (size_t)i * esp_dtype_bytes(dtype));
    }
    return tensor;
}

static double score_at(const esp_tensor *dense, int64_t row, int64_t column, esp_score score)
{
    double w = (double)esp_weight_at(dense->dtype, dense->data, row * dense->shape[1] + column);
    return score == ESP_SCORE_SQUARE ? w * w : fabs(w);
}

/* Score that a mask retains in the columns [first, end) of the rows [row, row_end). */
static double retained(const esp_tensor *dense, const esp_mask *mask, int64_t row, int64_t row_end,
                       int64_t first, int64_t end, esp_score score)
{
    double sum = 0;
    for (int64_t r = row; r < row_end; r++) {
        for (int64_t c = first; c < end; c++) {
            sum += esp_mask_get(mask, r, c) ? score_at(dense, r, c, score) : 0;
        }
    }
    return sum;
}

static esp_mask *prune(test_run *run, esp_context *context, const esp_tensor *dense,
                       const char *pattern, esp_score score, esp_search search,
                       esp_mask_report *report)
{
    esp_pattern parsed = pattern_of(run, pattern);
    esp_mask_options options = {.score = score, .search = search};
    esp_mask *mask = NULL;
    CHECK_OK(esp_prune_mask(context, dense, &parsed, &options, &mask, report, error));
    return mask;
}

/* What a mask of a pattern may do, checked by encoding: every live entry must find its place. */
static void check_fits(test_run *run, esp_context *context, const esp_tensor *dense,
                       const char *pattern, const esp_mask *mask)
{
    esp_pattern parsed = pattern_of(run, pattern);
    esp_sparse *sparse = NULL;
    esp_tensor ones = make_tensor(run, context, ESP_F32, dense->shape[0], dense->shape[1]);
    for (int64_t i = 0; i < dense->shape[0] * dense->shape[1]; i++) {
        put_bits_at(ESP_F32, ones.data, i, 0x3f800000u);
    }
    CHECK_OK(esp_sparse_encode(context, &parsed, &ones, mask, &sparse, error));
    CHECK_OK(esp_sparse_check(sparse, error));
    esp_sparse_free(sparse);
    esp_tensor_free(context, &ones);
}

/* ---- brute force ---- */

/* The largest score of `width` columns of a row under at most `keep`, by all subsets. */
static double best_of_row(const esp_tensor *dense, int64_t row, const int64_t *columns, int width,
                          int keep, esp_score score)
{
    double best = 0;
    for (unsigned bits = 0; bits < 1u << width; bits++) {
        if (__builtin_popcount(bits) > keep) {
            continue;
        }
        double sum = 0;
        for (int i = 0; i < width; i++) {
            sum += bits >> i & 1 ? score_at(dense, row, columns[i], score) : 0;
        }
        best = sum > best ? sum : best;
    }
    return best;
}

/* The best of all sets of four columns of a group, each row free to keep any two of the four. */
static double best_of_group(const esp_tensor *dense, int64_t row, int64_t row_end, int64_t first,
                            int width, esp_score score)
{
    double best = 0;
    for (unsigned bits = 0; bits < 1u << width; bits++) {
        if (__builtin_popcount(bits) != ESP_MIN(4, width)) {
            continue;
        }
        int64_t columns[4];
        int count = 0;
        for (int i = 0; i < width; i++) {
            if (bits >> i & 1) {
                columns[count++] = first + i;
            }
        }
        double sum = 0;
        for (int64_t r = row; r < row_end; r++) {
            sum += best_of_row(dense, r, columns, count, 2, score);
        }
        best = sum > best ? sum : best;
    }
    return best;
}

static void exact_is_brute_force(test_run *run)
{
    static const struct {
        const char *pattern;
        int v, m, out, in;
    } shapes[] = {{"4:2:8", 4, 8, 7, 20},    {"1:2:5", 1, 5, 3, 11},   {"9:2:10", 9, 10, 21, 17},
                  {"16:2:6", 16, 6, 19, 13}, {"64:2:9", 64, 9, 5, 27}, {"3:2:7", 3, 7, 8, 4},
                  {"8:2:8", 8, 8, 24, 23},   {"2:2:5", 2, 5, 5, 3}};
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < 6 * ESP_COUNT(shapes); i++) {
        int s = i % ESP_COUNT(shapes), out = shapes[s].out, in = shapes[s].in;
        esp_score score = i % 2 == 0 ? ESP_SCORE_ABS : ESP_SCORE_SQUARE;
        esp_dtype dtype = dtypes[i / ESP_COUNT(shapes) % 3];
        test_sub(run, "%s %dx%d %s %d", shapes[s].pattern, out, in, esp_dtype_short_name(dtype), i);
        esp_context *context = test_context(run, 2);
        esp_tensor dense = integer_tensor(run, context, &random, dtype, out, in);
        esp_mask *mask =
            prune(run, context, &dense, shapes[s].pattern, score, ESP_SEARCH_EXACT, NULL);
        check_fits(run, context, &dense, shapes[s].pattern, mask);
        int v = ESP_MIN(shapes[s].v, out), m = shapes[s].m;
        for (int row = 0; row < out; row += v) {
            int row_end = ESP_MIN(out, row + v);
            for (int first = 0; first < in; first += m) {
                int width = ESP_MIN(m, in - first);
                double best = best_of_group(&dense, row, row_end, first, width, score);
                CHECK(retained(&dense, mask, row, row_end, first, first + width, score) == best);
            }
        }
        esp_mask_free(mask);
        esp_tensor_free(context, &dense);
        test_context_free(run, context);
    }
}

static void nm_is_brute_force(test_run *run)
{
    static const struct {
        const char *pattern;
        int keep, group, in;
    } shapes[] = {{"2:4", 2, 4, 14},   {"4:8", 4, 8, 21},   {"1:2", 1, 2, 7},
                  {"3:7", 3, 7, 16},   {"1:16", 1, 16, 33}, {"5:13", 5, 13, 20},
                  {"2:17", 2, 17, 17}, {"9:18", 9, 18, 31}};
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < 3 * ESP_COUNT(shapes); i++) {
        int s = i % ESP_COUNT(shapes), in = shapes[s].in, group = shapes[s].group;
        test_sub(run, "%s 5x%d %d", shapes[s].pattern, in, i);
        esp_context *context = test_context(run, 2);
        esp_tensor dense = integer_tensor(run, context, &random, dtypes[i % 3], 5, in);
        esp_mask *mask =
            prune(run, context, &dense, shapes[s].pattern, ESP_SCORE_ABS, ESP_SEARCH_AUTO, NULL);
        check_fits(run, context, &dense, shapes[s].pattern, mask);
        for (int row = 0; row < 5; row++) {
            for (int first = 0; first < in; first += group) {
                int width = ESP_MIN(group, in - first);
                int64_t columns[32];
                for (int c = 0; c < width; c++) {
                    columns[c] = first + c;
                }
                double best =
                    best_of_row(&dense, row, columns, width, shapes[s].keep, ESP_SCORE_ABS);
                CHECK(retained(&dense, mask, row, row + 1, first, first + width, ESP_SCORE_ABS) ==
                      best);
                int live = 0;
                for (int c = 0; c < width; c++) {
                    live += esp_mask_get(mask, row, first + c);
                }
                CHECK_INT(live, ESP_MIN(shapes[s].keep, width));
            }
        }
        esp_mask_free(mask);
        esp_tensor_free(context, &dense);
        test_context_free(run, context);
    }
}

/* Four columns of largest sum, recomputed plainly; then two of four per row. */
static void greedy_follows_column_sums(test_run *run)
{
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    static const char *const patterns[] = {"8:2:16", "5:2:8", "32:2:33"};
    static const int sizes[][2] = {{8, 16}, {5, 8}, {32, 33}};
    for (int i = 0; i < 9; i++) {
        int v = sizes[i % 3][0], m = sizes[i % 3][1], out = 37, in = 100;
        test_sub(run, "%s %d", patterns[i % 3], i);
        esp_context *context = test_context(run, 2);
        esp_tensor dense = integer_tensor(run, context, &random, dtypes[i / 3], out, in);
        esp_mask *mask =
            prune(run, context, &dense, patterns[i % 3], ESP_SCORE_ABS, ESP_SEARCH_GREEDY, NULL);
        for (int row = 0; row < out; row += v) {
            int row_end = ESP_MIN(out, row + v);
            for (int first = 0; first < in; first += m) {
                int width = ESP_MIN(m, in - first), count = 0;
                double sums[64] = {0};
                int64_t kept[4];
                for (int c = 0; c < width; c++) {
                    for (int r = row; r < row_end; r++) {
                        sums[c] += score_at(&dense, r, first + c, ESP_SCORE_ABS);
                    }
                }
                for (; count < ESP_MIN(4, width); count++) { /* strict: ties keep the lowest */
                    int best = -1;
                    for (int c = 0; c < width; c++) {
                        best = sums[c] >= 0 && (best < 0 || sums[c] > sums[best]) ? c : best;
                    }
                    kept[count] = first + best;
                    sums[best] = -1;
                }
                double best = 0;
                for (int r = row; r < row_end; r++) {
                    best += best_of_row(&dense, r, kept, count, 2, ESP_SCORE_ABS);
                }
                CHECK(retained(&dense, mask, row, row_end, first, first + width, ESP_SCORE_ABS) ==
                      best);
            }
        }
        esp_mask_free(mask);
        esp_tensor_free(context, &dense);
        test_context_free(run, context);
    }
}

static void searches_are_ordered(test_run *run)
{
    static const char *const patterns[] = {"16:2:8", "64:2:5", "7:2:10", "64:2:16", "32:2:64"};
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < 2 * ESP_COUNT(patterns); i++) {
        const char *pattern = patterns[i % ESP_COUNT(patterns)];
        bool wide = i % ESP_COUNT(patterns) >= 3;
        test_sub(run, "%s %s", pattern, i < ESP_COUNT(patterns) ? "|w|" : "w^2");
        esp_score score = i < ESP_COUNT(patterns) ? ESP_SCORE_ABS : ESP_SCORE_SQUARE;
        esp_context *context = test_context(run, 2);
        esp_tensor dense = normal_tensor(run, context, &random, ESP_F32, 100, 131);
        double kept[3];
        for (int k = 0; k < 3; k++) {
            esp_search search = k == 0   ? ESP_SEARCH_GREEDY
                                : k == 1 ? ESP_SEARCH_SWAPS
                                : wide   ? ESP_SEARCH_AUTO
                                         : ESP_SEARCH_EXACT;
            esp_mask_report report;
            esp_mask *mask = prune(run, context, &dense, pattern, score, search, &report);
            check_fits(run, context, &dense, pattern, mask);
            kept[k] = retained(&dense, mask, 0, 100, 0, 131, score);
            if (score == ESP_SCORE_SQUARE) {
                double all = 0;
                for (int64_t e = 0; e < 100 * 131; e++) {
                    all += score_at(&dense, e / 131, e % 131, score);
                }
                CHECK(fabs(report.retained_energy - kept[k] / all) < 1e-12);
            }
            esp_mask_free(mask);
        }
        CHECK(kept[1] >= kept[0]);
        CHECK(kept[2] >= kept[1] * (1 - 1e-12));
        CHECK(kept[2] > kept[0]); /* on random weights there is something to gain */
        esp_tensor_free(context, &dense);
        test_context_free(run, context);
    }
}

/* No single exchange improves what the search with swaps ends with. */
static void swaps_end_in_a_local_best(test_run *run)
{
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < 10; i++) {
        test_sub(run, "round %d", i);
        esp_tensor dense = integer_tensor(run, context, &random, ESP_F32, 12, 14);
        esp_mask *mask =
            prune(run, context, &dense, "12:2:14", ESP_SCORE_ABS, ESP_SEARCH_SWAPS, NULL);
        int64_t kept[4];
        int count = 0;
        for (int c = 0; c < 14; c++) {
            bool used = false;
            for (int r = 0; r < 12; r++) {
                used |= esp_mask_get(mask, r, c);
            }
            if (used) {
                REQUIRE(count < 4);
                kept[count++] = c;
            }
        }
        double best = retained(&dense, mask, 0, 12, 0, 14, ESP_SCORE_ABS);
        for (int k = 0; count == 4 && k < 4; k++) {
            for (int c = 0; c < 14; c++) {
                int64_t other[4] = {kept[0], kept[1], kept[2], kept[3]};
                bool twice = c == kept[0] || c == kept[1] || c == kept[2] || c == kept[3];
                other[k] = c;
                double sum = 0;
                for (int r = 0; r < 12; r++) {
                    sum += best_of_row(&dense, r, other, 4, 2, ESP_SCORE_ABS);
                }
                CHECK(twice || sum <= best);
            }
        }
        esp_mask_free(mask);
        esp_tensor_free(context, &dense);
    }
    test_context_free(run, context);
}

/* ---- free columns ---- */

static void greedy_free_columns(test_run *run)
{
    static const struct {
        const char *pattern;
        int out, in;
    } rows[] = {{"panel:8@0.75", 30, 64}, {"panel:5@0.5", 12, 22}, {"panel:64@0.9", 9, 100},
                {"panel:1@0.75", 6, 33},  {"panel:4@0.5", 4, 1},   {"panel:4@0.99", 9, 50}};
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s %dx%d", rows[i].pattern, rows[i].out, rows[i].in);
        esp_context *context = test_context(run, 2);
        esp_pattern pattern = pattern_of(run, rows[i].pattern);
        esp_tensor dense =
            integer_tensor(run, context, &random, dtypes[i % 3], rows[i].out, rows[i].in);
        esp_mask *mask =
            prune(run, context, &dense, rows[i].pattern, ESP_SCORE_ABS, ESP_SEARCH_GREEDY, NULL);
        check_fits(run, context, &dense, rows[i].pattern, mask);
        int64_t v = 0, kept = 0, in = rows[i].in;
        const uint32_t *columns = esp_mask_columns(mask, &v, &kept);
        REQUIRE(columns != NULL);
        CHECK_INT(v, esp_pattern_panel_rows(&pattern, rows[i].out));
        CHECK_INT(kept, esp_pattern_kept(&pattern, in));
        for (int64_t panel = 0; panel * v < rows[i].out; panel++) {
            double sums[128] = {0}, worst_kept = INFINITY, best_dropped = -1;
            bool listed[128] = {false};
            for (int64_t k = 0; k < kept; k++) {
                if (columns[panel * kept + k] != UINT32_MAX) {
                    listed[columns[panel * kept + k]] = true;
                }
            }
            for (int64_t c = 0; c < in; c++) {
                for (int64_t r = panel * v; r < ESP_MIN(rows[i].out, (panel + 1) * v); r++) {
                    sums[c] += score_at(&dense, r, c, ESP_SCORE_ABS);
                }
                if (listed[c]) {
                    worst_kept = fmin(worst_kept, sums[c]);
                } else {
                    best_dropped = fmax(best_dropped, sums[c]);
                }
            }
            CHECK(worst_kept >= best_dropped);
            for (int64_t a = 0; a < in; a++) { /* equal sums: the lower column is kept */
                for (int64_t b = a + 1; b < in; b++) {
                    CHECK(sums[a] != sums[b] || listed[a] || !listed[b]);
                }
            }
        }
        esp_mask_free(mask);
        esp_tensor_free(context, &dense);
        test_context_free(run, context);
    }
}

/* At equal sizes free columns retain at least what greedy ones and V:2:M do. */
static void free_columns_gain(test_run *run)
{
    static const struct {
        const char *free, *fixed;
    } rows[] = {{"panel:16@0.75", "16:2:8"},
                {"panel:64@0.6", "64:2:5"},
                {"panel:32@0.9", "32:2:20"},
                {"panel:16@0.5", "2:4"}};
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < 2 * ESP_COUNT(rows); i++) {
        esp_score score = i < ESP_COUNT(rows) ? ESP_SCORE_ABS : ESP_SCORE_SQUARE;
        const char *free_text = rows[i % ESP_COUNT(rows)].free;
        const char *fixed_text = rows[i % ESP_COUNT(rows)].fixed;
        test_sub(run, "%s %s", free_text, score == ESP_SCORE_ABS ? "|w|" : "w^2");
        esp_context *context = test_context(run, 2);
        esp_tensor dense = normal_tensor(run, context, &random, ESP_F32, 64, 160);
        esp_mask *best = prune(run, context, &dense, free_text, score, ESP_SEARCH_AUTO, NULL);
        esp_mask *greedy = prune(run, context, &dense, free_text, score, ESP_SEARCH_GREEDY, NULL);
        esp_mask *fixed = prune(run, context, &dense, fixed_text, score, ESP_SEARCH_AUTO, NULL);
        check_fits(run, context, &dense, free_text, best);
        double kept = retained(&dense, best, 0, 64, 0, 160, score) * (1 + 1e-12);
        CHECK_INT(esp_mask_count(best), esp_mask_count(fixed));
        CHECK(kept >= retained(&dense, greedy, 0, 64, 0, 160, score));
        CHECK(kept >= retained(&dense, fixed, 0, 64, 0, 160, score));
        esp_mask_free(best);
        esp_mask_free(greedy);
        esp_mask_free(fixed);
        esp_tensor_free(context, &dense);
        test_context_free(run, context);
    }
    test_sub(run, "columns that carry the weight are found wherever they are");
    esp_context *context = test_context(run, 2);
    esp_tensor dense = normal_tensor(run, context, &random, ESP_F32, 8, 64);
    for (int k = 0; k < 8 * 64; k++) { /* eight loud columns, all in the first sixteen */
        ((float *)dense.data)[k] *= k % 64 < 16 && k % 2 == 0 ? 100.0f : 1.0f;
    }
    esp_mask_report report;
    esp_mask *mask = prune(run, context, &dense, "panel:8@0.75", 0, ESP_SEARCH_AUTO, &report);
    int64_t v = 0, kept = 0;
    const uint32_t *columns = esp_mask_columns(mask, &v, &kept);
    int found = 0;
    for (int64_t k = 0; k < kept; k++) {
        found += columns[k] < 16 && columns[k] % 2 == 0;
    }
    CHECK_INT(found, 8);
    esp_mask_free(mask);
    esp_tensor_free(context, &dense);
    test_context_free(run, context);
}

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

static bool same_masks(const esp_mask *a, const esp_mask *b)
{
    bool same = true;
    for (int64_t r = 0; r < esp_mask_out_features(a); r++) {
        same = same && memcmp(esp_mask_row(a, r), esp_mask_row(b, r),
                              8 * (size_t)esp_mask_row_words(a)) == 0;
    }
    return same;
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
    {"exact is brute force", exact_is_brute_force},
    {"n:m is brute force", nm_is_brute_force},
    {"greedy follows column sums", greedy_follows_column_sums},
    {"searches are ordered", searches_are_ordered},
    {"swaps end in a local best", swaps_end_in_a_local_best},
    {"greedy free columns", greedy_free_columns},
    {"free columns gain", free_columns_gain},
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
