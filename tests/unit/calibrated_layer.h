/* A layer with samples for the tests of what prunes by them: the one of the golden file
 * (tools/golden/make_calibrated.py) and others, its second moments, and a dense solver. */
#ifndef ESP_TESTS_CALIBRATED_LAYER_H
#define ESP_TESTS_CALIBRATED_LAYER_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "prune/prune.h"
#include "test.h"

enum { OUT = 8, IN = 136, TOKENS = 300 }; /* of the golden layer */

static inline void make_numbers(uint64_t seed, int64_t count, double *numbers)
{
    uint64_t state = seed;
    for (int64_t i = 0; i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        numbers[i] = ((double)((state >> 40) % 401) - 200) / 64;
    }
}

typedef struct bench {
    esp_context *context;
    esp_algebra *algebra;
    int64_t out, in, tokens;
    double *weights, *x, *gram, *goal, *result;
    float *narrow; /* x */
    esp_layer_inputs inputs;
} bench;

static inline double *doubles(int64_t count)
{
    return calloc((size_t)count, sizeof(double));
}

static inline void sum_gram(bench *b)
{
    float *scratch = malloc(esp_algebra_gram_floats(b->algebra, b->in) * sizeof *scratch);
    for (int64_t i = 0; i < b->in * b->tokens; i++) {
        b->narrow[i] = (float)b->x[i];
    }
    esp_algebra_add_gram(b->algebra, b->narrow, b->in, b->narrow, b->in, b->tokens, scratch,
                         b->gram);
    esp_algebra_mirror(b->gram, b->in);
    free(scratch);
}

static inline void multiply(const bench *b, const double *w, const double *by, double *to)
{
    const esp_algebra_product product = {.rows = b->out,
                                         .columns = b->in,
                                         .depth = b->in,
                                         .alpha = 1,
                                         .a = w,
                                         .a_stride = b->in,
                                         .b = by,
                                         .b_stride = b->in,
                                         .c = to,
                                         .c_stride = b->in};
    esp_algebra_multiply(b->algebra, &product);
}

/* Neighbouring inputs are correlated; all numbers are small multiples of 1/64. */
static inline bool bench_open(test_run *run, bench *b, int64_t out, int64_t in, int64_t tokens,
                              bool plain, uint64_t seed)
{
    esp_error error;
    *b = (bench){.context = test_context(run, 2), .out = out, .in = in, .tokens = tokens};
    b->weights = doubles(out * in);
    b->goal = doubles(out * in);
    b->result = doubles(out * in);
    b->x = doubles(in * tokens);
    b->gram = doubles(in * in);
    b->narrow = malloc((size_t)(in * tokens) * sizeof *b->narrow);
    if ((plain ? esp_algebra_open_plain(b->context, &b->algebra, &error)
               : esp_algebra_open(b->context, &b->algebra, &error)) != ESP_OK) {
        test_fail(run, __FILE__, __LINE__, "%s", error.message);
        return false;
    }
    make_numbers(seed, out * in, b->weights);
    make_numbers(seed + 1, in * tokens, b->x);
    for (int64_t i = in - 1; i > 0; i--) {
        for (int64_t t = 0; t < tokens; t++) {
            b->x[i * tokens + t] += b->x[(i - 1) * tokens + t];
        }
    }
    sum_gram(b);
    multiply(b, b->weights, b->gram, b->goal);
    b->inputs = (esp_layer_inputs){.in = in, .tokens = tokens, .gram = b->gram};
    return true;
}

static inline void bench_close(test_run *run, bench *b)
{
    esp_algebra_close(b->algebra);
    test_context_free(run, b->context);
    double *const areas[] = {b->weights, b->x, b->gram, b->goal, b->result};
    for (int i = 0; i < ESP_COUNT(areas); i++) {
        free(areas[i]);
    }
    free(b->narrow);
}

static inline double *invert(const bench *b)
{
    double *inverse = doubles(b->in * b->in);
    memcpy(inverse, b->gram, (size_t)(b->in * b->in) * sizeof *inverse);
    if (esp_algebra_factor(b->algebra, inverse, b->in)) {
        esp_algebra_invert(b->algebra, inverse, b->in);
    }
    return inverse;
}

static inline esp_status by_sparse_gpt(bench *b, const esp_pattern *pattern, esp_mask **mask,
                                       esp_error *error)
{
    static const esp_mask_options options = {0};
    double *factor = invert(b);
    esp_status status = ESP_FAILED;
    if (esp_algebra_factor(b->algebra, factor, b->in)) {
        for (int64_t i = 0; i < b->in; i++) {
            for (int64_t j = i + 1; j < b->in; j++) {
                factor[i * b->in + j] = factor[j * b->in + i];
            }
        }
        memcpy(b->result, b->weights, (size_t)(b->out * b->in) * sizeof *b->result);
        status = esp_sparse_gpt(b->algebra, pattern, &options, b->out, b->in, factor, b->result,
                                mask, error);
    }
    free(factor);
    return status;
}

static inline esp_status by_panels(bench *b, const esp_pattern *pattern, esp_mask **mask,
                                   esp_error *error)
{
    double *inverse = invert(b);
    memcpy(b->result, b->weights, (size_t)(b->out * b->in) * sizeof *b->result);
    esp_status status =
        esp_panel_obs(b->algebra, pattern, b->out, b->in, inverse, b->result, mask, error);
    free(inverse);
    return status;
}

static inline esp_status by_groups(bench *b, const esp_pattern *pattern, esp_search search,
                                   esp_mask **mask, esp_error *error)
{
    const esp_mask_options options = {.search = search};
    double *inverse = invert(b);
    memcpy(b->result, b->weights, (size_t)(b->out * b->in) * sizeof *b->result);
    esp_status status = esp_group_obs(b->algebra, pattern, &options, b->out, b->in, inverse,
                                      b->result, mask, error);
    free(inverse);
    return status;
}

/* A x = b by Gaussian elimination with pivots; destroys both; x in b. */
static inline void eliminate(double *a, double *b, int64_t n)
{
    for (int64_t k = 0; k < n; k++) {
        int64_t pivot = k;
        for (int64_t i = k + 1; i < n; i++) {
            pivot = fabs(a[i * n + k]) > fabs(a[pivot * n + k]) ? i : pivot;
        }
        for (int64_t j = 0; j < n; j++) {
            double held = a[k * n + j];
            a[k * n + j] = a[pivot * n + j];
            a[pivot * n + j] = held;
        }
        double held = b[k];
        b[k] = b[pivot];
        b[pivot] = held;
        for (int64_t i = 0; i < n; i++) {
            double times = i == k ? 0 : a[i * n + k] / a[k * n + k];
            for (int64_t j = k; j < n; j++) {
                a[i * n + j] -= times * a[k * n + j];
            }
            b[i] -= times * b[k];
        }
    }
    for (int64_t k = 0; k < n; k++) {
        b[k] /= a[k * n + k];
    }
}

#endif
