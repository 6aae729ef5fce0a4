/* JSON of configuration files, by jansson, with its loose ends tied: duplicate keys, size and depth
 * are limited, and errors name file, line and column. (The safetensors header has a stricter reader
 * of its own in src/io.) */
#ifndef ESP_BASE_JSON_H
#define ESP_BASE_JSON_H

#include <espalier/base.h>
#include <jansson.h>

#define ESP_JSON_MAX_DEPTH 64
#define ESP_JSON_MAX_BYTES ((size_t)256 << 20)

/* Text of a JSON object. `file` is for messages. Codes: "json.syntax", "json.duplicate_key",
 * "json.not_object", "json.too_deep", "json.nul_character". *json is released by json_decref. */
ESP_MUST_CHECK esp_status esp_json_parse(const char *text, size_t length, const char *file,
                                         json_t **json, esp_error *error);
/* Reads and parses; "json.too_large" above max_bytes (0: ESP_JSON_MAX_BYTES). text may be NULL,
 * else it receives the file's text (esp_release). */
ESP_MUST_CHECK esp_status esp_json_load(esp_context *context, const char *path, size_t max_bytes,
                                        json_t **json, char **text, esp_error *error);
/* The same of a file that holds a list; "json.not_list". */
ESP_MUST_CHECK esp_status esp_json_load_list(esp_context *context, const char *path,
                                             size_t max_bytes, json_t **json, esp_error *error);

#endif
