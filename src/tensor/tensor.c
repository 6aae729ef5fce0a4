#include "tensor/tensor.h"

#include <stdio.h>
#include <string.h>

void esp_shape_print(int rank, const int64_t *shape, char *text, size_t capacity)
{
    size_t used = (size_t)snprintf(text, capacity, "[");
    for (int i = 0; i < rank && used < capacity; i++) {
        used += (size_t)snprintf(text + used, capacity - used, "%s%lld", i > 0 ? ", " : "",
                                 (long long)shape[i]);
    }
    if (used < capacity) {
        snprintf(text + used, capacity - used, "]");
    }
}

static esp_status bad_shape(const esp_tensor *tensor, const char *why, esp_error *error)
{
    char shape[128];
    bool printable = tensor->rank >= 0 && tensor->rank <= ESP_MAX_RANK;
    esp_shape_print(printable ? tensor->rank : 0, tensor->shape, shape, sizeof shape);
    return esp_fail(error, ESP_BAD_ARGUMENT, "tensor.bad_shape", "tensor %s of rank %d: %s", shape,
                    tensor->rank, why);
}

esp_status esp_tensor_size(const esp_tensor *tensor, int64_t *elems, size_t *bytes,
                           esp_error *error)
{
    if (tensor->rank < 0 || tensor->rank > ESP_MAX_RANK) {
        return bad_shape(tensor, "the rank must be 0..8", error);
    }
    unsigned bits = esp_dtype_bits(tensor->dtype);
    if (bits == 0) {
        return bad_shape(tensor, "the dtype is not valid", error);
    }
    int64_t count = 1;
    bool fits = true, empty = false;
    for (int i = 0; i < tensor->rank; i++) {
        if (tensor->shape[i] < 0) {
            return bad_shape(tensor, "sizes must not be negative", error);
        }
        empty |= tensor->shape[i] == 0;
        fits = fits && esp_mul_i64(count, tensor->shape[i], &count);
    }
    count = empty ? 0 : count;
    int64_t total_bits = 0;
    fits = (fits || empty) && esp_mul_i64(count, (int64_t)bits, &total_bits);
    if (!fits) {
        char shape[128];
        esp_shape_print(tensor->rank, tensor->shape, shape, sizeof shape);
        return esp_fail(error, ESP_OUT_OF_MEMORY, "tensor.too_large",
                        "tensor %s of %s: its size does not fit 63 bits", shape,
                        esp_dtype_name(tensor->dtype));
    }
    if (total_bits % 8 != 0) {
        return bad_shape(tensor, "a sub-byte dtype must fill whole bytes", error);
    }
    if (elems != NULL) {
        *elems = count;
    }
    if (bytes != NULL) {
        *bytes = (size_t)(total_bits / 8);
    }
    return ESP_OK;
}

esp_status esp_tensor_create(esp_context *context, esp_dtype dtype, int rank, const int64_t *shape,
                             esp_tensor *tensor, esp_error *error)
{
    esp_tensor made = {.dtype = dtype, .rank = rank};
    size_t bytes = 0;
    if (rank >= 0 && rank <= ESP_MAX_RANK) {
        memcpy(made.shape, shape, (size_t)rank * sizeof *shape);
    }
    ESP_TRY(esp_tensor_size(&made, NULL, &bytes, error));
    made.data = esp_alloc_zero(context, bytes);
    if (made.data == NULL) {
        char text[128];
        esp_shape_print(rank, shape, text, sizeof text);
        return esp_fail_memory(error, bytes, text);
    }
    *tensor = made;
    return ESP_OK;
}

void esp_tensor_free(esp_context *context, esp_tensor *tensor)
{
    if (tensor != NULL) {
        esp_release(context, tensor->data);
        *tensor = (esp_tensor){0};
    }
}
