#include "recipe.h"

#include <stdlib.h>
#include <string.h>

#include "load.h"
#include "whole_file.h"

#define RECIPE_VERSION 1

static esp_status no_recipe(const char *path, const char *what, esp_error *error)
{
    return cli_fail(error, ESP_BAD_FILE, "recipe.not_recipe",
                    "%s: %s; expected {\"espalier_recipe\": %d, \"pattern\": \"dense\", "
                    "\"layers\": {\"NAME\": \"64:2:8\", ...}}, as 'espalier advise --recipe' "
                    "writes it",
                    path, what, RECIPE_VERSION);
}

static esp_status parse_json(const char *path, json_t **json, esp_error *error)
{
    char *text = NULL;
    size_t length = 0;
    json_error_t why;
    TRY(load_text(path, &text, &length, error));
    *json = json_loadb(text, length, JSON_REJECT_DUPLICATES, &why);
    free(text);
    if (*json == NULL) {
        char place[JSON_ERROR_TEXT_LENGTH + 40];
        snprintf(place, sizeof place, "line %d: %s", why.line, why.text);
        return no_recipe(path, place, error);
    }
    return json_is_object(*json) ? (esp_status)ESP_OK : no_recipe(path, "no object", error);
}

static esp_status read_rule(const char *path, const char *name, const json_t *value,
                            esp_pattern_rule *rule, esp_error *error)
{
    esp_error why = {0};
    rule->glob = name;
    rule->source = path;
    if (name[0] == '\0' || strpbrk(name, "*?[") != NULL) {
        return cli_fail(error, ESP_BAD_FILE, "recipe.bad_layer",
                        "%s: '%.128s' is no layer's name (a recipe takes no globs)", path, name);
    }
    if (!json_is_string(value) ||
        esp_pattern_parse(json_string_value(value), &rule->pattern, &why) != ESP_OK) {
        return cli_fail(error, ESP_BAD_FILE, "recipe.bad_layer", "%s: layer '%.128s': %s", path,
                        name, json_is_string(value) ? why.message : "its pattern is no text");
    }
    return ESP_OK;
}

esp_status recipe_load(const char *path, recipe *read, esp_error *error)
{
    *read = (recipe){0};
    TRY(parse_json(path, &read->json, error));
    const json_t *version = json_object_get(read->json, "espalier_recipe");
    const json_t *pattern = json_object_get(read->json, "pattern");
    json_t *layers = json_object_get(read->json, "layers");
    if (!json_is_integer(version) || !json_is_object(layers) ||
        (pattern != NULL && !json_is_string(pattern))) {
        return no_recipe(path, "a key is missing or of another kind", error);
    }
    if (json_integer_value(version) != RECIPE_VERSION) {
        return cli_fail(error, ESP_UNSUPPORTED, "recipe.newer_version",
                        "%s: version %lld of recipes; this program knows version %d", path,
                        (long long)json_integer_value(version), RECIPE_VERSION);
    }
    const char *rest = pattern != NULL ? json_string_value(pattern) : "dense";
    esp_error why = {0};
    if (esp_pattern_parse(rest, &read->pattern, &why) != ESP_OK) {
        return cli_fail(error, ESP_BAD_FILE, "recipe.bad_layer", "%s: its own pattern: %s", path,
                        why.message);
    }
    read->rules = calloc(json_object_size(layers) + 1, sizeof *read->rules);
    if (read->rules == NULL) {
        return cli_fail_memory(error, path);
    }
    const char *name;
    json_t *value;
    json_object_foreach(layers, name, value)
    {
        TRY(read_rule(path, name, value, &read->rules[read->count], error));
        read->count++;
    }
    return ESP_OK;
}

void recipe_free(recipe *read)
{
    json_decref(read->json);
    free(read->rules);
    *read = (recipe){0};
}

esp_status recipe_write(const char *path, json_t *json, esp_error *error)
{
    char *text = json != NULL ? json_dumps(json, JSON_INDENT(2)) : NULL;
    json_decref(json);
    if (text == NULL) {
        return cli_fail_memory(error, path);
    }
    whole_file file;
    esp_status status = whole_file_begin(&file, path, error);
    if (status == ESP_OK) {
        whole_file_write(&file, text, strlen(text));
        whole_file_write(&file, "\n", 1);
        status = whole_file_end(&file, false, error);
    }
    free(text);
    return status;
}
