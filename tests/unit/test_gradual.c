/* Gradual pruning: which steps there are, and masks of steps against a search of everything. */
#include <stdlib.h>

#include "prune/prune.h"
#include "test.h"

static void steps(test_run *run)
{
    static const struct {
        const char *pattern;
        int count;
        esp_gradual_step steps[ESP_GRADUAL_MAX_STEPS];
    } wanted[] = {{"64:2:8", 3, {{7, 5}, {6, 4}, {4, 3}}},
                  {"128:2:5", 1, {{4, 3}}},
                  {"32:2:16", 3, {{11, 9}, {9, 7}, {6, 4}}},
                  {"2:4", 0, {{0, 0}}},
                  {"panel:64@0.75", 0, {{0, 0}}},
                  {"unstructured@0.8", 0, {{0, 0}}}};
    for (int i = 0; i < ESP_COUNT(wanted); i++) {
        esp_gradual_step found[ESP_GRADUAL_MAX_STEPS];
        esp_pattern pattern = {0};
        test_sub(run, "%s", wanted[i].pattern);
        CHECK_OK(esp_pattern_parse(wanted[i].pattern, &pattern, error));
        CHECK_INT(esp_gradual_steps(&pattern, found), wanted[i].count);
        for (int k = 0; k < wanted[i].count; k++) {
            CHECK_INT(found[k].pool, wanted[i].steps[k].pool);
            CHECK_INT(found[k].kept, wanted[i].steps[k].kept);
        }
    }
}

typedef struct scored {
    int64_t out, in, v, m;
    float *scores;
} scored;

/* How many columns of the group beat column j in the sum over the panel, the lower of equals. */
static int64_t column_rank(const scored *of, int64_t panel, int64_t group, int64_t j)
{
    int64_t rank = 0, last = ESP_MIN(of->in, (group + 1) * of->m);
    double sums[2];
    for (int64_t other = group * of->m; other < last; other++) {
        sums[0] = sums[1] = 0;
        for (int64_t r = panel * of->v; r < ESP_MIN(of->out, (panel + 1) * of->v); r++) {
            sums[0] += (double)of->scores[r * of->in + j];
            sums[1] += (double)of->scores[r * of->in + other];
        }
        rank += sums[1] > sums[0] || (sums[1] == sums[0] && other < j);
    }
    return rank;
}

static bool is_kept(const scored *of, const esp_gradual_step *step, int64_t row, int64_t j)
{
    int64_t panel = row / of->v, group = j / of->m, rank = 0;
    const float *scores = of->scores + row * of->in;
    if (column_rank(of, panel, group, j) >= step->pool) {
        return false;
    }
    for (int64_t other = group * of->m; other < ESP_MIN(of->in, (group + 1) * of->m); other++) {
        bool pooled = column_rank(of, panel, group, other) < step->pool;
        rank += pooled && (scores[other] > scores[j] || (scores[other] == scores[j] && other < j));
    }
    return rank < step->kept;
}

/* Few different scores, so that there are ties, and panels and groups that end early. */
static void masks(test_run *run)
{
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int trial = 0; trial < 40 && !test_failed(run); trial++) {
        scored of = {.out = 1 + (int64_t)esp_random_below(&random, 40),
                     .in = 1 + (int64_t)esp_random_below(&random, 70),
                     .v = 1 + (int64_t)esp_random_below(&random, 20),
                     .m = 5 + (int64_t)esp_random_below(&random, 8)};
        esp_pattern pattern = {.kind = ESP_PATTERN_PANEL, .v = of.v, .m = of.m};
        esp_gradual_step list[ESP_GRADUAL_MAX_STEPS];
        esp_context *context = test_context(run, 1 + trial % 3);
        of.scores = calloc((size_t)(of.out * of.in), sizeof *of.scores);
        for (int64_t i = 0; i < of.out * of.in; i++) {
            of.scores[i] = (float)esp_random_below(&random, trial % 2 == 0 ? 4 : 100000);
        }
        int count = esp_gradual_steps(&pattern, list);
        CHECK(count > 0);
        for (int k = 0; k < count; k++) {
            esp_mask *mask = NULL;
            REQUIRE_OK(esp_gradual_mask(context, &pattern, &list[k], of.out, of.in, of.scores,
                                        &mask, error));
            for (int64_t i = 0; i < of.out * of.in && !test_failed(run); i++) {
                CHECK(esp_mask_get(mask, i / of.in, i % of.in) ==
                      is_kept(&of, &list[k], i / of.in, i % of.in));
            }
            esp_mask_free(mask);
        }
        free(of.scores);
        test_context_free(run, context);
    }
}

static const test_case cases[] = {
    {"steps", steps},
    {"masks", masks},
};

TEST_MAIN(cases)
