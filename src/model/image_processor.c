/* preprocessor_config.json: how a model's images are made into numbers. timm's folders have none;
 * their config.json says it.
 *
 *   resize -> centre crop -> times rescale_factor -> minus mean, over std -> zeros right and below
 *
 * each only where the file asks for it. What a file leaves out is assumed only where all released
 * ones agree on it; a step that is not known is refused, since the numbers would be others. */
#include <math.h>
#include <stdio.h>

#include "model/config_value.h"
#include "model/resample.h"
#include "model/timm_config.h"
#include "model/vision.h"

#define CHANNELS ESP_IMAGE_CHANNELS
#define MAX_CONFIG_BYTES ((size_t)16 << 20)

typedef enum size_kind { SIZE_AS_IS = 0, SIZE_FIXED, SIZE_SHORTEST, SIZE_LONGEST } size_kind;

struct esp_image_processor {
    esp_context *context;
    size_kind kind;
    int64_t height, width; /* FIXED; SHORTEST and LONGEST: that side, in both */
    esp_resample resample;
    int64_t crop_height, crop_width; /* 0: no crop */
    bool crop_to_even; /* half a pixel that the crop begins at goes to the even side, as timm's */
    int64_t pad_height, pad_width; /* 0: no padding */
    double factor;                 /* 1: values stay 0..255 */
    double mean[CHANNELS], std[CHANNELS];
};

/* ---- reading ---- */

static esp_status refuse_unknown_steps(const esp_config_file *file, esp_error *error)
{
    static const char *const known[] = {"do_resize",    "do_center_crop", "do_rescale",
                                        "do_normalize", "do_pad",         "do_convert_rgb"};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)file->json, key, value)
    {
        bool fine = strncmp(key, "do_", 3) != 0 || !json_is_true(value);
        for (int i = 0; i < ESP_COUNT(known); i++) {
            fine = fine || strcmp(key, known[i]) == 0;
        }
        if (!fine || (strcmp(key, "crop_pct") == 0 && !json_is_null(value))) {
            return esp_fail(error, ESP_UNSUPPORTED, "preprocessor.unsupported_step",
                            "%s: \"%.64s\" asks for a step that is not known here", file->path,
                            key);
        }
    }
    return ESP_OK;
}

static esp_status read_side(const esp_config_file *size, const char *key, int64_t *value,
                            esp_error *error)
{
    return esp_config_integer(size, key, true, 1, ESP_MAX_IMAGE_SIDE, value, error);
}

/* {"height": h, "width": w}, or one number for both; false in *found when there is neither. */
static esp_status read_pair(const esp_config_file *file, const char *key, int64_t *height,
                            int64_t *width, bool *found, esp_error *error)
{
    const json_t *value = json_object_get(file->json, key);
    *found = true;
    if (json_is_integer(value)) {
        ESP_TRY(read_side(file, key, height, error));
        *width = *height;
        return ESP_OK;
    }
    if (json_object_get(value, "height") == NULL && json_object_get(value, "width") == NULL) {
        *found = false;
        return ESP_OK;
    }
    const esp_config_file pair = {file->path, value};
    ESP_TRY(read_side(&pair, "height", height, error));
    return read_side(&pair, "width", width, error);
}

static esp_status bad_pair(const esp_config_file *file, const char *key, const char *expected,
                           esp_error *error)
{
    bool missing = json_object_get(file->json, key) == NULL;
    return esp_fail(error, ESP_BAD_FILE, missing ? "config.missing_key" : "config.bad_type",
                    "%s: \"%s\" must be %s", file->path, key, expected);
}

static esp_status read_size(const esp_config_file *file, esp_image_processor *processor,
                            esp_error *error)
{
    const json_t *size = json_object_get(file->json, "size");
    const esp_config_file edges = {file->path, size};
    bool shortest = json_object_get(size, "shortest_edge") != NULL, found;
    bool longest = json_object_get(size, "longest_edge") != NULL;
    if (shortest != longest) {
        processor->kind = shortest ? SIZE_SHORTEST : SIZE_LONGEST;
        ESP_TRY(read_side(&edges, shortest ? "shortest_edge" : "longest_edge", &processor->height,
                          error));
        processor->width = processor->height;
        return ESP_OK;
    }
    ESP_TRY(read_pair(file, "size", &processor->height, &processor->width, &found, error));
    processor->kind = SIZE_FIXED;
    return found && !shortest
               ? ESP_OK
               : bad_pair(file, "size",
                          "a number, {\"height\", \"width\"}, {\"shortest_edge\"} or "
                          "{\"longest_edge\"}",
                          error);
}

static esp_status read_resize(const esp_config_file *file, esp_image_processor *processor,
                              esp_error *error)
{
    bool asked = true;
    int64_t resample = 0;
    ESP_TRY(esp_config_bool(file, "do_resize", &asked, error));
    if (!asked) {
        return ESP_OK;
    }
    ESP_TRY(read_size(file, processor, error));
    ESP_TRY(esp_config_integer(file, "resample", true, 0, 5, &resample, error));
    if (resample != ESP_RESAMPLE_BILINEAR && resample != ESP_RESAMPLE_BICUBIC) {
        return esp_fail(error, ESP_UNSUPPORTED, "preprocessor.unsupported_resample",
                        "%s: \"resample\" %lld is not supported; 2 (bilinear) and 3 (bicubic) are",
                        file->path, (long long)resample);
    }
    processor->resample = (esp_resample)resample;
    return ESP_OK;
}

static esp_status read_crop_and_pad(const esp_config_file *file, esp_image_processor *processor,
                                    esp_error *error)
{
    const struct {
        const char *flag, *key;
        int64_t *height, *width;
    } steps[] = {
        {"do_center_crop", "crop_size", &processor->crop_height, &processor->crop_width},
        {"do_pad", "pad_size", &processor->pad_height, &processor->pad_width},
    };
    for (int i = 0; i < ESP_COUNT(steps); i++) {
        bool asked = false, found = true;
        ESP_TRY(esp_config_bool(file, steps[i].flag, &asked, error));
        if (asked) {
            ESP_TRY(read_pair(file, steps[i].key, steps[i].height, steps[i].width, &found, error));
        }
        if (!found) {
            return bad_pair(file, steps[i].key, "a number or {\"height\", \"width\"}", error);
        }
    }
    return ESP_OK;
}

static esp_status read_channels(const esp_config_file *file, const char *key, bool divides,
                                double values[CHANNELS], esp_error *error)
{
    const json_t *list = json_object_get(file->json, key);
    if (json_array_size(list) != CHANNELS) {
        return bad_pair(file, key, "a list of three numbers", error);
    }
    for (size_t i = 0; i < CHANNELS; i++) {
        const json_t *entry = json_array_get(list, i);
        if (!json_is_number(entry)) {
            return bad_pair(file, key, "a list of three numbers", error);
        }
        values[i] = json_number_value(entry);
        if (!isfinite(values[i]) || fabs(values[i]) > 1e6 || (divides && !(values[i] >= 1e-6))) {
            return esp_fail(error, ESP_BAD_FILE, "config.bad_value",
                            "%s: entry %zu of \"%s\" is %g, which is %s", file->path, i, key,
                            values[i], divides ? "nothing to divide by" : "out of range");
        }
    }
    return ESP_OK;
}

static esp_status read_values(const esp_config_file *file, esp_image_processor *processor,
                              esp_error *error)
{
    bool rescale = true, normalise = true;
    processor->factor = 1.0 / 255;
    ESP_TRY(esp_config_bool(file, "do_rescale", &rescale, error));
    ESP_TRY(esp_config_bool(file, "do_normalize", &normalise, error));
    ESP_TRY(esp_config_number(file, "rescale_factor", false, 0, &processor->factor, error));
    processor->factor = rescale ? processor->factor : 1;
    for (int i = 0; i < CHANNELS; i++) {
        processor->mean[i] = 0;
        processor->std[i] = 1;
    }
    if (!normalise) {
        return ESP_OK;
    }
    ESP_TRY(read_channels(file, "image_mean", false, processor->mean, error));
    return read_channels(file, "image_std", true, processor->std, error);
}

static esp_status read_file(const esp_config_file *file, esp_image_processor *processor,
                            esp_error *error)
{
    ESP_TRY(refuse_unknown_steps(file, error));
    ESP_TRY(read_resize(file, processor, error));
    ESP_TRY(read_crop_and_pad(file, processor, error));
    return read_values(file, processor, error);
}

/* Of timm's config.json; *found: it is one. */
static esp_status open_timm(esp_image_processor *processor, const char *path, bool *found,
                            esp_error *error)
{
    json_t *json = NULL, *said = NULL;
    if (!esp_path_exists(path)) {
        return ESP_OK;
    }
    ESP_TRY(esp_json_load(processor->context, path, MAX_CONFIG_BYTES, &json, NULL, error));
    const esp_config_file file = {path, json};
    *found = esp_timm_config_is(json);
    esp_status status = *found ? esp_timm_preprocessor(&file, &said, error) : ESP_OK;
    if (said != NULL) {
        const esp_config_file translated = {path, said};
        status = read_file(&translated, processor, error);
        processor->crop_to_even = true;
    }
    json_decref(said);
    json_decref(json);
    return status;
}

static esp_status open_file(esp_image_processor *processor, const char *path,
                            const char *config_path, esp_error *error)
{
    json_t *json = NULL;
    if (!esp_path_exists(path)) {
        bool found = false;
        ESP_TRY(open_timm(processor, config_path, &found, error));
        return found ? ESP_OK
                     : esp_fail(error, ESP_BAD_FILE, "preprocessor.missing",
                                "%s is missing, which says how images are to be prepared for this "
                                "model",
                                path);
    }
    ESP_TRY(esp_json_load(processor->context, path, 1 << 20, &json, NULL, error));
    const esp_config_file file = {path, json};
    esp_status status = read_file(&file, processor, error);
    json_decref(json);
    return status;
}

esp_status esp_image_processor_open(esp_context *context, const char *model_dir,
                                    esp_image_processor **processor, esp_error *error)
{
    esp_buffer path, config_path;
    esp_buffer_init(&path, context);
    esp_buffer_init(&config_path, context);
    esp_buffer_printf(&path, "%s/preprocessor_config.json", model_dir);
    esp_buffer_printf(&config_path, "%s/config.json", model_dir);
    esp_image_processor *made = esp_alloc_zero(context, sizeof *made);
    if (made == NULL || path.failed || config_path.failed) {
        esp_buffer_free(&path);
        esp_buffer_free(&config_path);
        esp_release(context, made);
        return esp_fail_memory(error, sizeof *made, "an image processor");
    }
    made->context = context;
    esp_status status = open_file(made, path.data, config_path.data, error);
    esp_buffer_free(&path);
    esp_buffer_free(&config_path);
    if (status != ESP_OK) {
        esp_release(context, made);
        return status;
    }
    *processor = made;
    return ESP_OK;
}

void esp_image_processor_close(esp_image_processor *processor)
{
    if (processor != NULL) {
        esp_release(processor->context, processor);
    }
}

/* ---- sizes ---- */

static esp_status bad_size(int64_t width, int64_t height, const char *why, esp_error *error)
{
    return esp_fail(error, ESP_BAD_ARGUMENT, "image.bad_size", "an image of %lldx%lld pixels %s",
                    (long long)width, (long long)height, why);
}

static esp_status resized(const esp_image_processor *processor, int64_t width, int64_t height,
                          int64_t *to_width, int64_t *to_height, esp_error *error)
{
    if (width < 1 || height < 1 || width > ESP_IMAGE_MAX_SIDE || height > ESP_IMAGE_MAX_SIDE ||
        width * height > ESP_IMAGE_MAX_PIXELS) {
        return bad_size(width, height, "is empty, or larger than what is taken", error);
    }
    int64_t shorter = ESP_MIN(width, height), longer = ESP_MAX(width, height);
    *to_width = processor->width;
    *to_height = processor->height;
    if (processor->kind == SIZE_AS_IS) {
        *to_width = width;
        *to_height = height;
    } else if (processor->kind == SIZE_SHORTEST) {
        int64_t scaled = (int64_t)((double)(processor->height * longer) / (double)shorter);
        *to_width = width <= height ? processor->height : scaled;
        *to_height = width <= height ? scaled : processor->height;
    } else if (processor->kind == SIZE_LONGEST) {
        double scale = (double)processor->height / (double)longer;
        *to_width = ESP_MAX(1, (int64_t)((double)width * scale + 0.5));
        *to_height = ESP_MAX(1, (int64_t)((double)height * scale + 0.5));
    }
    return *to_width <= ESP_MAX_IMAGE_SIDE && *to_height <= ESP_MAX_IMAGE_SIDE
               ? ESP_OK
               : bad_size(width, height, "would be too large when resized as the model asks",
                          error);
}

esp_status esp_image_processor_size(const esp_image_processor *processor, int64_t image_width,
                                    int64_t image_height, int64_t *height, int64_t *width,
                                    esp_error *error)
{
    int64_t to_width = 0, to_height = 0;
    ESP_TRY(resized(processor, image_width, image_height, &to_width, &to_height, error));
    if (processor->crop_height > 0) {
        to_width = processor->crop_width;
        to_height = processor->crop_height;
    }
    if (processor->pad_height > 0) {
        if (to_width > processor->pad_width || to_height > processor->pad_height) {
            return bad_size(image_width, image_height, "does not fit the model's pad_size", error);
        }
        to_width = processor->pad_width;
        to_height = processor->pad_height;
    }
    *width = to_width;
    *height = to_height;
    return ESP_OK;
}

/* ---- values ---- */

/* Where the crop begins in an image of that length; before it when the image is shorter, by the
 * larger half, as the reference has it. */
static int64_t crop_start(const esp_image_processor *processor, int64_t length, int64_t crop)
{
    if (length < crop) {
        return -((crop - length + 1) / 2);
    }
    int64_t half = (length - crop) / 2, odd = (length - crop) % 2;
    return half + (processor->crop_to_even ? odd * (half % 2) : 0);
}

static void fill_values(const esp_image_processor *processor, const uint8_t *pixels,
                        int64_t from_width, int64_t from_height, int64_t height, int64_t width,
                        float *values)
{
    bool crops = processor->crop_height > 0;
    int64_t body_width = crops ? processor->crop_width : from_width;
    int64_t body_height = crops ? processor->crop_height : from_height;
    int64_t left = crops ? crop_start(processor, from_width, body_width) : 0;
    int64_t top = crops ? crop_start(processor, from_height, body_height) : 0;
    for (int c = 0; c < CHANNELS; c++) {
        float table[256];
        for (int value = 0; value < 256; value++) {
            table[value] =
                (float)((value * processor->factor - processor->mean[c]) / processor->std[c]);
        }
        for (int64_t row = 0; row < height; row++) {
            for (int64_t column = 0; column < width; column++) {
                int64_t y = row + top, x = column + left;
                bool body = row < body_height && column < body_width;
                bool inside = y >= 0 && y < from_height && x >= 0 && x < from_width;
                float value =
                    inside ? table[pixels[(y * from_width + x) * CHANNELS + c]] : table[0];
                values[(c * height + row) * width + column] = body ? value : 0.0f;
            }
        }
    }
}

esp_status esp_image_process(const esp_image_processor *processor, const esp_image *image,
                             float *values, esp_error *error)
{
    int64_t width, height, to_width = 0, to_height = 0;
    uint8_t *pixels = NULL;
    ESP_TRY(
        esp_image_processor_size(processor, image->width, image->height, &height, &width, error));
    ESP_TRY(resized(processor, image->width, image->height, &to_width, &to_height, error));
    ESP_TRY(esp_image_resize(processor->context, image, processor->resample, to_width, to_height,
                             &pixels, error));
    fill_values(processor, pixels, to_width, to_height, height, width, values);
    esp_release(processor->context, pixels);
    return ESP_OK;
}
