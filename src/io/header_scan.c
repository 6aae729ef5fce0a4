/* The scan: one pass over the text of a header that finds every fault of spelling and nesting. */
#include "io/header_json.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "io/names.h"

#define MAX_DIGITS 19 /* always fits uint64_t */
#define AGAIN "the file is damaged or its writer faulty: download or export it again"

esp_status esp_header_fail(const esp_header_json *json, size_t at, const char *code,
                           const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return esp_fail(json->error, ESP_BAD_FILE, code, "%s: byte %zu: %s", json->file,
                    ESP_HEADER_START + at, text);
}

static bool starts_with(const esp_header_json *json, const char *word)
{
    size_t length = strlen(word);
    return json->length - json->at >= length && memcmp(json->text + json->at, word, length) == 0;
}

/* ---- the scan ---- */

typedef enum expectation { WANT_KEY, WANT_COLON, WANT_VALUE, WANT_COMMA } expectation;

typedef struct scan {
    esp_header_json *json;
    char closers[ESP_HEADER_MAX_DEPTH];
    int depth;
    expectation want;
    bool fresh;       /* the innermost container has nothing yet: it may close */
    bool after_comma; /* it may not */
} scan;

static esp_status utf8_failed(const esp_header_json *json, size_t at, esp_utf8_fault fault)
{
    switch (fault) {
    case ESP_UTF8_OVERLONG:
        return esp_header_fail(json, at, "safetensors.overlong_utf8",
                               "a character is spelled in more UTF-8 bytes than it needs; " AGAIN);
    case ESP_UTF8_SURROGATE:
        return esp_header_fail(json, at, "safetensors.utf8_surrogate",
                               "half of a surrogate pair is spelled in UTF-8; " AGAIN);
    default:
        return esp_header_fail(json, at, "safetensors.not_utf8",
                               "the header must be UTF-8, this byte is not; " AGAIN);
    }
}

static esp_status unterminated(const esp_header_json *json)
{
    return esp_header_fail(json, json->length, "safetensors.unterminated",
                           "the header ends inside its JSON text; the length in the first 8 bytes "
                           "(%zu) is too small or the text is cut: download the file again",
                           json->length);
}

/* A byte where no token may begin. */
static esp_status unexpected(const esp_header_json *json, const char *wanted)
{
    if (starts_with(json, "//") || starts_with(json, "/*")) {
        return esp_header_fail(json, json->at, "safetensors.comment",
                               "JSON has no comments; export the file again without");
    }
    unsigned char byte = (unsigned char)json->text[json->at];
    esp_utf8_fault fault = ESP_UTF8_FINE;
    if (byte >= 0x80 &&
        esp_io_utf8_step(json->text + json->at, json->length - json->at, &fault) == 0) {
        return utf8_failed(json, json->at, fault);
    }
    return esp_header_fail(json, json->at, "safetensors.json_syntax",
                           "expected %s, found byte 0x%02x; " AGAIN, wanted, byte);
}

static int hex_value(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

int32_t esp_header_hex4(const esp_header_json *json, size_t at)
{
    if (json->length - at < 4) {
        return -1;
    }
    int32_t value = 0;
    for (size_t i = 0; i < 4; i++) {
        int digit = hex_value(json->text[at + i]);
        if (digit < 0) {
            return -1;
        }
        value = value * 16 + digit;
    }
    return value;
}

static esp_status nul_failed(const esp_header_json *json, size_t at, bool is_key)
{
    return esp_header_fail(json, at, is_key ? "safetensors.nul_in_name" : "safetensors.nul_in_text",
                           "a %s holds a NUL character, which could hide what follows it; " AGAIN,
                           is_key ? "name" : "text");
}

/* The escape at `at` (just behind the backslash). */
static esp_status scan_unicode_escape(esp_header_json *json, bool is_key)
{
    size_t start = json->at;
    int32_t unit = esp_header_hex4(json, json->at + 1);
    if (unit < 0) {
        return esp_header_fail(json, start, "safetensors.bad_escape",
                               "\\u needs four hexadecimal digits; " AGAIN);
    }
    if (unit == 0) {
        return nul_failed(json, start, is_key);
    }
    json->at += 5;
    if (unit < 0xd800 || unit > 0xdfff) {
        return ESP_OK;
    }
    int32_t second = -1;
    if (unit < 0xdc00 && starts_with(json, "\\u")) {
        second = esp_header_hex4(json, json->at + 2);
    }
    if (second < 0xdc00 || second > 0xdfff) {
        return esp_header_fail(json, start, "safetensors.lone_surrogate",
                               "\\u%04x is half of a pair and stands alone; " AGAIN,
                               (unsigned)unit);
    }
    json->at += 6;
    return ESP_OK;
}

static esp_status scan_escape(esp_header_json *json, bool is_key)
{
    json->at++;
    if (json->at == json->length) {
        return unterminated(json);
    }
    char kind = json->text[json->at];
    if (kind == 'u') {
        return scan_unicode_escape(json, is_key);
    }
    if (kind == '\0' || strchr("\"\\/bfnrt", kind) == NULL) {
        return esp_header_fail(json, json->at, "safetensors.bad_escape",
                               "JSON has no such escape (byte 0x%02x); " AGAIN,
                               (unsigned char)kind);
    }
    json->at++;
    return ESP_OK;
}

static esp_status scan_string(esp_header_json *json, bool is_key)
{
    json->at++;
    while (json->at < json->length) {
        unsigned char byte = (unsigned char)json->text[json->at];
        if (byte == '"') {
            json->at++;
            return ESP_OK;
        }
        if (byte == '\\') {
            ESP_TRY(scan_escape(json, is_key));
        } else if (byte == 0) {
            return nul_failed(json, json->at, is_key);
        } else if (byte < 0x20) {
            return esp_header_fail(json, json->at, "safetensors.control_in_string",
                                   "control byte 0x%02x in a string must be escaped; " AGAIN, byte);
        } else {
            esp_utf8_fault fault = ESP_UTF8_FINE;
            size_t step = esp_io_utf8_step(json->text + json->at, json->length - json->at, &fault);
            if (step == 0) {
                return utf8_failed(json, json->at, fault);
            }
            json->at += step;
        }
    }
    return unterminated(json);
}

static esp_status scan_number(esp_header_json *json)
{
    size_t start = json->at;
    while (json->at < json->length && json->text[json->at] >= '0' && json->text[json->at] <= '9') {
        json->at++;
    }
    size_t digits = json->at - start;
    char after = json->at < json->length ? json->text[json->at] : ' ';
    if (after == '.') {
        return esp_header_fail(json, start, "safetensors.number_fraction",
                               "a fraction; sizes and offsets are whole numbers; " AGAIN);
    }
    if (after == 'e' || after == 'E') {
        return esp_header_fail(json, start, "safetensors.number_exponent",
                               "an exponent; sizes and offsets are plain whole numbers; " AGAIN);
    }
    if (digits > 1 && json->text[start] == '0') {
        return esp_header_fail(json, start, "safetensors.number_leading_zero",
                               "a number may not begin with 0; " AGAIN);
    }
    if (digits > MAX_DIGITS) {
        return esp_header_fail(json, start, "safetensors.number_too_large",
                               "a number of %zu digits; at most %d were expected; " AGAIN, digits,
                               MAX_DIGITS);
    }
    json->numbers++;
    return ESP_OK;
}

static esp_status scan_word(esp_header_json *json)
{
    static const char *const words[] = {"true", "false", "null"};
    static const char *const not_finite[] = {"NaN", "nan", "Infinity", "-Infinity", "-NaN", "inf"};
    for (int i = 0; i < ESP_COUNT(words); i++) {
        if (starts_with(json, words[i])) {
            json->at += strlen(words[i]);
            return ESP_OK;
        }
    }
    for (int i = 0; i < ESP_COUNT(not_finite); i++) {
        if (starts_with(json, not_finite[i])) {
            return esp_header_fail(json, json->at, "safetensors.number_not_finite",
                                   "%s is not JSON; " AGAIN, not_finite[i]);
        }
    }
    if (json->text[json->at] == '-') {
        return esp_header_fail(json, json->at, "safetensors.number_negative",
                               "a negative number; sizes and offsets are not negative; " AGAIN);
    }
    return unexpected(json, "a value");
}

static esp_status open_container(scan *state, char closer)
{
    esp_header_json *json = state->json;
    if (state->depth == ESP_HEADER_MAX_DEPTH) {
        return esp_header_fail(json, json->at, "safetensors.too_deep",
                               "nested deeper than %d levels; a header needs 3; " AGAIN,
                               ESP_HEADER_MAX_DEPTH);
    }
    json->at++;
    state->closers[state->depth++] = closer;
    state->want = closer == '}' ? WANT_KEY : WANT_VALUE;
    state->fresh = true;
    state->after_comma = false;
    return ESP_OK;
}

static esp_status scan_value(scan *state)
{
    esp_header_json *json = state->json;
    char c = json->text[json->at];
    if (c == '{' || c == '[') {
        return open_container(state, c == '{' ? '}' : ']');
    }
    state->want = WANT_COMMA;
    if (c == '"') {
        return scan_string(json, false);
    }
    return c >= '0' && c <= '9' ? scan_number(json) : scan_word(json);
}

static esp_status scan_key(scan *state)
{
    esp_header_json *json = state->json;
    if (json->text[json->at] != '"') {
        return unexpected(json, "a name in quotes");
    }
    if (state->depth == 1 && ++json->entries > ESP_HEADER_MAX_ENTRIES) {
        return esp_header_fail(json, json->at, "safetensors.too_many_entries",
                               "more than %zu tensors; split the model into several files",
                               ESP_HEADER_MAX_ENTRIES);
    }
    state->want = WANT_COLON;
    return scan_string(json, true);
}

/* The innermost container ends here, or it is a comma too much. */
static esp_status close_container(scan *state)
{
    if (state->after_comma) {
        return esp_header_fail(state->json, state->json->at, "safetensors.trailing_comma",
                               "a comma with nothing behind it; " AGAIN);
    }
    state->json->at++;
    state->depth--;
    state->want = WANT_COMMA;
    state->fresh = false;
    return ESP_OK;
}

static esp_status scan_token(scan *state)
{
    esp_header_json *json = state->json;
    char c = json->text[json->at];
    bool closes = c == state->closers[state->depth - 1];
    bool in_object = state->closers[state->depth - 1] == '}';
    if (closes && (state->want == WANT_COMMA || state->fresh || state->after_comma)) {
        return close_container(state);
    }
    state->fresh = state->after_comma = false;
    switch (state->want) {
    case WANT_COMMA:
        if (c != ',') {
            return unexpected(json, in_object ? "',' or '}'" : "',' or ']'");
        }
        json->at++;
        state->after_comma = true;
        state->want = in_object ? WANT_KEY : WANT_VALUE;
        return ESP_OK;
    case WANT_COLON:
        if (c != ':') {
            return unexpected(json, "':'");
        }
        json->at++;
        state->want = WANT_VALUE;
        return ESP_OK;
    case WANT_KEY:
        return scan_key(state);
    default:
        return scan_value(state);
    }
}

esp_status esp_header_scan(esp_header_json *json)
{
    json->at = json->entries = json->numbers = 0;
    esp_header_skip_space(json);
    if (starts_with(json, "\xef\xbb\xbf")) {
        return esp_header_fail(json, json->at, "safetensors.byte_order_mark",
                               "a byte order mark; the header must begin with '{'; " AGAIN);
    }
    if (json->at == json->length) {
        return unterminated(json);
    }
    if (json->text[json->at] != '{') {
        return esp_header_fail(json, json->at, "safetensors.not_object",
                               "the header must be a JSON object beginning with '{', found byte "
                               "0x%02x; is this a safetensors file?",
                               (unsigned char)json->text[json->at]);
    }
    scan state = {.json = json};
    ESP_TRY(open_container(&state, '}'));
    while (state.depth > 0) {
        esp_header_skip_space(json);
        if (json->at == json->length) {
            return unterminated(json);
        }
        ESP_TRY(scan_token(&state));
    }
    esp_header_skip_space(json);
    if (json->at < json->length) {
        return esp_header_fail(
            json, json->at, "safetensors.after_object",
            "something follows the closing '}'; only spaces may pad a header; " AGAIN);
    }
    json->at = 0;
    return ESP_OK;
}
