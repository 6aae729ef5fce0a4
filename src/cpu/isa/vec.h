/* Vectors of LANES floats at the level that this file is compiled for, on the compiler's vector
 * types; instructions by name only where the types have no operator for them. */
#ifndef ESP_CPU_ISA_VEC_H
#define ESP_CPU_ISA_VEC_H

#include <stdint.h>
#include <string.h>

#include "tensor/tensor.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#elif defined(__AVX2__)
#include <immintrin.h>
#define LANES 8
#else
#define LANES 4
#endif

#define VEC_AHEAD 3072 /* bytes */

#define ALWAYS_INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));

ALWAYS_INLINE vec vec_load(const float *from) /* any alignment */
{
    vec value;
    memcpy(&value, from, sizeof value);
    return value;
}

ALWAYS_INLINE void vec_store(float *to, vec value)
{
    memcpy(to, &value, sizeof value);
}

ALWAYS_INLINE vec vec_set(float value)
{
#if LANES == 16
    return (vec)_mm512_set1_ps(value);
#elif LANES == 8
    return (vec)_mm256_set1_ps(value);
#else
    return (vec){value, value, value, value};
#endif
}

ALWAYS_INLINE vec vec_fma(vec a, vec b, vec c)
{
#if LANES == 16
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LANES == 8
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

ALWAYS_INLINE uvec vec_lanes(void) /* 0, 1, 2... */
{
    uvec lanes;
    for (unsigned i = 0; i < LANES; i++) {
        lanes[i] = i;
    }
    return lanes;
}

/* In a fixed order: halves onto each other. */
ALWAYS_INLINE float vec_sum(vec value)
{
    typedef float quarter __attribute__((vector_size(16)));
#if LANES == 4
    quarter low = value;
#else
#if LANES == 16
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)value),
                                _mm512_extractf32x8_ps((__m512)value, 1));
#else
    __m256 half = (__m256)value;
#endif
    quarter low = (quarter)_mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#endif
    return (low[0] + low[2]) + (low[1] + low[3]);
}

/* Asks for weights that a stream reaches soon: prefetchers of the processor stop at each page and
 * know but a few streams. Any place will do. */
ALWAYS_INLINE void vec_prefetch(esp_dtype dtype, const void *values, int64_t at, size_t bytes_on)
{
    size_t width = dtype == ESP_F32 ? 4 : 2;
    __builtin_prefetch((const void *)((uintptr_t)values + (size_t)at * width + bytes_on), 0, 3);
}

/* gcc 12 takes __builtin_convertvector apart into quarters. */
ALWAYS_INLINE uvec vec_widen_u16(hvec half)
{
#if LANES == 16
    return (uvec)_mm512_cvtepu16_epi32((__m256i)half);
#elif LANES == 8
    return (uvec)_mm256_cvtepu16_epi32((__m128i)half);
#else
    return __builtin_convertvector(half, uvec);
#endif
}

/* LANES weights widened to f32. */
ALWAYS_INLINE vec vec_load_weights(esp_dtype dtype, const void *values, int64_t at)
{
    if (dtype == ESP_F32) {
        return vec_load((const float *)values + at);
    }
    hvec half;
    memcpy(&half, (const uint16_t *)values + at, sizeof half);
    if (dtype == ESP_BF16) {
        return (vec)(vec_widen_u16(half) << 16);
    }
#if LANES == 16
    return (vec)_mm512_cvtph_ps((__m256i)half);
#elif LANES == 8
    return (vec)_mm256_cvtph_ps((__m128i)half);
#else
    vec wide;
    for (int i = 0; i < LANES; i++) {
        wide[i] = esp_float_of_f16(half[i]);
    }
    return wide;
#endif
}

/* Rounded to bf16 and widened again; NaN stays NaN. */
ALWAYS_INLINE vec vec_round_bf16(vec value)
{
    uvec bits = (uvec)value;
    uvec rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
    uvec quiet = (bits | 0x400000u) & 0xffff0000u;
    uvec is_nan = (uvec)(value != value);
    return (vec)((rounded & ~is_nan) | (quiet & is_nan));
}

/* from[index[i]]. Without optimisation the intrinsic is a macro, with a conversion of its own. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"
ALWAYS_INLINE vec vec_gather(const float *from, uvec index)
{
#if LANES == 16
    return (vec)_mm512_i32gather_ps((__m512i)index, from, 4);
#elif LANES == 8
    return (vec)_mm256_i32gather_ps(from, (__m256i)index, 4);
#else
    return (vec){from[index[0]], from[index[1]], from[index[2]], from[index[3]]};
#endif
}
#pragma GCC diagnostic pop

/* Which of 2 * LANES kept columns each of LANES stored values stands at: two bits a value, two
 * values of each four columns. Reads LANES / 4 bytes. */
ALWAYS_INLINE uvec vec_kept_index(const uint8_t *positions)
{
#if LANES == 16
    uint32_t bits;
#elif LANES == 8
    uint16_t bits;
#else
    uint8_t bits;
#endif
    memcpy(&bits, positions, sizeof bits);
    uvec shifts, bases;
    for (unsigned i = 0; i < LANES; i++) {
        shifts[i] = 2 * i;
        bases[i] = i / 2 * 4;
    }
    uvec wide = (uvec){0} + (uint32_t)bits;
    return (wide >> shifts & 3u) | bases;
}

/* table[index[i]] of 2 * LANES floats (bits are only moved). */
ALWAYS_INLINE vec vec_pick(const float *table, uvec index)
{
#if LANES == 16
    return (vec)_mm512_permutex2var_ps((__m512)vec_load(table), (__m512i)index,
                                       (__m512)vec_load(table + LANES));
#elif LANES == 8
    __m256 low = _mm256_permutevar8x32_ps((__m256)vec_load(table), (__m256i)index);
    __m256 high = _mm256_permutevar8x32_ps((__m256)vec_load(table + LANES), (__m256i)index);
    return (vec)_mm256_blendv_ps(low, high, (__m256)(index << 28));
#else
    vec picked;
    for (int i = 0; i < LANES; i++) {
        picked[i] = table[index[i]];
    }
    return picked;
#endif
}

ALWAYS_INLINE uvec vec_pick_u32(const uint32_t *table, uvec index)
{
#if LANES >= 8
    return (uvec)vec_pick((const float *)(const void *)table, index);
#else
    uvec picked;
    for (int i = 0; i < LANES; i++) {
        picked[i] = table[index[i]];
    }
    return picked;
#endif
}

#endif
