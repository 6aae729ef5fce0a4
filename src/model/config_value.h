/* Typed reading of config.json and its like. */
#ifndef ESP_MODEL_CONFIG_VALUE_H
#define ESP_MODEL_CONFIG_VALUE_H

#include "base/base.h"

/* Limits that every architecture shares: nothing is allocated from a number above them. */
#define ESP_MAX_FEATURES ((int64_t)1 << 20)
#define ESP_MAX_VOCABULARY ((int64_t)1 << 24)
#define ESP_MAX_LAYERS 1000
#define ESP_MAX_HEADS 4096
#define ESP_MAX_HEAD_DIM 4096
#define ESP_MIN_EPS 1e-30 /* what is left of a smaller one in f32 would be 0 or nearly */

/* What the readers of a part share: the object and the file's name for messages. */
typedef struct esp_config_file {
    const char *path;
    const json_t *json;
} esp_config_file;

/* Members of an object. An absent or null one leaves *value alone, unless required
 * ("config.missing_key"); another type is "config.bad_type", out of range "config.bad_value". */
ESP_MUST_CHECK esp_status esp_config_integer(const esp_config_file *file, const char *key,
                                             bool required, int64_t low, int64_t high,
                                             int64_t *value, esp_error *error);
/* A finite number > low. */
ESP_MUST_CHECK esp_status esp_config_number(const esp_config_file *file, const char *key,
                                            bool required, double low, double *value,
                                            esp_error *error);
ESP_MUST_CHECK esp_status esp_config_bool(const esp_config_file *file, const char *key, bool *value,
                                          esp_error *error);
/* The string lives as long as the JSON. */
ESP_MUST_CHECK esp_status esp_config_string(const esp_config_file *file, const char *key,
                                            const char **value, esp_error *error);

#endif
