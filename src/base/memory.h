/* Allocation through the context's hook. Memory is 64-byte aligned. */
#ifndef ESP_BASE_MEMORY_H
#define ESP_BASE_MEMORY_H

#include <espalier/base.h>

/* NULL when it fails; 0 bytes give a valid pointer to free. */
void *esp_alloc(esp_context *context, size_t bytes);
void *esp_alloc_zero(esp_context *context, size_t bytes);
/* count * size by checked multiply; NULL when that does not fit. Zeroed. */
void *esp_alloc_array(esp_context *context, size_t count, size_t size);
/* The same, but anything is in it: for what is so large that writing it twice takes time. */
void *esp_alloc_large(esp_context *context, size_t count, size_t size);
/* Copies old_bytes; the old block is freed only on success. */
void *esp_realloc(esp_context *context, void *memory, size_t old_bytes, size_t new_bytes);
char *esp_strdup(esp_context *context, const char *text);
char *esp_strndup(esp_context *context, const char *text, size_t length);
void esp_release(esp_context *context, void *memory);

/* Bytes that the system would give without writing other memory away; 0: it does not say. */
uint64_t esp_memory_available(void);

#endif
