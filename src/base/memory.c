#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/context.h"

#define ALIGNMENT 64

void *esp_alloc(esp_context *context, size_t bytes)
{
    size_t padded;
    if (!esp_add_size(bytes, ALIGNMENT - 1, &padded)) {
        return NULL;
    }
    padded &= ~(size_t)(ALIGNMENT - 1);
    if (padded == 0) {
        padded = ALIGNMENT;
    }
    return context->allocator.allocate(context->allocator.user, padded, ALIGNMENT);
}

void *esp_alloc_zero(esp_context *context, size_t bytes)
{
    void *memory = esp_alloc(context, bytes);
    if (memory != NULL) {
        memset(memory, 0, bytes);
    }
    return memory;
}

void *esp_alloc_array(esp_context *context, size_t count, size_t size)
{
    size_t bytes;
    return esp_mul_size(count, size, &bytes) ? esp_alloc_zero(context, bytes) : NULL;
}

void *esp_alloc_large(esp_context *context, size_t count, size_t size)
{
    size_t bytes;
    return esp_mul_size(count, size, &bytes) ? esp_alloc(context, bytes) : NULL;
}

void *esp_realloc(esp_context *context, void *memory, size_t old_bytes, size_t new_bytes)
{
    void *grown = esp_alloc(context, new_bytes);
    if (grown != NULL && memory != NULL) {
        memcpy(grown, memory, old_bytes < new_bytes ? old_bytes : new_bytes);
        esp_release(context, memory);
    }
    return grown;
}

char *esp_strdup(esp_context *context, const char *text)
{
    return esp_strndup(context, text, strlen(text));
}

char *esp_strndup(esp_context *context, const char *text, size_t length)
{
    size_t bytes;
    char *copy = esp_add_size(length, 1, &bytes) ? esp_alloc(context, bytes) : NULL;
    if (copy != NULL) {
        memcpy(copy, text, length);
        copy[length] = '\0';
    }
    return copy;
}

uint64_t esp_memory_available(void)
{
    unsigned long long kibibytes = 0;
    char line[128];
    FILE *facts = fopen("/proc/meminfo", "re");
    while (facts != NULL && fgets(line, sizeof line, facts) != NULL) {
        if (sscanf(line, "MemAvailable: %llu kB", &kibibytes) == 1) {
            break;
        }
    }
    if (facts != NULL) {
        (void)fclose(facts);
    }
    return (uint64_t)kibibytes << 10;
}

void esp_release(esp_context *context, void *memory)
{
    if (memory != NULL) {
        context->allocator.release(context->allocator.user, memory);
    }
}
