/* V:2:5 spread over all columns: what it stands for is the weight that it was made of, every group
 * is one of 2:4, and no column that a panel does not keep is ever read. Where a place's column is,
 * is worked out here by walking, not by spread.c's sums. */
#include "product.h"

#include "format/panel.h"

/* Columns of the places in order, -1: none; returns how many. */
static int64_t walk_places(int64_t in, int64_t *columns)
{
    int64_t count = 0, left_over = in % 5 == 1 && in > 5; /* then the fifth is the first */
    int64_t fifth = left_over ? 0 : 4, four = left_over ? 1 : 0;
    for (int64_t period = 0; period < in; period += 160) {
        for (int64_t pair = period; pair < period + 160; pair += 10) {
            columns[count++] = pair + fifth < in ? pair + fifth : -1;
            columns[count++] = -1;
            columns[count++] = pair + 5 + fifth < in ? pair + 5 + fifth : -1;
            columns[count++] = -1;
        }
        for (int64_t five = period; five < period + 160 && five < in; five += 5) {
            for (int64_t i = 0; i < 4; i++) {
                columns[count++] = five + four + i < in ? five + four + i : -1;
            }
        }
    }
    return count;
}

static bool keeps(const esp_panel_view *from, int64_t stored, int64_t column)
{
    for (int64_t i = 0; i < from->kept; i++) {
        if (esp_panel_column(from, stored / from->v, i) == column) {
            return true;
        }
    }
    return false;
}

static void check_group(test_run *run, const esp_panel_view *from, const esp_panel_view *to,
                        const int64_t *columns, int64_t stored, int64_t group)
{
    unsigned nibble = esp_panel_nibble(to, stored, group);
    CHECK((nibble & 3) < nibble >> 2);
    for (int half = 0; half < 2; half++) {
        int64_t column = columns[4 * group + (half == 0 ? nibble & 3 : nibble >> 2)];
        uint16_t value = ((const uint16_t *)to->values)[stored * to->kept / 2 + 2 * group + half];
        CHECK(column < 0 ? value == 0 : keeps(from, stored, column));
    }
}

/* The spread weight's dense form, its places brought back to their columns. */
static void gather_columns(const uint16_t *places, int64_t out, int64_t width,
                           const int64_t *columns, int64_t in, uint16_t *dense)
{
    memset(dense, 0, (size_t)(out * in) * sizeof *dense);
    for (int64_t row = 0; row < out; row++) {
        for (int64_t place = 0; place < width; place++) {
            if (columns[place] >= 0) {
                dense[row * in + columns[place]] = places[row * width + place];
            }
        }
    }
}

static void check_spread(test_run *run, esp_context *context, const esp_sparse *sparse)
{
    int64_t out = esp_sparse_out_features(sparse), in = esp_sparse_in_features(sparse);
    int64_t *columns = malloc((size_t)(2 * in + 320) * sizeof *columns);
    int64_t width = walk_places(in, columns);
    esp_sparse *spread = NULL;
    esp_tensor was = {0}, places = {0};
    REQUIRE_OK(esp_sparse_spread(sparse, &spread, error));
    CHECK_INT(esp_spread_places(in), width);
    CHECK_INT(esp_sparse_in_features(spread), width);
    esp_panel_view from = esp_panel_view_of(sparse), to = esp_panel_view_of(spread);
    for (int64_t stored = 0; stored < out; stored++) {
        CHECK_INT(esp_panel_row(&to, stored), esp_panel_row(&from, stored));
        for (int64_t group = 0; group < to.quads; group++) {
            check_group(run, &from, &to, columns, stored, group);
        }
    }
    REQUIRE_OK(esp_tensor_create(context, ESP_F16, 2, (const int64_t[]){out, in}, &was, error));
    REQUIRE_OK(
        esp_tensor_create(context, ESP_F16, 2, (const int64_t[]){out, width}, &places, error));
    CHECK_OK(esp_sparse_decode(sparse, &was, error));
    CHECK_OK(esp_sparse_decode(spread, &places, error));
    uint16_t *is = malloc((size_t)(out * in) * sizeof *is);
    gather_columns(places.data, out, width, columns, in, is);
    CHECK(memcmp(is, was.data, (size_t)(out * in) * sizeof *is) == 0);
    free(is);
    free(columns);
    esp_tensor_free(context, &was);
    esp_tensor_free(context, &places);
    esp_sparse_free(spread);
}

static void stands_for_the_weight(test_run *run)
{
    static const int widths[] = {1,  2,  3,  4,   5,   6,   9,   10,  11,  14,  39,  80,  83,
                                 84, 85, 99, 157, 159, 160, 161, 164, 165, 239, 240, 333, 768};
    static const int panels[] = {1, 5, 33, 64, 500};
    esp_context *context = test_context(run, 2);
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < ESP_COUNT(widths); i++) {
        char text[96];
        snprintf(text, sizeof text, "matmul/%d:2:5/f16/70x%dx1", panels[i % ESP_COUNT(panels)],
                 widths[i]);
        test_sub(run, "%s", text);
        esp_matmul_problem problem = problem_of(run, text);
        esp_sparse *sparse = random_weight(run, context, &random, &problem, INTEGERS, i % 3 == 0);
        check_spread(run, context, sparse);
        esp_sparse_free(sparse);
    }
    test_context_free(run, context);
}

static void which_patterns(test_run *run)
{
    static const struct {
        const char *text;
        bool spreads;
    } some[] = {{"1:2:5", true}, {"64:2:5", true},        {"64:2:6", false},
                {"2:4", false},  {"panel:64@0.6", false}, {"dense", false}};
    for (int i = 0; i < ESP_COUNT(some); i++) {
        esp_pattern pattern;
        CHECK_OK(esp_pattern_parse(some[i].text, &pattern, error));
        test_sub(run, "%s", some[i].text);
        CHECK(esp_pattern_spreads(&pattern) == some[i].spreads);
    }
}

static const test_case cases[] = {{"stands_for_the_weight", stands_for_the_weight},
                                  {"which_patterns", which_patterns}};
TEST_MAIN(cases)
