/* Pruning methods against brute force over all masks on tiny shapes, their order (greedy <= swaps
 * <= exact), and free columns. What holds of every method: test_mask_rules.c. */
#include "mask_tools.h"

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

static const test_case cases[] = {
    {"exact is brute force", exact_is_brute_force},
    {"n:m is brute force", nm_is_brute_force},
    {"greedy follows column sums", greedy_follows_column_sums},
    {"searches are ordered", searches_are_ordered},
    {"swaps end in a local best", swaps_end_in_a_local_best},
    {"greedy free columns", greedy_free_columns},
    {"free columns gain", free_columns_gain},
};
TEST_MAIN(cases)
