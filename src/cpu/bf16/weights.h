/* Rows of stored weights as bf16 rows of a tile product: 32 (kept) columns in 64 bytes, zero where
 * nothing is stored. Two of four: the positions (a nibble for four columns) become four bits of a
 * mask by one table look-up, and the stored values are spread under that mask (vpexpandw).
 */
#ifndef ESP_CPU_BF16_WEIGHTS_H
#define ESP_CPU_BF16_WEIGHTS_H

#include <immintrin.h>

#include "cpu/bf16/bf16.h"

#define ALWAYS static inline __attribute__((always_inline))
#define ROW_STEPS                                                                                  \
    4 /* steps of 32 (kept) columns that are made at a time: 16 bytes of positions                 \
       */

/* 16 stored values, of which `valid` are there; the others are zero. */
ALWAYS __m256i load_16(esp_dtype dtype, const void *values, int64_t at, __mmask16 valid)
{
    if (dtype == ESP_BF16) {
        return _mm256_maskz_loadu_epi16(valid, (const uint16_t *)values + at);
    }
    __m512 wide;
    if (dtype == ESP_F32) {
        wide = _mm512_maskz_loadu_ps(valid, (const float *)values + at);
    } else {
        wide = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(valid, (const uint16_t *)values + at));
    }
    return (__m256i)_mm512_cvtneps_pbh(wide);
}

ALWAYS __mmask16 first_16(int64_t count)
{
    return (__mmask16)(count >= 16 ? 0xffffu : (1u << ESP_MAX(count, 0)) - 1);
}

/* Nibbles of 128 kept columns to 128 bits: bit c set where a value stands at column c. */
ALWAYS __m128i kept_bits(__m128i positions)
{
    /* nibble: lower position | upper << 2; 4 = 0,1  8 = 0,2  9 = 1,2  c = 0,3  d = 1,3  e = 2,3 */
    const __m128i low = _mm_setr_epi8(0, 0, 0, 0, 3, 0, 0, 0, 5, 6, 0, 0, 9, 10, 12, 0);
    const __m128i nibble = _mm_set1_epi8(15);
    __m128i even = _mm_shuffle_epi8(low, _mm_and_si128(positions, nibble));
    __m128i odd = _mm_shuffle_epi8(low, _mm_and_si128(_mm_srli_epi16(positions, 4), nibble));
    return _mm_or_si128(even, _mm_slli_epi16(odd, 4));
}

/* Kept columns column .. column + 127 (a multiple of 128) of row `row`, 32 to a step. */
ALWAYS void spread_row(const esp_host_weight *weight, esp_dtype dtype, int64_t row, int64_t column,
                       char *to, int64_t step_bytes)
{
    int64_t left = weight->row_values - column / 2, at = row * weight->row_values + column / 2;
    const uint8_t *positions = weight->positions + row * weight->position_bytes + column / 8;
    uint8_t held[16] = {0};
    bool whole = left >= 16 * ROW_STEPS;
    if (!whole) {
        memcpy(held, positions, (size_t)esp_ceil_div(left, 4));
        positions = held;
    }
    __m128i bits = kept_bits(_mm_loadu_si128((const __m128i *)(const void *)positions));
    uint64_t low = (uint64_t)_mm_cvtsi128_si64(bits), high = (uint64_t)_mm_extract_epi64(bits, 1);
    uint32_t masks[ROW_STEPS] = {(uint32_t)low, (uint32_t)(low >> 32), (uint32_t)high,
                                 (uint32_t)(high >> 32)};
    _Pragma("GCC unroll 4") for (int s = 0; s < ROW_STEPS; s++)
    {
        __mmask16 valid = whole ? 0xffff : first_16(left - 16 * s);
        __m256i values = load_16(dtype, weight->values, at + 16 * s, valid);
        _mm512_store_si512(to + s * step_bytes,
                           _mm512_maskz_expand_epi16(masks[s], _mm512_castsi256_si512(values)));
    }
}

ALWAYS void copy_row(const esp_host_weight *weight, esp_dtype dtype, int64_t row, int64_t column,
                     char *to, int64_t step_bytes)
{
    int64_t left = weight->in_features - column, at = row * weight->in_features + column;
    bool whole = left >= 32 * ROW_STEPS;
    _Pragma("GCC unroll 4") for (int s = 0; s < ROW_STEPS; s++, at += 32, left -= 32)
    {
        __mmask16 low = whole ? 0xffff : first_16(left);
        __mmask16 high = whole ? 0xffff : first_16(left - 16);
        __m512i values = _mm512_castsi256_si512(load_16(dtype, weight->values, at, low));
        values = _mm512_inserti64x4(values, load_16(dtype, weight->values, at + 16, high), 1);
        _mm512_store_si512(to + s * step_bytes, values);
    }
}

#endif
