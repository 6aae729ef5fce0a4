/* The strict JSON of safetensors headers: first a scan of the whole text, then typed reading of
 * what the scan found to be well-formed.
 *
 * Stricter than JSON: unsigned integers of at most 19 digits are the only numbers, no NUL in
 * strings, nesting at most 8 deep. Linear time, no recursion, no allocation: strings are decoded in
 * place. */
#ifndef ESP_IO_HEADER_JSON_H
#define ESP_IO_HEADER_JSON_H

#include "io/io.h"

#define ESP_HEADER_MAX_DEPTH 8
#define ESP_HEADER_MAX_ENTRIES ((size_t)1000000)
/* Of the first byte of the header in the file. */
#define ESP_HEADER_START ((size_t)8)

typedef struct esp_header_json {
    const char *file; /* for messages */
    char *text;       /* NUL-terminated */
    size_t length;
    size_t at;
    size_t entries; /* found by the scan: keys of the outermost object */
    size_t numbers; /* found by the scan: numbers anywhere */
    esp_error *error;
} esp_header_json;

/* Checks all of the text as one JSON object, counts, and leaves `at` at 0. */
ESP_MUST_CHECK esp_status esp_header_scan(esp_header_json *json);

/* Fails with file and byte. */
esp_status esp_header_fail(const esp_header_json *json, size_t at, const char *code,
                           const char *format, ...) ESP_PRINTF(4, 5);

static inline void esp_header_skip_space(esp_header_json *json)
{
    while (json->at < json->length &&
           (json->text[json->at] == ' ' || json->text[json->at] == '\t' ||
            json->text[json->at] == '\n' || json->text[json->at] == '\r')) {
        json->at++;
    }
}
/* The value of four hexadecimal digits at `at`; -1 when they are not there. */
int32_t esp_header_hex4(const esp_header_json *json, size_t at);

/* ---- reading, after a scan that succeeded ---- */

/* First byte of the next token. */
char esp_header_peek(esp_header_json *json);
/* Enters an object or array whose opening byte was peeked. */
void esp_header_enter(esp_header_json *json);
/* Moves to the next member or element; false (and past the end) when there is none. */
bool esp_header_next(esp_header_json *json);
typedef struct esp_header_string {
    const char *text; /* inside the header's own memory, NUL-terminated */
    size_t length;
    bool escaped; /* its spelling used an escape */
} esp_header_string;
esp_header_string esp_header_read_string(esp_header_json *json);
/* A key and the colon behind it. */
esp_header_string esp_header_read_key(esp_header_json *json);
uint64_t esp_header_read_number(esp_header_json *json);

#endif
