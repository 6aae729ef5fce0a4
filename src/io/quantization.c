/* The "quantization_config" of a compressed folder: which weights are stored in which form.
 *
 * It is read strictly. Every tensor of the files belongs to exactly one listed weight, and every
 * listed weight has exactly the parts that its format asks for; nothing is guessed from names. */
#include <stdio.h>
#include <string.h>

#include "io/folder.h"
#include "io/foreign_sparse.h"

#define AGAIN "make the folder again with `espalier prune` or `espalier convert`"

static esp_status bad(const esp_checkpoint *folder, const char *code, const char *name,
                      const char *what, esp_error *error)
{
    return esp_fail(error, ESP_BAD_FILE, code,
                    "%s/" ESP_CONFIG_FILE ": quantization_config, tensor \"%s\": %s; " AGAIN,
                    folder->path, esp_io_show(name).text, what);
}

/* ---- one listed weight ---- */

static esp_status read_pattern(const esp_checkpoint *folder, json_t *value, esp_weight_info *info,
                               esp_error *error)
{
    esp_error local = {0};
    if (!json_is_string(value)) {
        return bad(folder, "checkpoint.bad_pattern", info->name,
                   "\"pattern\" must be a string such as \"64:2:8\"", error);
    }
    if (esp_pattern_parse(json_string_value(value), &info->pattern, &local) != ESP_OK) {
        return bad(folder, "checkpoint.bad_pattern", info->name, local.message, error);
    }
    return ESP_OK;
}

static esp_status read_shape(const esp_checkpoint *folder, json_t *value, esp_weight_info *info,
                             esp_error *error)
{
    size_t rank = json_array_size(value);
    if (!json_is_array(value) || rank > ESP_MAX_RANK) {
        return bad(folder, "checkpoint.bad_shape", info->name,
                   "\"shape\" must be an array of at most 8 sizes", error);
    }
    info->rank = (int)rank;
    for (size_t i = 0; i < rank; i++) {
        json_t *size = json_array_get(value, i);
        if (!json_is_integer(size) || json_integer_value(size) < 0) {
            return bad(folder, "checkpoint.bad_shape", info->name,
                       "\"shape\" must hold whole numbers that are not negative", error);
        }
        info->shape[i] = (int64_t)json_integer_value(size);
    }
    return ESP_OK;
}

static esp_status read_dtype(const esp_checkpoint *folder, json_t *value, esp_weight_info *info,
                             esp_error *error)
{
    info->dtype =
        json_is_string(value) ? esp_dtype_from_name(json_string_value(value)) : ESP_DTYPE_INVALID;
    return info->dtype != ESP_DTYPE_INVALID
               ? ESP_OK
               : bad(folder, "checkpoint.bad_dtype", info->name,
                     "\"dtype\" must be one of safetensors', such as \"BF16\"", error);
}

static esp_status read_crc32c(const esp_checkpoint *folder, json_t *value, esp_weight_info *info,
                              esp_error *error)
{
    static const char digits[] = "0123456789abcdef";
    const char *text = json_is_string(value) ? json_string_value(value) : "";
    uint32_t crc = 0;
    size_t i = 0;
    for (; i < 8 && text[i] != '\0'; i++) {
        const char *digit = strchr(digits, text[i]);
        if (digit == NULL) {
            break;
        }
        crc = crc << 4 | (uint32_t)(digit - digits);
    }
    if (i != 8 || text[8] != '\0') {
        return bad(folder, "checkpoint.bad_crc32c", info->name,
                   "\"crc32c\" must be a string of 8 lower-case hexadecimal digits", error);
    }
    info->crc32c = crc;
    info->has_crc32c = true;
    return ESP_OK;
}

static const struct {
    const char *key;
    esp_status (*read)(const esp_checkpoint *folder, json_t *value, esp_weight_info *info,
                       esp_error *error);
} fields[] = {{"pattern", read_pattern},
              {"shape", read_shape},
              {"dtype", read_dtype},
              {"crc32c", read_crc32c}};

static esp_status check_field_names(const esp_checkpoint *folder, const char *name, json_t *entry,
                                    esp_error *error)
{
    const char *key;
    json_t *value;
    json_object_foreach(entry, key, value)
    {
        bool known = false;
        for (int i = 0; i < ESP_COUNT(fields); i++) {
            known |= strcmp(key, fields[i].key) == 0;
        }
        if (!known) {
            char what[200];
            snprintf(what, sizeof what, "unknown field \"%s\"", esp_io_show(key).text);
            return bad(folder, "checkpoint.unknown_field", name, what, error);
        }
    }
    return ESP_OK;
}

static esp_status read_entry(const esp_checkpoint *folder, const char *name, json_t *entry,
                             esp_weight_info *info, esp_error *error)
{
    *info = (esp_weight_info){.name = name};
    if (!json_is_object(entry)) {
        return bad(folder, "checkpoint.bad_entry", name,
                   "must be an object with pattern, shape, dtype and crc32c", error);
    }
    for (int i = 0; i < ESP_COUNT(fields); i++) {
        json_t *value = json_object_get(entry, fields[i].key);
        if (value == NULL) {
            char what[64];
            snprintf(what, sizeof what, "\"%s\" is missing", fields[i].key);
            return bad(folder, "checkpoint.missing_field", name, what, error);
        }
        ESP_TRY(fields[i].read(folder, value, info, error));
    }
    return check_field_names(folder, name, entry, error);
}

/* ---- its parts in the files ---- */

static esp_status part_failed(const esp_checkpoint *folder, const char *code,
                              const esp_weight *weight, const char *part, const char *what,
                              esp_error *error)
{
    char pattern[ESP_PATTERN_TEXT_MAX];
    esp_pattern_print(&weight->info.pattern, pattern);
    return esp_fail(error, ESP_BAD_FILE, code, "%s: weight \"%s\" (%s): part \"%s\" %s; " AGAIN,
                    folder->path, esp_io_show(weight->info.name).text, pattern, part, what);
}

/* name + "." + part, or name itself for an empty part. */
static esp_stored *find_part(const esp_checkpoint *folder, const char *name, const char *part)
{
    char text[ESP_IO_NAME_MAX + 16];
    int length = part[0] != '\0' ? snprintf(text, sizeof text, "%s.%s", name, part)
                                 : snprintf(text, sizeof text, "%s", name);
    return length >= 0 && (size_t)length < sizeof text ? esp_folder_find_stored(folder, text)
                                                       : NULL;
}

static const char *mismatch_code(const esp_sparse_part *part, const esp_tensor_info *have)
{
    const esp_tensor *want = &part->tensor;
    if (want->dtype == have->dtype && want->rank == have->rank) {
        if (strcmp(part->name, "columns") == 0 && want->rank == 2 &&
            want->shape[0] != have->shape[0]) {
            return "checkpoint.panel_count";
        }
        if (strcmp(part->name, "rows") == 0) {
            return "checkpoint.rows_length";
        }
    }
    return "checkpoint.part_mismatch";
}

static esp_status check_part(const esp_checkpoint *folder, const esp_weight *weight,
                             const esp_sparse_part *part, const esp_stored *stored,
                             esp_error *error)
{
    const esp_tensor *want = &part->tensor;
    const esp_tensor_info *have = &stored->info;
    bool same = want->dtype == have->dtype && want->rank == have->rank;
    for (int i = 0; same && i < want->rank; i++) {
        same = want->shape[i] == have->shape[i];
    }
    if (same) {
        return ESP_OK;
    }
    char wanted[128], found[128], what[400];
    esp_shape_print(want->rank, want->shape, wanted, sizeof wanted);
    esp_shape_print(have->rank, have->shape, found, sizeof found);
    snprintf(what, sizeof what, "is %s of %s in %s, expected %s of %s", found,
             esp_dtype_name(have->dtype), esp_io_show(folder->file_names[stored->file]).text,
             wanted, esp_dtype_name(want->dtype));
    return part_failed(folder, mismatch_code(part, have), weight, part->name, what, error);
}

static esp_status take_part(esp_checkpoint *folder, esp_weight *weight, const esp_sparse_part *part,
                            esp_error *error)
{
    esp_stored *stored = find_part(folder, weight->info.name, part->name);
    if (stored == NULL) {
        return part_failed(folder, "checkpoint.part_missing", weight, part->name,
                           "is in none of the safetensors files", error);
    }
    if (stored->used) {
        return part_failed(folder, "checkpoint.part_claimed_twice", weight, part->name,
                           "belongs to another weight already", error);
    }
    ESP_TRY(check_part(folder, weight, part, stored, error));
    stored->used = true;
    weight->parts[weight->part_count++] = (uint32_t)(stored - folder->stored);
    weight->info.stored_bytes += (size_t)stored->info.bytes;
    return ESP_OK;
}

/* Parts of the weight's form; a plain one may have any dtype and rank. */
static esp_status layout_of(const esp_checkpoint *folder, esp_weight *weight,
                            esp_sparse_part parts[ESP_SPARSE_MAX_PARTS], int *count,
                            esp_error *error)
{
    const esp_weight_info *info = &weight->info;
    if (info->pattern.kind == ESP_PATTERN_DENSE) {
        parts[0] =
            (esp_sparse_part){.name = "", .tensor = {.dtype = info->dtype, .rank = info->rank}};
        memcpy(parts[0].tensor.shape, info->shape, sizeof info->shape);
        *count = 1;
        return ESP_OK;
    }
    if (info->rank != 2) {
        return bad(folder, "checkpoint.bad_shape", info->name,
                   "a compressed weight must have the shape [out, in]", error);
    }
    if (!esp_dtype_is_weight(info->dtype)) {
        return bad(folder, "checkpoint.bad_dtype", info->name,
                   "a compressed weight must be F32, F16 or BF16", error);
    }
    weight->has_rows =
        info->pattern.kind == ESP_PATTERN_PANEL && find_part(folder, info->name, "rows") != NULL;
    esp_status status = esp_sparse_layout(&info->pattern, info->dtype, info->shape[0],
                                          info->shape[1], weight->has_rows, parts, count, error);
    return status == ESP_OK
               ? ESP_OK
               : esp_fail_within(error, status, "%s/" ESP_CONFIG_FILE ": tensor \"%s\"",
                                 folder->path, esp_io_show(info->name).text);
}

static esp_status add_weight(esp_checkpoint *folder, const char *name, json_t *entry,
                             esp_error *error)
{
    esp_weight *weight = &folder->weights[folder->weight_count];
    esp_weight_info *info = &weight->info;
    esp_sparse_part parts[ESP_SPARSE_MAX_PARTS];
    int count = 0;
    ESP_TRY(read_entry(folder, name, entry, info, error));
    esp_tensor dense = {.dtype = info->dtype, .rank = info->rank};
    memcpy(dense.shape, info->shape, sizeof info->shape);
    esp_error local = {0};
    if (esp_tensor_size(&dense, NULL, &info->dense_bytes, &local) != ESP_OK) {
        return bad(folder, "checkpoint.bad_shape", name, local.message, error);
    }
    ESP_TRY(layout_of(folder, weight, parts, &count, error));
    for (int i = 0; i < count; i++) {
        ESP_TRY(take_part(folder, weight, &parts[i], error));
    }
    folder->weight_count++;
    return ESP_OK;
}

static esp_status check_all_used(const esp_checkpoint *folder, esp_error *error)
{
    for (size_t i = 0; i < folder->stored_count; i++) {
        const esp_stored *stored = &folder->stored[i];
        if (!stored->used) {
            return esp_fail(
                error, ESP_BAD_FILE, "checkpoint.part_unlisted",
                "%s: %s holds tensor \"%s\", which belongs to no weight listed in " ESP_CONFIG_FILE
                "; " AGAIN,
                folder->path, esp_io_show(folder->file_names[stored->file]).text,
                esp_io_show(stored->info.name).text);
        }
    }
    return ESP_OK;
}

static esp_status add_weights(esp_checkpoint *folder, json_t *tensors, esp_error *error)
{
    size_t count = json_object_size(tensors);
    folder->weights = esp_alloc_array(folder->context, count, sizeof *folder->weights);
    if (folder->weights == NULL) {
        return esp_fail_memory(error, count * sizeof *folder->weights, "a table of weights");
    }
    const char *name;
    json_t *entry;
    json_object_foreach(tensors, name, entry)
    {
        ESP_TRY(add_weight(folder, name, entry, error));
    }
    return check_all_used(folder, error);
}

/* ---- the whole ---- */

static esp_status foreign(const esp_checkpoint *folder, const char *method, esp_error *error)
{
    return esp_fail(error, ESP_UNSUPPORTED, "checkpoint.foreign_quantization",
                    "%s/" ESP_CONFIG_FILE
                    ": the weights are quantised by \"%s\", which espalier does "
                    "not read; get the model in F32, F16 or BF16",
                    folder->path, method);
}

static esp_status check_version(const esp_checkpoint *folder, json_t *version, esp_error *error)
{
    if (!json_is_integer(version) || json_integer_value(version) < 1) {
        return esp_fail(error, ESP_BAD_FILE, "checkpoint.bad_format_version",
                        "%s/" ESP_CONFIG_FILE
                        ": quantization_config needs a \"format_version\" of 1 "
                        "or more; " AGAIN,
                        folder->path);
    }
    if (json_integer_value(version) > ESP_FOLDER_FORMAT_VERSION) {
        return esp_fail(error, ESP_UNSUPPORTED, "checkpoint.newer_format",
                        "%s/" ESP_CONFIG_FILE
                        ": written in format version %lld, this espalier %s reads "
                        "up to version %d; use a newer espalier",
                        folder->path, (long long)json_integer_value(version), esp_version(),
                        ESP_FOLDER_FORMAT_VERSION);
    }
    return ESP_OK;
}

static esp_status check_top_names(const esp_checkpoint *folder, json_t *quantization,
                                  esp_error *error)
{
    static const char *const known[] = {"quant_method", "format_version", "tensors", "permutation"};
    const char *key;
    json_t *value;
    json_object_foreach(quantization, key, value)
    {
        bool found = false;
        for (int i = 0; i < ESP_COUNT(known); i++) {
            found |= strcmp(key, known[i]) == 0;
        }
        if (!found) {
            return esp_fail(error, ESP_BAD_FILE, "checkpoint.unknown_field",
                            "%s/" ESP_CONFIG_FILE
                            ": quantization_config: unknown field \"%s\"; " AGAIN,
                            folder->path, esp_io_show(key).text);
        }
    }
    return ESP_OK;
}

/* An order of channels names each of them once. */
static esp_status check_order(const esp_checkpoint *folder, const char *name, json_t *order,
                              esp_error *error)
{
    size_t count = json_array_size(order);
    uint32_t *places = esp_alloc_array(folder->context, count, sizeof *places);
    uint64_t *seen = esp_alloc_array(folder->context, count / 64 + 1, sizeof *seen);
    bool made = places != NULL && seen != NULL, fine = json_is_array(order);
    for (size_t i = 0; made && i < count; i++) {
        json_t *place = json_array_get(order, i);
        json_int_t value = json_is_integer(place) ? json_integer_value(place) : -1;
        places[i] = value >= 0 && value < (json_int_t)count ? (uint32_t)value : UINT32_MAX;
    }
    fine = fine && made && esp_is_bijection(places, (int64_t)count, seen);
    esp_release(folder->context, places);
    esp_release(folder->context, seen);
    if (!made) {
        return esp_fail_memory(error, count * sizeof *places, "an order of channels");
    }
    return fine ? ESP_OK
                : esp_fail(error, ESP_BAD_FILE, "permutation.not_bijection",
                           "%s/" ESP_CONFIG_FILE ": quantization_config: the order of \"%s\" does "
                           "not name each of its %zu channels once; " AGAIN,
                           folder->path, esp_io_show(name).text, count);
}

static esp_status check_permutation(const esp_checkpoint *folder, json_t *permutation,
                                    esp_error *error)
{
    json_t *orders = json_object_get(permutation, "orders"), *order;
    const char *name;
    if (permutation == NULL) {
        return ESP_OK;
    }
    if (!json_is_object(orders)) {
        return esp_fail(error, ESP_BAD_FILE, "permutation.bad_record",
                        "%s/" ESP_CONFIG_FILE ": quantization_config: \"permutation\" must be an "
                        "object with \"orders\"; " AGAIN,
                        folder->path);
    }
    json_object_foreach(orders, name, order)
    {
        ESP_TRY(check_order(folder, name, order, error));
    }
    return ESP_OK;
}

/* compressed-tensors of any age; the first ones gave no method. */
static bool is_sparse_foreign(json_t *quantization, json_t *method)
{
    return (method == NULL || (json_is_string(method) &&
                               strcmp(json_string_value(method), "compressed-tensors") == 0)) &&
           esp_foreign_has_sparsity(quantization);
}

/* Before there was a section for compression. */
static bool is_oldest_foreign(const esp_checkpoint *folder)
{
    json_t *sparsity = json_object_get(folder->config, "sparsity_config");
    return json_object_get(sparsity, "format") != NULL;
}

esp_status esp_folder_read_quantization(esp_checkpoint *folder, esp_error *error)
{
    json_t *quantization = json_object_get(folder->config, "quantization_config");
    if (quantization == NULL) { /* the key of older compressed-tensors folders */
        quantization = json_object_get(folder->config, "compression_config");
    }
    if (quantization == NULL || json_is_null(quantization)) {
        return is_oldest_foreign(folder) ? esp_foreign_read_config(folder, folder->config, error)
                                         : ESP_OK;
    }
    json_t *method = json_object_get(quantization, "quant_method");
    if (is_sparse_foreign(quantization, method)) {
        return esp_foreign_read_config(folder, quantization, error);
    }
    if (!json_is_string(method)) {
        return foreign(folder, "(no quant_method)", error);
    }
    if (strcmp(json_string_value(method), "espalier") != 0) {
        return foreign(folder, esp_io_show(json_string_value(method)).text, error);
    }
    ESP_TRY(check_version(folder, json_object_get(quantization, "format_version"), error));
    ESP_TRY(check_top_names(folder, quantization, error));
    json_t *tensors = json_object_get(quantization, "tensors");
    if (!json_is_object(tensors)) {
        return esp_fail(error, ESP_BAD_FILE, "checkpoint.bad_tensors",
                        "%s/" ESP_CONFIG_FILE
                        ": quantization_config needs \"tensors\", an object of "
                        "weights; " AGAIN,
                        folder->path);
    }
    ESP_TRY(check_permutation(folder, json_object_get(quantization, "permutation"), error));
    folder->compressed = true;
    return add_weights(folder, tensors, error);
}
