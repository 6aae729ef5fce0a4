/* config.json is edited as text: parsing and printing it again would respell numbers (1e-05) and
 * spacing. The edit is checked by parsing its result; should it ever differ from what was meant,
 * the JSON library prints the object instead. */
#include "io/config_text.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define KEY "quantization_config"

/* Keys that say how weights are stored: ours, and those of older compressed-tensors folders. */
static const char *const storage_keys[] = {KEY, "compression_config", "sparsity_config"};

typedef struct span {
    size_t begin, end;
} span;

static size_t skip_space(const char *text, size_t at)
{
    while (isspace((unsigned char)text[at])) {
        at++;
    }
    return at;
}

/* at: the opening quote. Behind the closing one. */
static size_t skip_string(const char *text, size_t at)
{
    for (at++; text[at] != '\0' && text[at] != '"'; at++) {
        if (text[at] == '\\' && text[at + 1] != '\0') {
            at++;
        }
    }
    return text[at] == '"' ? at + 1 : at;
}

static size_t skip_value(const char *text, size_t at)
{
    int depth = 0;
    while (text[at] != '\0') {
        char c = text[at];
        if (c == '"') {
            at = skip_string(text, at);
            continue;
        }
        if (depth == 0 && (c == ',' || c == '}' || c == ']')) {
            break;
        }
        depth += (c == '{' || c == '[') - (c == '}' || c == ']');
        at++;
    }
    return at;
}

/* The key with its value and one of the commas beside it; false when it is not there. */
static bool find_member(const char *text, const char *key, span *member)
{
    size_t at = skip_space(text, 0), comma = 0;
    if (text[at] != '{') {
        return false;
    }
    for (at = skip_space(text, at + 1); text[at] == '"'; at = skip_space(text, at + 1)) {
        size_t begin = at, after_key = skip_string(text, at);
        bool found =
            after_key - at == strlen(key) + 2 && memcmp(text + at + 1, key, strlen(key)) == 0;
        at = skip_space(text, after_key);
        at = skip_value(text, text[at] == ':' ? at + 1 : at);
        if (found && text[at] == ',') {
            *member = (span){begin, skip_space(text, at + 1)};
            return true;
        }
        if (found) { /* the last one: the comma before it goes too */
            size_t end = at;
            while (isspace((unsigned char)text[end - 1])) {
                end--;
            }
            *member = (span){comma != 0 ? comma : begin, end};
            return true;
        }
        if (text[at] != ',') {
            return false;
        }
        comma = at;
    }
    return false;
}

static void remove_member(esp_buffer *text, const char *key)
{
    span member;
    if (!text->failed && find_member(text->data, key, &member)) {
        memmove(text->data + member.begin, text->data + member.end, text->length - member.end + 1);
        text->length -= member.end - member.begin;
    }
}

/* config without the old keys, up to its last brace; then the new key. */
static void edit(const char *config, const char *quantization, esp_buffer *result)
{
    esp_buffer_text(result, config);
    for (int i = 0; i < ESP_COUNT(storage_keys); i++) {
        remove_member(result, storage_keys[i]);
    }
    if (quantization == NULL || result->failed) {
        return;
    }
    size_t at = result->length;
    while (at > 0 && result->data[at - 1] != '}') {
        at--;
    }
    at -= at > 0;
    while (at > 0 && isspace((unsigned char)result->data[at - 1])) {
        at--;
    }
    bool first = at > 0 && result->data[at - 1] == '{';
    result->length = at;
    esp_buffer_printf(result, "%s\n  \"" KEY "\": ", first ? "" : ",");
    esp_buffer_text(result, quantization);
    esp_buffer_text(result, "\n}\n");
}

/* What the result must mean; NULL when out of memory. */
static json_t *wanted_object(json_t *config, json_t *quantization)
{
    json_t *wanted = json_copy(config);
    if (json_object_size(wanted) != json_object_size(config)) {
        json_decref(wanted); /* a copy may lack what there was no memory for */
        return NULL;
    }
    for (int i = 0; i < ESP_COUNT(storage_keys); i++) {
        (void)json_object_del(wanted, storage_keys[i]);
    }
    if (quantization != NULL && json_object_set(wanted, KEY, quantization) != 0) {
        json_decref(wanted);
        return NULL;
    }
    return wanted;
}

/* A key that is spelled by an escape is not found by the edit, and then occurs twice. */
static esp_status means(const char *text, size_t length, json_t *wanted, bool *same,
                        esp_error *error)
{
    json_t *parsed = NULL;
    esp_error local = {0};
    esp_status status = esp_json_parse(text, length, "config.json", &parsed, &local);
    if (status != ESP_OK && strcmp(local.code, "json.duplicate_key") != 0) {
        return esp_fail(error, status, local.code, "%s", local.message);
    }
    *same = status == ESP_OK && json_equal(parsed, wanted) == 1;
    json_decref(parsed);
    return ESP_OK;
}

static esp_status print_object(json_t *wanted, esp_buffer *result, esp_error *error)
{
    json_free_t release; /* a program may have given jansson functions of its own */
    json_get_alloc_funcs(NULL, &release);
    char *text = json_dumps(wanted, JSON_PRESERVE_ORDER | JSON_INDENT(2) | JSON_REAL_PRECISION(17));
    if (text == NULL) {
        return esp_fail_memory(error, result->length, "config.json");
    }
    esp_buffer_clear(result);
    esp_buffer_text(result, text);
    esp_buffer_text(result, "\n");
    release(text);
    return ESP_OK;
}

static esp_status rewrite(const char *config, const char *quantization, json_t *wanted,
                          esp_buffer *result, esp_error *error)
{
    bool same = true;
    edit(config, quantization, result);
    if (!result->failed) {
        ESP_TRY(means(result->data, result->length, wanted, &same, error));
    }
    if (!same) {
        ESP_TRY(print_object(wanted, result, error));
    }
    return result->failed ? esp_fail_memory(error, result->length, "config.json") : ESP_OK;
}

esp_status esp_config_rewrite(esp_context *context, const char *config, const char *quantization,
                              char **result, esp_error *error)
{
    json_t *old = NULL, *added = NULL, *wanted = NULL;
    esp_buffer text;
    esp_buffer_init(&text, context);
    esp_status status = esp_json_parse(config, strlen(config), "config.json", &old, error);
    if (status == ESP_OK && quantization != NULL) {
        status = esp_json_parse(quantization, strlen(quantization), KEY, &added, error);
    }
    if (status == ESP_OK) {
        wanted = wanted_object(old, added);
        status = wanted != NULL ? rewrite(config, quantization, wanted, &text, error)
                                : esp_fail_memory(error, strlen(config), "config.json");
    }
    json_decref(wanted);
    json_decref(added);
    json_decref(old);
    if (status != ESP_OK) {
        esp_buffer_free(&text);
        return status;
    }
    *result = text.data;
    return ESP_OK;
}

/* ---- one number ---- */

/* The value of a key of the object that begins at `at`. */
static bool find_value(const char *text, size_t at, const char *key, span *value)
{
    for (at = skip_space(text, at + 1); text[at] == '"'; at = skip_space(text, at + 1)) {
        size_t begin = at, after = skip_string(text, at);
        bool found =
            after - begin == strlen(key) + 2 && memcmp(text + begin + 1, key, strlen(key)) == 0;
        at = skip_space(text, after);
        at = skip_space(text, text[at] == ':' ? at + 1 : at);
        *value = (span){at, skip_value(text, at)};
        while (value->end > value->begin && isspace((unsigned char)text[value->end - 1])) {
            value->end--;
        }
        if (found) {
            return true;
        }
        at = skip_value(text, at);
        if (text[at] != ',') {
            return false;
        }
    }
    return false;
}

static void put_value(const char *config, size_t object, const char *key, const char *value,
                      esp_buffer *text)
{
    span old;
    if (find_value(config, object, key, &old)) {
        esp_buffer_append(text, config, old.begin);
        esp_buffer_text(text, value);
        esp_buffer_text(text, config + old.end);
        return;
    }
    size_t next = skip_space(config, object + 1);
    esp_buffer_append(text, config, object + 1);
    esp_buffer_printf(text, "\n  \"%s\": %s%s", key, value, config[next] == '}' ? "" : ",");
    esp_buffer_text(text, config + object + 1);
}

/* Whether the text means what was wanted: an escaped spelling of the key may hide it. */
static esp_status check_value(const esp_buffer *text, const char *section, const char *key,
                              const char *value, esp_error *error)
{
    json_t *parsed = NULL, *wanted = json_loads(value, JSON_DECODE_ANY, NULL);
    esp_status status = esp_json_parse(text->data, text->length, "config.json", &parsed, error);
    const json_t *object = section != NULL ? json_object_get(parsed, section) : parsed;
    bool there = wanted != NULL && json_equal(json_object_get(object, key), wanted) == 1;
    json_decref(parsed);
    json_decref(wanted);
    ESP_TRY(status);
    return there ? ESP_OK
                 : esp_fail(error, ESP_BAD_FILE, "config.bad_type",
                            "config.json: \"%s\" cannot be changed in its text", key);
}

esp_status esp_config_set(esp_context *context, const char *config, const char *section,
                          const char *key, const char *value, char **result, esp_error *error)
{
    span within = {skip_space(config, 0), 0};
    esp_buffer text;
    if (section != NULL && !find_value(config, within.begin, section, &within)) {
        within.begin = strlen(config);
    }
    if (config[within.begin] != '{') {
        return esp_fail(
            error, ESP_BAD_FILE, "config.bad_type",
            "config.json: \"%s\" is to be changed, and there is no object that holds it", key);
    }
    esp_buffer_init(&text, context);
    put_value(config, within.begin, key, value, &text);
    esp_status status = text.failed ? esp_fail_memory(error, text.length, "config.json")
                                    : check_value(&text, section, key, value, error);
    if (status != ESP_OK) {
        esp_buffer_free(&text);
        return status;
    }
    *result = text.data;
    return ESP_OK;
}
