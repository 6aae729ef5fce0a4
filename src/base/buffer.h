/* A growing array of bytes, always NUL-terminated; the first failure sticks and is asked for once.
 */
#ifndef ESP_BASE_BUFFER_H
#define ESP_BASE_BUFFER_H

#include <espalier/base.h>

typedef struct esp_buffer {
    esp_context *context;
    char *data; /* NULL while empty */
    size_t length, capacity;
    bool failed; /* an allocation failed: contents are incomplete */
} esp_buffer;

void esp_buffer_init(esp_buffer *buffer, esp_context *context);
void esp_buffer_free(esp_buffer *buffer);
void esp_buffer_clear(esp_buffer *buffer); /* keeps the memory */
void esp_buffer_append(esp_buffer *buffer, const void *data, size_t bytes);
void esp_buffer_text(esp_buffer *buffer, const char *text);
void esp_buffer_printf(esp_buffer *buffer, const char *format, ...) ESP_PRINTF(2, 3);
/* Quoted and escaped as a JSON string. */
void esp_buffer_json_string(esp_buffer *buffer, const char *text);

#endif
