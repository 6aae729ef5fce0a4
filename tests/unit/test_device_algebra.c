/* What calibration gives to a device that does its algebra (tensor/device_algebra.h), with a device
 * that is plain loops over what it is told: a sweep that knows nothing but its description comes to
 * the host's masks and values, errors and refits go to the device, its failures come back and leave
 * nothing behind, and it is closed once. */
#include <math.h>
#include <stdlib.h>

#include "prune/prune.h"
#include "test.h"

enum { OUT = 21, IN = 88 };

typedef struct fake {
    esp_device_algebra base;
    esp_algebra *host;
    int closed, calls;
    bool fails;
} fake;

static void close_fake(esp_device_algebra *base)
{
    ((fake *)base)->closed++;
}

static esp_status fake_squared(esp_device_algebra *base, const double *gram, int64_t out,
                               int64_t in, const double *weights, const double *target,
                               double *squared, esp_error *error)
{
    fake *f = (fake *)base;
    const esp_layer_inputs inputs = {.in = in, .tokens = in, .gram = gram};
    f->calls++;
    return f->fails ? esp_fail(error, ESP_FAILED, "fake.failed", "told to")
           : weights == NULL
               ? esp_layer_energy(f->host, &inputs, out, target, squared, error)
               : esp_layer_error(f->host, &inputs, out, weights, target, squared, error);
}

/* w_S H_SS = goal_S by Gauss-Seidel, row by row. */
static esp_status fake_refit(esp_device_algebra *base, esp_device_refit *refit, esp_error *error)
{
    fake *f = (fake *)base;
    f->calls++;
    if (f->fails) {
        return esp_fail(error, ESP_FAILED, "fake.failed", "told to");
    }
    for (int64_t r = 0; r < refit->out; r++) {
        double *w = refit->weights + r * refit->in;
        for (int round = 0; round < 20000; round++) {
            double moved = 0;
            for (int64_t j = 0; j < refit->in; j++) {
                bool live = refit->mask[r * refit->mask_words + j / 64] >> j % 64 & 1;
                double left = refit->goal[r * refit->in + j];
                for (int64_t k = 0; k < refit->in; k++) {
                    left -= k != j ? w[k] * refit->gram[k * refit->in + j] : 0;
                }
                double now = live ? left / refit->gram[j * refit->in + j] : 0;
                moved = fmax(moved, fabs(now - w[j]));
                w[j] = now;
            }
            if (moved < 1e-13) {
                break;
            }
        }
    }
    refit->iterations = 7;
    refit->residual = 0.5;
    return ESP_OK;
}

static bool is_live(const esp_device_sweep *s, int64_t row, int64_t column)
{
    return s->mask[row * s->mask_words + column / 64] >> column % 64 & 1;
}

/* The `keep` largest (w / U_jj)^2 of columns at.. of a row. */
static void keep_best(const esp_device_sweep *s, const double *factor, int64_t row, int64_t at,
                      int64_t size)
{
    for (int64_t i = 0; i < size; i++) {
        int64_t above = 0;
        for (int64_t j = 0; j < size; j++) {
            float score[2];
            for (int side = 0; side < 2; side++) {
                int64_t c = at + (side == 0 ? i : j);
                double u = factor[c * s->in + c], w = s->weights[row * s->in + c];
                score[side] = (float)(w * w / (u * u));
            }
            above += score[1] > score[0] || (score[1] == score[0] && j < i);
        }
        if (above < s->keep) {
            s->mask[row * s->mask_words + (at + i) / 64] |= (uint64_t)1 << (at + i) % 64;
        }
    }
}

static esp_status choose(const esp_device_sweep *s, const double *factor, int64_t at, int64_t size,
                         esp_error *error)
{
    float *scores = malloc((size_t)(s->out * size) * sizeof *scores);
    for (int64_t r = 0; r < s->out && s->keep > 0; r++) {
        keep_best(s, factor, r, at, size);
    }
    for (int64_t i = 0; i < s->out * size; i++) {
        int64_t c = at + i % size;
        double u = factor[c * s->in + c], w = s->weights[i / size * s->in + c];
        scores[i] = (float)(w * w / (u * u));
    }
    esp_status status = s->keep > 0 ? ESP_OK : s->choose(s->user, at, size, scores, error);
    free(scores);
    return status;
}

/* Column by column, every column to the right at once. */
static esp_status sweep_by(const esp_device_sweep *s, const double *factor, esp_error *error)
{
    for (int64_t j = 0; j < s->in; j++) {
        if (s->group > 0 && j % s->group == 0) {
            ESP_TRY(choose(s, factor, j, ESP_MIN(s->group, s->in - j), error));
        }
        for (int64_t r = 0; r < s->out; r++) {
            double *row = s->weights + r * s->in;
            double e = is_live(s, r, j) ? 0 : row[j] / factor[j * s->in + j];
            for (int64_t k = j; k < s->in && e != 0; k++) {
                row[k] = k == j ? 0 : row[k] - e * factor[j * s->in + k];
            }
        }
    }
    return ESP_OK;
}

static esp_status fake_sweep(esp_device_algebra *base, const esp_device_sweep *s, esp_error *error)
{
    fake *f = (fake *)base;
    f->calls++;
    if (f->fails) {
        return esp_fail(error, ESP_FAILED, "fake.failed", "told to");
    }
    double *factor = malloc((size_t)(s->in * s->in) * sizeof *factor);
    memcpy(factor, s->inverse, (size_t)(s->in * s->in) * sizeof *factor);
    esp_status status = esp_algebra_factor(f->host, factor, s->in) ? ESP_OK : ESP_FAILED;
    esp_algebra_mirror(factor, s->in); /* U is the transpose */
    status = status == ESP_OK ? sweep_by(s, factor, error) : status;
    free(factor);
    return status;
}

static esp_status fake_panels(esp_device_algebra *base, const esp_device_panels *panels,
                              esp_error *error)
{
    (void)panels;
    ((fake *)base)->calls++;
    return esp_fail(error, ESP_FAILED, "fake.failed", "told to");
}

static const esp_device_algebra_ops fake_ops = {.close = close_fake,
                                                .squared = fake_squared,
                                                .refit = fake_refit,
                                                .sweep = fake_sweep,
                                                .panels = fake_panels};

/* ---- a layer ---- */

typedef struct bed {
    test_run *run;
    esp_context *context;
    fake device;
    esp_algebra *both;
    double target[OUT * IN], gram[IN * IN], inverse[IN * IN], goal[OUT * IN];
} bed;

static void open_bed(bed *b, test_run *run)
{
    esp_random random;
    static float x[IN * 2 * IN], scratch[4 * 128 * IN];
    *b = (bed){.run = run, .context = test_context(run, 2)};
    REQUIRE_OK(esp_algebra_open(b->context, &b->device.host, error));
    REQUIRE_OK(esp_algebra_open(b->context, &b->both, error));
    b->device.base = (esp_device_algebra){.ops = &fake_ops, .name = "a fake"};
    esp_algebra_set_device(b->both, &b->device.base);
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < OUT * IN; i++) {
        b->target[i] = (double)esp_random_below(&random, 2001) / 1000 - 1;
    }
    for (int i = 0; i < IN * 2 * IN; i++) {
        x[i] = (float)esp_random_below(&random, 2001) / 1000 - 1 +
               (i < 2 * IN ? 0 : x[i - 2 * IN] / 2);
    }
    REQUIRE(esp_algebra_gram_floats(b->device.host, IN) <= ESP_COUNT(scratch));
    esp_algebra_add_gram(b->device.host, x, IN, x, IN, 2 * IN, scratch, b->gram);
    esp_algebra_mirror(b->gram, IN);
    for (int j = 0; j < IN; j++) {
        b->gram[j * IN + j] += 30;
    }
    memcpy(b->inverse, b->gram, sizeof b->inverse);
    REQUIRE(esp_algebra_factor(b->device.host, b->inverse, IN));
    esp_algebra_invert(b->device.host, b->inverse, IN);
    for (int r = 0; r < OUT; r++) {
        for (int j = 0; j < IN; j++) {
            for (int k = 0; k < IN; k++) {
                b->goal[r * IN + j] += b->target[r * IN + k] * b->gram[k * IN + j];
            }
        }
    }
}

static void close_bed(bed *b)
{
    test_run *run = b->run;
    CHECK_TEXT(esp_algebra_name(b->both), "a fake");
    esp_algebra_close(b->both);
    esp_algebra_close(b->device.host);
    CHECK_INT(b->device.closed, 1);
    test_context_free(run, b->context);
}

static double largest_difference(const double *a, const double *b, int64_t count)
{
    double worst = 0;
    for (int64_t i = 0; i < count; i++) {
        test_note_largest(&worst, fabs(a[i] - b[i]));
    }
    return worst;
}

static void sweep_with(bed *b, const char *text)
{
    test_run *run = b->run;
    static double by_host[OUT * IN], by_device[OUT * IN];
    const esp_mask_options options = {.score = ESP_SCORE_ABS};
    esp_pattern pattern;
    esp_mask *masks[2] = {NULL, NULL};
    test_sub(run, "sparsegpt %s", text);
    REQUIRE_OK(esp_pattern_parse(text, &pattern, error));
    memcpy(by_host, b->target, sizeof by_host);
    memcpy(by_device, b->target, sizeof by_device);
    if (!esp_sparse_gpt_chooses(&pattern)) {
        float narrow[OUT * IN];
        for (int i = 0; i < OUT * IN; i++) {
            narrow[i] = (float)b->target[i];
        }
        const esp_tensor dense = {.dtype = ESP_F32, .rank = 2, .shape = {OUT, IN}, .data = narrow};
        for (int i = 0; i < 2; i++) {
            REQUIRE_OK(
                esp_prune_mask(b->context, &dense, &pattern, &options, &masks[i], NULL, error));
        }
    }
    REQUIRE_OK(esp_sparse_gpt_of(b->device.host, &pattern, &options, OUT, IN, b->inverse, by_host,
                                 &masks[0], error));
    int before = b->device.calls;
    REQUIRE_OK(esp_sparse_gpt_of(b->both, &pattern, &options, OUT, IN, b->inverse, by_device,
                                 &masks[1], error));
    CHECK_INT(b->device.calls, before + 1);
    for (int64_t r = 0; r < OUT; r++) {
        for (int64_t j = 0; j < IN; j++) {
            CHECK(esp_mask_get(masks[0], r, j) == esp_mask_get(masks[1], r, j));
        }
    }
    CHECK(largest_difference(by_device, by_host, OUT * IN) < 1e-9);
    esp_mask_free(masks[0]);
    esp_mask_free(masks[1]);
}

static void sweeps(test_run *run)
{
    static const char *const patterns[] = {"2:4",   "3:8",    "1:16",
                                           "8:2:8", "16:2:5", "unstructured@0.6"};
    static bed b;
    open_bed(&b, run);
    for (int i = 0; i < ESP_COUNT(patterns); i++) {
        sweep_with(&b, patterns[i]);
    }
    close_bed(&b);
}

static void errors_and_refit(test_run *run)
{
    static bed b;
    static double by_host[OUT * IN], by_device[OUT * IN];
    open_bed(&b, run);
    const esp_layer_inputs inputs = {.in = IN, .tokens = 2 * IN, .gram = b.gram};
    const esp_mask_options options = {.score = ESP_SCORE_ABS};
    esp_pattern pattern;
    esp_mask *mask = NULL;
    esp_refit_report report = {0};
    double squared[2] = {0, 1};
    memcpy(by_host, b.target, sizeof by_host);
    memcpy(by_device, b.target, sizeof by_device);
    REQUIRE_OK(esp_pattern_parse("8:2:8", &pattern, error));
    REQUIRE_OK(esp_sparse_gpt_of(b.device.host, &pattern, &options, OUT, IN, b.inverse, by_host,
                                 &mask, error));
    memcpy(by_device, by_host, sizeof by_device);
    CHECK_OK(esp_refit(b.device.host, &inputs, mask, b.goal, by_host, NULL, NULL, error));
    CHECK_OK(esp_refit(b.both, &inputs, mask, b.goal, by_device, NULL, &report, error));
    CHECK(report.iterations == 7 && report.residual == 0.5);
    CHECK(largest_difference(by_device, by_host, OUT * IN) < 1e-5);
    CHECK_OK(esp_layer_error(b.device.host, &inputs, OUT, by_host, b.target, &squared[0], error));
    CHECK_OK(esp_layer_error(b.both, &inputs, OUT, by_host, b.target, &squared[1], error));
    CHECK(squared[0] == squared[1]);
    CHECK_OK(esp_layer_energy(b.both, &inputs, OUT, b.target, &squared[1], error));
    CHECK(squared[1] > squared[0]);
    CHECK_INT(b.device.calls, 3);
    esp_mask_free(mask);
    close_bed(&b);
}

static void failures(test_run *run)
{
    static bed b;
    static double weights[OUT * IN];
    open_bed(&b, run);
    const esp_layer_inputs inputs = {.in = IN, .tokens = 2 * IN, .gram = b.gram};
    const esp_mask_options options = {.score = ESP_SCORE_ABS};
    esp_pattern pattern;
    esp_mask *mask = NULL;
    double squared = 0;
    b.device.fails = true;
    memcpy(weights, b.target, sizeof weights);
    REQUIRE_OK(esp_pattern_parse("8:2:8", &pattern, error));
    CHECK_FAILS(
        esp_sparse_gpt_of(b.both, &pattern, &options, OUT, IN, b.inverse, weights, &mask, error),
        ESP_FAILED, "fake.failed");
    CHECK_FAILS(esp_panel_obs(b.both, &pattern, OUT, IN, b.inverse, weights, &mask, error),
                ESP_FAILED, "fake.failed");
    CHECK_FAILS(esp_joint_panels(b.both, &pattern, OUT, IN, b.inverse, weights, &mask, error),
                ESP_FAILED, "fake.failed");
    CHECK(mask == NULL);
    CHECK_FAILS(esp_layer_error(b.both, &inputs, OUT, weights, b.target, &squared, error),
                ESP_FAILED, "fake.failed");
    close_bed(&b);
}

static const test_case cases[] = {
    {"sweeps", sweeps}, {"errors_and_refit", errors_and_refit}, {"failures", failures}};
TEST_MAIN(cases)
