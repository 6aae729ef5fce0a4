/* Rows of stored weights as bf16 rows of a tile product: 32 (kept) columns in 64 bytes, zero where
 * nothing is stored. Two of four: the positions (a nibble for four columns) become four bits of a
 * mask by one table look-up, and the stored values are spread under that mask (vpexpandw).
 *
 * A block of BF16_DEPTH columns lies in steps of 32: [step][row tile][16 rows][64 bytes]. */
#ifndef ESP_CPU_BF16_WEIGHTS_H
#define ESP_CPU_BF16_WEIGHTS_H

#include <immintrin.h>

#include "cpu/bf16/bf16.h"

#define ALWAYS static inline __attribute__((always_inline))
#define ROW_TILES (BF16_ROWS / 16)
#define STEP_BYTES (BF16_ROWS * 64)

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
    return count >= 16 ? 0xffff : (__mmask16)((1u << ESP_MAX(count, 0)) - 1);
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

/* Row `row` of the weight, kept columns 128 * block onward, into its places of a block. */
ALWAYS void spread_row(const esp_host_weight *weight, esp_dtype dtype, int64_t row, int64_t block,
                       char *to)
{
    int64_t first = block * (BF16_DEPTH / 2), left = weight->row_values - first;
    const uint8_t *positions =
        weight->positions + row * weight->position_bytes + block * (BF16_DEPTH / 8);
    int64_t at = row * weight->row_values + first;
    if (left >= BF16_DEPTH / 2) {
        __m128i bits = kept_bits(_mm_loadu_si128((const __m128i *)(const void *)positions));
        uint64_t low = (uint64_t)_mm_cvtsi128_si64(bits),
                 high = (uint64_t)_mm_extract_epi64(bits, 1);
        uint32_t masks[BF16_STEPS] = {(uint32_t)low, (uint32_t)(low >> 32), (uint32_t)high,
                                      (uint32_t)(high >> 32)};
        _Pragma("GCC unroll 4") for (int s = 0; s < BF16_STEPS; s++)
        {
            __m256i values = load_16(dtype, weight->values, at + 16 * s, 0xffff);
            _mm512_store_si512(to + s * STEP_BYTES,
                               _mm512_maskz_expand_epi16(masks[s], _mm512_castsi256_si512(values)));
        }
        return;
    }
    uint8_t held[16] = {0};
    memcpy(held, positions, (size_t)esp_ceil_div(left, 4));
    uint32_t masks[BF16_STEPS];
    _mm_storeu_si128((__m128i *)(void *)masks,
                     kept_bits(_mm_loadu_si128((const __m128i *)(const void *)held)));
    for (int s = 0; s < BF16_STEPS; s++) {
        __m256i values = load_16(dtype, weight->values, at + 16 * s, first_16(left - 16 * s));
        _mm512_store_si512(to + s * STEP_BYTES,
                           _mm512_maskz_expand_epi16(masks[s], _mm512_castsi256_si512(values)));
    }
}

ALWAYS void copy_row(const esp_host_weight *weight, esp_dtype dtype, int64_t row, int64_t block,
                     char *to)
{
    int64_t first = block * BF16_DEPTH, left = weight->in_features - first;
    int64_t at = row * weight->in_features + first;
    for (int s = 0; s < BF16_STEPS; s++) {
        __mmask16 low = first_16(left - 32 * s), high = first_16(left - 32 * s - 16);
        __m512i row_values =
            _mm512_castsi256_si512(load_16(dtype, weight->values, at + 32 * s, low));
        row_values = _mm512_inserti64x4(row_values,
                                        load_16(dtype, weight->values, at + 32 * s + 16, high), 1);
        _mm512_store_si512(to + s * STEP_BYTES, row_values);
    }
}

#endif
