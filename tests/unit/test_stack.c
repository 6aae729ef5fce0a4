/* Weights put on one another, and values in another type. */
#include <math.h>

#include "weights.h"

enum { IN = 40, MOST_ROWS = 96 };

/* Of `rows` rows: small integers, of every four columns two are zero. */
static esp_sparse *make_weight(test_run *run, esp_context *context, const char *pattern_text,
                               esp_random *random, int64_t rows, float *values)
{
    esp_pattern pattern;
    esp_tensor dense = {0};
    esp_sparse *sparse = NULL;
    const int64_t shape[] = {rows, IN};
    CHECK_OK(esp_pattern_parse(pattern_text, &pattern, error));
    for (int64_t i = 0; i < rows * IN; i++) {
        bool live = i % IN % 8 < 4 && i % 4 < 2; /* of each eight columns the first four */
        values[i] = live || pattern.kind == ESP_PATTERN_DENSE
                        ? (float)(1 + esp_random_below(random, 9))
                        : 0.0f;
    }
    CHECK_OK(esp_tensor_create(context, ESP_F32, 2, shape, &dense, error));
    memcpy(dense.data, values, (size_t)(rows * IN) * sizeof *values);
    CHECK_OK(esp_sparse_encode(context, &pattern, &dense, NULL, &sparse, error));
    esp_tensor_free(context, &dense);
    return sparse;
}

static void check_whole(test_run *run, esp_context *context, const esp_sparse *whole,
                        const float *values, const int64_t *rows, int count, bool pairs)
{
    esp_tensor dense = {0};
    const int64_t shape[] = {whole->out_features, IN};
    REQUIRE_OK(esp_sparse_check(whole, error));
    REQUIRE_OK(esp_tensor_create(context, ESP_F32, 2, shape, &dense, error));
    REQUIRE_OK(esp_sparse_decode(whole, &dense, error));
    int64_t at = 0;
    for (int part = 0; part < count; part++) {
        for (int64_t row = 0; row < rows[part]; row++, at++) {
            int64_t place = pairs ? 2 * row + part : at;
            CHECK(memcmp((const float *)dense.data + place * IN, values + at * IN,
                         IN * sizeof *values) == 0);
        }
    }
    esp_tensor_free(context, &dense);
}

static void stacks(test_run *run)
{
    static const struct {
        const char *pattern;
        int64_t rows[ESP_MOST_STACKED];
        int count;
        bool pairs, possible;
    } stacked[] = {
        {"dense", {5, 7, 3}, 3, false, true},      {"dense", {6, 6}, 2, true, true},
        {"2:4", {5, 7, 3}, 3, false, true},        {"2:4", {7, 7}, 2, true, true},
        {"8:2:8", {16, 8, 8}, 3, false, true},     {"8:2:8", {16, 12, 8}, 3, false, false},
        {"8:2:8", {16, 16}, 2, true, false},       {"2:4", {7, 6}, 2, true, false},
        {"block:4x4@0.5", {8, 8}, 2, false, false}};
    esp_context *context = test_context(run, 1);
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < ESP_COUNT(stacked); i++) {
        float values[MOST_ROWS * IN];
        esp_pattern pattern;
        esp_sparse *parts[ESP_MOST_STACKED] = {NULL}, *whole = NULL;
        int count = stacked[i].count;
        int64_t at = 0;
        test_sub(run, "%s%s", stacked[i].pattern, stacked[i].pairs ? " in turn" : "");
        REQUIRE_OK(esp_pattern_parse(stacked[i].pattern, &pattern, error));
        CHECK(esp_pattern_stacks(&pattern, stacked[i].rows, count, stacked[i].pairs) ==
              stacked[i].possible);
        for (int k = 0; k < count && stacked[i].possible; k++) {
            parts[k] = make_weight(run, context, stacked[i].pattern, &random, stacked[i].rows[k],
                                   values + at * IN);
            at += stacked[i].rows[k];
        }
        if (stacked[i].possible) {
            const esp_sparse *const given[] = {parts[0], parts[1], parts[2]};
            REQUIRE_OK(esp_sparse_stack(given, count, stacked[i].pairs, &whole, error));
            check_whole(run, context, whole, values, stacked[i].rows, count, stacked[i].pairs);
        }
        for (int k = 0; k < ESP_MOST_STACKED; k++) {
            esp_sparse_free(parts[k]);
        }
        esp_sparse_free(whole);
    }
    test_context_free(run, context);
}

/* Small integers are the same in every type; what is too large for f16 is refused. */
static void retypes(test_run *run)
{
    static const char *const patterns[] = {"dense", "2:4", "8:2:8"};
    esp_context *context = test_context(run, 1);
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < ESP_COUNT(patterns); i++) {
        float values[16 * IN];
        const int64_t rows[] = {16};
        test_sub(run, "%s", patterns[i]);
        esp_sparse *sparse = make_weight(run, context, patterns[i], &random, 16, values);
        CHECK_OK(esp_sparse_retype(sparse, ESP_F16, error));
        CHECK_INT(sparse->dtype, ESP_F16);
        CHECK_OK(esp_sparse_retype(sparse, ESP_BF16, error));
        CHECK_OK(esp_sparse_check(sparse, error));
        CHECK_OK(esp_sparse_retype(sparse, ESP_F32, error));
        check_whole(run, context, sparse, values, rows, 1, false);
        const char *name = sparse->pattern.kind == ESP_PATTERN_DENSE ? "" : "values";
        ((float *)esp_sparse_find_part(sparse, name)->data)[3] = 70000;
        CHECK_FAILS(esp_sparse_retype(sparse, ESP_F16, error), ESP_UNSUPPORTED,
                    "sparse.type_overflow");
        CHECK_OK(esp_sparse_retype(sparse, ESP_BF16, error));
        esp_sparse_free(sparse);
    }
    test_context_free(run, context);
}

static const test_case cases[] = {{"stacks", stacks}, {"retypes", retypes}};
TEST_MAIN(cases)
