/* Samples of products too large to compute whole beside a kernel: single results in double, with a
 * bound that follows from what the kernel may do. A sum of n products in f32 is within (n + 2) *
 * 2^-24 * sum |w||x|; scale and bias add a rounding each; an activation passes that on by its slope
 * and adds its own error; what is left is the rounding of the result. */
#include "product.h"

double activated(unsigned epilogue, double v)
{
    if ((epilogue & ESP_EP_RELU) != 0) {
        return v < 0 ? 0 : v;
    }
    if ((epilogue & ESP_EP_GELU) != 0) {
        return 0.5 * v * erfc(-v / sqrt(2.0));
    }
    if ((epilogue & ESP_EP_GELU_TANH) != 0) {
        return v / (1 + exp(-2 * sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
    }
    return (epilogue & (ESP_EP_SILU | ESP_EP_SWIGLU)) != 0 ? v / (1 + exp(-v)) : v;
}

double half_step(esp_dtype type, double v)
{
    return type == ESP_F32   ? 0x1p-24 * fabs(v)
           : type == ESP_F16 ? fmax(0x1p-11 * fabs(v), 0x1p-25)
                             : fmax(0x1p-8 * fabs(v), 0x1p-134);
}

/* What an activation may be off by where its argument is v and its result is given: relative, for
 * short forms where results are rounded to 16 bits, and by rounding 1 + erf in f32. */
static double activation_error(const esp_matmul_problem *problem, double v, double result)
{
    const unsigned curved = ESP_EP_GELU | ESP_EP_GELU_TANH | ESP_EP_SILU | ESP_EP_SWIGLU;
    if ((problem->epilogue & curved) == 0) {
        return 0;
    }
    return (problem->out_type == ESP_F32 ? 0x1p-20 : 0x1p-14) * fabs(result) + 0x1p-23 * fabs(v);
}

/* The row's sum with scale and bias, and how far f32 may be from it. */
static double linear_sum(const product *p, const esp_tensor *dense, int64_t o, int64_t t,
                         double *bound)
{
    const esp_matmul_problem *problem = &p->problem;
    double sum = 0, size = 0, roundings = (double)problem->in_features + 2;
    for (int64_t f = 0; f < problem->in_features; f++) {
        double w = (double)esp_weight_at(dense->dtype, dense->data, o * problem->in_features + f);
        int64_t at = element_at(problem->x_layout == ESP_FEATURE_MAJOR, p->x_stride, f, t);
        double term = w * (double)esp_weight_at(problem->act_type, p->x, at);
        sum += term;
        size += fabs(term);
    }
    if ((problem->epilogue & ESP_EP_SCALE) != 0) {
        sum *= (double)p->scale[o];
        size *= fabs((double)p->scale[o]);
        roundings++;
    }
    if ((problem->epilogue & ESP_EP_BIAS) != 0) {
        sum += (double)p->bias[o];
        size += fabs((double)p->bias[o]);
        roundings++;
    }
    *bound = roundings * 0x1p-24 * size;
    return sum;
}

static double expected(const product *p, const esp_tensor *dense, int64_t o, int64_t t,
                       double *bound)
{
    const esp_matmul_problem *problem = &p->problem;
    unsigned epilogue = problem->epilogue;
    const double slope = 1.13; /* gelu's largest */
    double result;
    if ((epilogue & ESP_EP_SWIGLU) != 0) {
        double of_gate, of_up;
        double gate = linear_sum(p, dense, 2 * o, t, &of_gate);
        double up = linear_sum(p, dense, 2 * o + 1, t, &of_up);
        result = activated(epilogue, gate) * up;
        *bound = slope * of_gate * (fabs(up) + of_up) + fabs(gate) * of_up +
                 activation_error(problem, gate * up, result);
    } else {
        double v = linear_sum(p, dense, o, t, bound);
        result = activated(epilogue, v);
        *bound = *bound * (result == v ? 1 : slope) + activation_error(problem, v, result);
    }
    if ((epilogue & ESP_EP_RESIDUAL) != 0) {
        result += (double)p->residual[o * problem->tokens + t];
    }
    *bound += half_step(problem->out_type, fabs(result) + *bound) + 0x1p-22 * fabs(result);
    return result;
}

void check_samples(test_run *run, const product *p, const float *actual, int count)
{
    const esp_matmul_problem *problem = &p->problem;
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    esp_tensor dense = {0};
    CHECK_OK(esp_tensor_create(p->context, problem->weight_type, 2,
                               (const int64_t[]){problem->out_features, problem->in_features},
                               &dense, error));
    CHECK_OK(esp_sparse_decode(p->sparse, &dense, error));
    for (int i = 0; i < count; i++) {
        int64_t rows = p->out_rows, tokens = problem->tokens;
        int64_t o = random_range(&random, i % 4 == 0 ? ESP_MAX(0, rows - 70) : 0, rows - 1);
        int64_t t = random_range(&random, i % 4 == 1 ? ESP_MAX(0, tokens - 40) : 0, tokens - 1);
        double bound, want = expected(p, &dense, o, t, &bound);
        double have = (double)actual[o * tokens + t];
        if (!(fabs(have - want) <= bound)) {
            test_fail(run, __FILE__, __LINE__,
                      "row %lld token %lld: %.9g, expected %.9g, bound %.3g", (long long)o,
                      (long long)t, have, want, bound);
            break;
        }
    }
    esp_tensor_free(p->context, &dense);
}
