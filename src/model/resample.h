/* Resizing 8-bit images as Pillow does. */
#ifndef ESP_MODEL_RESAMPLE_H
#define ESP_MODEL_RESAMPLE_H

#include <espalier/vision.h>

#include "base/base.h"

/* As Pillow numbers them. */
typedef enum esp_resample { ESP_RESAMPLE_BILINEAR = 2, ESP_RESAMPLE_BICUBIC = 3 } esp_resample;

/* The whole image at another size: *pixels is the context's, [height][width][3]. */
ESP_MUST_CHECK esp_status esp_image_resize(esp_context *context, const esp_image *image,
                                           esp_resample resample, int64_t width, int64_t height,
                                           uint8_t **pixels, esp_error *error);

#endif
