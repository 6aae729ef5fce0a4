/* X to packed bf16 (bf16.h), rounded to nearest even: tiny numbers become zero, as the products
 * would take them; NaN stays NaN. One read of X and one write; the flag for Inf and NaN costs one
 * comparison per 32 numbers. */
#ifndef ESP_CPU_BF16_PACK_X_H
#define ESP_CPU_BF16_PACK_X_H

#include <immintrin.h>

#include "cpu/bf16/bf16.h"

#define PACK_FEATURES 32

/* 32 numbers from two vectors, in order. */
static inline __m512i narrow_pair(__m512 low, __m512 high)
{
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

static inline __mmask32 not_finite(__m512i halves)
{
    __m512i exponent = _mm512_set1_epi16(0x7f80);
    return _mm512_cmpeq_epi16_mask(_mm512_and_si512(halves, exponent), exponent);
}

/* Features begin..begin+31 (zero from `end` on) of up to 32 tokens from `token` of the call on. */
static inline void fetch_x(const bf16_pack *pack, int64_t begin, int64_t end, int64_t token,
                           int64_t count, float to[PACK_FEATURES][BF16_TILE_TOKENS])
{
    const esp_matmul_call *call = pack->call;
    int64_t stride = call->args->x_stride, features = end - begin;
    size_t width = esp_dtype_bytes(call->problem->act_type);
    const char *x = call->args->x;
    memset(to, 0, sizeof(float[PACK_FEATURES][BF16_TILE_TOKENS]));
    if (call->problem->x_layout == ESP_FEATURE_MAJOR) {
        for (int64_t f = 0; f < features; f++) {
            esp_widen(call->problem->act_type, x + (size_t)((begin + f) * stride + token) * width,
                      count, to[f]);
        }
        return;
    }
    for (int64_t t = 0; t < count; t++) {
        float column[PACK_FEATURES];
        esp_widen(call->problem->act_type, x + (size_t)((token + t) * stride + begin) * width,
                  features, column);
        for (int64_t f = 0; f < features; f++) {
            to[f][t] = column[f];
        }
    }
}

/* 32 features of a tile; from: row f at from + f * stride, 32 numbers each. */
static inline __mmask32 pack_rows(const float *from, int64_t stride, int64_t features, uint16_t *to)
{
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    __mmask32 odd = 0;
    for (int64_t f = 0; f < features; f++) {
        const float *row = from + f * stride;
        __m512i halves = narrow_pair(_mm512_loadu_ps(row), _mm512_loadu_ps(row + 16));
        odd |= not_finite(halves);
        _mm512_store_si512(to + f * BF16_TILE_TOKENS, _mm512_permutexvar_epi64(order, halves));
    }
    for (int64_t f = features; f < PACK_FEATURES; f++) {
        _mm512_store_si512(to + f * BF16_TILE_TOKENS, _mm512_setzero_si512());
    }
    return odd;
}

static inline __mmask32 pack_pairs(const float *from, int64_t stride, uint16_t *to)
{
    static const uint16_t interleaved[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                             21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                             11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i order = _mm512_loadu_si512(interleaved);
    __mmask32 odd = 0;
    for (int64_t pair = 0; pair < PACK_FEATURES / 2; pair++) {
        const float *row = from + 2 * pair * stride, *next = row + stride;
        for (int64_t half = 0; half < 2; half++) {
            __m512i halves =
                narrow_pair(_mm512_loadu_ps(row + 16 * half), _mm512_loadu_ps(next + 16 * half));
            odd |= not_finite(halves);
            _mm512_store_si512(to + half * 512 + pair * BF16_TILE_TOKENS,
                               _mm512_permutexvar_epi16(order, halves));
        }
    }
    return odd;
}

/* PACK_FEATURES features from `first` on, 32 tokens from t of the pass on, zero where there are
 * none: where they lie if they lie so, else in the buffer. */
static inline const float *tile_of_x(const bf16_pack *pack, int64_t first, int64_t t,
                                     float buffer[PACK_FEATURES][BF16_TILE_TOKENS], int64_t *stride)
{
    const esp_matmul_problem *problem = pack->call->problem;
    int64_t last = ESP_MAX(first, ESP_MIN(problem->in_features, first + PACK_FEATURES));
    int64_t count = ESP_MIN(BF16_TILE_TOKENS, pack->tokens - t);
    if (problem->act_type == ESP_F32 && problem->x_layout == ESP_FEATURE_MAJOR &&
        count == BF16_TILE_TOKENS && last == first + PACK_FEATURES) {
        *stride = pack->call->args->x_stride;
        return (const float *)pack->call->args->x + first * *stride + pack->token + t;
    }
    fetch_x(pack, first, last, pack->token + t, count, buffer);
    *stride = BF16_TILE_TOKENS;
    return buffer[0];
}

/* begin is a multiple of PACK_FEATURES; features beyond in are zero. */
static void pack_x(const bf16_pack *pack, int64_t begin, int64_t end)
{
    __mmask32 odd = 0;
    for (int64_t first = begin; first < end; first += PACK_FEATURES) {
        for (int64_t t = 0; t < pack->tokens; t += BF16_TILE_TOKENS) {
            float buffer[PACK_FEATURES][BF16_TILE_TOKENS];
            int64_t stride;
            const float *from = tile_of_x(pack, first, t, buffer, &stride);
            uint16_t *to = pack->x + (t / BF16_TILE_TOKENS * pack->x_rows + first) * 32;
            odd |= pack->form == BF16_AS_ROWS ? pack_rows(from, stride, PACK_FEATURES, to)
                                              : pack_pairs(from, stride, to);
        }
    }
    if (odd != 0) {
        atomic_store_explicit(pack->not_finite, true, memory_order_relaxed);
    }
}

#endif
