/* vision.h - models of images: preparing an image as the model's folder says, and running it. */
#ifndef ESPALIER_VISION_H
#define ESPALIER_VISION_H

#include <espalier/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- images -> numbers (preprocessor_config.json) ---- */

/* Decoded: 8-bit RGB, rows from the top, tight: [height][width][3]. The caller's memory. */
typedef struct esp_image {
    int64_t width, height;
    const uint8_t *pixels;
} esp_image;

/* Largest width or height, and largest number of pixels, that are taken. */
#define ESP_IMAGE_MAX_SIDE 65500
#define ESP_IMAGE_MAX_PIXELS ((int64_t)1 << 27)

typedef struct esp_image_processor esp_image_processor;

/* Reads MODEL_DIR/preprocessor_config.json: resize (height and width, shortest_edge, longest_edge),
 * centre crop, rescale, normalise, pad. Steps that it asks for and that are not known are refused:
 * "preprocessor.*". */
ESP_MUST_CHECK ESP_API esp_status esp_image_processor_open(esp_context *context,
                                                           const char *model_dir,
                                                           esp_image_processor **processor,
                                                           esp_error *error);
ESP_API void esp_image_processor_close(esp_image_processor *processor);
/* Height and width of what an image of this size becomes. ESP_BAD_ARGUMENT "image.bad_size" for a
 * size that is no image's, or whose result would be one. */
ESP_MUST_CHECK ESP_API esp_status esp_image_processor_size(const esp_image_processor *processor,
                                                           int64_t image_width,
                                                           int64_t image_height, int64_t *height,
                                                           int64_t *width, esp_error *error);
/* values: f32 [3][height][width] of the size above. Resizing is Pillow's: antialiased, in fixed
 * point, rounded to 8 bits after each direction. */
ESP_MUST_CHECK ESP_API esp_status esp_image_process(const esp_image_processor *processor,
                                                    const esp_image *image, float *values,
                                                    esp_error *error);

/* ---- running ---- */

/* Activations for images of one size. One is used by one thread at a time. */
typedef struct esp_vision esp_vision;

/* All memory for up to max_images at once is taken here. height, width: 0 means as the model was
 * trained; other sizes resize position embeddings (bicubic) where the architecture allows it, else
 * "vision.bad_size". "vision.no_images" for a model that takes none. */
ESP_MUST_CHECK ESP_API esp_status esp_vision_create(const esp_model *model, int64_t height,
                                                    int64_t width, int64_t max_images,
                                                    esp_vision **vision, esp_error *error);
ESP_API void esp_vision_free(esp_vision *vision);
/* Of the result of one image: a classifier's [labels], an encoder's [channels][rows][columns].
 * Returns the rank, at most 3. */
ESP_API int esp_vision_output_shape(const esp_model *model, int64_t shape[3]);
/* pixels: f32 [images][3][height][width], images <= max_images; NULL: those that the device holds
 * already, of the run before (or of esp_vision_pixels where the device is the host), else
 * "vision.no_pixels". output: f32, one result behind the other. */
ESP_MUST_CHECK ESP_API esp_status esp_vision_run(esp_vision *vision, const float *pixels,
                                                 int64_t images, float *output, esp_error *error);
/* Memory for the pixels of max_images, which the runner owns: page-locked where the device's memory
 * is not the host's, so that a run that is given it copies at the full speed of the bus. */
ESP_MUST_CHECK ESP_API esp_status esp_vision_pixels(esp_vision *vision, float **pixels,
                                                    esp_error *error);
/* As esp_session_observe: "embed", "layer.0", ..., "norm" or "neck". */
ESP_API void esp_vision_observe(esp_vision *vision, esp_observe_fn observe, void *user);
/* What a classifier calls its output `index` (id2label); NULL out of range and for other models. */
ESP_API const char *esp_model_label(const esp_model *model, int64_t index);

#ifdef __cplusplus
}
#endif
#endif
