/* Structured pruning by second order: the unit that goes first is the one whose removal costs least
 * of all, by solving for each; what stays are the least squares of what is live. */
#include <math.h>
#include <stdlib.h>

#include "prune/prune.h"
#include "test.h"

typedef struct bench {
    esp_context *context;
    esp_algebra *algebra;
    int64_t out, units, width, in;
    double *gram, *inverse, *target, *result;
} bench;

static void bench_open(test_run *run, bench *b, esp_random *random, int64_t out, int64_t units,
                       int64_t width, bool plain)
{
    *b = (bench){.context = test_context(run, 2),
                 .out = out,
                 .units = units,
                 .width = width,
                 .in = units * width};
    int64_t in = b->in, samples = 2 * in;
    size_t square = (size_t)(in * in), weights = (size_t)(out * in);
    double *x = calloc((size_t)(samples * in), sizeof *x);
    b->gram = calloc(square, sizeof(double));
    b->inverse = calloc(square, sizeof(double));
    b->target = calloc(weights, sizeof(double));
    b->result = calloc(weights, sizeof(double));
    REQUIRE_OK(plain ? esp_algebra_open_plain(b->context, &b->algebra, error)
                     : esp_algebra_open(b->context, &b->algebra, error));
    for (int64_t i = 0; i < samples * in; i++) {
        x[i] = 2 * esp_random_uniform(random) - 1 + (i % in > 0 ? x[i - 1] / 2 : 0);
    }
    for (int64_t i = 0; i < in; i++) {
        for (int64_t j = 0; j < in; j++) {
            for (int64_t t = 0; t < samples; t++) {
                b->gram[i * in + j] += x[t * in + i] * x[t * in + j];
            }
        }
        b->gram[i * in + i] += 0.1;
    }
    for (size_t i = 0; i < weights; i++) {
        b->target[i] = b->result[i] = 2 * esp_random_uniform(random) - 1;
    }
    memcpy(b->inverse, b->gram, square * sizeof(double));
    REQUIRE(esp_algebra_factor(b->algebra, b->inverse, in));
    esp_algebra_invert(b->algebra, b->inverse, in);
    free(x);
}

static void bench_close(test_run *run, bench *b)
{
    free(b->gram);
    free(b->inverse);
    free(b->target);
    free(b->result);
    esp_algebra_close(b->algebra);
    test_context_free(run, b->context);
}

/* |W X - T X|^2 of the least squares without one unit. */
static double error_without(const bench *b, int64_t unit)
{
    int64_t in = b->in, width = b->width;
    double *square = calloc((size_t)(width * width), sizeof *square), sum = 0;
    for (int64_t i = 0; i < width * width; i++) {
        square[i] = b->inverse[(unit * width + i / width) * in + unit * width + i % width];
    }
    esp_algebra_factor(b->algebra, square, width);
    esp_algebra_invert(b->algebra, square, width);
    for (int64_t r = 0; r < b->out; r++) {
        for (int64_t i = 0; i < width * width; i++) {
            const double *w = b->target + r * in + unit * width;
            sum += w[i / width] * square[i] * w[i % width];
        }
    }
    free(square);
    return sum;
}

/* The largest of (W - T) H over live columns, where it is 0 at the least squares. */
static double slope_of(const bench *b, const bool *live)
{
    double worst = 0;
    for (int64_t r = 0; r < b->out; r++) {
        for (int64_t j = 0; j < b->in; j++) {
            double slope = 0;
            for (int64_t i = 0; i < b->in && live[j / b->width]; i++) {
                slope +=
                    (b->result[r * b->in + i] - b->target[r * b->in + i]) * b->gram[i * b->in + j];
            }
            worst = fmax(worst, fabs(slope));
        }
    }
    return worst;
}

static void check(test_run *run, bench *b, int64_t keep)
{
    uint32_t *kept = calloc((size_t)b->units, sizeof *kept);
    bool *live = calloc((size_t)b->units, sizeof *live);
    REQUIRE_OK(esp_unit_obs(b->algebra, b->out, b->units, b->width, keep, b->inverse, b->result,
                            kept, error));
    for (int64_t i = 0; i < keep; i++) {
        REQUIRE(kept[i] < b->units && (i == 0 || kept[i] > kept[i - 1]));
        live[kept[i]] = true;
    }
    for (int64_t i = 0; i < b->out * b->in; i++) {
        CHECK(live[i % b->in / b->width] || b->result[i] == 0);
    }
    CHECK(slope_of(b, live) < 1e-8 * (double)b->in);
    CHECK(keep < b->units ||
          memcmp(b->result, b->target, (size_t)(b->out * b->in) * sizeof(double)) == 0);
    for (int64_t unit = 0, gone = -1; keep == b->units - 1 && unit < b->units; unit++) {
        for (int64_t other = 0; gone < 0 && other < b->units; other++) {
            gone = live[other] ? -1 : other;
        }
        CHECK(error_without(b, gone) <= error_without(b, unit) * (1 + 1e-9));
    }
    free(kept);
    free(live);
}

static void least_squares(test_run *run)
{
    static const struct {
        int64_t out, units, width, keep;
    } cases[] = {{5, 12, 1, 11}, {3, 7, 4, 6},  {8, 6, 8, 5},   {1, 9, 3, 1},
                 {4, 10, 2, 10}, {6, 70, 1, 2}, {7, 200, 1, 9}, {2, 40, 3, 17}};
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < 2 * ESP_COUNT(cases); i++) {
        bench b;
        test_sub(run, "%lld of %lld units of %lld%s", (long long)cases[i / 2].keep,
                 (long long)cases[i / 2].units, (long long)cases[i / 2].width,
                 i % 2 == 0 ? "" : ", plain loops");
        bench_open(run, &b, &random, cases[i / 2].out, cases[i / 2].units, cases[i / 2].width,
                   i % 2 == 1);
        check(run, &b, cases[i / 2].keep);
        bench_close(run, &b);
    }
}

static void not_definite(test_run *run)
{
    esp_random random;
    bench b;
    uint32_t kept[6];
    esp_random_seed(&random, test_seed(run));
    bench_open(run, &b, &random, 3, 6, 2, false);
    memset(b.inverse, 0, (size_t)(b.in * b.in) * sizeof(double));
    CHECK_FAILS(
        esp_unit_obs(b.algebra, b.out, b.units, b.width, 3, b.inverse, b.result, kept, error),
        ESP_CHECK_FAILED, "calibrate.not_definite");
    bench_close(run, &b);
}

static const test_case cases[] = {
    {"least squares", least_squares},
    {"not definite", not_definite},
};

TEST_MAIN(cases)
