#include "base/json.h"

#include <string.h>

#include "base/error.h"
#include "base/file.h"
#include "base/memory.h"

static int depth_of(const json_t *json, int limit)
{
    int deepest = 0;
    if (limit == 0 || !(json_is_object(json) || json_is_array(json))) {
        return 0;
    }
    if (json_is_array(json)) {
        for (size_t i = 0; i < json_array_size(json); i++) {
            int depth = depth_of(json_array_get(json, i), limit - 1);
            deepest = depth > deepest ? depth : deepest;
        }
    } else {
        const char *key;
        json_t *value;
        json_object_foreach((json_t *)(uintptr_t)json, key, value)
        {
            int depth = depth_of(value, limit - 1);
            deepest = depth > deepest ? depth : deepest;
        }
    }
    return deepest + 1;
}

static const char *code_of(const json_error_t *problem)
{
    switch (json_error_code(problem)) {
    case json_error_duplicate_key:
        return "json.duplicate_key";
    case json_error_null_character:
    case json_error_null_byte_in_key:
        return "json.nul_character";
    case json_error_stack_overflow:
        return "json.too_deep";
    default:
        return "json.syntax";
    }
}

static esp_status parse(const char *text, size_t length, const char *file, bool list, json_t **json,
                        esp_error *error)
{
    json_error_t problem;
    json_t *parsed = json_loadb(text, length, JSON_REJECT_DUPLICATES, &problem);
    if (parsed == NULL) {
        /* jansson says nothing at all where it found no memory */
        if (json_error_code(&problem) == json_error_out_of_memory || problem.text[0] == '\0') {
            return esp_fail_memory(error, length, file);
        }
        return esp_fail(error, ESP_BAD_FILE, code_of(&problem),
                        "%s:%d:%d: not valid JSON: %s; download or export the file again", file,
                        problem.line, problem.column, problem.text);
    }
    esp_status status = ESP_OK;
    if (!list && !json_is_object(parsed)) {
        status = esp_fail(error, ESP_BAD_FILE, "json.not_object",
                          "%s: expected a JSON object { ... } at the top", file);
    } else if (list && !json_is_array(parsed)) {
        status = esp_fail(error, ESP_BAD_FILE, "json.not_list",
                          "%s: expected a JSON list [ ... ] at the top", file);
    } else if (depth_of(parsed, ESP_JSON_MAX_DEPTH + 1) > ESP_JSON_MAX_DEPTH) {
        status = esp_fail(error, ESP_BAD_FILE, "json.too_deep",
                          "%s: nested deeper than %d levels, which no model's file needs", file,
                          ESP_JSON_MAX_DEPTH);
    }
    if (status != ESP_OK) {
        json_decref(parsed);
        return status;
    }
    *json = parsed;
    return ESP_OK;
}

esp_status esp_json_parse(const char *text, size_t length, const char *file, json_t **json,
                          esp_error *error)
{
    return parse(text, length, file, false, json, error);
}

static esp_status load(esp_context *context, const char *path, size_t max_bytes, bool list,
                       json_t **json, char **text, esp_error *error)
{
    char *content;
    size_t length;
    ESP_TRY(esp_file_read_all(context, path, max_bytes != 0 ? max_bytes : ESP_JSON_MAX_BYTES,
                              "json.too_large", &content, &length, error));
    esp_status status = parse(content, length, path, list, json, error);
    if (status == ESP_OK && text != NULL) {
        *text = content;
    } else {
        esp_release(context, content);
    }
    return status;
}

esp_status esp_json_load(esp_context *context, const char *path, size_t max_bytes, json_t **json,
                         char **text, esp_error *error)
{
    return load(context, path, max_bytes, false, json, text, error);
}

esp_status esp_json_load_list(esp_context *context, const char *path, size_t max_bytes,
                              json_t **json, esp_error *error)
{
    return load(context, path, max_bytes, true, json, NULL, error);
}
