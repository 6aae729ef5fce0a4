/* Which architecture a config.json describes. That is said by its "architectures" and "model_type",
 * never guessed from names of files or tensors. */
#include "model/family.h"

#include <string.h>

#include "model/timm_config.h"
#include "model/vision.h"

static const esp_family *const families[] = {
    &esp_llama_family, &esp_qwen2_family, &esp_bert_family,      &esp_vit_family,
    &esp_deit_family,  &esp_sam_family,   &esp_sam_vision_family};

esp_status esp_config_parse(const char *text, const char *path, json_t **config, esp_error *error)
{
    json_t *json = NULL;
    ESP_TRY(esp_json_parse(text, strlen(text), path, &json, error));
    if (!esp_timm_config_is(json)) {
        *config = json;
        return ESP_OK;
    }
    const esp_config_file file = {path, json};
    esp_status status = esp_timm_config_translate(&file, config, error);
    json_decref(json);
    return status;
}

static bool names(const esp_family *family, const char *architecture)
{
    for (const char *const *name = family->architectures; *name != NULL; name++) {
        if (strcmp(*name, architecture) == 0) {
            return true;
        }
    }
    return false;
}

static esp_status unsupported(const esp_config_file *config, const char *architecture,
                              const char *type, esp_error *error)
{
    char known[512] = "";
    size_t used = 0;
    for (int i = 0; i < ESP_COUNT(families); i++) {
        for (const char *const *name = families[i]->architectures; *name != NULL; name++) {
            int wrote = snprintf(known + used, sizeof known - used, "%s%s (model_type %s)",
                                 used > 0 ? ", " : "", *name, families[i]->model_type);
            used = ESP_MIN(used + (size_t)ESP_MAX(wrote, 0), sizeof known - 1);
        }
    }
    return esp_fail(error, ESP_UNSUPPORTED, "config.unsupported_architecture",
                    "%s: architecture \"%.64s\" (model_type \"%.64s\") is not supported; known: %s",
                    config->path, architecture, type, known);
}

esp_status esp_family_find(const esp_config_file *config, const esp_family **family,
                           const char **architecture, esp_error *error)
{
    const char *type = NULL;
    ESP_TRY(esp_config_string(config, "model_type", &type, error));
    const json_t *list = json_object_get(config->json, "architectures");
    if (list != NULL && !json_is_null(list) && !json_is_array(list)) {
        return esp_fail(error, ESP_BAD_FILE, "config.bad_type",
                        "%s: \"architectures\" must be a list of strings", config->path);
    }
    const char *name = json_string_value(json_array_get(list, 0));
    if (name == NULL && type == NULL) {
        return esp_fail(error, ESP_BAD_FILE, "config.missing_key",
                        "%s: neither \"architectures\" nor \"model_type\" says what model this is",
                        config->path);
    }
    for (int i = 0; i < ESP_COUNT(families); i++) {
        if ((type == NULL || strcmp(type, families[i]->model_type) == 0) &&
            (name == NULL || names(families[i], name))) {
            *family = families[i];
            *architecture = name != NULL ? name : families[i]->architectures[0];
            return ESP_OK;
        }
    }
    return unsupported(config, name != NULL ? name : "", type != NULL ? type : "", error);
}
