/* Reading safetensors files: 8 bytes little-endian header length N, N bytes of JSON, data.
 *
 * The whole header is validated before the handle is given out; after that every offset is known to
 * lie in the file as it was at that time. Data are read by pread into the caller's memory: a file
 * cut by somebody else later is an error, not a crash as a mapping would be, and unaligned data
 * need no care. */
#include <inttypes.h>
#include <string.h>

#include "io/safetensors.h"

#include "io/header_json.h"

#define HEAD_BYTES 512

static uint64_t little_endian(const unsigned char bytes[8])
{
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--) {
        value = value << 8 | bytes[i];
    }
    return value;
}

static bool may_begin_header(unsigned char byte)
{
    return byte == '{' || byte == ' ' || byte == '\t' || byte == '\n' || byte == '\r';
}

/* The length is right when its bytes are reversed. */
static esp_status check_endian(const esp_safetensors *file, const unsigned char *head, size_t bytes,
                               esp_error *error)
{
    uint64_t swapped = __builtin_bswap64(little_endian(head));
    char last;
    if (swapped < 2 || swapped > ESP_SAFETENSORS_MAX_HEADER ||
        swapped > file->file_bytes - ESP_HEADER_START || bytes <= ESP_HEADER_START ||
        head[ESP_HEADER_START] != '{') {
        return ESP_OK;
    }
    ESP_TRY(esp_file_read_at(file->descriptor, file->path, &last, 1, ESP_HEADER_START + swapped - 1,
                             error));
    if (last != '}' && last != ' ') {
        return ESP_OK;
    }
    return esp_fail(error, ESP_BAD_FILE, "safetensors.big_endian",
                    "%s: byte 0: the header length %" PRIu64
                    " is written big-endian; safetensors is "
                    "little-endian: export the file again with a writer that respects it",
                    file->path, swapped);
}

static esp_status bad_length(const esp_safetensors *file, uint64_t length, esp_error *error)
{
    uint64_t end;
    if (length == 0) {
        return esp_fail(error, ESP_BAD_FILE, "safetensors.empty_header",
                        "%s: byte 0: the header length is 0; at least {} was expected: download or "
                        "export the file again",
                        file->path);
    }
    if (!esp_add_u64(length, ESP_HEADER_START, &end)) {
        return esp_fail(error, ESP_BAD_FILE, "safetensors.header_length_overflow",
                        "%s: byte 0: the header length %" PRIu64
                        " plus 8 does not fit 64 bits; this "
                        "is no safetensors file",
                        file->path, length);
    }
    if (end > INT64_MAX) {
        return esp_fail(error, ESP_BAD_FILE, "safetensors.header_length_sign",
                        "%s: byte 0: the header length %" PRIu64 " is more than any file can hold; "
                        "this is no safetensors file",
                        file->path, length);
    }
    if (length > ESP_SAFETENSORS_MAX_HEADER) {
        return esp_fail(error, ESP_BAD_FILE, "safetensors.header_too_large",
                        "%s: byte 0: the header length %" PRIu64
                        " is more than the allowed %" PRIu64
                        "; this is no safetensors file, or a damaged one: download it again",
                        file->path, length, ESP_SAFETENSORS_MAX_HEADER);
    }
    return esp_fail(error, ESP_BAD_FILE, "safetensors.header_truncated",
                    "%s: cut short inside the header: expected at least %" PRIu64
                    " bytes, the file has %" PRIu64
                    "; the download was interrupted: download it again",
                    file->path, end, file->file_bytes);
}

/* Finds N, or says what the file is instead. */
static esp_status read_length(esp_safetensors *file, esp_error *error)
{
    unsigned char head[HEAD_BYTES];
    if (file->file_bytes < ESP_HEADER_START) {
        return esp_fail(error, ESP_BAD_FILE,
                        file->file_bytes == 0 ? "safetensors.empty_file" : "safetensors.too_short",
                        "%s: has %" PRIu64
                        " bytes; a safetensors file has at least 10; the download "
                        "was interrupted: download it again",
                        file->path, file->file_bytes);
    }
    size_t bytes = (size_t)ESP_MIN(file->file_bytes, (uint64_t)sizeof head);
    ESP_TRY(esp_file_read_at(file->descriptor, file->path, head, bytes, 0, error));
    uint64_t length = little_endian(head);
    bool fits = length > 0 && length <= ESP_SAFETENSORS_MAX_HEADER &&
                length <= file->file_bytes - ESP_HEADER_START;
    if (!fits || !may_begin_header(head[ESP_HEADER_START])) {
        ESP_TRY(esp_safetensors_sniff(file->path, head, bytes, error));
    }
    if (!fits) {
        ESP_TRY(check_endian(file, head, bytes, error));
        return bad_length(file, length, error);
    }
    file->header_bytes = length;
    return ESP_OK;
}

static esp_status load(esp_safetensors *file, esp_error *error)
{
    ESP_TRY(esp_file_open(file->path, &file->descriptor, &file->file_bytes, error));
    ESP_TRY(read_length(file, error));
    size_t length = (size_t)file->header_bytes;
    file->header = esp_alloc(file->context, length + 1);
    if (file->header == NULL) {
        return esp_fail_memory(error, length + 1, "a safetensors header");
    }
    ESP_TRY(esp_file_read_at(file->descriptor, file->path, file->header, length, ESP_HEADER_START,
                             error));
    file->header[length] = '\0';
    ESP_TRY(esp_safetensors_read_header(file, error));
    ESP_TRY(esp_safetensors_check_names(file, error));
    return esp_safetensors_check_ranges(file, error);
}

esp_status esp_safetensors_open(esp_context *context, const char *path, esp_safetensors **file,
                                esp_error *error)
{
    esp_safetensors *opened = esp_alloc_zero(context, sizeof *opened);
    if (opened == NULL) {
        return esp_fail_memory(error, sizeof *opened, "a safetensors file");
    }
    opened->context = context;
    opened->descriptor = -1;
    opened->path = esp_strdup(context, path);
    esp_status status = opened->path != NULL ? load(opened, error)
                                             : esp_fail_memory(error, strlen(path) + 1, "a path");
    if (status != ESP_OK) {
        esp_safetensors_close(opened);
        return status;
    }
    *file = opened;
    return ESP_OK;
}

void esp_safetensors_close(esp_safetensors *file)
{
    if (file == NULL) {
        return;
    }
    esp_file_close(file->descriptor);
    esp_release(file->context, file->path);
    esp_release(file->context, file->header);
    esp_release(file->context, file->entries);
    esp_release(file->context, file->dims);
    esp_release(file->context, file->by_name);
    esp_release(file->context, file->metadata);
    esp_release(file->context, file);
}

int64_t esp_safetensors_count(const esp_safetensors *file)
{
    return (int64_t)file->count;
}

esp_tensor_info esp_safetensors_get(const esp_safetensors *file, int64_t index)
{
    return file->entries[index].info;
}

int64_t esp_safetensors_find(const esp_safetensors *file, const char *name)
{
    size_t low = 0, high = file->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(file->entries[file->by_name[middle]].info.name, name);
        if (order == 0) {
            return file->by_name[middle];
        }
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return -1;
}

const char *esp_safetensors_metadata(const esp_safetensors *file, const char *key)
{
    for (size_t i = 0; i < file->metadata_count; i++) {
        if (strcmp(file->metadata[i].key, key) == 0) {
            return file->metadata[i].value;
        }
    }
    return NULL;
}

esp_status esp_safetensors_read(const esp_safetensors *file, int64_t index, void *buffer,
                                esp_error *error)
{
    const esp_tensor_info *info = &file->entries[index].info;
    return esp_file_read_at(file->descriptor, file->path, buffer, (size_t)info->bytes,
                            info->file_offset, error);
}
