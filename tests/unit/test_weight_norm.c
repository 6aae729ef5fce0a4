/* WeightNormSparsifier's masks against PyTorch's (tests/golden/prune/weight_norm.txt, made by
 * tools/golden/make_weight_norm.py) where the two must agree, and our own rules elsewhere. */
#include <math.h>
#include <stdio.h>

#include "prune/prune.h"
#include "weights.h"

#define MOST 512

typedef struct golden_case {
    long long out, in, rows, columns, zeros;
    int norm, steps;
    double levels[8];
    float weights[MOST];
} golden_case;

static bool read_case(FILE *file, golden_case *made)
{
    char levels[64];
    int got = fscanf(file, "%lld %lld %63s %lld %lld %lld %d %d weight", &made->out, &made->in,
                     levels, &made->rows, &made->columns, &made->zeros, &made->norm, &made->steps);
    if (got != 8 || made->out * made->in > MOST || made->steps > 8) {
        return false;
    }
    const char *at = levels;
    for (int i = 0; i < made->steps; i++) {
        char *end;
        made->levels[i] = strtod(at, &end);
        at = end + 1;
    }
    for (int64_t i = 0; i < made->out * made->in; i++) {
        if (fscanf(file, "%f", &made->weights[i]) != 1) {
            return false;
        }
    }
    return true;
}

static void check_case(test_run *run, FILE *file, golden_case *given)
{
    char bits[MOST + 1];
    esp_context *context = test_context(run, 2);
    esp_tensor dense = {
        .dtype = ESP_F32, .rank = 2, .shape = {given->out, given->in}, .data = given->weights};
    esp_mask *previous = NULL;
    for (int step = 0; step < given->steps; step++) {
        esp_weight_norm_options options = {.level = given->levels[step],
                                           .block_rows = given->rows,
                                           .block_cols = given->columns,
                                           .zeros_per_block = given->zeros,
                                           .norm = given->norm == 1 ? ESP_NORM_L1 : ESP_NORM_L2};
        esp_mask *mask = NULL;
        CHECK_OK(esp_weight_norm_mask(context, &dense, &options, previous, &mask, error));
        CHECK(fscanf(file, " mask %512s", bits) == 1);
        int64_t differ = 0;
        for (int64_t i = 0; mask != NULL && i < given->out * given->in; i++) {
            differ += esp_mask_get(mask, i / given->in, i % given->in) != (bits[i] == '1');
        }
        CHECK_INT(differ, 0);
        esp_mask_free(previous);
        previous = mask;
    }
    esp_mask_free(previous);
    test_context_free(run, context);
}

static void equals_pytorch(test_run *run)
{
    FILE *file = fopen(ESP_SOURCE_DIR "/tests/golden/prune/weight_norm.txt", "r");
    REQUIRE(file != NULL);
    char word[256];
    int cases = 0, cubics = 0;
    golden_case given;
    while (fscanf(file, "%255s", word) == 1) {
        if (word[0] == '#') {
            CHECK(fgets(word, sizeof word, file) != NULL);
        } else if (strcmp(word, "case") == 0 && read_case(file, &given)) {
            test_sub(run, "%lldx%lld, blocks of %lldx%lld, %lld zeros, L%d, level %g, %d steps",
                     given.out, given.in, given.rows, given.columns, given.zeros, given.norm,
                     given.levels[0], given.steps);
            check_case(run, file, &given);
            cases++;
        } else if (strcmp(word, "cubic") == 0) {
            double s0, sf, value;
            long long t, t0, n, dt;
            CHECK(fscanf(file, "%lf %lf %lld %lld %lld %lld %lf", &s0, &sf, &t, &t0, &n, &dt,
                         &value) == 7);
            test_sub(run, "cubic schedule at %lld", t);
            CHECK(fabs(esp_cubic_sparsity(s0, sf, t, t0, n, dt) - value) < 1e-15);
            cubics++;
        } else {
            test_fail(run, __FILE__, __LINE__, "the golden file has \"%s\"", word);
            break;
        }
    }
    fclose(file);
    CHECK_INT(cases, 19);
    CHECK_INT(cubics, 10);
}

/* Masks of small tensors by hand: one string of 0 and 1 a case, blanks for the eye. */
static void our_own_rules(test_run *run)
{
    static const struct {
        const char *what;
        int out, in;
        float weights[20];
        esp_weight_norm_options options;
        const char *mask;
    } rows[] = {
        {"equal scores keep the lowest index",
         1,
         8,
         {1, 1, 1, 1, 1, 1, 1, 1},
         {1, 1, 4, 2, ESP_NORM_L1},
         "1100 1100"},
        {"equal blocks keep the first",
         2,
         4,
         {1, 1, 1, 1, 1, 1, 1, 1},
         {0.5, 1, 2, -1, ESP_NORM_L2},
         "1111 0000"},
        {"an edge block averages what is real",
         1,
         5,
         {3, 3, 3, 3, 4},
         {0.34, 1, 2, -1, ESP_NORM_L1},
         "11001"},
        {"an edge block drops real weights first",
         1,
         6,
         {1, 2, 3, 4, 5, 6},
         {1, 1, 4, 2, ESP_NORM_L1},
         "0011 00"},
        {"all dropped, in the shape of the weight",
         1,
         5,
         {1, 2, 3, 4, 5},
         {1, 2, 4, -1, ESP_NORM_L2},
         "00000"},
        {"a block larger than the weight", 2, 2, {1, 2, 3, 4}, {1, 4, 4, 3, ESP_NORM_L2}, "00 01"},
        {"the last block stays below level 1",
         1,
         4,
         {1, 2, 3, 4},
         {0.99, 1, 4, -1, ESP_NORM_L2},
         "1111"},
        {"NaN is never dropped first",
         1,
         4,
         {NAN, 2, INFINITY, 4},
         {1, 1, 4, 2, ESP_NORM_L2},
         "1010"},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s", rows[i].what);
        esp_context *context = test_context(run, 2);
        float weights[20];
        memcpy(weights, rows[i].weights, sizeof weights);
        esp_tensor dense = {
            .dtype = ESP_F32, .rank = 2, .shape = {rows[i].out, rows[i].in}, .data = weights};
        esp_mask *mask = NULL;
        CHECK_OK(esp_weight_norm_mask(context, &dense, &rows[i].options, NULL, &mask, error));
        REQUIRE(mask != NULL);
        char shown[64] = "", wanted[64] = "";
        for (const char *at = rows[i].mask; *at != '\0'; at++) {
            strncat(wanted, at, *at != ' ');
        }
        for (int k = 0; k < rows[i].out * rows[i].in; k++) {
            shown[k] = esp_mask_get(mask, k / rows[i].in, k % rows[i].in) ? '1' : '0';
        }
        CHECK_TEXT(shown, wanted);
        esp_mask_free(mask);
        test_context_free(run, context);
    }
}

static void refusals(test_run *run)
{
    static const struct {
        const char *code;
        esp_weight_norm_options options;
        int rank;
    } rows[] = {
        {"prune.bad_level", {NAN, 1, 4, -1, ESP_NORM_L2}, 2},
        {"prune.bad_block", {.5, 0, 4, -1, ESP_NORM_L2}, 2},
        {"prune.bad_block", {.5, 1, 65537, -1, ESP_NORM_L2}, 2},
        {"prune.bad_block", {.5, 1, 4, 5, ESP_NORM_L2}, 2},
        {"prune.bad_block", {.5, 1, 4, -2, ESP_NORM_L2}, 2},
        {"prune.bad_score", {.5, 1, 4, -1, (esp_norm)7}, 2},
        {"prune.bad_tensor", ESP_WEIGHT_NORM_DEFAULTS, 1},
    };
    esp_context *context = test_context(run, 1);
    float weights[4] = {1, 2, 3, 4};
    esp_mask *mask = NULL, *other = NULL;
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s", rows[i].code);
        esp_tensor dense = {
            .dtype = ESP_F32, .rank = rows[i].rank, .shape = {2, 2}, .data = weights};
        CHECK_FAILS(esp_weight_norm_mask(context, &dense, &rows[i].options, NULL, &mask, error),
                    ESP_BAD_ARGUMENT, rows[i].code);
        CHECK(mask == NULL);
    }
    test_sub(run, "a mask before of another shape");
    esp_tensor dense = {.dtype = ESP_F32, .rank = 2, .shape = {2, 2}, .data = weights};
    REQUIRE_OK(esp_mask_create(context, 2, 3, &other, error));
    CHECK_FAILS(esp_weight_norm_mask(context, &dense, NULL, other, &mask, error), ESP_BAD_ARGUMENT,
                "mask.shape_mismatch");
    CHECK(mask == NULL);
    esp_mask_free(other);
    test_sub(run, "the defaults");
    CHECK_OK(esp_weight_norm_mask(context, &dense, NULL, NULL, &mask, error));
    CHECK(mask != NULL && esp_mask_count(mask) == 2); /* one of two blocks */
    esp_mask_free(mask);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"equals PyTorch", equals_pytorch},
    {"our own rules", our_own_rules},
    {"refusals", refusals},
};
TEST_MAIN(cases)
