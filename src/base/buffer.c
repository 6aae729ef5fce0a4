#include "base/buffer.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/memory.h"

void esp_buffer_init(esp_buffer *buffer, esp_context *context)
{
    *buffer = (esp_buffer){.context = context};
}

void esp_buffer_free(esp_buffer *buffer)
{
    if (buffer->context != NULL) {
        esp_release(buffer->context, buffer->data);
    }
    *buffer = (esp_buffer){.context = buffer->context};
}

void esp_buffer_clear(esp_buffer *buffer)
{
    buffer->length = 0;
    if (buffer->data != NULL) {
        buffer->data[0] = '\0';
    }
}

/* Room for `bytes` more and the NUL. */
static bool reserve(esp_buffer *buffer, size_t bytes)
{
    size_t need, doubled;
    if (buffer->failed || !esp_add_size(buffer->length, bytes, &need) ||
        !esp_add_size(need, 1, &need)) {
        buffer->failed = true;
        return false;
    }
    if (need <= buffer->capacity) {
        return true;
    }
    size_t capacity =
        esp_mul_size(buffer->capacity, 2, &doubled) && doubled > need ? doubled : need;
    capacity = capacity < 256 ? 256 : capacity;
    char *grown = esp_realloc(buffer->context, buffer->data, buffer->length, capacity);
    if (grown == NULL) {
        buffer->failed = true;
        return false;
    }
    buffer->data = grown;
    buffer->capacity = capacity;
    return true;
}

void esp_buffer_append(esp_buffer *buffer, const void *data, size_t bytes)
{
    if (!reserve(buffer, bytes)) {
        return;
    }
    if (bytes > 0) {
        memcpy(buffer->data + buffer->length, data, bytes);
    }
    buffer->length += bytes;
    buffer->data[buffer->length] = '\0';
}

void esp_buffer_text(esp_buffer *buffer, const char *text)
{
    esp_buffer_append(buffer, text, strlen(text));
}

void esp_buffer_printf(esp_buffer *buffer, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0 || !reserve(buffer, (size_t)length)) {
        buffer->failed = true;
        return;
    }
    va_start(arguments, format);
    vsnprintf(buffer->data + buffer->length, (size_t)length + 1, format, arguments);
    va_end(arguments);
    buffer->length += (size_t)length;
}

void esp_buffer_json_string(esp_buffer *buffer, const char *text)
{
    esp_buffer_text(buffer, "\"");
    for (const char *at = text; *at != '\0'; at++) {
        unsigned char byte = (unsigned char)*at;
        if (byte == '"' || byte == '\\') {
            esp_buffer_printf(buffer, "\\%c", byte);
        } else if (byte < 0x20 || byte == 0x7f) {
            esp_buffer_printf(buffer, "\\u%04x", byte);
        } else {
            esp_buffer_append(buffer, at, 1);
        }
    }
    esp_buffer_text(buffer, "\"");
}
