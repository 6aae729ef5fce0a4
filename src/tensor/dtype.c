#include <assert.h>
#include <string.h>

#include "tensor/tensor.h"

static const struct {
    const char *name, *short_name;
    unsigned bits;
} facts[] = {
    [ESP_DTYPE_INVALID] = {"invalid", "invalid", 0},
    [ESP_BOOL] = {"BOOL", "bool", 8},
    [ESP_U8] = {"U8", "u8", 8},
    [ESP_I8] = {"I8", "i8", 8},
    [ESP_F8_E5M2] = {"F8_E5M2", "f8_e5m2", 8},
    [ESP_F8_E4M3] = {"F8_E4M3", "f8_e4m3", 8},
    [ESP_F8_E8M0] = {"F8_E8M0", "f8_e8m0", 8},
    [ESP_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", "f8_e4m3fnuz", 8},
    [ESP_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", "f8_e5m2fnuz", 8},
    [ESP_I16] = {"I16", "i16", 16},
    [ESP_U16] = {"U16", "u16", 16},
    [ESP_F16] = {"F16", "f16", 16},
    [ESP_BF16] = {"BF16", "bf16", 16},
    [ESP_I32] = {"I32", "i32", 32},
    [ESP_U32] = {"U32", "u32", 32},
    [ESP_F32] = {"F32", "f32", 32},
    [ESP_C64] = {"C64", "c64", 64},
    [ESP_F64] = {"F64", "f64", 64},
    [ESP_I64] = {"I64", "i64", 64},
    [ESP_U64] = {"U64", "u64", 64},
    [ESP_F4] = {"F4", "f4", 4},
    [ESP_F6_E2M3] = {"F6_E2M3", "f6_e2m3", 6},
    [ESP_F6_E3M2] = {"F6_E3M2", "f6_e3m2", 6},
};

static size_t index_of(esp_dtype dtype)
{
    size_t index = (size_t)dtype;
    return index < sizeof facts / sizeof facts[0] ? index : ESP_DTYPE_INVALID;
}

const char *esp_dtype_name(esp_dtype dtype)
{
    return facts[index_of(dtype)].name;
}

const char *esp_dtype_short_name(esp_dtype dtype)
{
    return facts[index_of(dtype)].short_name;
}

unsigned esp_dtype_bits(esp_dtype dtype)
{
    return facts[index_of(dtype)].bits;
}

esp_dtype esp_dtype_from_name(const char *name)
{
    for (int i = ESP_BOOL; i < ESP_COUNT(facts); i++) {
        if (strcmp(name, facts[i].name) == 0) {
            return (esp_dtype)i;
        }
    }
    return ESP_DTYPE_INVALID;
}

esp_dtype esp_dtype_from_short_name(const char *name)
{
    for (int i = ESP_BOOL; i < ESP_COUNT(facts); i++) {
        if (strcmp(name, facts[i].short_name) == 0) {
            return (esp_dtype)i;
        }
    }
    return ESP_DTYPE_INVALID;
}

bool esp_dtype_is_weight(esp_dtype dtype)
{
    return dtype == ESP_F32 || dtype == ESP_F16 || dtype == ESP_BF16;
}

void esp_widen(esp_dtype dtype, const void *src, int64_t count, float *dst)
{
    assert(esp_dtype_is_weight(dtype));
    if (dtype == ESP_F32) {
        memcpy(dst, src, (size_t)count * sizeof *dst);
    } else if (esp_dtype_is_weight(dtype)) {
        for (int64_t i = 0; i < count; i++) {
            dst[i] = esp_weight_at(dtype, src, i);
        }
    }
}

void esp_narrow(esp_dtype dtype, const float *src, int64_t count, void *dst)
{
    assert(esp_dtype_is_weight(dtype));
    if (dtype == ESP_F32) {
        memcpy(dst, src, (size_t)count * sizeof *src);
        return;
    }
    if (dtype != ESP_F16 && dtype != ESP_BF16) {
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        uint16_t half = dtype == ESP_BF16 ? esp_bf16_of_float(src[i]) : esp_f16_of_float(src[i]);
        memcpy((char *)dst + 2 * i, &half, sizeof half);
    }
}
