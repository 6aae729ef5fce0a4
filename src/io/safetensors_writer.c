/* Writing safetensors files: every size is known before the first byte, so the header goes first
 * and each tensor straight to its place, in whatever order tensors come.
 *
 * Tensors lie by descending element size, then by name, and the header is padded to 8 bytes, so
 * that every tensor is aligned to its elements. The metadata say "pt", which transformers asks for.
 */
#include <inttypes.h>
#include <string.h>

#include "io/names.h"
#include "io/safetensors.h"

#include "io/header_json.h"

typedef struct declared {
    char *name;
    esp_tensor tensor; /* no data */
    uint64_t bytes, offset;
    bool written;
} declared;

struct esp_safetensors_writer {
    esp_context *context;
    declared *tensors;
    size_t count, capacity;
    uint32_t *by_name;
    esp_buffer header;
    bool placed;
    char *path;
    int descriptor;
};

esp_status esp_safetensors_writer_create(esp_context *context, esp_safetensors_writer **writer,
                                         esp_error *error)
{
    esp_safetensors_writer *made = esp_alloc_zero(context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "a safetensors writer");
    }
    made->context = context;
    made->descriptor = -1;
    esp_buffer_init(&made->header, context);
    *writer = made;
    return ESP_OK;
}

static esp_status grow(esp_safetensors_writer *writer, esp_error *error)
{
    if (writer->count < writer->capacity) {
        return ESP_OK;
    }
    size_t capacity = writer->capacity != 0 ? 2 * writer->capacity : 64;
    declared *grown = esp_realloc(writer->context, writer->tensors, writer->count * sizeof *grown,
                                  capacity * sizeof *grown);
    if (grown == NULL) {
        return esp_fail_memory(error, capacity * sizeof *grown, "a table of tensors");
    }
    writer->tensors = grown;
    writer->capacity = capacity;
    return ESP_OK;
}

esp_status esp_safetensors_writer_declare(esp_safetensors_writer *writer, const char *name,
                                          const esp_tensor *tensor, esp_error *error)
{
    size_t bytes;
    if (!esp_io_name_is_fine(name)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "safetensors.bad_name",
                        "\"%s\" cannot name a tensor: 1 to %d bytes of UTF-8 were expected",
                        esp_io_show(name).text, ESP_IO_NAME_MAX);
    }
    ESP_TRY(esp_tensor_size(tensor, NULL, &bytes, error));
    ESP_TRY(grow(writer, error));
    char *copy = esp_strdup(writer->context, name);
    if (copy == NULL) {
        return esp_fail_memory(error, strlen(name) + 1, "a tensor name");
    }
    writer->tensors[writer->count] = (declared){.name = copy, .tensor = *tensor, .bytes = bytes};
    writer->tensors[writer->count++].tensor.data = NULL;
    return ESP_OK;
}

/* ---- placing ---- */

static int compare_names(const void *user, uint32_t a, uint32_t b)
{
    const declared *tensors = user;
    return strcmp(tensors[a].name, tensors[b].name);
}

static int compare_places(const void *user, uint32_t a, uint32_t b)
{
    const declared *tensors = user;
    unsigned bits_a = esp_dtype_bits(tensors[a].tensor.dtype);
    unsigned bits_b = esp_dtype_bits(tensors[b].tensor.dtype);
    if (bits_a != bits_b) {
        return bits_a > bits_b ? -1 : 1;
    }
    return compare_names(user, a, b);
}

static void print_tensor(esp_buffer *header, const declared *tensor)
{
    esp_buffer_text(header, ",");
    esp_buffer_json_string(header, tensor->name);
    esp_buffer_printf(header, ":{\"dtype\":\"%s\",\"shape\":[",
                      esp_dtype_name(tensor->tensor.dtype));
    for (int i = 0; i < tensor->tensor.rank; i++) {
        esp_buffer_printf(header, "%s%" PRId64, i > 0 ? "," : "", tensor->tensor.shape[i]);
    }
    esp_buffer_printf(header, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", tensor->offset,
                      tensor->offset + tensor->bytes);
}

static esp_status check_names(const esp_safetensors_writer *writer, esp_error *error)
{
    for (size_t i = 1; i < writer->count; i++) {
        const char *name = writer->tensors[writer->by_name[i]].name;
        if (strcmp(writer->tensors[writer->by_name[i - 1]].name, name) == 0) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "safetensors.declared_twice",
                            "two tensors would be stored under the name \"%s\"",
                            esp_io_show(name).text);
        }
    }
    return ESP_OK;
}

static esp_status make_header(esp_safetensors_writer *writer, const uint32_t *order, uint64_t *data,
                              esp_error *error)
{
    esp_buffer *header = &writer->header;
    uint64_t offset = 0;
    esp_buffer_text(header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < writer->count; i++) {
        declared *tensor = &writer->tensors[order[i]];
        tensor->offset = offset;
        if (!esp_add_u64(offset, tensor->bytes, &offset) || offset > INT64_MAX / 2) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "safetensors.too_large",
                            "all tensors together are more than any file can hold");
        }
        print_tensor(header, tensor);
    }
    esp_buffer_text(header, "}");
    while (!header->failed && header->length % 8 != 0) {
        esp_buffer_text(header, " ");
    }
    if (header->failed) {
        return esp_fail_memory(error, header->length, "a safetensors header");
    }
    if (header->length > ESP_SAFETENSORS_MAX_HEADER || writer->count >= ESP_HEADER_MAX_ENTRIES) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "safetensors.too_large",
                        "%zu tensors need a header of %zu bytes, more than a reader accepts",
                        writer->count, header->length);
    }
    *data = offset;
    return ESP_OK;
}

esp_status esp_safetensors_writer_place(esp_safetensors_writer *writer, uint64_t *bytes,
                                        esp_error *error)
{
    uint64_t data = 0;
    esp_context *context = writer->context;
    uint32_t *order = esp_alloc_array(context, writer->count, sizeof *order);
    writer->by_name = esp_alloc_array(context, writer->count, sizeof *order);
    esp_status status = order != NULL && writer->by_name != NULL
                            ? ESP_OK
                            : esp_fail_memory(error, writer->count * sizeof *order, "an index");
    for (size_t i = 0; status == ESP_OK && i < writer->count; i++) {
        order[i] = writer->by_name[i] = (uint32_t)i;
    }
    if (status == ESP_OK) {
        status = esp_io_sort(context, writer->by_name, writer->count, compare_names,
                             writer->tensors, error);
    }
    if (status == ESP_OK) {
        status = check_names(writer, error);
    }
    if (status == ESP_OK) {
        status = esp_io_sort(context, order, writer->count, compare_places, writer->tensors, error);
    }
    if (status == ESP_OK) {
        status = make_header(writer, order, &data, error);
    }
    esp_release(context, order);
    if (status == ESP_OK) {
        writer->placed = true;
        *bytes = ESP_HEADER_START + writer->header.length + data;
    }
    return status;
}

/* ---- writing ---- */

esp_status esp_safetensors_writer_begin(esp_safetensors_writer *writer, const char *path,
                                        esp_error *error)
{
    unsigned char length[8];
    for (int i = 0; i < 8; i++) {
        length[i] = (unsigned char)((uint64_t)writer->header.length >> 8 * i);
    }
    writer->path = esp_strdup(writer->context, path);
    if (writer->path == NULL) {
        return esp_fail_memory(error, strlen(path) + 1, "a path");
    }
    ESP_TRY(esp_file_create(path, &writer->descriptor, error));
    ESP_TRY(esp_file_write_at(writer->descriptor, path, length, sizeof length, 0, error));
    return esp_file_write_at(writer->descriptor, path, writer->header.data, writer->header.length,
                             ESP_HEADER_START, error);
}

static declared *find(const esp_safetensors_writer *writer, const char *name)
{
    size_t low = 0, high = writer->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        declared *tensor = &writer->tensors[writer->by_name[middle]];
        int order = strcmp(tensor->name, name);
        if (order == 0) {
            return tensor;
        }
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return NULL;
}

esp_status esp_safetensors_writer_write(esp_safetensors_writer *writer, const char *name,
                                        const void *data, esp_error *error)
{
    declared *tensor = writer->placed ? find(writer, name) : NULL;
    if (tensor == NULL || tensor->written || writer->descriptor < 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "safetensors.bad_write", "tensor \"%s\" %s",
                        esp_io_show(name).text,
                        tensor == NULL    ? "was not declared"
                        : tensor->written ? "is written already"
                                          : "comes when the file is not open");
    }
    ESP_TRY(esp_file_write_at(writer->descriptor, writer->path, data, (size_t)tensor->bytes,
                              ESP_HEADER_START + writer->header.length + tensor->offset, error));
    tensor->written = true;
    return ESP_OK;
}

esp_status esp_safetensors_writer_finish(esp_safetensors_writer *writer, esp_error *error)
{
    size_t missing = 0;
    const char *first = "";
    for (size_t i = writer->count; i-- > 0;) {
        if (!writer->tensors[i].written) {
            missing++;
            first = writer->tensors[i].name;
        }
    }
    if (missing > 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "safetensors.not_written",
                        "%zu declared tensors were not written, the first is \"%s\"", missing,
                        esp_io_show(first).text);
    }
    int descriptor = writer->descriptor;
    writer->descriptor = -1;
    return esp_file_sync_close(descriptor, writer->path, error);
}

void esp_safetensors_writer_free(esp_safetensors_writer *writer)
{
    if (writer == NULL) {
        return;
    }
    esp_context *context = writer->context;
    for (size_t i = 0; i < writer->count; i++) {
        esp_release(context, writer->tensors[i].name);
    }
    esp_file_close(writer->descriptor);
    esp_buffer_free(&writer->header);
    esp_release(context, writer->tensors);
    esp_release(context, writer->by_name);
    esp_release(context, writer->path);
    esp_release(context, writer);
}
