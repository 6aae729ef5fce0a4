/* Safetensors files as bytes, right or wrong, for tests. */
#ifndef ESP_TESTS_SAFETENSORS_BYTES_H
#define ESP_TESTS_SAFETENSORS_BYTES_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "test.h"

typedef struct file_bytes {
    char *data;
    size_t length;
} file_bytes;

/* Length field, header as it is, `data` zero bytes or a copy of content. free(bytes.data). */
static inline file_bytes make_file(uint64_t length_field, const char *header, size_t header_bytes,
                                   const void *content, size_t content_bytes)
{
    file_bytes made = {.length = 8 + header_bytes + content_bytes};
    made.data = calloc(1, made.length);
    for (int i = 0; i < 8; i++) {
        made.data[i] = (char)(length_field >> 8 * i);
    }
    memcpy(made.data + 8, header, header_bytes);
    if (content != NULL && content_bytes > 0) {
        memcpy(made.data + 8 + header_bytes, content, content_bytes);
    }
    return made;
}

static inline void write_safetensors(test_run *run, const char *path, const char *header,
                                     const void *content, size_t content_bytes)
{
    file_bytes bytes = make_file(strlen(header), header, strlen(header), content, content_bytes);
    test_write_file(run, path, bytes.data, bytes.length);
    free(bytes.data);
}

static inline void write_text(test_run *run, const char *path, const char *text)
{
    test_write_file(run, path, text, strlen(text));
}

#endif
