/* Images and models of them for tests of calibrated pruning. */
#ifndef TESTS_MODEL_DRAWN_IMAGES_H
#define TESTS_MODEL_DRAWN_IMAGES_H

#include "calibrated_tools.h"
#include "golden_vision.h"

/* An esp_image_set's `read`: noise of 32 x 32 pixels, the same for an index each time. */
static inline esp_status draw_image(void *user, int64_t index, esp_image *image, esp_error *error)
{
    static uint8_t pixels[32 * 32 * 3];
    uint64_t state = (uint64_t)index;
    (void)user, (void)error;
    for (int i = 0; i < ESP_COUNT(pixels); i++) {
        pixels[i] = (uint8_t)(esp_splitmix64(&state) % 256);
    }
    *image = (esp_image){.width = 32, .height = 32, .pixels = pixels};
    return ESP_OK;
}

/* A model of a golden file that prepares images to side x side. */
static inline const char *image_model(test_run *run, const char *name, int side)
{
    static const char preparing[] =
        "{\"do_resize\": true, \"size\": {\"height\": %d, \"width\": %d}, \"resample\": 2, "
        "\"do_rescale\": true, \"rescale_factor\": 0.00392156862745098, \"do_normalize\": true, "
        "\"image_mean\": [0.5, 0.5, 0.5], \"image_std\": [0.5, 0.5, 0.5]}";
    char text[512];
    golden_vision golden;
    int length = snprintf(text, sizeof text, preparing, side, side);
    esp_context *context = test_context(run, 1);
    const char *folder = NULL;
    if (golden_vision_open(&golden, name)) {
        folder = golden_folder(run, context, golden.json);
        test_write_file(run, test_path(folder, "preprocessor_config.json"), text, (size_t)length);
        golden_vision_free(&golden);
    }
    test_context_free(run, context);
    return folder;
}

#endif
