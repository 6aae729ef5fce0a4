/* config.json of timm's folders. It names an architecture and says few numbers, since timm's own
 * program knows the others by that name; of plain ViTs and DeiTs they follow from it:
 *
 *   vit_base_patch16_224[.tag]    deit_small_distilled_patch16_224[.tag]
 *
 * width, depth and heads by the word behind the family, then the sides of a patch and an image.
 * What "model_args" and "pretrained_cfg" say comes before that. Whatever else changes the result is
 * refused, and what it is hard to foresee (registers, scaled layers) brings tensors that the loader
 * refuses. The checkpoint's names are timm's, which vit_load.c sees by itself. */
#include "model/timm_config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/resample.h"
#include "model/vision.h"

#define EPS 1e-6 /* of timm's layer norms */

typedef struct timm_size {
    const char *name;
    int64_t hidden, layers, heads;
} timm_size;

static const timm_size sizes[] = {{"tiny", 192, 12, 3},
                                  {"small", 384, 12, 6},
                                  {"base", 768, 12, 12},
                                  {"large", 1024, 24, 16},
                                  {"huge", 1280, 32, 16}};

typedef struct timm_model {
    bool distilled;
    int64_t hidden, layers, heads, intermediate, patch, side, labels;
} timm_model;

bool esp_timm_config_is(const json_t *json)
{
    const json_t *type = json_object_get(json, "model_type");
    return json_is_string(json_object_get(json, "architecture")) &&
           (type == NULL || json_is_null(type)) && json_object_get(json, "architectures") == NULL;
}

static esp_status unsupported(const esp_config_file *file, const char *what, esp_error *error)
{
    return esp_fail(error, ESP_UNSUPPORTED, "config.unsupported_timm",
                    "%s: of timm's models, %s are not supported", file->path, what);
}

/* ---- the name ---- */

static bool skip_word(const char **text, const char *word)
{
    size_t length = strlen(word);
    bool there = strncmp(*text, word, length) == 0;
    *text += there ? length : 0;
    return there;
}

/* Up to four digits. */
static bool take_number(const char **text, int64_t *number)
{
    size_t digits = strspn(*text, "0123456789");
    *number = 0;
    for (size_t i = 0; i < digits && digits <= 4; i++) {
        *number = 10 * *number + ((*text)[i] - '0');
    }
    *text += digits;
    return digits >= 1 && digits <= 4;
}

static bool take_size(const char **text, timm_model *model)
{
    for (int i = 0; i < ESP_COUNT(sizes); i++) {
        if (skip_word(text, sizes[i].name)) {
            model->hidden = sizes[i].hidden;
            model->layers = sizes[i].layers;
            model->heads = sizes[i].heads;
            return skip_word(text, "_");
        }
    }
    return false;
}

static bool parse_name(const char *text, timm_model *model)
{
    bool deit = skip_word(&text, "deit_");
    if ((!deit && !skip_word(&text, "vit_")) || !take_size(&text, model)) {
        return false;
    }
    model->distilled = deit && skip_word(&text, "distilled_");
    bool sides = skip_word(&text, "patch") && take_number(&text, &model->patch) &&
                 skip_word(&text, "_") && take_number(&text, &model->side);
    if (!sides) {
        return false;
    }
    skip_word(&text, "_in21k");
    model->intermediate = 4 * model->hidden;
    return *text == '\0' || *text == '.';
}

/* ---- numbers that the file says itself ---- */

/* Of older files all keys stand side by side. */
static esp_config_file pretrained_of(const esp_config_file *file)
{
    const json_t *inner = json_object_get(file->json, "pretrained_cfg");
    return (esp_config_file){file->path, json_is_object(inner) ? inner : file->json};
}

/* [3, side, side] */
static esp_status read_input_size(const esp_config_file *pretrained, int64_t *side,
                                  esp_error *error)
{
    const json_t *list = json_object_get(pretrained->json, "input_size");
    json_int_t channels = json_integer_value(json_array_get(list, 0));
    json_int_t height = json_integer_value(json_array_get(list, 1));
    json_int_t width = json_integer_value(json_array_get(list, 2));
    if (json_array_size(list) != 3 || height < 1 || height > ESP_MAX_IMAGE_SIDE) {
        return esp_fail(error, ESP_BAD_FILE,
                        list == NULL ? "config.missing_key" : "config.bad_value",
                        "%s: \"input_size\" must be [3, height, width]", pretrained->path);
    }
    if (channels != ESP_IMAGE_CHANNELS || height != width) {
        return unsupported(pretrained, "images other than squares of red, green and blue", error);
    }
    *side = height;
    return ESP_OK;
}

/* What a model was built with other than its name says; null is nothing. */
static esp_status read_arguments(const esp_config_file *file, timm_model *model, esp_error *error)
{
    const json_t *object = json_object_get(file->json, "model_args");
    const esp_config_file arguments = {file->path, object};
    const struct {
        const char *key;
        int64_t high;
        int64_t *value;
    } known[] = {{"embed_dim", ESP_MAX_FEATURES, &model->hidden},
                 {"depth", ESP_MAX_LAYERS, &model->layers},
                 {"num_heads", ESP_MAX_HEADS, &model->heads},
                 {"patch_size", 1024, &model->patch},
                 {"img_size", ESP_MAX_IMAGE_SIDE, &model->side},
                 {"num_classes", INT32_MAX, &model->labels}};
    const char *key;
    json_t *value;
    double ratio = 4;
    if (object != NULL && !json_is_null(object) && !json_is_object(object)) {
        return esp_fail(error, ESP_BAD_FILE, "config.bad_type",
                        "%s: \"model_args\" must be an object", file->path);
    }
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        bool fine = json_is_null(value) || strcmp(key, "mlp_ratio") == 0;
        for (int i = 0; i < ESP_COUNT(known); i++) {
            fine = fine || strcmp(key, known[i].key) == 0;
        }
        if (!fine) {
            char what[128];
            snprintf(what, sizeof what, "those with \"%.64s\" in \"model_args\"", key);
            return unsupported(file, what, error);
        }
    }
    for (int i = 0; i < ESP_COUNT(known); i++) {
        ESP_TRY(esp_config_integer(&arguments, known[i].key, false, 1, known[i].high,
                                   known[i].value, error));
    }
    ESP_TRY(esp_config_number(&arguments, "mlp_ratio", false, 0, &ratio, error));
    model->intermediate = (int64_t)fmin((double)model->hidden * ratio, 2.0 * ESP_MAX_FEATURES);
    return ESP_OK;
}

static esp_status refuse_variants(const esp_config_file *file, const esp_config_file *pretrained,
                                  esp_error *error)
{
    const char *pool = "token";
    int64_t offset = 0;
    ESP_TRY(esp_config_string(file, "global_pool", &pool, error));
    if (strcmp(pool, "token") != 0) {
        return unsupported(file, "those whose \"global_pool\" is not \"token\"", error);
    }
    ESP_TRY(esp_config_integer(pretrained, "label_offset", false, INT32_MIN, INT32_MAX, &offset,
                               error));
    return offset == 0 ? ESP_OK : unsupported(file, "those with a \"label_offset\"", error);
}

static esp_status read_model(const esp_config_file *file, timm_model *model, esp_error *error)
{
    const esp_config_file pretrained = pretrained_of(file);
    const char *name = json_string_value(json_object_get(file->json, "architecture"));
    int64_t features = 0;
    if (!parse_name(name, model)) {
        return esp_fail(error, ESP_UNSUPPORTED, "config.unsupported_architecture",
                        "%s: timm's architecture \"%.64s\" is not supported; known are "
                        "vit_SIZE_patchN_SIDE, deit_SIZE_patchN_SIDE and "
                        "deit_SIZE_distilled_patchN_SIDE, SIZE being tiny, small, base, large or "
                        "huge",
                        file->path, name);
    }
    ESP_TRY(refuse_variants(file, &pretrained, error));
    ESP_TRY(read_input_size(&pretrained, &model->side, error));
    ESP_TRY(
        esp_config_integer(&pretrained, "num_classes", false, 0, INT32_MAX, &model->labels, error));
    ESP_TRY(esp_config_integer(file, "num_classes", false, 0, INT32_MAX, &model->labels, error));
    ESP_TRY(read_arguments(file, model, error));
    if (model->labels == 0) {
        return unsupported(file, "those without a classifier (\"num_classes\" 0)", error);
    }
    ESP_TRY(esp_config_integer(file, "num_features", false, 1, ESP_MAX_FEATURES, &features, error));
    return features == 0 || features == model->hidden
               ? ESP_OK
               : esp_fail(error, ESP_BAD_FILE, "config.bad_value",
                          "%s: \"num_features\" is %lld, but %s has %lld", file->path,
                          (long long)features, name, (long long)model->hidden);
}

/* ---- saying it ---- */

/* Names in the order of the classifier's rows; NULL: the file has none of that form. */
static json_t *labels_of(const esp_config_file *file, int64_t count)
{
    const esp_config_file pretrained = pretrained_of(file);
    const json_t *list = json_object_get(file->json, "label_names");
    list = list != NULL ? list : json_object_get(pretrained.json, "label_names");
    if ((int64_t)json_array_size(list) != count) {
        return NULL;
    }
    json_t *made = json_object();
    for (int64_t i = 0; i < count; i++) {
        char key[24];
        snprintf(key, sizeof key, "%lld", (long long)i);
        json_object_set(made, key, json_array_get(list, (size_t)i));
    }
    return made;
}

esp_status esp_timm_config_translate(const esp_config_file *file, json_t **config, esp_error *error)
{
    timm_model model = {0};
    ESP_TRY(read_model(file, &model, error));
    const char *family = model.distilled ? "deit" : "vit";
    const char *class =
        model.distilled ? "DeiTForImageClassificationWithTeacher" : "ViTForImageClassification";
    json_t *labels = labels_of(file, model.labels);
    json_t *made = json_pack(
        "{s:s, s:[s], s:O, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:o*}", "model_type", family,
        "architectures", class, ESP_TIMM_MARK, json_object_get(file->json, "architecture"),
        "hidden_size", (json_int_t)model.hidden, "num_hidden_layers", (json_int_t)model.layers,
        "num_attention_heads", (json_int_t)model.heads, "intermediate_size",
        (json_int_t)model.intermediate, "patch_size", (json_int_t)model.patch, "image_size",
        (json_int_t)model.side, "num_labels", (json_int_t)model.labels, "layer_norm_eps", EPS,
        "id2label", labels);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof model, "config.json");
    }
    *config = made;
    return ESP_OK;
}

/* ---- images ---- */

/* The share of an enlarged image that is kept, and whether it is made a square at once. */
static esp_status read_crop(const esp_config_file *pretrained, double *share, bool *squash,
                            esp_error *error)
{
    const char *mode = "center";
    ESP_TRY(esp_config_string(pretrained, "crop_mode", &mode, error));
    *squash = strcmp(mode, "squash") == 0;
    if (!*squash && strcmp(mode, "center") != 0) {
        return unsupported(pretrained, "those whose \"crop_mode\" is not center or squash", error);
    }
    ESP_TRY(esp_config_number(pretrained, "crop_pct", true, 0, share, error));
    return *share >= 0.01 && *share <= 1
               ? ESP_OK
               : esp_fail(error, ESP_BAD_FILE, "config.bad_value",
                          "%s: \"crop_pct\" is %.9g; a share from 0.01 to 1 was expected",
                          pretrained->path, *share);
}

static esp_status read_interpolation(const esp_config_file *pretrained, esp_resample *resample,
                                     esp_error *error)
{
    const char *name = "bicubic";
    ESP_TRY(esp_config_string(pretrained, "interpolation", &name, error));
    if (strcmp(name, "bicubic") != 0 && strcmp(name, "bilinear") != 0) {
        return unsupported(pretrained, "those whose \"interpolation\" is not bicubic or bilinear",
                           error);
    }
    *resample = strcmp(name, "bicubic") == 0 ? ESP_RESAMPLE_BICUBIC : ESP_RESAMPLE_BILINEAR;
    return ESP_OK;
}

esp_status esp_timm_preprocessor(const esp_config_file *file, json_t **config, esp_error *error)
{
    const esp_config_file pretrained = pretrained_of(file);
    const json_t *mean = json_object_get(pretrained.json, "mean");
    const json_t *std = json_object_get(pretrained.json, "std");
    double share = 0;
    bool squash = false;
    int64_t side = 0;
    esp_resample resample = ESP_RESAMPLE_BICUBIC;
    if (mean == NULL || std == NULL) {
        return esp_fail(error, ESP_BAD_FILE, "config.missing_key",
                        "%s: \"%s\" of \"pretrained_cfg\" is missing, which says how images are "
                        "to be prepared",
                        file->path, mean == NULL ? "mean" : "std");
    }
    ESP_TRY(read_input_size(&pretrained, &side, error));
    ESP_TRY(read_crop(&pretrained, &share, &squash, error));
    ESP_TRY(read_interpolation(&pretrained, &resample, error));
    json_int_t scaled = (json_int_t)floor((double)side / share);
    json_t *size = squash ? json_pack("{s:I, s:I}", "height", scaled, "width", scaled)
                          : json_pack("{s:I}", "shortest_edge", scaled);
    json_t *made = json_pack("{s:o, s:i, s:b, s:I, s:O, s:O}", "size", size, "resample",
                             (int)resample, "do_center_crop", 1, "crop_size", (json_int_t)side,
                             "image_mean", mean, "image_std", std);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof share, "preprocessor_config.json");
    }
    *config = made;
    return ESP_OK;
}
