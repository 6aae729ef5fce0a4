/* Activations and norms on vectors. exp and erf are made from polynomials of their own, so that
 * they run as wide as the rest. */
#ifndef ESP_CPU_ISA_ELEMENTWISE_H
#define ESP_CPU_ISA_ELEMENTWISE_H

#include <math.h>

#include "cpu/isa/vec.h"
#include "cpu/level.h"

/* e^x within 2 ulp for x in [-87, 88]; below 0 underflows to 0 by way of clamping (e^-87 ~ 1e-38),
 * above to infinity; NaN stays. 2^n times a polynomial of degree 6 on [-ln2/2, ln2/2] (Taylor,
 * remainder below 2^-26), ln2 in two parts. */
ALWAYS_INLINE vec vec_exp(vec x)
{
    vec low = vec_set(-87.0f), high = vec_set(88.0f);
    ivec below = x<low, above = x> high;
    vec clamped = (vec)(((ivec)x & ~below & ~above) | ((ivec)low & below) | ((ivec)high & above));
    ivec is_nan = x != x;
    clamped = (vec)((ivec)clamped & ~is_nan);
    vec magic = vec_set(12582912.0f); /* 1.5 * 2^23: rounds to an integer in the low bits */
    vec shifted = vec_fma(clamped, vec_set(1.44269504088896f), magic);
    vec n = shifted - magic;
    vec rest = vec_fma(n, vec_set(-0.693359375f), clamped);
    rest = vec_fma(n, vec_set(2.12194440e-4f), rest);
    vec sum = vec_set(1.0f / 720);
    sum = vec_fma(sum, rest, vec_set(1.0f / 120));
    sum = vec_fma(sum, rest, vec_set(1.0f / 24));
    sum = vec_fma(sum, rest, vec_set(1.0f / 6));
    sum = vec_fma(sum, rest, vec_set(0.5f));
    sum = vec_fma(sum, rest, vec_set(1.0f));
    sum = vec_fma(sum, rest, vec_set(1.0f));
    ivec exponent = ((ivec)shifted - (ivec)magic + 127) << 23;
    vec result = sum * (vec)exponent;
    ivec infinity = (ivec)vec_set(INFINITY);
    ivec bits = ((ivec)result & ~below & ~above & ~is_nan) | (infinity & above);
    return (vec)(bits | ((ivec)x & is_nan));
}

ALWAYS_INLINE vec vec_silu(vec x)
{
    return x / (vec_set(1.0f) + vec_exp(-x));
}

/* The last, partial vector goes through a copy. */

ALWAYS_INLINE vec load_upto(const float *from, int64_t count)
{
    vec value = {0};
    if (count >= LANES) {
        return vec_load(from);
    }
    memcpy(&value, from, (size_t)count * sizeof(float));
    return value;
}

ALWAYS_INLINE void store_upto(float *to, vec value, int64_t count)
{
    if (count >= LANES) {
        vec_store(to, value);
    } else {
        memcpy(to, &value, (size_t)count * sizeof(float));
    }
}

static void swiglu_values(const float *gate, const float *up, int64_t count, float *y)
{
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        vec_store(y + i, vec_silu(vec_load(gate + i)) * vec_load(up + i));
    }
    if (i < count) {
        vec value = vec_silu(load_upto(gate + i, count - i)) * load_upto(up + i, count - i);
        store_upto(y + i, value, count - i);
    }
}

/* 0.5 x (1 + erf(x / sqrt 2)). erfc(z) = (a1 t + ... + a5 t^5) exp(-z^2), t = 1 / (1 + p z), within
 * 1.5e-7 for z >= 0: Abramowitz and Stegun 7.1.26. */
ALWAYS_INLINE vec vec_gelu(vec x)
{
    vec z = x * vec_set(0.707106781f);
    z = (vec)((ivec)z & 0x7fffffff);
    vec t = vec_set(1.0f) / vec_fma(vec_set(0.3275911f), z, vec_set(1.0f));
    vec sum = vec_set(1.061405429f);
    sum = vec_fma(sum, t, vec_set(-1.453152027f));
    sum = vec_fma(sum, t, vec_set(1.421413741f));
    sum = vec_fma(sum, t, vec_set(-0.284496736f));
    sum = vec_fma(sum, t, vec_set(0.254829592f));
    vec rest = sum * t * vec_exp(-z * z);
    ivec negative = x < vec_set(0.0f);
    vec whole = vec_set(2.0f) - rest;
    vec share = (vec)(((ivec)rest & negative) | ((ivec)whole & ~negative));
    return vec_set(0.5f) * x * share;
}

/* 0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)) */
ALWAYS_INLINE vec vec_gelu_tanh(vec x)
{
    vec cubic = vec_fma(vec_set(0.044715f) * x * x, x, x);
    return x / (vec_set(1.0f) + vec_exp(vec_set(-1.595769122f) * cubic));
}

ALWAYS_INLINE vec vec_activate(unsigned epilogue, vec x)
{
    vec zero = {0};
    return (epilogue & ESP_EP_SILU) != 0        ? vec_silu(x)
           : (epilogue & ESP_EP_GELU) != 0      ? vec_gelu(x)
           : (epilogue & ESP_EP_GELU_TANH) != 0 ? vec_gelu_tanh(x)
           : (epilogue & ESP_EP_RELU) != 0      ? (vec)((ivec)x & ~(x < zero))
                                                : x;
}

/* epilogue: a constant, so that a loop holds one activation and nothing else. */
ALWAYS_INLINE void activate_values(unsigned epilogue, float *values, int64_t count)
{
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        vec_store(values + i, vec_activate(epilogue, vec_load(values + i)));
    }
    if (i < count) {
        store_upto(values + i, vec_activate(epilogue, load_upto(values + i, count - i)), count - i);
    }
}

static void activate(unsigned epilogue, float *values, int64_t count)
{
    if ((epilogue & ESP_EP_SILU) != 0) {
        activate_values(ESP_EP_SILU, values, count);
    } else if ((epilogue & ESP_EP_GELU) != 0) {
        activate_values(ESP_EP_GELU, values, count);
    } else if ((epilogue & ESP_EP_GELU_TANH) != 0) {
        activate_values(ESP_EP_GELU_TANH, values, count);
    } else if ((epilogue & ESP_EP_RELU) != 0) {
        activate_values(ESP_EP_RELU, values, count);
    }
}

/* Tokens side by side: one pass for the sums of squares, one to scale. */
static void rms_norm_tokens(const float *x, const float *weight, float eps, int64_t features,
                            int64_t tokens, int64_t stride, float *factors, float *y)
{
    for (int64_t t = 0; t < tokens; t++) {
        factors[t] = 0;
    }
    for (int64_t i = 0; i < features; i++) {
        const float *row = x + i * stride;
        for (int64_t t = 0; t < tokens; t++) {
            factors[t] += row[t] * row[t];
        }
    }
    for (int64_t t = 0; t < tokens; t++) {
        factors[t] = 1.0f / sqrtf(factors[t] / (float)features + eps);
    }
    for (int64_t i = 0; i < features; i++) {
        for (int64_t t = 0; t < tokens; t++) {
            y[i * stride + t] = x[i * stride + t] * factors[t] * weight[i];
        }
    }
}

/* One token: the features side by side. */
static void rms_norm_one(const float *x, const float *weight, float eps, int64_t features, float *y)
{
    vec sum = {0};
    for (int64_t i = 0; i < features; i += LANES) {
        vec value = load_upto(x + i, features - i);
        sum = vec_fma(value, value, sum);
    }
    float factor = 1.0f / sqrtf(vec_sum(sum) / (float)features + eps);
    for (int64_t i = 0; i < features; i++) {
        y[i] = x[i] * factor * weight[i];
    }
}

/* Tokens side by side: a pass for the means, one for the variances, one to scale. */
static void layer_norm(const float *x, const float *weight, const float *bias, float eps,
                       int64_t features, int64_t tokens, int64_t stride, float *means,
                       float *factors, float *y)
{
    for (int64_t t = 0; t < tokens; t++) {
        means[t] = factors[t] = 0;
    }
    for (int64_t i = 0; i < features; i++) {
        const float *row = x + i * stride;
        for (int64_t t = 0; t < tokens; t++) {
            means[t] += row[t];
        }
    }
    for (int64_t t = 0; t < tokens; t++) {
        means[t] /= (float)features;
    }
    for (int64_t i = 0; i < features; i++) {
        const float *row = x + i * stride;
        for (int64_t t = 0; t < tokens; t++) {
            float apart = row[t] - means[t];
            factors[t] += apart * apart;
        }
    }
    for (int64_t t = 0; t < tokens; t++) {
        factors[t] = 1.0f / sqrtf(factors[t] / (float)features + eps);
    }
    for (int64_t i = 0; i < features; i++) {
        for (int64_t t = 0; t < tokens; t++) {
            y[i * stride + t] = (x[i * stride + t] - means[t]) * factors[t] * weight[i] + bias[i];
        }
    }
}

static void rms_norm(const float *x, const float *weight, float eps, int64_t features,
                     int64_t tokens, int64_t stride, float *factors, float *y)
{
    if (tokens == 1 && stride == 1) {
        rms_norm_one(x, weight, eps, features, y);
    } else {
        rms_norm_tokens(x, weight, eps, features, tokens, stride, factors, y);
    }
}

#endif
