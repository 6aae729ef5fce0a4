/* Counting what values a tensor holds. */
#ifndef ESP_TENSOR_COUNT_H
#define ESP_TENSOR_COUNT_H

#include <espalier/tensor.h>

#include "base/base.h"

typedef struct esp_value_counts {
    int64_t zeros; /* -0.0 included */
    int64_t negative_zeros, nans, infinities;
    int64_t first_bad; /* index of the first NaN or infinity; -1: none */
} esp_value_counts;

/* F16, BF16, F32 and F64; other types hold none of these as far as this goes and count 0. */
esp_value_counts esp_count_values(esp_context *context, const esp_tensor *tensor);

#endif
