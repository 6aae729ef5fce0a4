/* tensor.h - element types and plain dense tensors: row-major, contiguous, little-endian. */
#ifndef ESPALIER_TENSOR_H
#define ESPALIER_TENSOR_H

#include <espalier/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Every type that safetensors files may hold; espalier computes with F32, F16 and BF16. */
typedef enum esp_dtype {
    ESP_DTYPE_INVALID = 0,
    ESP_BOOL,
    ESP_U8,
    ESP_I8,
    ESP_F8_E5M2,
    ESP_F8_E4M3,
    ESP_F8_E8M0,
    ESP_F8_E4M3FNUZ,
    ESP_F8_E5M2FNUZ,
    ESP_I16,
    ESP_U16,
    ESP_F16,
    ESP_BF16,
    ESP_I32,
    ESP_U32,
    ESP_F32,
    ESP_C64,
    ESP_F64,
    ESP_I64,
    ESP_U64,
    ESP_F4,
    ESP_F6_E2M3,
    ESP_F6_E3M2
} esp_dtype;

/* "F32", "BF16"... as written in safetensors headers; "invalid" otherwise. */
ESP_API const char *esp_dtype_name(esp_dtype dtype);
/* Lower-case short name as in problem strings: "f32", "f16", "bf16"... */
ESP_API const char *esp_dtype_short_name(esp_dtype dtype);
/* Exact, case-sensitive reverse of esp_dtype_name; ESP_DTYPE_INVALID when unknown. */
ESP_API esp_dtype esp_dtype_from_name(const char *name);
/* Reverse of esp_dtype_short_name. */
ESP_API esp_dtype esp_dtype_from_short_name(const char *name);
/* Bits of one element (4 and 6 occur); 0 for ESP_DTYPE_INVALID. */
ESP_API unsigned esp_dtype_bits(esp_dtype dtype);
/* True for the three types that weights may have here: F32, F16, BF16. */
ESP_API bool esp_dtype_is_weight(esp_dtype dtype);

#define ESP_MAX_RANK 8

/* A view: owns nothing. shape[0] varies slowest. data may be unaligned only where a function says
 * so. */
typedef struct esp_tensor {
    esp_dtype dtype;
    int rank; /* 0..ESP_MAX_RANK; rank 0 is one element */
    int64_t shape[ESP_MAX_RANK];
    void *data;
} esp_tensor;

/* Elements and bytes by checked arithmetic: ESP_OUT_OF_MEMORY ("tensor.too_large") when the product
 * does not fit, ESP_BAD_ARGUMENT ("tensor.bad_shape") for a negative size, a rank out of range or a
 * sub-byte total that is no whole number of bytes. `bytes` may be NULL, `elems` may be NULL. */
ESP_MUST_CHECK ESP_API esp_status esp_tensor_size(const esp_tensor *tensor, int64_t *elems,
                                                  size_t *bytes, esp_error *error);

/* Allocates zeroed data (64-byte aligned) for dtype and shape; release with esp_tensor_free. */
ESP_MUST_CHECK ESP_API esp_status esp_tensor_create(esp_context *context, esp_dtype dtype, int rank,
                                                    const int64_t *shape, esp_tensor *tensor,
                                                    esp_error *error);
/* Frees data made by esp_tensor_create and clears the view; fine on a cleared view. */
ESP_API void esp_tensor_free(esp_context *context, esp_tensor *tensor);

/* count elements of F32, F16 or BF16 at src (any alignment) to float (exact), and back (round to
 * nearest even, overflow to infinity, NaN stays NaN). Other dtypes are a caller's error: asserts in
 * debug builds, writes nothing otherwise. */
ESP_API void esp_widen(esp_dtype dtype, const void *src, int64_t count, float *dst);
ESP_API void esp_narrow(esp_dtype dtype, const float *src, int64_t count, void *dst);

#ifdef __cplusplus
}
#endif
#endif
