/* The inside of an open safetensors file, shared by the files of this room that fill and check it.
 */
#ifndef ESP_IO_SAFETENSORS_H
#define ESP_IO_SAFETENSORS_H

#include "io/io.h"

#define ESP_SAFETENSORS_MAX_HEADER ((uint64_t)100000000)
#define ESP_SAFETENSORS_MAX_RANK 64

typedef struct esp_safetensors_entry {
    esp_tensor_info info; /* name and shape point into the file's own memory */
    uint64_t begin, end;  /* in the data part */
    bool escaped;         /* the name's spelling used an escape */
} esp_safetensors_entry;

typedef struct esp_metadata_entry {
    const char *key, *value;
} esp_metadata_entry;

struct esp_safetensors {
    esp_context *context;
    char *path;
    int descriptor;
    uint64_t file_bytes;
    uint64_t header_bytes;          /* N: the data begin at 8 + N */
    char *header;                   /* decoded in place: names and metadata point here */
    esp_safetensors_entry *entries; /* by offset */
    size_t count;
    int64_t *dims;                /* of all shapes */
    uint32_t *by_name;            /* indexes into entries, sorted by name */
    esp_metadata_entry *metadata; /* in file order */
    size_t metadata_count;
};

/* header.c: header text -> entries in file order, metadata; every rule about one tensor. */
ESP_MUST_CHECK esp_status esp_safetensors_read_header(esp_safetensors *file, esp_error *error);
/* ranges.c, in this order: sorts by name, each name once; sorts the entries by offset, ranges side
 * by side, no more, no less. */
ESP_MUST_CHECK esp_status esp_safetensors_check_names(esp_safetensors *file, esp_error *error);
ESP_MUST_CHECK esp_status esp_safetensors_check_ranges(esp_safetensors *file, esp_error *error);
/* sniff.c: fails when the first bytes are those of some other kind of file. */
ESP_MUST_CHECK esp_status esp_safetensors_sniff(const char *path, const unsigned char *head,
                                                size_t bytes, esp_error *error);

#endif
