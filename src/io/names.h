/* Names from outside: UTF-8, showing them in messages, and sorting without a worst case. */
#ifndef ESP_IO_NAMES_H
#define ESP_IO_NAMES_H

#include "io/io.h"

#define ESP_IO_NAME_MAX 4096 /* bytes of a tensor name */

typedef enum esp_utf8_fault {
    ESP_UTF8_FINE = 0,
    ESP_UTF8_BROKEN,   /* a stray or missing continuation byte, or beyond U+10FFFF */
    ESP_UTF8_OVERLONG, /* a longer spelling than needed */
    ESP_UTF8_SURROGATE /* half of a UTF-16 pair */
} esp_utf8_fault;

/* Bytes of the character at text (length > 0), or 0 and the fault. */
size_t esp_io_utf8_step(const char *text, size_t length, esp_utf8_fault *fault);
/* Non-empty, at most ESP_IO_NAME_MAX bytes, well-formed, and not "__metadata__". */
bool esp_io_name_is_fine(const char *name);

/* A name cut to a length that leaves room for the rest of a message. */
typedef struct esp_shown {
    char text[128];
} esp_shown;
esp_shown esp_io_show(const char *name);

typedef int (*esp_compare_fn)(const void *user, uint32_t a, uint32_t b);
/* Stable merge sort: O(n log n) whatever a hostile file says (the C library's may be quadratic). */
ESP_MUST_CHECK esp_status esp_io_sort(esp_context *context, uint32_t *indexes, size_t count,
                                      esp_compare_fn compare, const void *user, esp_error *error);

bool esp_io_ends_with(const char *text, const char *ending);
/* "folder/name"; NULL when out of memory. */
char *esp_io_join(esp_context *context, const char *folder, const char *name);

#endif
