/* Masks of unstructured weights, blocks, rows and columns, and transposable 2:4, against brute
 * force; ties, NaN, threads, and that what is chosen can be stored. */
#include <math.h>

#include "prune/prune.h"
#include "weights.h"

static const esp_dtype dtypes[] = {ESP_F32, ESP_F16, ESP_BF16};
static const char *const patterns[] = {"unstructured@0.7", "unstructured@0.05", "block:4x8@0.5",
                                       "block:3x5@0.8",    "block:1x1@0.5",     "rows@0.4",
                                       "cols@0.6"};

/* Small integers: sums are exact and ties are common. */
static esp_tensor integer_tensor(test_run *run, esp_context *context, esp_random *random,
                                 esp_dtype dtype, int64_t out, int64_t in)
{
    esp_tensor tensor = make_tensor(run, context, dtype, out, in);
    for (int64_t i = 0; i < out * in; i++) {
        float weight = (float)((int)esp_random_below(random, 9) - 4);
        esp_narrow(dtype, &weight, 1, (char *)tensor.data + (size_t)i * esp_dtype_bytes(dtype));
    }
    return tensor;
}

static esp_mask *prune(test_run *run, esp_context *context, const esp_tensor *dense,
                       const char *text, esp_score score, esp_scope scope)
{
    esp_pattern pattern = pattern_of(run, text);
    esp_mask_options options = {.score = score, .scope = scope};
    esp_mask *mask = NULL;
    esp_mask_report report = {0};
    CHECK_OK(esp_prune_mask(context, dense, &pattern, &options, &mask, &report, error));
    if (mask != NULL) {
        CHECK_INT(report.kept, esp_mask_count(mask));
    }
    return mask;
}

static bool same_masks(const esp_mask *a, const esp_mask *b)
{
    for (int64_t r = 0; r < esp_mask_out_features(a); r++) {
        size_t bytes = (size_t)esp_mask_row_words(a) * sizeof(uint64_t);
        if (memcmp(esp_mask_row(a, r), esp_mask_row(b, r), bytes) != 0) {
            return false;
        }
    }
    return true;
}

/* ---- brute force: every unit against every other ---- */

typedef struct unit {
    double score;
    int64_t row, column, rows, columns;
} unit;

static double magnitude(const esp_tensor *dense, int64_t at, esp_score score)
{
    double w = fabs((double)esp_weight_at(dense->dtype, dense->data, at));
    return w != w ? 0x1p700 : score == ESP_SCORE_SQUARE ? w * w : w;
}

static unit make_unit(const esp_tensor *dense, int64_t row, int64_t column, int64_t rows,
                      int64_t columns, esp_score score)
{
    unit made = {.row = row,
                 .column = column,
                 .rows = ESP_MIN(rows, dense->shape[0] - row),
                 .columns = ESP_MIN(columns, dense->shape[1] - column)};
    for (int64_t r = row; r < row + made.rows; r++) {
        for (int64_t c = column; c < column + made.columns; c++) {
            made.score += magnitude(dense, r * dense->shape[1] + c, score);
        }
    }
    made.score /= (double)(made.rows * made.columns);
    return made;
}

static void mark_best(const unit *units, int64_t count, int64_t keep, esp_mask *mask)
{
    for (int64_t i = 0; i < count; i++) {
        int64_t above = 0;
        for (int64_t j = 0; j < count; j++) {
            above += units[j].score > units[i].score || (units[j].score == units[i].score && j < i);
        }
        for (int64_t r = 0; above < keep && r < units[i].rows; r++) {
            for (int64_t c = 0; c < units[i].columns; c++) {
                esp_mask_set(mask, units[i].row + r, units[i].column + c, true);
            }
        }
    }
}

static int64_t kept_of(double sparsity, int64_t total)
{
    int64_t kept = total - (int64_t)floor(sparsity * (double)total + 0.5);
    return kept < 1 && total > 0 ? 1 : kept;
}

static esp_mask *brute_force(test_run *run, esp_context *context, const esp_tensor *dense,
                             const char *text, esp_score score, esp_scope scope)
{
    esp_pattern pattern = pattern_of(run, text);
    int64_t out = dense->shape[0], in = dense->shape[1], count = 0;
    int64_t rows = pattern.kind == ESP_PATTERN_COLS ? out : 1;
    int64_t columns = pattern.kind == ESP_PATTERN_ROWS ? in : 1;
    if (pattern.kind == ESP_PATTERN_BLOCK) {
        rows = pattern.block_rows;
        columns = pattern.block_cols;
    }
    esp_mask *mask = NULL;
    CHECK_OK(esp_mask_create(context, out, in, &mask, error));
    unit *units = malloc((size_t)(out * in + 1) * sizeof *units);
    for (int64_t r = 0; r < out; r += rows) {
        for (int64_t c = 0; c < in; c += columns) {
            units[count++] = make_unit(dense, r, c, rows, columns, score);
        }
    }
    int64_t kept = kept_of(pattern.sparsity, count);
    if (pattern.kind == ESP_PATTERN_UNSTRUCTURED && scope == ESP_SCOPE_ROW) {
        for (int64_t r = 0; r < out; r++) {
            mark_best(units + r * in, in, kept / out + (r < kept % out), mask);
        }
    } else {
        mark_best(units, count, kept, mask);
    }
    free(units);
    return mask;
}

static void is_brute_force(test_run *run)
{
    static const int shapes[][2] = {{1, 1}, {4, 8}, {7, 13}, {12, 30}, {3, 70}, {33, 5}};
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int s = 0; s < ESP_COUNT(shapes); s++) {
        for (int p = 0; p < ESP_COUNT(patterns); p++) {
            esp_dtype dtype = dtypes[(s + p) % 3];
            esp_score score = (s + p) % 2 == 0 ? ESP_SCORE_ABS : ESP_SCORE_SQUARE;
            esp_scope scope = s % 2 == 0 ? ESP_SCOPE_TENSOR : ESP_SCOPE_ROW;
            test_sub(run, "%s %s %dx%d%s", patterns[p], esp_dtype_short_name(dtype), shapes[s][0],
                     shapes[s][1], scope == ESP_SCOPE_ROW ? " per row" : "");
            esp_context *context = test_context(run, 3);
            esp_tensor dense =
                integer_tensor(run, context, &random, dtype, shapes[s][0], shapes[s][1]);
            esp_mask *mask = prune(run, context, &dense, patterns[p], score, scope);
            esp_mask *expected = brute_force(run, context, &dense, patterns[p], score, scope);
            CHECK(mask != NULL && same_masks(mask, expected));
            esp_mask_free(mask);
            esp_mask_free(expected);
            esp_tensor_free(context, &dense);
            test_context_free(run, context);
        }
    }
}

/* Hostile weights: what is chosen can be stored, NaN stays, threads do not matter. */
static void fits_and_repeats(test_run *run)
{
    static const int shapes[][2] = {{0, 0}, {0, 9}, {9, 0}, {65, 130}, {300, 41}, {17, 700}};
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int s = 0; s < ESP_COUNT(shapes); s++) {
        for (int p = 0; p < ESP_COUNT(patterns); p++) {
            test_sub(run, "%s %dx%d", patterns[p], shapes[s][0], shapes[s][1]);
            esp_context *one = test_context(run, 1), *four = test_context(run, 4);
            esp_tensor dense =
                hostile_tensor(run, one, &random, dtypes[(s + p) % 3], shapes[s][0], shapes[s][1]);
            esp_scope scope = p == 0 ? ESP_SCOPE_ROW : ESP_SCOPE_TENSOR;
            esp_mask *mask = prune(run, one, &dense, patterns[p], ESP_SCORE_ABS, scope);
            esp_mask *again = prune(run, four, &dense, patterns[p], ESP_SCORE_ABS, scope);
            REQUIRE(mask != NULL && again != NULL);
            CHECK(same_masks(mask, again));
            esp_pattern pattern = pattern_of(run, patterns[p]);
            esp_sparse *sparse = NULL;
            CHECK_OK(esp_sparse_encode(four, &pattern, &dense, mask, &sparse, error));
            CHECK(sparse != NULL && esp_sparse_check(sparse, NULL) == ESP_OK);
            esp_sparse_free(sparse);
            esp_mask_free(mask);
            esp_mask_free(again);
            esp_tensor_free(one, &dense);
            esp_context_free(one);
            test_context_free(run, four);
        }
    }
}

static void nan_is_never_hidden(test_run *run)
{
    for (int p = 0; p < ESP_COUNT(patterns); p++) {
        test_sub(run, "%s", patterns[p]);
        esp_context *context = test_context(run, 2);
        esp_tensor dense = make_tensor(run, context, ESP_F32, 20, 40);
        for (int64_t i = 0; i < 800; i++) {
            ((float *)dense.data)[i] = i % 7 == 0 ? INFINITY : 1;
        }
        ((float *)dense.data)[17 * 40 + 39] = NAN;
        esp_mask *mask = prune(run, context, &dense, patterns[p], ESP_SCORE_SQUARE, 0);
        CHECK(mask != NULL && esp_mask_get(mask, 17, 39));
        esp_mask_free(mask);
        esp_tensor_free(context, &dense);
        test_context_free(run, context);
    }
}

/* ---- transposable 2:4 ---- */

static double retained(const esp_tensor *dense, const esp_mask *mask)
{
    double sum = 0;
    int64_t in = dense->shape[1];
    for (int64_t i = 0; i < dense->shape[0] * in; i++) {
        sum += esp_mask_get(mask, i / in, i % in) ? magnitude(dense, i, ESP_SCORE_ABS) : 0;
    }
    return sum;
}

/* Best of all 16-bit masks with two in each row and column; the first in the documented order. */
static unsigned best_tile(const double scores[16], int *masks)
{
    double best = -1;
    unsigned chosen = 0;
    uint64_t chosen_order = 0;
    *masks = 0;
    for (unsigned bits = 0; bits < 65536; bits++) {
        bool two = true;
        double sum = 0;
        uint64_t order = 0;
        for (int i = 0; i < 4; i++) {
            unsigned row = bits >> 4 * i & 15, column = bits >> i & 0x1111;
            two = two && __builtin_popcount(row) == 2 && __builtin_popcount(column) == 2;
            order = order << 8; /* the two columns of the row as digits */
            order |= row == 0 ? 0 : (uint64_t)(__builtin_ctz(row) * 8 + 31 - __builtin_clz(row));
        }
        *masks += two;
        for (int i = 0; two && i < 16; i++) {
            sum += bits >> i & 1 ? scores[i] : 0;
        }
        if (two && (sum > best || (sum == best && order < chosen_order))) {
            best = sum;
            chosen = bits;
            chosen_order = order;
        }
    }
    return chosen;
}

static void exact_is_the_best_of_90(test_run *run)
{
    esp_context *context = test_context(run, 2);
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < 60; i++) {
        esp_tensor dense = integer_tensor(run, context, &random, dtypes[i % 3], 4, 4);
        double scores[16];
        for (int k = 0; k < 16; k++) {
            scores[k] = magnitude(&dense, k, ESP_SCORE_ABS);
        }
        esp_mask *exact = NULL, *greedy = NULL;
        CHECK_OK(esp_two_way_mask(context, &dense, ESP_TWO_WAY_EXACT, &exact, error));
        CHECK_OK(esp_two_way_mask(context, &dense, ESP_TWO_WAY_GREEDY, &greedy, error));
        int masks;
        unsigned bits = best_tile(scores, &masks), chosen = 0;
        for (int k = 0; k < 16; k++) {
            chosen |= (unsigned)esp_mask_get(exact, k / 4, k % 4) << k;
        }
        CHECK_INT(masks, 90);
        CHECK_INT(chosen, bits);
        CHECK(retained(&dense, greedy) <= retained(&dense, exact));
        esp_mask_free(exact);
        esp_mask_free(greedy);
        esp_tensor_free(context, &dense);
    }
    test_context_free(run, context);
}

static void greedy_by_hand(test_run *run)
{
    static const struct {
        const char *what;
        float weights[16];
        unsigned rows[4];
    } tiles[] = {
        {"largest first", {9, 8, 1, 1, 7, 1, 6, 1, 1, 5, 1, 4, 1, 1, 3, 2}, {3, 5, 10, 12}},
        {"signs do not matter",
         {-9, 8, 1, 1, 7, 1, -6, 1, 1, 5, 1, -4, 1, 1, 3, 2},
         {3, 5, 10, 12}},
        {"ties in order", {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, {3, 3, 12, 12}},
        /* (0, 0) and six of the lower right 3 x 3; then (1, 1), the least, makes room */
        {"seven, then completed", {9, 0, 0, 0, 0, 5, 6, 0, 0, 0, 6, 6, 0, 6, 0, 6}, {3, 5, 12, 10}},
    };
    for (int i = 0; i < ESP_COUNT(tiles); i++) {
        test_sub(run, "%s", tiles[i].what);
        esp_context *context = test_context(run, 1);
        float weights[16];
        memcpy(weights, tiles[i].weights, sizeof weights);
        esp_tensor dense = {.dtype = ESP_F32, .rank = 2, .shape = {4, 4}, .data = weights};
        esp_mask *mask = NULL;
        CHECK_OK(esp_two_way_mask(context, &dense, ESP_TWO_WAY_GREEDY, &mask, error));
        REQUIRE(mask != NULL);
        for (int r = 0; r < 4; r++) {
            CHECK_INT(esp_mask_row(mask, r)[0], tiles[i].rows[r]);
        }
        esp_mask_free(mask);
        test_context_free(run, context);
    }
}

static int64_t count_in_tile(const esp_mask *mask, int64_t row, int64_t column, int64_t rows,
                             int64_t columns)
{
    int64_t count = 0;
    for (int64_t r = row; r < ESP_MIN(row + rows, esp_mask_out_features(mask)); r++) {
        for (int64_t c = column; c < ESP_MIN(column + columns, esp_mask_in_features(mask)); c++) {
            count += esp_mask_get(mask, r, c);
        }
    }
    return count;
}

/* Exactly two a row and column of whole tiles, at most two at the edge; both ways 2:4. */
static void two_way_everywhere(test_run *run)
{
    static const int shapes[][2] = {{4, 4}, {64, 68}, {8, 132}, {5, 9}, {1, 1}, {3, 3}, {0, 4}};
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int s = 0; s < ESP_COUNT(shapes); s++) {
        for (int method = 0; method < 2; method++) {
            int64_t out = shapes[s][0], in = shapes[s][1];
            test_sub(run, "%lldx%lld %s", (long long)out, (long long)in,
                     method == 0 ? "greedy" : "exact");
            esp_context *one = test_context(run, 1), *four = test_context(run, 4);
            esp_tensor dense = hostile_tensor(run, one, &random, dtypes[s % 3], out, in);
            esp_mask *mask = NULL, *again = NULL;
            CHECK_OK(esp_two_way_mask(one, &dense, (esp_two_way_method)method, &mask, error));
            CHECK_OK(esp_two_way_mask(four, &dense, (esp_two_way_method)method, &again, error));
            REQUIRE(mask != NULL && again != NULL);
            CHECK(same_masks(mask, again));
            for (int64_t r = 0; r < out; r++) {
                for (int64_t c = 0; c < in; c++) {
                    bool whole = r / 4 * 4 + 4 <= out && c / 4 * 4 + 4 <= in;
                    int64_t across = count_in_tile(mask, r, c / 4 * 4, 1, 4);
                    int64_t down = count_in_tile(mask, r / 4 * 4, c, 4, 1);
                    CHECK(whole ? across == 2 && down == 2 : across <= 2 && down <= 2);
                }
            }
            esp_mask_free(mask);
            esp_mask_free(again);
            esp_tensor_free(one, &dense);
            esp_context_free(one);
            test_context_free(run, four);
        }
    }
    esp_context *context = test_context(run, 1);
    float weight = 1;
    esp_tensor vector = {.dtype = ESP_F32, .rank = 1, .shape = {1}, .data = &weight};
    esp_mask *mask = NULL;
    CHECK_FAILS(esp_two_way_mask(context, &vector, ESP_TWO_WAY_EXACT, &mask, error),
                ESP_BAD_ARGUMENT, "prune.bad_tensor");
    esp_tensor dense = {.dtype = ESP_F32, .rank = 2, .shape = {1, 1}, .data = &weight};
    CHECK_FAILS(esp_two_way_mask(context, &dense, (esp_two_way_method)5, &mask, error),
                ESP_BAD_ARGUMENT, "prune.bad_search");
    CHECK(mask == NULL);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"is brute force", is_brute_force},
    {"fits and repeats", fits_and_repeats},
    {"NaN is never hidden", nan_is_never_hidden},
    {"exact is the best of 90", exact_is_the_best_of_90},
    {"greedy by hand", greedy_by_hand},
    {"two ways everywhere", two_way_everywhere},
};
TEST_MAIN(cases)
