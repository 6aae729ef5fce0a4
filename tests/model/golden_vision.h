/* Small random folders of image models, as tools/golden/make_vision.py describes them. */
#ifndef TESTS_GOLDEN_VISION_H
#define TESTS_GOLDEN_VISION_H

#include <espalier/vision.h>

#include "golden_model.h"

typedef struct golden_vision {
    json_t *json;
    float *outputs;
    size_t output_floats;
    int64_t images, height, width;
    float *pixels; /* [images][3][height][width] */
} golden_vision;

/* Fractions in [-1, 1) that a name stands for. */
static inline float *golden_pixels(int64_t count)
{
    float *pixels = malloc((size_t)count * sizeof *pixels);
    uint64_t state = 0xcbf29ce484222325u;
    for (const char *at = "pixels"; *at != '\0'; at++) {
        state = (state ^ (unsigned char)*at) * 0x100000001b3u;
    }
    for (int64_t i = 0; pixels != NULL && i < count; i++) {
        int32_t bits = (int32_t)(esp_splitmix64(&state) >> 40) - (1 << 23);
        pixels[i] = (float)bits * 0x1p-23f;
    }
    return pixels;
}

static inline bool golden_vision_open(golden_vision *opened, const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "vision/%s", name);
    *opened = (golden_vision){.json = golden_json(path)};
    const char *outputs = json_string_value(json_object_get(opened->json, "outputs"));
    if (outputs == NULL) {
        return false;
    }
    snprintf(path, sizeof path, "vision/%s", outputs);
    opened->outputs = golden_outputs(path, &opened->output_floats);
    opened->images = json_integer_value(json_object_get(opened->json, "images"));
    opened->height = json_integer_value(json_object_get(opened->json, "height"));
    opened->width = json_integer_value(json_object_get(opened->json, "width"));
    opened->pixels = golden_pixels(opened->images * 3 * opened->height * opened->width);
    return opened->outputs != NULL && opened->pixels != NULL;
}

static inline void golden_vision_free(golden_vision *opened)
{
    json_decref(opened->json);
    free(opened->outputs);
    free(opened->pixels);
}

#endif
