/* Typed reading of configuration values: a number where text belongs is refused, not converted. */
#include <math.h>

#include "model/config_value.h"

static const json_t *member(const esp_config_file *file, const char *key)
{
    const json_t *value = json_object_get(file->json, key);
    return json_is_null(value) ? NULL : value;
}

static esp_status missing(const esp_config_file *file, const char *key, esp_error *error)
{
    return esp_fail(error, ESP_BAD_FILE, "config.missing_key",
                    "%s: \"%s\" is missing, and no value may be assumed for it", file->path, key);
}

static esp_status bad_type(const esp_config_file *file, const char *key, const char *expected,
                           esp_error *error)
{
    return esp_fail(error, ESP_BAD_FILE, "config.bad_type", "%s: \"%s\" must be %s", file->path,
                    key, expected);
}

esp_status esp_config_integer(const esp_config_file *file, const char *key, bool required,
                              int64_t low, int64_t high, int64_t *value, esp_error *error)
{
    const json_t *found = member(file, key);
    if (found == NULL) {
        return required ? missing(file, key, error) : ESP_OK;
    }
    if (!json_is_integer(found)) {
        return bad_type(file, key, "an integer", error);
    }
    json_int_t number = json_integer_value(found);
    if (number < low || number > high) {
        return esp_fail(error, ESP_BAD_FILE, "config.bad_value",
                        "%s: \"%s\" is %lld, expected %lld to %lld", file->path, key,
                        (long long)number, (long long)low, (long long)high);
    }
    *value = number;
    return ESP_OK;
}

esp_status esp_config_number(const esp_config_file *file, const char *key, bool required,
                             double low, double *value, esp_error *error)
{
    const json_t *found = member(file, key);
    if (found == NULL) {
        return required ? missing(file, key, error) : ESP_OK;
    }
    if (!json_is_number(found)) {
        return bad_type(file, key, "a number", error);
    }
    double number = json_number_value(found);
    if (!isfinite(number) || number <= low) {
        return esp_fail(error, ESP_BAD_FILE, "config.bad_value",
                        "%s: \"%s\" is %g, expected a number above %g", file->path, key, number,
                        low);
    }
    *value = number;
    return ESP_OK;
}

esp_status esp_config_bool(const esp_config_file *file, const char *key, bool *value,
                           esp_error *error)
{
    const json_t *found = member(file, key);
    if (found == NULL) {
        return ESP_OK;
    }
    if (!json_is_boolean(found)) {
        return bad_type(file, key, "true or false", error);
    }
    *value = json_is_true(found);
    return ESP_OK;
}

esp_status esp_config_string(const esp_config_file *file, const char *key, const char **value,
                             esp_error *error)
{
    const json_t *found = member(file, key);
    if (found == NULL) {
        return ESP_OK;
    }
    if (!json_is_string(found)) {
        return bad_type(file, key, "a string", error);
    }
    *value = json_string_value(found);
    return ESP_OK;
}
