/* What sentence-transformers keeps beside a model: modules.json lists the steps from text to
 * vector, 1_Pooling/config.json says how tokens become one vector, sentence_bert_config.json how
 * long a text may be. A plain encoder has none of them; then, as there, the mean is taken. */
#include "model/bert.h"

#define MAX_BYTES ((size_t)1 << 20)

/* folder/name, or folder/inner/name. */
static char *path_of(esp_context *context, const char *folder, const char *inner, const char *name)
{
    esp_buffer path;
    esp_buffer_init(&path, context);
    esp_buffer_printf(&path, "%s/%s%s%s", folder, inner, inner[0] != '\0' ? "/" : "", name);
    if (path.failed) {
        esp_buffer_free(&path);
        return NULL;
    }
    return path.data;
}

static esp_status bad_module(const esp_config_file *file, const char *what, esp_error *error)
{
    return esp_fail(error, ESP_UNSUPPORTED, "config.unsupported_module",
                    "%s: %.160s; known is Transformer, then Pooling, then perhaps Normalize",
                    file->path, what);
}

/* ---- pooling ---- */

/* The keys of all modes that exist; those without a kind are refused by name. */
static const struct {
    const char *key;
    int pooling; /* esp_pooling, or -1 */
} modes[] = {
    {"pooling_mode_mean_tokens", ESP_POOLING_MEAN}, {"pooling_mode_cls_token", ESP_POOLING_CLS},
    {"pooling_mode_max_tokens", ESP_POOLING_MAX},   {"pooling_mode_mean_sqrt_len_tokens", -1},
    {"pooling_mode_weightedmean_tokens", -1},       {"pooling_mode_lasttoken", -1}};

static esp_status choose_pooling(const esp_config_file *file, esp_pooling *pooling,
                                 esp_error *error)
{
    int chosen = -1;
    for (int i = 0; i < ESP_COUNT(modes); i++) {
        bool set = false;
        ESP_TRY(esp_config_bool(file, modes[i].key, &set, error));
        if (set && modes[i].pooling < 0) {
            return esp_fail(error, ESP_UNSUPPORTED, "config.unsupported_pooling",
                            "%s: %s is not supported; known are mean, cls and max", file->path,
                            modes[i].key);
        }
        if (set && chosen >= 0) {
            return esp_fail(error, ESP_UNSUPPORTED, "config.unsupported_pooling",
                            "%s: %s and %s together, one behind the other, are not supported",
                            file->path, modes[chosen].key, modes[i].key);
        }
        chosen = set ? i : chosen;
    }
    if (chosen < 0) {
        return esp_fail(error, ESP_BAD_FILE, "config.missing_key",
                        "%s: no pooling_mode is true, and none may be assumed", file->path);
    }
    *pooling = (esp_pooling)modes[chosen].pooling;
    return ESP_OK;
}

static esp_status read_pooling(const esp_config_file *file, esp_model_info *info, esp_error *error)
{
    int64_t size = info->hidden_size;
    ESP_TRY(esp_config_integer(file, "word_embedding_dimension", false, 1, ESP_MAX_FEATURES, &size,
                               error));
    if (size != info->hidden_size) {
        return esp_fail(error, ESP_BAD_FILE, "config.bad_value",
                        "%s: \"word_embedding_dimension\" is %lld, but the model's hidden_size "
                        "is %lld",
                        file->path, (long long)size, (long long)info->hidden_size);
    }
    return choose_pooling(file, &info->pooling, error);
}

static esp_status load_pooling(esp_context *context, const char *folder, const char *inner,
                               esp_model_info *info, esp_error *error)
{
    json_t *json = NULL;
    char *path = path_of(context, folder, inner, "config.json");
    if (path == NULL) {
        return esp_fail_memory(error, strlen(folder), "a path");
    }
    esp_status status = esp_json_load(context, path, MAX_BYTES, &json, NULL, error);
    if (status == ESP_OK) {
        esp_config_file file = {path, json};
        status = read_pooling(&file, info, error);
        json_decref(json);
    }
    esp_release(context, path);
    return status;
}

/* ---- modules ---- */

/* The last part of a type: "sentence_transformers.models.Pooling". */
static const char *module_type(const json_t *module)
{
    const char *type = json_string_value(json_object_get(module, "type"));
    const char *dot = type != NULL ? strrchr(type, '.') : NULL;
    return dot != NULL ? dot + 1 : type != NULL ? type : "without a type";
}

/* A plain name of a folder within this one. */
static bool is_plain(const char *path)
{
    return path != NULL && path[0] != '\0' && path[0] != '.' && strchr(path, '/') == NULL &&
           strchr(path, '\\') == NULL;
}

static esp_status read_module(esp_context *context, const char *folder, const esp_config_file *file,
                              size_t number, esp_model_info *info, esp_error *error)
{
    static const char *const expected[] = {"Transformer", "Pooling", "Normalize"};
    const json_t *module = json_array_get(file->json, number);
    const char *type = module_type(module);
    const char *path = json_string_value(json_object_get(module, "path"));
    char what[160];
    if (number >= ESP_COUNT(expected) || strcmp(type, expected[number]) != 0) {
        snprintf(what, sizeof what, "module %zu is %.64s, which is not supported there", number,
                 type);
        return bad_module(file, what, error);
    }
    if (number == 0 && (path == NULL || path[0] != '\0')) {
        return bad_module(file, "the Transformer is not in this folder itself", error);
    }
    if (number == 1 && !is_plain(path)) {
        return bad_module(file, "the Pooling has no folder of its own within this one", error);
    }
    info->normalizes = number == 2;
    return number == 1 ? load_pooling(context, folder, path, info, error) : ESP_OK;
}

static esp_status read_modules(esp_context *context, const char *folder, const char *path,
                               esp_model_info *info, esp_error *error)
{
    json_t *json = NULL;
    ESP_TRY(esp_json_load_list(context, path, MAX_BYTES, &json, error));
    esp_config_file file = {path, json};
    esp_status status =
        json_array_size(json) >= 2 ? ESP_OK : bad_module(&file, "the list has no Pooling", error);
    for (size_t i = 0; i < json_array_size(json) && status == ESP_OK; i++) {
        status = read_module(context, folder, &file, i, info, error);
    }
    json_decref(json);
    return status;
}

/* ---- what changes a text before the model sees it ---- */

static esp_status read_length(const esp_config_file *file, esp_model_info *info, esp_error *error)
{
    bool lower = false;
    ESP_TRY(esp_config_bool(file, "do_lower_case", &lower, error));
    if (lower) {
        return esp_fail(error, ESP_UNSUPPORTED, "config.unsupported_lower_case",
                        "%s: do_lower_case, which changes texts before they are tokenised, is not "
                        "supported",
                        file->path);
    }
    int64_t longest = info->context;
    ESP_TRY(esp_config_integer(file, "max_seq_length", false, 1, INT32_MAX, &longest, error));
    info->context = ESP_MIN(longest, info->context);
    return ESP_OK;
}

static esp_status read_prompts(const esp_config_file *file, esp_model_info *info, esp_error *error)
{
    (void)info;
    const char *prompt = NULL;
    ESP_TRY(esp_config_string(file, "default_prompt_name", &prompt, error));
    if (prompt != NULL) {
        return esp_fail(error, ESP_UNSUPPORTED, "config.unsupported_prompt",
                        "%s: default_prompt_name \"%.64s\", which puts a text before each text, is "
                        "not supported",
                        file->path, prompt);
    }
    return ESP_OK;
}

esp_status esp_sentence_config_read(esp_context *context, const char *folder, esp_model_info *info,
                                    esp_error *error)
{
    static const struct {
        const char *name;
        esp_status (*read)(const esp_config_file *file, esp_model_info *info, esp_error *error);
    } files[] = {{"sentence_bert_config.json", read_length},
                 {"config_sentence_transformers.json", read_prompts}};
    esp_status status = ESP_OK;
    for (int i = 0; i < ESP_COUNT(files) && status == ESP_OK; i++) {
        json_t *json = NULL;
        char *path = path_of(context, folder, "", files[i].name);
        if (path == NULL) {
            return esp_fail_memory(error, strlen(folder), "a path");
        }
        if (esp_path_exists(path)) {
            status = esp_json_load(context, path, MAX_BYTES, &json, NULL, error);
        }
        if (json != NULL) {
            esp_config_file file = {path, json};
            status = files[i].read(&file, info, error);
            json_decref(json);
        }
        esp_release(context, path);
    }
    char *path = path_of(context, folder, "", "modules.json");
    if (path == NULL) {
        return status == ESP_OK ? esp_fail_memory(error, strlen(folder), "a path") : status;
    }
    info->pooling = ESP_POOLING_MEAN;
    if (status == ESP_OK && esp_path_exists(path)) {
        status = read_modules(context, folder, path, info, error);
    }
    esp_release(context, path);
    return status;
}
