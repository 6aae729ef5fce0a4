/* Dense weights and masks on a GPU, drawn on the host. */
#ifndef ESP_TESTS_DEVICE_WEIGHT_H
#define ESP_TESTS_DEVICE_WEIGHT_H

#include "product_device.h"

#include "format/format.h"

/* ---- weights ---- */

/* Bits of 16-bit weights with many ties, zeros of both signs, a few infinities and NaN. */
static inline void draw_weights(esp_random *random, esp_dtype dtype, bool special, uint16_t *to,
                                int64_t count)
{
    unsigned infinity = dtype == ESP_BF16 ? 0x7f80 : 0x7c00;
    for (int64_t i = 0; i < count; i++) {
        uint64_t bits = esp_random_u64(random);
        float value = (float)(1 + bits % 7) * (bits >> 8 & 1 ? 0.25f : -0.25f);
        if ((bits >> 16) % 4 == 0) {
            value = (float)(2 * esp_random_uniform(random) - 1);
        }
        esp_narrow(dtype, &value, 1, &to[i]);
        if ((bits >> 24) % 16 == 0) {
            to[i] = (uint16_t)((bits >> 40 & 1) << 15);
        } else if (special && (bits >> 24) % 97 == 1) {
            to[i] = (uint16_t)((bits >> 40 & 0x8000) | infinity | (bits >> 42) % 3);
        }
    }
}

typedef struct weight {
    esp_tensor host;        /* tight */
    char *memory;           /* of the device */
    esp_device_dense dense; /* in it */
    size_t bytes;
} weight;

/* offset and stride in elements; stride 0: tight. */
static inline weight weight_make(test_run *run, esp_context *context, esp_device *device,
                                 esp_dtype dtype, int64_t out, int64_t in, int64_t stride,
                                 int64_t offset, bool special, uint64_t seed)
{
    weight made = {.dense = {.dtype = dtype, .out_features = out, .in_features = in}};
    esp_random random;
    esp_random_seed(&random, seed);
    int64_t row = stride != 0 ? stride : in;
    CHECK_OK(esp_tensor_create(context, dtype, 2, (const int64_t[]){out, in}, &made.host, error));
    draw_weights(&random, dtype, special, made.host.data, out * in);
    made.bytes = (size_t)(offset + out * row) * 2;
    char *image = malloc(made.bytes);
    memset(image, 0x77, made.bytes);
    for (int64_t o = 0; o < out; o++) {
        memcpy(image + (offset + o * row) * 2, (const char *)made.host.data + o * in * 2,
               (size_t)in * 2);
    }
    made.memory = esp_device_alloc(device, made.bytes);
    made.dense.data = made.memory + offset * 2;
    made.dense.stride = stride;
    CHECK_OK(esp_device_upload(device, made.memory, image, made.bytes, error));
    free(image);
    return made;
}

static inline void weight_free(esp_context *context, esp_device *device, weight *made)
{
    esp_tensor_free(context, &made->host);
    esp_device_release(device, made->memory);
}

/* ---- masks ---- */

typedef struct device_mask {
    esp_device_mask mask;
    size_t bits_bytes, columns_bytes;
} device_mask;

static inline device_mask mask_make(esp_device *device, const esp_pattern *pattern, int64_t out,
                                    int64_t in)
{
    device_mask made = {.bits_bytes = (size_t)out * (size_t)esp_ceil_div(in, 64) * 8};
    made.mask.bits = esp_device_alloc(device, made.bits_bytes);
    if (pattern->v != 0) {
        int64_t v = esp_pattern_panel_rows(pattern, out);
        made.columns_bytes =
            (size_t)esp_ceil_div(out, v) * (size_t)esp_pattern_kept(pattern, in) * 4;
        made.mask.columns = esp_device_alloc(device, made.columns_bytes);
    }
    return made;
}

static inline void mask_free(esp_device *device, device_mask *made)
{
    esp_device_release(device, made->mask.bits);
    esp_device_release(device, made->mask.columns);
}

static inline void mask_upload(test_run *run, esp_device *device, const esp_mask *from,
                               const device_mask *to)
{
    int64_t v, kept;
    const uint32_t *columns = esp_mask_columns(from, &v, &kept);
    CHECK_OK(
        esp_device_upload(device, to->mask.bits, esp_mask_row(from, 0), to->bits_bytes, error));
    if (columns != NULL && to->mask.columns != NULL) {
        CHECK_OK(esp_device_upload(device, to->mask.columns, columns, to->columns_bytes, error));
    }
}

#endif
