/* The header of a safetensors file: its JSON text becomes a table of tensors.
 *
 * The scan has counted names and numbers, so the tables are allocated once and their size is backed
 * by bytes of the file. Here every rule about a single tensor is checked; rules between tensors are
 * in ranges.c. Source of the format: the safetensors README. */
#include <inttypes.h>
#include <string.h>

#include "io/header_json.h"
#include "io/names.h"
#include "io/safetensors.h"

#define AGAIN "download or export the file again"

typedef struct reader {
    esp_header_json json;
    esp_safetensors *file;
    size_t dims_used;
    bool seen_metadata;
    size_t metadata_capacity;
} reader;

/* What a descriptor said; shape points to the file's dims. */
typedef struct descriptor {
    size_t at;
    bool has_dtype, has_shape, has_offsets;
    esp_safetensors_entry *entry;
} descriptor;

static esp_status wrong_type(reader *state, const char *what, const char *expected)
{
    char found = esp_header_peek(&state->json);
    return esp_header_fail(&state->json, state->json.at, "safetensors.wrong_type",
                           "%s must be %s, found %s; " AGAIN, what, expected,
                           found == '"'                                   ? "a string"
                           : found == '{'                                 ? "an object"
                           : found == '['                                 ? "an array"
                           : found == 't' || found == 'f' || found == 'n' ? "true, false or null"
                                                                          : "a number");
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* ---- metadata ---- */

static esp_status add_metadata(reader *state, const char *key, const char *value)
{
    esp_safetensors *file = state->file;
    if (file->metadata_count == state->metadata_capacity) {
        size_t old = state->metadata_capacity, capacity = old != 0 ? 2 * old : 16;
        esp_metadata_entry *grown = esp_realloc(file->context, file->metadata, old * sizeof *grown,
                                                capacity * sizeof *grown);
        if (grown == NULL) {
            return esp_fail_memory(state->json.error, capacity * sizeof *grown, "metadata");
        }
        file->metadata = grown;
        state->metadata_capacity = capacity;
    }
    file->metadata[file->metadata_count++] = (esp_metadata_entry){key, value};
    return ESP_OK;
}

static esp_status read_metadata(reader *state, size_t at)
{
    esp_header_json *json = &state->json;
    if (state->seen_metadata) {
        return esp_header_fail(json, at, "safetensors.duplicate_metadata",
                               "__metadata__ occurs twice; " AGAIN);
    }
    state->seen_metadata = true;
    if (esp_header_peek(json) != '{') {
        return esp_header_fail(json, json->at, "safetensors.metadata_not_object",
                               "__metadata__ must be an object of strings; " AGAIN);
    }
    esp_header_enter(json);
    while (esp_header_next(json)) {
        esp_header_string key = esp_header_read_key(json);
        if (esp_header_peek(json) != '"') {
            return esp_header_fail(json, json->at, "safetensors.metadata_not_strings",
                                   "__metadata__ \"%s\" must be a string; " AGAIN,
                                   esp_io_show(key.text).text);
        }
        esp_header_string value = esp_header_read_string(json);
        ESP_TRY(add_metadata(state, key.text, value.text));
    }
    return ESP_OK;
}

/* ---- one tensor ---- */

static esp_status read_dtype(reader *state, descriptor *tensor)
{
    esp_header_json *json = &state->json;
    if (esp_header_peek(json) != '"') {
        return wrong_type(state, "dtype", "a string");
    }
    size_t at = json->at;
    esp_header_string text = esp_header_read_string(json);
    esp_dtype dtype = esp_dtype_from_name(text.text);
    if (dtype == ESP_DTYPE_INVALID) {
        bool other_case = esp_dtype_from_short_name(text.text) != ESP_DTYPE_INVALID;
        const char *name = tensor->entry->info.name;
        return other_case
                   ? esp_header_fail(json, at, "safetensors.dtype_case",
                                     "tensor \"%s\": dtype \"%s\" must be written in capitals; "
                                     "export the file again",
                                     esp_io_show(name).text, text.text)
                   : esp_header_fail(json, at, "safetensors.unknown_dtype",
                                     "tensor \"%s\": there is no dtype \"%s\"; expected one like "
                                     "F32, F16, BF16, I64; convert the tensor first",
                                     esp_io_show(name).text, esp_io_show(text.text).text);
    }
    tensor->entry->info.dtype = dtype;
    return ESP_OK;
}

static esp_status read_shape(reader *state, descriptor *tensor)
{
    esp_header_json *json = &state->json;
    if (esp_header_peek(json) != '[') {
        return wrong_type(state, "shape", "an array of sizes");
    }
    esp_header_enter(json);
    int64_t *shape = state->file->dims + state->dims_used;
    int rank = 0;
    while (esp_header_next(json)) {
        if (!is_digit(esp_header_peek(json))) {
            return wrong_type(state, "a size in shape", "a number");
        }
        size_t at = json->at;
        uint64_t dim = esp_header_read_number(json);
        if (dim > INT64_MAX) {
            return esp_header_fail(json, at, "safetensors.dim_too_large",
                                   "size %" PRIu64 " is 2^63 or more; " AGAIN, dim);
        }
        if (rank == ESP_SAFETENSORS_MAX_RANK) {
            return esp_header_fail(json, at, "safetensors.rank_too_high",
                                   "tensor \"%s\" has more than %d dimensions; " AGAIN,
                                   esp_io_show(tensor->entry->info.name).text,
                                   ESP_SAFETENSORS_MAX_RANK);
        }
        shape[rank++] = (int64_t)dim;
    }
    state->dims_used += (size_t)rank;
    tensor->entry->info.shape = shape;
    tensor->entry->info.rank = rank;
    return ESP_OK;
}

static esp_status read_offsets(reader *state, descriptor *tensor)
{
    esp_header_json *json = &state->json;
    if (esp_header_peek(json) != '[') {
        return wrong_type(state, "data_offsets", "an array [begin, end]");
    }
    size_t at = json->at;
    uint64_t offsets[2] = {0, 0};
    int count = 0;
    esp_header_enter(json);
    while (esp_header_next(json)) {
        if (!is_digit(esp_header_peek(json))) {
            return wrong_type(state, "an offset", "a number");
        }
        uint64_t offset = esp_header_read_number(json);
        if (count < 2) {
            offsets[count] = offset;
        }
        count += count < 3;
    }
    if (count != 2) {
        return esp_header_fail(
            json, at, "safetensors.offsets_not_two",
            "tensor \"%s\": data_offsets must hold two numbers, begin and end; " AGAIN,
            esp_io_show(tensor->entry->info.name).text);
    }
    tensor->entry->begin = offsets[0];
    tensor->entry->end = offsets[1];
    return ESP_OK;
}

static esp_status read_field(reader *state, descriptor *tensor)
{
    static const struct {
        const char *name;
        esp_status (*read)(reader *state, descriptor *tensor);
    } fields[] = {{"dtype", read_dtype}, {"shape", read_shape}, {"data_offsets", read_offsets}};
    bool *const seen[] = {&tensor->has_dtype, &tensor->has_shape, &tensor->has_offsets};
    size_t at = state->json.at;
    esp_header_string key = esp_header_read_key(&state->json);
    const char *name = tensor->entry->info.name;
    for (int i = 0; i < ESP_COUNT(fields); i++) {
        if (strcmp(key.text, fields[i].name) != 0) {
            continue;
        }
        if (*seen[i]) {
            return esp_header_fail(&state->json, at, "safetensors.duplicate_field",
                                   "tensor \"%s\": \"%s\" occurs twice; " AGAIN,
                                   esp_io_show(name).text, key.text);
        }
        *seen[i] = true;
        return fields[i].read(state, tensor);
    }
    return esp_header_fail(&state->json, at, "safetensors.unknown_field",
                           "tensor \"%s\": unknown field \"%s\"; expected dtype, shape and "
                           "data_offsets only; " AGAIN,
                           esp_io_show(name).text, esp_io_show(key.text).text);
}

/* Bytes that dtype and shape ask for. */
static esp_status shape_bytes(const reader *state, const descriptor *tensor, uint64_t *bytes)
{
    const esp_tensor_info *info = &tensor->entry->info;
    const char *name = info->name;
    uint64_t elems = 1, bits;
    bool empty = false;
    for (int i = 0; i < info->rank; i++) {
        empty |= info->shape[i] == 0;
        uint64_t dim = info->shape[i] == 0 ? 1 : (uint64_t)info->shape[i];
        if (!esp_mul_u64(elems, dim, &elems)) {
            return esp_header_fail(
                &state->json, tensor->at, "safetensors.shape_overflow",
                "tensor \"%s\": the product of its shape does not fit 64 bits; " AGAIN,
                esp_io_show(name).text);
        }
    }
    if (!esp_mul_u64(elems, esp_dtype_bits(info->dtype), &bits)) {
        return esp_header_fail(&state->json, tensor->at, "safetensors.bits_overflow",
                               "tensor \"%s\": its size in bits does not fit 64 bits; " AGAIN,
                               esp_io_show(name).text);
    }
    bits = empty ? 0 : bits;
    if (bits % 8 != 0) {
        return esp_header_fail(&state->json, tensor->at, "safetensors.sub_byte",
                               "tensor \"%s\": %" PRIu64 " elements of %s are no whole number of "
                               "bytes; pad the tensor and export the file again",
                               esp_io_show(name).text, elems, esp_dtype_name(info->dtype));
    }
    *bytes = bits / 8;
    return ESP_OK;
}

static esp_status check_tensor(const reader *state, const descriptor *tensor)
{
    esp_safetensors_entry *entry = tensor->entry;
    esp_shown name = esp_io_show(entry->info.name);
    if (!tensor->has_dtype || !tensor->has_shape || !tensor->has_offsets) {
        const char *code = !tensor->has_dtype   ? "safetensors.missing_dtype"
                           : !tensor->has_shape ? "safetensors.missing_shape"
                                                : "safetensors.missing_offsets";
        return esp_header_fail(&state->json, tensor->at, code,
                               "tensor \"%s\" has no \"%s\"; " AGAIN, name.text,
                               !tensor->has_dtype   ? "dtype"
                               : !tensor->has_shape ? "shape"
                                                    : "data_offsets");
    }
    if (entry->begin > entry->end) {
        return esp_header_fail(&state->json, tensor->at, "safetensors.offsets_reversed",
                               "tensor \"%s\": begins at %" PRIu64 ", behind its end %" PRIu64
                               "; " AGAIN,
                               name.text, entry->begin, entry->end);
    }
    uint64_t bytes = 0;
    ESP_TRY(shape_bytes(state, tensor, &bytes));
    if (bytes != entry->end - entry->begin) {
        char shape[128];
        esp_shape_print(entry->info.rank, entry->info.shape, shape, sizeof shape);
        return esp_header_fail(
            &state->json, tensor->at, "safetensors.size_mismatch",
            "tensor \"%s\": %s of %s needs %" PRIu64 " bytes, its data_offsets hold "
            "%" PRIu64 "; " AGAIN,
            name.text, shape, esp_dtype_name(entry->info.dtype), bytes, entry->end - entry->begin);
    }
    entry->info.bytes = bytes;
    entry->info.file_offset = ESP_HEADER_START + state->file->header_bytes + entry->begin;
    return ESP_OK;
}

static esp_status check_name(const reader *state, const esp_header_string *name, size_t at)
{
    if (name->length == 0) {
        return esp_header_fail(&state->json, at, "safetensors.empty_name",
                               "a tensor without a name; " AGAIN);
    }
    if (name->length > ESP_IO_NAME_MAX) {
        return esp_header_fail(&state->json, at, "safetensors.name_too_long",
                               "a name of %zu bytes; at most %d were expected; " AGAIN,
                               name->length, ESP_IO_NAME_MAX);
    }
    return ESP_OK;
}

static esp_status read_member(reader *state)
{
    esp_header_json *json = &state->json;
    size_t at = json->at;
    esp_header_string name = esp_header_read_key(json);
    if (strcmp(name.text, "__metadata__") == 0) {
        return read_metadata(state, at);
    }
    ESP_TRY(check_name(state, &name, at));
    if (esp_header_peek(json) != '{') {
        return wrong_type(state, esp_io_show(name.text).text, "an object");
    }
    esp_safetensors_entry *entry = &state->file->entries[state->file->count];
    *entry = (esp_safetensors_entry){.info = {.name = name.text}, .escaped = name.escaped};
    descriptor tensor = {.at = at, .entry = entry};
    esp_header_enter(json);
    while (esp_header_next(json)) {
        ESP_TRY(read_field(state, &tensor));
    }
    ESP_TRY(check_tensor(state, &tensor));
    state->file->count++;
    return ESP_OK;
}

esp_status esp_safetensors_read_header(esp_safetensors *file, esp_error *error)
{
    reader state = {.json = {.file = file->path,
                             .text = file->header,
                             .length = (size_t)file->header_bytes,
                             .error = error},
                    .file = file};
    ESP_TRY(esp_header_scan(&state.json));
    file->entries = esp_alloc_array(file->context, state.json.entries, sizeof *file->entries);
    file->dims = esp_alloc_array(file->context, state.json.numbers, sizeof *file->dims);
    if (file->entries == NULL || file->dims == NULL) {
        return esp_fail_memory(error, state.json.entries * sizeof *file->entries, "tensor table");
    }
    (void)esp_header_peek(&state.json);
    esp_header_enter(&state.json);
    while (esp_header_next(&state.json)) {
        ESP_TRY(read_member(&state));
    }
    return ESP_OK;
}
