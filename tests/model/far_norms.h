/* Products that finish a norm which their weight holds, and leave moments of what they write, made
 * of the reference's products: what kernels of the far back end do where a test says so. */
#ifndef ESP_TESTS_FAR_NORMS_H
#define ESP_TESTS_FAR_NORMS_H

#include <math.h>
#include <stdlib.h>

#include "op/op.h"
#include "ref/kernels.h"

#define FAR_PART_ROWS 40 /* of moments: no divisor of most sizes */

typedef enum far_norm_mode { FAR_NORMS_NONE = 0, FAR_NORMS_SOME, FAR_NORMS_ALL } far_norm_mode;

/* What kernels do, and how often something was given to the device. */
typedef struct far_norming {
    far_norm_mode mode;
    bool leaves;
    int alone, found, finished, left;
    int wrong; /* moments that were not those of x, when a product read them */
} far_norming;

static inline esp_status far_find_moments(const float *x, int64_t features, int64_t tokens,
                                          int64_t rows, float *values)
{
    for (int64_t first = 0; first < features; first += rows) {
        for (int64_t t = 0; t < tokens; t++) {
            double sum = 0, squares = 0;
            for (int64_t f = first; f < ESP_MIN(first + rows, features); f++) {
                double value = (double)x[f * tokens + t];
                sum += value;
                squares += value * value;
            }
            float *to = values + (first / rows * tokens + t) * 2;
            to[0] = (float)sum, to[1] = (float)squares;
        }
    }
    return ESP_OK;
}

/* Mean and deviation of token t, by what was left. */
static inline void far_norm_of(const esp_normed *normed, int64_t features, int64_t tokens,
                               int64_t t, double *mean, double *deviation)
{
    double sum = 0, squares = 0;
    for (int64_t p = 0; p < normed->of_x.parts; p++) {
        const float *part = normed->of_x.values + (p * tokens + t) * 2;
        sum += (double)part[0], squares += (double)part[1];
    }
    *mean = normed->row_sums != NULL ? sum / (double)features : 0;
    double variance = squares / (double)features - *mean * *mean;
    *deviation = sqrt(fmax(variance, 0) + (double)normed->eps);
}

/* Columns that are no tokens may hold anything, NaN too: they say nothing. */
static inline bool far_moments_differ(const float *x, const esp_normed *normed, int64_t features,
                                      int64_t tokens, int64_t t)
{
    double sum[2] = {0, 0}, squares[2] = {0, 0}, size = 0;
    for (int64_t f = 0; f < features; f++) {
        double value = (double)x[f * tokens + t];
        sum[0] += value, squares[0] += value * value, size += fabs(value);
    }
    for (int64_t p = 0; p < normed->of_x.parts; p++) {
        sum[1] += (double)normed->of_x.values[(p * tokens + t) * 2];
        squares[1] += (double)normed->of_x.values[(p * tokens + t) * 2 + 1];
    }
    return isfinite(squares[0]) && !(fabs(sum[0] - sum[1]) <= 1e-6 * size &&
                                     fabs(squares[0] - squares[1]) <= 1e-6 * squares[0]);
}

/* Epilogue and residual of row o, from what the norm makes of the sums. */
static inline void far_finish_row(const esp_matmul_call *call, int64_t o, float *row)
{
    const esp_matmul_problem *problem = call->problem;
    for (int64_t t = 0; t < problem->tokens; t++) {
        row[t] += (problem->epilogue & ESP_EP_BIAS) != 0 ? call->args->bias[o] : 0.0f;
        row[t] = esp_ref_activate(problem->epilogue, row[t]);
    }
}

static inline void far_write_rows(const esp_matmul_call *call, float *rows)
{
    const esp_matmul_problem *problem = call->problem;
    int64_t tokens = problem->tokens, pairs = (problem->epilogue & ESP_EP_SWIGLU) != 0;
    float *y = call->args->y;
    const float *residual = call->args->residual;
    for (int64_t o = 0; o < problem->out_features >> pairs; o++) {
        for (int64_t t = 0; t < tokens; t++) {
            const float *from = rows + (o << pairs) * tokens + t;
            float value = pairs ? esp_ref_activate(ESP_EP_SILU, from[0]) * from[tokens] : from[0];
            bool adds = (problem->epilogue & ESP_EP_RESIDUAL) != 0;
            y[o * tokens + t] = adds ? value + residual[o * tokens + t] : value;
        }
    }
}

static inline esp_status far_run_normed(const esp_matmul_call *given, const esp_normed *normed,
                                        far_norming *state, esp_error *error)
{
    esp_matmul_problem problem = *given->problem;
    esp_matmul_args args = *given->args;
    int64_t out = problem.out_features, in = problem.in_features, tokens = problem.tokens;
    float *sums = aligned_alloc(64, (size_t)(out * tokens + 16) / 16 * 64);
    problem.epilogue = 0;
    args.y = sums, args.y_stride = tokens, args.bias = NULL, args.residual = NULL;
    const esp_matmul_call call = {given->kernel, given->device, &problem, &args, {0}};
    esp_status status = given->kernel->launch(&call, error);
    for (int64_t t = 0; t < tokens && status == ESP_OK; t++) {
        double mean, deviation;
        far_norm_of(normed, in, tokens, t, &mean, &deviation);
        state->wrong += far_moments_differ(args.x, normed, in, tokens, t);
        for (int64_t o = 0; o < out; o++) {
            double part = normed->row_sums != NULL ? (double)normed->row_sums[o] * mean : 0;
            sums[o * tokens + t] = (float)(((double)sums[o * tokens + t] - part) / deviation);
        }
    }
    for (int64_t o = 0; o < out && status == ESP_OK; o++) {
        far_finish_row(given, o, sums + o * tokens);
    }
    if (status == ESP_OK) {
        far_write_rows(given, sums);
    }
    free(sums);
    return status;
}

#endif
