/* The door of src/tensor. */
#ifndef ESP_SRC_TENSOR_H
#define ESP_SRC_TENSOR_H

#include <espalier/tensor.h>

#include "base/base.h"
#include "tensor/algebra.h"
#include "tensor/axes.h"
#include "tensor/count.h"
#include "tensor/device_algebra.h"

/* Bytes of one element of a whole-byte dtype. */
static inline size_t esp_dtype_bytes(esp_dtype dtype)
{
    return esp_dtype_bits(dtype) / 8;
}

/* "[128, 256]" for messages. */
void esp_shape_print(int rank, const int64_t *shape, char *text, size_t capacity);

/* One element of F32/F16/BF16, any alignment. */
static inline float esp_weight_at(esp_dtype dtype, const void *data, int64_t index)
{
    if (dtype == ESP_F32) {
        float value;
        memcpy(&value, (const char *)data + 4 * index, sizeof value);
        return value;
    }
    uint16_t half;
    memcpy(&half, (const char *)data + 2 * index, sizeof half);
    return dtype == ESP_BF16 ? esp_float_of_bf16(half) : esp_float_of_f16(half);
}

/* Whether the element's bits are +0 or -0. */
static inline bool esp_weight_is_zero(esp_dtype dtype, const void *data, int64_t index)
{
    if (dtype == ESP_F32) {
        uint32_t bits;
        memcpy(&bits, (const char *)data + 4 * index, sizeof bits);
        return (bits & 0x7fffffffu) == 0;
    }
    uint16_t half;
    memcpy(&half, (const char *)data + 2 * index, sizeof half);
    return (half & 0x7fffu) == 0;
}

#endif
