/* Changing one key of a config.json and nothing else. */
#ifndef ESP_IO_CONFIG_TEXT_H
#define ESP_IO_CONFIG_TEXT_H

#include "io/io.h"

/* config: valid JSON object. The result has none of the keys that say how weights are stored
 * ("quantization_config", "compression_config", "sparsity_config"), or `quantization` (JSON text)
 * as its last key, "quantization_config"; every other byte of the text stays as it is where
 * possible, so that numbers keep their spelling. *result: esp_release. */
ESP_MUST_CHECK esp_status esp_config_rewrite(esp_context *context, const char *config,
                                             const char *quantization, char **result,
                                             esp_error *error);

/* `key` of the object, or of the object that is its member `section` (NULL: of itself), becomes
 * `value` (JSON text); a key that is not there is added in front. *result: esp_release.
 * "config.bad_type" where there is no such object. */
ESP_MUST_CHECK esp_status esp_config_set(esp_context *context, const char *config,
                                         const char *section, const char *key, const char *value,
                                         char **result, esp_error *error);

#endif
