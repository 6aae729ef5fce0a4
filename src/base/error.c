#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Replaces control bytes (and DEL) by '?' so that a message stays one harmless line; a UTF-8
 * sequence cut by the fixed size loses its half. */
static void make_printable(char *text)
{
    size_t length = strlen(text);
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)text[i];
        if (byte < 0x20 || byte == 0x7f) {
            text[i] = '?';
        }
    }
    size_t tail = length;
    while (tail > 0 && length - tail < 4 && ((unsigned char)text[tail - 1] & 0xc0) == 0x80) {
        tail--;
    }
    if (tail > 0) {
        unsigned char lead = (unsigned char)text[tail - 1];
        size_t need = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
        if (need > 1 && length - (tail - 1) < need) {
            text[tail - 1] = '\0';
        }
    }
}

static void set_error(esp_error *error, esp_status status, const char *code, const char *text)
{
    error->status = status;
    snprintf(error->code, sizeof error->code, "%s", code);
    snprintf(error->message, sizeof error->message, "%s", text);
    make_printable(error->message);
}

esp_status esp_fail(esp_error *error, esp_status status, const char *code, const char *format, ...)
{
    if (error != NULL) {
        char text[sizeof error->message];
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        set_error(error, status, code, text);
    }
    return status;
}

esp_status esp_fail_errno(esp_error *error, int errno_value, const char *code, const char *format,
                          ...)
{
    esp_status status = errno_value == ENOMEM ? ESP_OUT_OF_MEMORY : ESP_IO;
    if (error != NULL) {
        char text[sizeof error->message];
        char reason[128];
        va_list arguments;
        va_start(arguments, format);
        int used = vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        if (used >= 0 && (size_t)used < sizeof text) {
            snprintf(text + used, sizeof text - (size_t)used, ": %s",
                     strerror_r(errno_value, reason, sizeof reason));
        }
        set_error(error, status, code, text);
    }
    return status;
}

esp_status esp_fail_memory(esp_error *error, size_t bytes, const char *what)
{
    return esp_fail(error, ESP_OUT_OF_MEMORY, "memory.exhausted",
                    "out of memory: %zu bytes for %s could not be had", bytes, what);
}

esp_status esp_fail_within(esp_error *error, esp_status status, const char *format, ...)
{
    if (error == NULL) {
        return status;
    }
    char text[sizeof error->message];
    char old[sizeof error->message];
    memcpy(old, error->message, sizeof old);
    va_list arguments;
    va_start(arguments, format);
    int used = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (used >= 0 && (size_t)used < sizeof text) {
        snprintf(text + used, sizeof text - (size_t)used, ": %s", old);
    }
    snprintf(error->message, sizeof error->message, "%s", text);
    make_printable(error->message);
    return error->status;
}

const char *esp_status_name(esp_status status)
{
    static const char *const names[] = {
        [ESP_OK] = "ok",
        [ESP_FAILED] = "failed",
        [ESP_BAD_ARGUMENT] = "bad_argument",
        [ESP_BAD_FILE] = "bad_file",
        [ESP_UNSUPPORTED] = "unsupported",
        [ESP_CHECK_FAILED] = "check_failed",
        [ESP_OUT_OF_MEMORY] = "out_of_memory",
        [ESP_IO] = "io",
        [ESP_CANCELLED] = "cancelled",
    };
    size_t index = (size_t)status;
    return index < sizeof names / sizeof names[0] ? names[index] : "unknown";
}
