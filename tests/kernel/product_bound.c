/* How far a kernel may be from the reference on real numbers, derived, not tuned: a sum of n
 * products of f32 in any order, fused or not, is within (n + 2) * 2^-24 * sum |w||x| of the exact
 * one (Higham, 3.1); the reference's own error is one rounding. Epilogues pass the bound on by
 * their slopes.
 *
 * Below the smallest normal number a rounding is off by half of the distance between subnormal
 * ones, whatever its result: 2^-150 in f32. Sums of such numbers are exact, their products are not.
 * So n products, and what scale and activation multiply, are off by n + 2 times that besides, and
 * rounding to the output type by half of its own smallest number. Nothing here allows that
 * subnormal numbers, of inputs or of results, become zero. */
#include "product.h"

#define EPS 0x1p-23       /* twice the unit roundoff: first-order terms with room for the others */
#define SMALLEST 0x1p-149 /* of f32, twice what a product below the normal numbers is off by */

/* sum |w||x| for every [out row][token], from the decoded weight. */
double *magnitudes(test_run *run, const product *p)
{
    const esp_matmul_problem *problem = &p->problem;
    int64_t out = problem->out_features, in = problem->in_features, tokens = problem->tokens;
    double *sums = calloc((size_t)(out * tokens), sizeof *sums);
    double *x = malloc((size_t)(in * tokens) * sizeof *x);
    esp_tensor dense = {0};
    CHECK_OK(esp_tensor_create(p->context, problem->weight_type, 2, (const int64_t[]){out, in},
                               &dense, error));
    CHECK_OK(esp_sparse_decode(p->sparse, &dense, error));
    for (int64_t f = 0; f < in; f++) {
        for (int64_t t = 0; t < tokens; t++) {
            int64_t at = element_at(problem->x_layout == ESP_FEATURE_MAJOR, p->x_stride, f, t);
            x[f * tokens + t] = fabs((double)esp_weight_at(problem->act_type, p->x, at));
        }
    }
    for (int64_t o = 0; o < out; o++) {
        for (int64_t f = 0; f < in; f++) {
            double w = fabs((double)esp_weight_at(dense.dtype, dense.data, o * in + f));
            for (int64_t t = 0; w != 0 && t < tokens; t++) {
                sums[o * tokens + t] += w * x[f * tokens + t];
            }
        }
    }
    esp_tensor_free(p->context, &dense);
    free(x);
    return sums;
}

/* Bound and size of row o before the activation. */
static double linear_bound(const product *p, const double *sums, int64_t o, int64_t t, double *size)
{
    unsigned epilogue = p->problem.epilogue;
    double magnitude = sums[o * p->problem.tokens + t] * 1.02; /* bf16 rounding of inputs */
    double bound = (double)(p->problem.in_features + 2) * (EPS / 2 * magnitude + SMALLEST);
    if ((epilogue & ESP_EP_SCALE) != 0) {
        magnitude *= fabs((double)p->scale[o]);
        bound = bound * fabs((double)p->scale[o]) + EPS * magnitude + SMALLEST;
    }
    if ((epilogue & ESP_EP_BIAS) != 0) {
        magnitude += fabs((double)p->bias[o]);
        bound += EPS * magnitude;
    }
    *size = magnitude;
    return bound;
}

/* Relative. Kernels may take shorter forms of an activation whose result is rounded to 16 bits. */
static double activation_error(const esp_matmul_problem *problem)
{
    unsigned curved = ESP_EP_GELU | ESP_EP_GELU_TANH | ESP_EP_SILU | ESP_EP_SWIGLU;
    return problem->out_type != ESP_F32 && (problem->epilogue & curved) != 0 ? 0x1p-14 : 0;
}

static double output_bound(const product *p, const double *sums, int64_t o, int64_t t,
                           double expected)
{
    const double slope = 1.13; /* gelu's largest; silu 1.1, relu 1 */
    unsigned epilogue = p->problem.epilogue;
    double size, up_size, bound;
    if ((epilogue & ESP_EP_SWIGLU) != 0) {
        double gate = linear_bound(p, sums, 2 * o, t, &size);
        double up = linear_bound(p, sums, 2 * o + 1, t, &up_size);
        bound = slope * gate * (up_size + up) + size * up + 8 * EPS * size * up_size;
        size *= up_size;
    } else {
        bound = linear_bound(p, sums, o, t, &size) * slope + 8 * EPS * size;
    }
    bound += activation_error(&p->problem) * size;
    if ((epilogue & ESP_EP_RESIDUAL) != 0) {
        bound += EPS * (size + fabs((double)p->residual[o * p->problem.tokens + t]));
    }
    bound += SMALLEST; /* of the activation */
    /* Both sides round to the output type: together one step of it. */
    double step = p->problem.out_type == ESP_F32   ? EPS
                  : p->problem.out_type == ESP_F16 ? 0x1p-10
                                                   : 0x1p-7;
    double smallest = p->problem.out_type == ESP_F32   ? SMALLEST
                      : p->problem.out_type == ESP_F16 ? 0x1p-24
                                                       : 0x1p-133;
    return bound + step * (fabs(expected) + bound) + smallest;
}

void compare_bounded(test_run *run, const product *p, const double *sums, const float *expected,
                     const float *actual)
{
    for (int64_t o = 0; o < p->out_rows; o++) {
        for (int64_t t = 0; t < p->problem.tokens; t++) {
            double want = (double)expected[o * p->problem.tokens + t];
            double have = (double)actual[o * p->problem.tokens + t];
            double bound = output_bound(p, sums, o, t, want);
            if (!(fabs(have - want) <= bound)) {
                test_fail(run, __FILE__, __LINE__,
                          "row %lld token %lld: %.9g, reference %.9g, bound %.3g", (long long)o,
                          (long long)t, have, want, bound);
                return;
            }
        }
    }
}

void compare_exact(test_run *run, const product *p, const float *expected, const float *actual)
{
    int64_t tokens = p->problem.tokens;
    for (int64_t at = 0; at < p->out_rows * tokens; at++) {
        if (!(actual[at] == expected[at])) {
            test_fail(run, __FILE__, __LINE__, "row %lld token %lld: %.9g, reference %.9g",
                      (long long)(at / tokens), (long long)(at % tokens), (double)actual[at],
                      (double)expected[at]);
            return;
        }
    }
}
