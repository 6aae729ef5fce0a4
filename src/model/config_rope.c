/* Rotary positions as config.json gives them, in both spellings: `rope_parameters` of newer files,
 * or `rope_theta` beside `rope_scaling` (whose kind older files call `type`). */
#include "model/config.h"

static esp_status read_kind(const esp_config_file *part, esp_rope_config *rope, esp_error *error)
{
    static const char *const names[] = {"default", "linear", "llama3"};
    const char *kind = NULL;
    ESP_TRY(esp_config_string(part, "type", &kind, error));
    ESP_TRY(esp_config_string(part, "rope_type", &kind, error));
    if (kind == NULL) {
        kind = "default";
    }
    for (int i = 0; i < ESP_COUNT(names); i++) {
        if (strcmp(kind, names[i]) == 0) {
            rope->kind = (esp_rope_kind)i;
            return ESP_OK;
        }
    }
    return esp_fail(error, ESP_UNSUPPORTED, "config.unsupported_rope",
                    "%s: rope_type \"%.64s\" is not supported; known are default, linear, llama3",
                    part->path, kind);
}

/* One of the numbers that a kind of scaling cannot do without. */
static esp_status read_needed(const esp_config_file *part, const char *key, double *value,
                              esp_error *error)
{
    const json_t *found = json_object_get(part->json, key);
    double number = json_number_value(found);
    if (!json_is_number(found) || !(number > 0)) {
        return esp_fail(error, ESP_BAD_FILE, "config.bad_rope",
                        "%s: this rope_type needs \"%s\", a number above 0", part->path, key);
    }
    *value = number;
    return ESP_OK;
}

static esp_status read_factors(const esp_config_file *part, esp_rope_config *rope, esp_error *error)
{
    if (rope->kind == ESP_ROPE_DEFAULT) {
        return ESP_OK;
    }
    ESP_TRY(read_needed(part, "factor", &rope->factor, error));
    if (rope->kind == ESP_ROPE_LINEAR) {
        return ESP_OK;
    }
    ESP_TRY(read_needed(part, "low_freq_factor", &rope->low_freq_factor, error));
    ESP_TRY(read_needed(part, "high_freq_factor", &rope->high_freq_factor, error));
    ESP_TRY(read_needed(part, "original_max_position_embeddings",
                        &rope->original_max_position_embeddings, error));
    if (rope->high_freq_factor <= rope->low_freq_factor) {
        return esp_fail(error, ESP_BAD_FILE, "config.bad_rope",
                        "%s: high_freq_factor (%g) must be above low_freq_factor (%g)", part->path,
                        rope->high_freq_factor, rope->low_freq_factor);
    }
    return ESP_OK;
}

/* Attention scaling by length or a rotation of only some channels would change the result. */
static esp_status refuse_partial(const esp_config_file *part, esp_error *error)
{
    double share = 1;
    ESP_TRY(esp_config_number(part, "partial_rotary_factor", false, 0, &share, error));
    if (share != 1) {
        return esp_fail(error, ESP_UNSUPPORTED, "config.unsupported_rope",
                        "%s: partial_rotary_factor %g is not supported, only 1", part->path, share);
    }
    return ESP_OK;
}

esp_status esp_llama_config_rope(const esp_config_file *file, esp_rope_config *rope,
                                 esp_error *error)
{
    const json_t *parameters = json_object_get(file->json, "rope_parameters");
    if (parameters == NULL || json_is_null(parameters)) {
        parameters = json_object_get(file->json, "rope_scaling");
    }
    rope->theta = 10000;
    ESP_TRY(refuse_partial(file, error));
    ESP_TRY(esp_config_number(file, "rope_theta", false, 0, &rope->theta, error));
    if (parameters == NULL || json_is_null(parameters)) {
        return ESP_OK;
    }
    if (!json_is_object(parameters)) {
        return esp_fail(error, ESP_BAD_FILE, "config.bad_type",
                        "%s: rope_parameters and rope_scaling must be null or an object",
                        file->path);
    }
    esp_config_file part = {file->path, parameters};
    ESP_TRY(refuse_partial(&part, error));
    ESP_TRY(esp_config_number(&part, "rope_theta", false, 0, &rope->theta, error));
    ESP_TRY(read_kind(&part, rope, error));
    return read_factors(&part, rope, error);
}
