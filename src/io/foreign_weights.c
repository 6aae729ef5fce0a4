/* Bitmask weights of a compressed-tensors folder: finding their parts, and reading them.
 *
 * The folder has no list of its weights: each tensor that ends in ".compressed" is one, and must
 * have all the other parts. Since version 0.9 the parts of the layer P lie under P, before that
 * under P.weight; both mean the weight P.weight. */
#include <stdio.h>
#include <string.h>

#include "io/foreign_sparse.h"

#define REMEDY "download the folder again or save it again"

static esp_status bad(const esp_checkpoint *folder, esp_status kind, const char *code,
                      const char *name, const char *what, esp_error *error)
{
    return esp_fail(error, kind, code, "%s: tensor \"%s\": %s; " REMEDY, folder->path,
                    esp_io_show(name).text, what);
}

/* ---- names ---- */

/* Length of name without "." + part, or 0 when it does not end so. */
static size_t stem_length(const char *name, const char *part)
{
    size_t length = strlen(name), tail = strlen(part);
    return length > tail + 1 && name[length - tail - 1] == '.' &&
                   strcmp(name + length - tail, part) == 0
               ? length - tail - 1
               : 0;
}

static esp_stored *find(const esp_checkpoint *folder, const char *stem, const char *ending)
{
    char text[ESP_IO_NAME_MAX + 32];
    int length = snprintf(text, sizeof text, "%s%s", stem, ending);
    return length >= 0 && (size_t)length < sizeof text ? esp_folder_find_stored(folder, text)
                                                       : NULL;
}

/* The weight's own name; the weight owns it. */
static esp_status name_weight(const esp_checkpoint *folder, esp_weight *weight, const char *stem,
                              esp_error *error)
{
    bool whole = esp_io_ends_with(stem, ".weight") || esp_io_ends_with(stem, ".bias");
    size_t bytes = strlen(stem) + sizeof ".weight";
    char *name = esp_alloc(folder->context, bytes);
    if (name == NULL) {
        return esp_fail_memory(error, bytes, "a tensor name");
    }
    snprintf(name, bytes, "%s%s", stem, whole ? "" : ".weight");
    weight->info.name = weight->owned_name = name;
    bool twice =
        find(folder, name, "") != NULL || (!whole && find(folder, name, ".compressed") != NULL);
    return twice ? bad(folder, ESP_BAD_FILE, "foreign.stored_twice", name,
                       "is stored in two forms, and nothing says which one counts", error)
                 : ESP_OK;
}

static esp_status check_ignored(const esp_checkpoint *folder, const char *name, json_t *ignore,
                                esp_error *error)
{
    size_t stem = stem_length(name, "weight");
    for (size_t i = 0; i < json_array_size(ignore); i++) {
        const char *layer = json_string_value(json_array_get(ignore, i));
        if (strlen(layer) == stem && memcmp(layer, name, stem) == 0) {
            return bad(folder, ESP_BAD_FILE, "foreign.ignored_layer", name,
                       "is compressed, and sparsity_config lists it under \"ignore\"", error);
        }
    }
    return ESP_OK;
}

/* ---- parts ---- */

static esp_status take_parts(esp_checkpoint *folder, esp_weight *weight, const char *stem,
                             esp_error *error)
{
    for (int i = 0; i < esp_bitmask_part_count(weight->form); i++) {
        char ending[16], what[80];
        snprintf(ending, sizeof ending, ".%s", esp_bitmask_part_name(i));
        esp_stored *stored = find(folder, stem, ending);
        if (stored == NULL) {
            snprintf(what, sizeof what, "its part \"%s\" is in none of the files",
                     esp_bitmask_part_name(i));
            return bad(folder, ESP_BAD_FILE, "foreign.part_missing", weight->info.name, what,
                       error);
        }
        stored->used = true;
        weight->parts[weight->part_count++] = (uint32_t)(stored - folder->stored);
        weight->info.stored_bytes += (size_t)stored->info.bytes;
    }
    return ESP_OK;
}

static esp_status part_mismatch(const esp_checkpoint *folder, const esp_weight *weight, int part,
                                const char *wanted, esp_error *error)
{
    const esp_tensor_info *have = &folder->stored[weight->parts[part]].info;
    char found[128], what[300];
    esp_shape_print(have->rank, have->shape, found, sizeof found);
    snprintf(what, sizeof what, "its part \"%s\" is %s of %s, %s was expected",
             esp_bitmask_part_name(part), found, esp_dtype_name(have->dtype), wanted);
    return bad(folder, ESP_BAD_FILE, "foreign.part_mismatch", weight->info.name, what, error);
}

static esp_status check_part(const esp_checkpoint *folder, const esp_weight *weight, int part,
                             const esp_tensor *want, esp_error *error)
{
    const esp_tensor_info *have = &folder->stored[weight->parts[part]].info;
    bool same = have->dtype == want->dtype && have->rank == want->rank;
    for (int i = 0; same && i < want->rank; i++) {
        same = have->shape[i] == want->shape[i];
    }
    if (same) {
        return ESP_OK;
    }
    char shape[128], wanted[160];
    esp_shape_print(want->rank, want->shape, shape, sizeof shape);
    snprintf(wanted, sizeof wanted, "%s of %s", shape, esp_dtype_name(want->dtype));
    return part_mismatch(folder, weight, part, wanted, error);
}

/* Contents of the part "shape": [out, in], or [in] for a vector; as a list or as a column. */
static esp_status read_shape(const esp_checkpoint *folder, esp_weight *weight, esp_error *error)
{
    esp_weight_info *info = &weight->info;
    const esp_stored *stored = &folder->stored[weight->parts[ESP_BITMASK_SHAPE]];
    const esp_tensor_info *have = &stored->info;
    bool list = have->rank == 1 || (have->rank == 2 && have->shape[1] == 1);
    int64_t sizes[2];
    if (have->dtype != ESP_I64 || !list || have->shape[0] < 1 || have->shape[0] > 2) {
        return part_mismatch(folder, weight, ESP_BITMASK_SHAPE, "[2] or [2, 1] of I64", error);
    }
    ESP_TRY(esp_safetensors_read(folder->files[stored->file], stored->index, sizes, error));
    info->rank = (int)have->shape[0];
    bool fine = weight->form == ESP_FORM_SPARSE_BITMASK || (info->rank == 2 && sizes[1] % 4 == 0);
    for (int i = 0; i < info->rank; i++) {
        fine &= sizes[i] >= 1;
        info->shape[i] = sizes[i];
    }
    esp_tensor dense = {.dtype = info->dtype, .rank = info->rank};
    memcpy(dense.shape, info->shape, sizeof info->shape);
    esp_error local = {0};
    if (!fine || esp_tensor_size(&dense, NULL, &info->dense_bytes, &local) != ESP_OK) {
        char shape[128], what[300];
        esp_shape_print(info->rank, info->shape, shape, sizeof shape);
        snprintf(
            what, sizeof what,
            "its part \"shape\" says %s; %s was expected, each at least 1 and together no more "
            "than memory can hold",
            shape,
            weight->form == ESP_FORM_SPARSE_BITMASK ? "one or two sizes"
                                                    : "[out, in] with in a multiple of 4");
        return bad(folder, ESP_BAD_FILE, "foreign.bad_shape", info->name, what, error);
    }
    return ESP_OK;
}

static esp_status check_parts(const esp_checkpoint *folder, const esp_weight *weight,
                              esp_error *error)
{
    const esp_weight_info *info = &weight->info;
    const esp_tensor_info *values = &folder->stored[weight->parts[ESP_BITMASK_VALUES]].info;
    esp_sparse_part want[ESP_BITMASK_MAX_PARTS];
    int count = 0;
    esp_bitmask_layout(weight->form, info, values->rank == 1 ? values->shape[0] : 0, want, &count);
    if (info->rank == 1) {
        want[ESP_BITMASK_BITS].tensor.rank = 1;
        want[ESP_BITMASK_BITS].tensor.shape[0] = esp_bitmask_row_bytes(info->shape[0]);
        want[ESP_BITMASK_OFFSETS].tensor.rank = 0;
    }
    for (int i = ESP_BITMASK_VALUES; i < count; i++) {
        ESP_TRY(check_part(folder, weight, i, &want[i].tensor, error));
    }
    return ESP_OK;
}

static esp_status add_weight(esp_checkpoint *folder, esp_folder_form form, const esp_stored *values,
                             json_t *ignore, esp_error *error)
{
    esp_weight *weight = &folder->weights[folder->weight_count];
    size_t length = stem_length(values->info.name, "compressed");
    char stem[ESP_IO_NAME_MAX + 1];
    memcpy(stem, values->info.name, length);
    stem[length] = '\0';
    *weight = (esp_weight){.info.dtype = values->info.dtype, .form = form};
    folder->weight_count++; /* from here on the folder frees its name */
    ESP_TRY(name_weight(folder, weight, stem, error));
    ESP_TRY(check_ignored(folder, weight->info.name, ignore, error));
    if (!esp_dtype_is_weight(weight->info.dtype)) {
        return bad(folder, ESP_UNSUPPORTED, "foreign.unsupported_dtype", weight->info.name,
                   "its values are not F32, F16 or BF16, so they are quantised too", error);
    }
    ESP_TRY(take_parts(folder, weight, stem, error));
    ESP_TRY(read_shape(folder, weight, error));
    if (form == ESP_FORM_SPARSE_24_BITMASK) {
        weight->info.pattern = (esp_pattern){.kind = ESP_PATTERN_PANEL};
    }
    return check_parts(folder, weight, error);
}

static esp_status add_plain(esp_checkpoint *folder, const esp_stored *stored, esp_error *error)
{
    for (int i = 0; i < ESP_BITMASK_MAX_PARTS; i++) {
        if (stem_length(stored->info.name, esp_bitmask_part_name(i)) > 0) {
            return bad(folder, ESP_BAD_FILE, "foreign.part_alone", stored->info.name,
                       "is a part of a compressed weight, and the other parts are not there",
                       error);
        }
    }
    esp_weight *weight = &folder->weights[folder->weight_count];
    *weight = (esp_weight){0};
    ESP_TRY(esp_folder_fill_plain(folder, weight, (uint32_t)(stored - folder->stored), error));
    folder->weight_count++;
    return ESP_OK;
}

esp_status esp_foreign_list_weights(esp_checkpoint *folder, esp_folder_form form, json_t *ignore,
                                    esp_error *error)
{
    size_t count = folder->stored_count;
    folder->weights = esp_alloc_array(folder->context, count, sizeof *folder->weights);
    if (folder->weights == NULL) {
        return esp_fail_memory(error, count * sizeof *folder->weights, "a table of weights");
    }
    for (size_t i = 0; i < count; i++) {
        if (stem_length(folder->stored[i].info.name, "compressed") > 0) {
            ESP_TRY(add_weight(folder, form, &folder->stored[i], ignore, error));
        }
    }
    for (size_t i = 0; i < count; i++) {
        if (!folder->stored[i].used) {
            ESP_TRY(add_plain(folder, &folder->stored[i], error));
        }
    }
    return ESP_OK;
}

/* ---- reading ---- */

static esp_status read_parts(const esp_checkpoint *folder, const esp_weight *weight,
                             esp_sparse_part *parts, esp_error *error)
{
    for (int i = 0; i < weight->part_count; i++) {
        const esp_stored *stored = &folder->stored[weight->parts[i]];
        size_t bytes = (size_t)stored->info.bytes;
        esp_tensor *tensor = &parts[i].tensor;
        *tensor = (esp_tensor){.dtype = stored->info.dtype, .rank = stored->info.rank};
        memcpy(tensor->shape, stored->info.shape, (size_t)tensor->rank * sizeof *tensor->shape);
        tensor->data = esp_alloc(folder->context, bytes);
        if (tensor->data == NULL) {
            return esp_fail_memory(error, bytes, esp_io_show(weight->info.name).text);
        }
        ESP_TRY(
            esp_safetensors_read(folder->files[stored->file], stored->index, tensor->data, error));
    }
    return ESP_OK;
}

esp_status esp_foreign_read_dense(const esp_checkpoint *folder, const esp_weight *weight,
                                  esp_tensor *dense, esp_error *error)
{
    esp_sparse_part parts[ESP_BITMASK_MAX_PARTS] = {0};
    esp_status status = read_parts(folder, weight, parts, error);
    if (status == ESP_OK) {
        status = esp_bitmask_decode(weight->form, parts, dense, error);
        if (status != ESP_OK) {
            status = esp_fail_within(error, status, "%s: weight \"%s\"", folder->path,
                                     esp_io_show(weight->info.name).text);
        }
    }
    for (int i = 0; i < ESP_BITMASK_MAX_PARTS; i++) {
        esp_release(folder->context, parts[i].tensor.data);
    }
    return status;
}

esp_status esp_foreign_read_sparse(const esp_checkpoint *folder, const esp_weight *weight,
                                   esp_sparse **sparse, esp_error *error)
{
    const esp_weight_info *info = &weight->info;
    esp_tensor dense;
    ESP_TRY(
        esp_tensor_create(folder->context, info->dtype, info->rank, info->shape, &dense, error));
    esp_status status = esp_foreign_read_dense(folder, weight, &dense, error);
    if (status == ESP_OK) {
        status = esp_sparse_encode(folder->context, &info->pattern, &dense, NULL, sparse, error);
    }
    esp_tensor_free(folder->context, &dense);
    return status;
}
