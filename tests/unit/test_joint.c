/* The joint search of a layer's masks and its tableau, against elimination and all masks of small
 * rows; and numbers that are none. */
#include "calibrated_layer.h"
#include "prune/tableau.h"

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
    {"pivots of a tableau", pivots},
    {"all masks of a row", best_of_all},
    {"joint search", joint},
    {"odd numbers", odd_numbers},
};
TEST_MAIN(cases)
