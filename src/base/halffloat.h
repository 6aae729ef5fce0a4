/* 16-bit floating point as bits in uint16_t: exact widening, rounding to nearest even. gcc 12 has
 * no
 * __bf16 in C, and _Float16 only where the target has it. */
#ifndef ESP_BASE_HALFFLOAT_H
#define ESP_BASE_HALFFLOAT_H

#include <stdint.h>
#include <string.h>

static inline float esp_float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t esp_bits_of_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float esp_float_of_bf16(uint16_t half)
{
    return esp_float_of_bits((uint32_t)half << 16);
}

/* NaN stays NaN: its payload is cut and the quiet bit set. */
static inline uint16_t esp_bf16_of_float(float value)
{
    uint32_t bits = esp_bits_of_float(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)(bits >> 16 | 0x40u);
    }
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static inline float esp_float_of_f16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t rest = half & 0x7fffu;
    if (rest >= 0x7c00u) { /* infinity, NaN */
        return esp_float_of_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    }
    if (rest >= 0x400u) { /* normal */
        return esp_float_of_bits(sign | ((rest << 13) + 0x38000000u));
    }
    float magnitude = (float)rest * 0x1p-24f; /* subnormal: exact */
    return esp_float_of_bits(sign | esp_bits_of_float(magnitude));
}

static inline uint16_t esp_f16_of_float(float value)
{
    uint32_t bits = esp_bits_of_float(value);
    uint32_t sign = bits >> 16 & 0x8000u;
    uint32_t rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u | (rest >> 13 & 0x3ffu));
    }
    if (rest >= 0x477ff000u) { /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (rest < 0x38800000u) { /* below 2^-14: adding 0.5 lets the hardware round at 2^-24 */
        float shifted = esp_float_of_bits(rest) + 0.5f;
        return (uint16_t)(sign | (esp_bits_of_float(shifted) - 0x3f000000u));
    }
    rest += 0xfffu + (rest >> 13 & 1u);
    return (uint16_t)(sign | (rest - 0x38000000u) >> 13);
}

#endif
