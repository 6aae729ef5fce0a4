/* Building an esp_error: one line of text, control bytes escaped, so that content of a hostile file
 * cannot reach a terminal raw. */
#ifndef ESP_BASE_ERROR_H
#define ESP_BASE_ERROR_H

#include <espalier/base.h>

/* Fills error (may be NULL) and returns status, so that callers write `return esp_fail(...)`. */
esp_status esp_fail(esp_error *error, esp_status status, const char *code, const char *format, ...)
    ESP_PRINTF(4, 5);
/* The same for a failed system call: appends strerror(errno_value); ENOMEM becomes OUT_OF_MEMORY.
 */
esp_status esp_fail_errno(esp_error *error, int errno_value, const char *code, const char *format,
                          ...) ESP_PRINTF(4, 5);
esp_status esp_fail_memory(esp_error *error, size_t bytes, const char *what);
/* Puts "prefix: " before the message that error already holds; returns error's status, or `status`
 * when error is NULL. */
esp_status esp_fail_within(esp_error *error, esp_status status, const char *format, ...)
    ESP_PRINTF(3, 4);

/* Returns from the calling function when the expression is not ESP_OK. */
#define ESP_TRY(expression)                                                                        \
    do {                                                                                           \
        esp_status esp_try_status_ = (expression);                                                 \
        if (esp_try_status_ != ESP_OK) {                                                           \
            return esp_try_status_;                                                                \
        }                                                                                          \
    } while (0)

#endif
