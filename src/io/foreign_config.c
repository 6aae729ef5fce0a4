/* What the config.json of a compressed-tensors folder says about sparsity.
 *
 * Versions since 0.8 nest "sparsity_config" in "quantization_config", older ones in
 * "compression_config" or at the top. Only folders that are sparse and not quantised are read; any
 * key that could change the meaning of the weights and is not known is refused. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "io/foreign_sparse.h"

#define REMEDY "get the dense model, or save it again without compression"

static esp_status bad(const esp_checkpoint *folder, esp_status kind, const char *code,
                      const char *what, esp_error *error)
{
    return esp_fail(error, kind, code, "%s/" ESP_CONFIG_FILE ": %s; " REMEDY, folder->path, what);
}

static esp_status check_keys(const esp_checkpoint *folder, const char *where, json_t *object,
                             const char *const *known, int count, esp_error *error)
{
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value)
    {
        bool found = false;
        for (int i = 0; i < count; i++) {
            found |= strcmp(key, known[i]) == 0;
        }
        if (!found) {
            char what[300];
            snprintf(what, sizeof what, "%s: unknown field \"%s\"", where, esp_io_show(key).text);
            return bad(folder, ESP_UNSUPPORTED, "foreign.unknown_field", what, error);
        }
    }
    return ESP_OK;
}

/* ---- around the sparsity ---- */

/* Absent, null, {} or []. */
static bool is_nothing(json_t *value)
{
    return value == NULL || json_is_null(value) ||
           (json_is_object(value) && json_object_size(value) == 0) ||
           (json_is_array(value) && json_array_size(value) == 0);
}

/* All published versions with these forms are 0.x. */
static esp_status check_version(const esp_checkpoint *folder, json_t *version, esp_error *error)
{
    const char *text = json_is_string(version) ? json_string_value(version) : "";
    if (version == NULL || (strncmp(text, "0.", 2) == 0 && isdigit((unsigned char)text[2]))) {
        return ESP_OK;
    }
    char what[300];
    snprintf(what, sizeof what, "compressed-tensors version \"%s\" is not known, 0.x was expected",
             esp_io_show(text).text);
    return bad(folder, ESP_UNSUPPORTED, "foreign.unknown_version", what, error);
}

static esp_status check_section(const esp_checkpoint *folder, json_t *section, esp_error *error)
{
    static const char *const known[] = {
        "quant_method",    "version",         "sparsity_config",     "format",
        "config_groups",   "ignore",          "quantization_status", "global_compression_ratio",
        "kv_cache_scheme", "transform_config"};
    static const char *const changing[] = {"config_groups", "kv_cache_scheme", "transform_config"};
    ESP_TRY(check_keys(folder, "quantization_config", section, known, ESP_COUNT(known), error));
    for (int i = 0; i < ESP_COUNT(changing); i++) {
        if (!is_nothing(json_object_get(section, changing[i]))) {
            char what[200];
            snprintf(what, sizeof what,
                     "\"%s\" is set: the weights are quantised or transformed too, which espalier "
                     "does not read",
                     changing[i]);
            return bad(folder, ESP_UNSUPPORTED, "checkpoint.foreign_quantization", what, error);
        }
    }
    return check_version(folder, json_object_get(section, "version"), error);
}

/* ---- the sparsity ---- */

static esp_status check_list(const esp_checkpoint *folder, const char *key, json_t *list,
                             esp_error *error)
{
    bool fine = list == NULL || json_is_null(list) || json_is_array(list);
    for (size_t i = 0; fine && i < json_array_size(list); i++) {
        fine = json_is_string(json_array_get(list, i));
    }
    if (fine) {
        return ESP_OK;
    }
    char what[100];
    snprintf(what, sizeof what, "sparsity_config: \"%s\" must be null or a list of strings", key);
    return bad(folder, ESP_BAD_FILE, "foreign.bad_list", what, error);
}

static esp_status check_structure(const esp_checkpoint *folder, esp_folder_form form,
                                  json_t *structure, esp_error *error)
{
    const char *text = json_is_string(structure) ? json_string_value(structure) : "";
    bool fine = form == ESP_FORM_SPARSE_24_BITMASK
                    ? strcmp(text, "2:4") == 0
                    : structure == NULL || json_is_null(structure) || strcmp(text, "2:4") == 0 ||
                          strcmp(text, "0:0") == 0 || strcmp(text, "unstructured") == 0;
    return fine ? ESP_OK
                : bad(folder, ESP_BAD_FILE, "foreign.bad_structure",
                      form == ESP_FORM_SPARSE_24_BITMASK
                          ? "sparsity_config: \"sparsity_structure\" must be \"2:4\""
                          : "sparsity_config: \"sparsity_structure\" must be \"unstructured\", "
                            "\"2:4\", \"0:0\" or null",
                      error);
}

static esp_status read_form(const esp_checkpoint *folder, json_t *format, esp_folder_form *form,
                            esp_error *error)
{
    const char *text = json_is_string(format) ? json_string_value(format) : "";
    static const esp_folder_form forms[] = {ESP_FORM_SPARSE_24_BITMASK, ESP_FORM_SPARSE_BITMASK};
    for (int i = 0; i < ESP_COUNT(forms); i++) {
        if (strcmp(text, esp_form_name(forms[i])) == 0) {
            *form = forms[i];
            return ESP_OK;
        }
    }
    if (strcmp(text, "dense") == 0) {
        *form = ESP_FORM_ESPALIER; /* zeros in plain tensors: nothing to decode */
        return ESP_OK;
    }
    char what[300];
    snprintf(what, sizeof what,
             "sparsity_config: format \"%s\"; sparse-24-bitmask, sparse-bitmask or dense was "
             "expected",
             esp_io_show(text).text);
    return bad(folder, ESP_UNSUPPORTED, "foreign.unknown_format", what, error);
}

static esp_status read_sparsity(esp_checkpoint *folder, json_t *sparsity, esp_error *error)
{
    static const char *const known[] = {"format",
                                        "targets",
                                        "ignore",
                                        "global_sparsity",
                                        "sparsity_structure",
                                        "registry_requires_subclass"};
    esp_folder_form form = ESP_FORM_ESPALIER;
    ESP_TRY(check_keys(folder, "sparsity_config", sparsity, known, ESP_COUNT(known), error));
    ESP_TRY(read_form(folder, json_object_get(sparsity, "format"), &form, error));
    ESP_TRY(check_list(folder, "targets", json_object_get(sparsity, "targets"), error));
    ESP_TRY(check_list(folder, "ignore", json_object_get(sparsity, "ignore"), error));
    if (form != ESP_FORM_ESPALIER) {
        json_t *structure = json_object_get(sparsity, "sparsity_structure");
        ESP_TRY(check_structure(folder, form, structure, error));
        ESP_TRY(esp_foreign_list_weights(folder, form, json_object_get(sparsity, "ignore"), error));
    }
    folder->form = form;
    return ESP_OK;
}

bool esp_foreign_has_sparsity(json_t *section)
{
    return !is_nothing(json_object_get(section, "sparsity_config"));
}

esp_status esp_foreign_read_config(esp_checkpoint *folder, json_t *section, esp_error *error)
{
    json_t *sparsity = json_object_get(section, "sparsity_config");
    if (section != folder->config) {
        ESP_TRY(check_section(folder, section, error));
    }
    return json_is_object(sparsity) ? read_sparsity(folder, sparsity, error)
                                    : bad(folder, ESP_BAD_FILE, "foreign.bad_config",
                                          "\"sparsity_config\" must be an object", error);
}
