/* Numbers that are hard on sums. Each row of W and each token of X is of one kind, so that every
 * kind of row meets every kind of token:
 *
 *   EVEN      rows: pairs of one size and both signs; tokens: all but one value. They meet in sums
 *             that cancel: what is left is 2^-9 of the terms
 *   MIXED     sizes from 2^-20 to 1 in rows, to 2^10 in tokens, of both signs
 *   TINY      subnormal numbers of their type
 *   POSITIVE  in rows 1/2 to 1; in tokens as large as the output type allows, so that the largest
 *             result of the token is near the largest number that the type holds
 *
 * No sum of magnitudes passes what the output type holds: no true result is too large, nor is any
 * sum in f32, whatever its order. */
#include <float.h>

#include "product.h"

typedef enum hardness { EVEN, MIXED, TINY, POSITIVE, HARDNESSES } hardness;

static double largest_of(esp_dtype dtype)
{
    return dtype == ESP_F16 ? 65504 : dtype == ESP_BF16 ? 0x1.fep127 : (double)FLT_MAX;
}

static float subnormal(esp_random *random, esp_dtype dtype)
{
    int64_t count = dtype == ESP_F16 ? 1023 : dtype == ESP_BF16 ? 127 : 0x7fffff;
    int exponent = dtype == ESP_F16 ? -24 : dtype == ESP_BF16 ? -133 : -149;
    float value = ldexpf((float)random_range(random, 1, count), exponent);
    return esp_random_below(random, 2) == 0 ? value : -value;
}

static float mixed(esp_random *random, int largest)
{
    float value = (float)(0.5 + 0.5 * esp_random_uniform(random));
    value = ldexpf(value, (int)random_range(random, -20, largest));
    return esp_random_below(random, 2) == 0 ? value : -value;
}

/* Between a half and one. */
static float positive(esp_random *random)
{
    return (float)(0.5 + 0.5 * esp_random_uniform(random));
}

/* ---- weights ---- */

static void draw_row(esp_random *random, const esp_mask *mask, esp_tensor *dense, int64_t row)
{
    int64_t in = dense->shape[1];
    hardness kind = (hardness)esp_random_below(random, HARDNESSES);
    float before = 0; /* of an even row, what waits for its counterpart */
    for (int64_t f = 0; f < in; f++) {
        if (mask != NULL && !esp_mask_get(mask, row, f)) {
            continue;
        }
        float value = kind == MIXED  ? mixed(random, 0)
                      : kind == TINY ? subnormal(random, dense->dtype)
                                     : positive(random);
        if (kind == EVEN && before != 0) {
            value = -before;
            before = 0;
        } else if (kind == EVEN) {
            before = value;
        }
        put(dense->dtype, dense->data, row * in + f, value);
    }
}

void adversarial_weights(esp_random *random, const esp_mask *mask, esp_tensor *dense)
{
    for (int64_t row = 0; row < dense->shape[0]; row++) {
        draw_row(random, mask, dense, row);
    }
}

/* ---- activations ---- */

static int64_t place_of(const product *p, int64_t feature, int64_t token)
{
    return element_at(p->problem.x_layout == ESP_FEATURE_MAJOR, p->x_stride, feature, token);
}

static void draw_token(esp_random *random, product *p, int64_t t, hardness kind)
{
    const esp_matmul_problem *problem = &p->problem;
    float all = positive(random);
    for (int64_t f = 0; f < problem->in_features; f++) {
        float value = kind == EVEN    ? all * (1 + 0x1p-8f * positive(random))
                      : kind == MIXED ? mixed(random, 10)
                      : kind == TINY  ? subnormal(random, problem->act_type)
                                      : positive(random);
        put(problem->act_type, p->x, place_of(p, f, t), value);
    }
}

/* By what the token may be multiplied so that no result and no sum is too large. */
static double room_of(const product *p, const double *sums, int64_t t)
{
    const esp_matmul_problem *problem = &p->problem;
    double room = HUGE_VAL;
    for (int64_t o = 0; o < problem->out_features; o++) {
        double size = sums[o * problem->tokens + t], most = largest_of(problem->out_type);
        room = fmin(room, (double)FLT_MAX / size);
        if ((problem->epilogue & ESP_EP_SCALE) != 0) {
            size *= fabs((double)p->scale[o]);
        }
        if ((problem->epilogue & ESP_EP_BIAS) != 0) {
            most -= fabs((double)p->bias[o]);
        }
        if ((problem->epilogue & ESP_EP_RESIDUAL) != 0) {
            most -= fabs((double)p->residual[o * problem->tokens + t]);
        }
        room = fmin(room, most / size);
    }
    return 0.9 * room; /* rounding X makes it no larger than that */
}

static void multiply_token(product *p, int64_t t, double factor)
{
    esp_dtype type = p->problem.act_type;
    for (int64_t f = 0; f < p->problem.in_features; f++) {
        double value = factor * (double)esp_weight_at(type, p->x, place_of(p, f, t));
        put(type, p->x, place_of(p, f, t), (float)value);
    }
}

void adversarial_x(test_run *run, esp_random *random, product *p)
{
    int64_t tokens = p->problem.tokens;
    hardness *kinds = malloc((size_t)tokens * sizeof *kinds);
    CHECK((p->problem.epilogue & ESP_EP_SWIGLU) == 0);
    for (int64_t t = 0; t < tokens; t++) {
        kinds[t] = (hardness)esp_random_below(random, HARDNESSES);
        draw_token(random, p, t, kinds[t]);
    }
    double *sums = magnitudes(run, p);
    for (int64_t t = 0; t < tokens; t++) {
        double room = room_of(p, sums, t), most = 0.9 * largest_of(p->problem.act_type);
        multiply_token(p, t, kinds[t] == POSITIVE ? fmin(room, most) : fmin(room, 1));
    }
    free(sums);
    free(kinds);
}
