/* Tensors out of a folder: as stored, or dense. What is read is checked against the format's rules
 * and against the checksum that config.json promises, before the caller may use it. */
#include <string.h>

#include "io/folder.h"
#include "io/foreign_sparse.h"

static esp_status check_crc(const esp_checkpoint *folder, const esp_weight *weight, uint32_t crc,
                            esp_error *error)
{
    if (!weight->info.has_crc32c || weight->info.crc32c == crc) {
        return ESP_OK;
    }
    return esp_fail(
        error, ESP_BAD_FILE, "checkpoint.checksum_mismatch",
        "%s: weight \"%s\" has the crc32c %08x, config.json promises %08x: the file was "
        "damaged or changed; copy or make it again",
        folder->path, esp_io_show(weight->info.name).text, crc, weight->info.crc32c);
}

static esp_status read_stored(const esp_checkpoint *folder, uint32_t stored, void *data,
                              esp_error *error)
{
    const esp_stored *place = &folder->stored[stored];
    return esp_safetensors_read(folder->files[place->file], place->index, data, error);
}

/* ---- as stored ---- */

static void free_parts(const esp_checkpoint *folder, esp_sparse_part *parts, int count)
{
    for (int i = 0; i < count; i++) {
        esp_release(folder->context, parts[i].tensor.data);
    }
}

static esp_status read_parts(const esp_checkpoint *folder, const esp_weight *weight,
                             esp_sparse_part *parts, esp_error *error)
{
    for (int i = 0; i < weight->part_count; i++) {
        size_t bytes = (size_t)folder->stored[weight->parts[i]].info.bytes;
        parts[i].tensor.data = esp_alloc(folder->context, bytes);
        if (parts[i].tensor.data == NULL) {
            return esp_fail_memory(error, bytes, esp_io_show(weight->info.name).text);
        }
        ESP_TRY(read_stored(folder, weight->parts[i], parts[i].tensor.data, error));
    }
    return ESP_OK;
}

static esp_status build(const esp_checkpoint *folder, const esp_weight *weight,
                        const esp_sparse_part *parts, esp_sparse **sparse, esp_error *error)
{
    const esp_weight_info *info = &weight->info;
    esp_sparse *made = NULL;
    ESP_TRY(esp_sparse_from_parts(folder->context, &info->pattern, info->dtype, info->shape[0],
                                  info->shape[1], parts, weight->part_count, &made, error));
    esp_status status = esp_sparse_check(made, error);
    if (status != ESP_OK) {
        status = esp_fail_within(error, status, "%s: weight \"%s\"", folder->path,
                                 esp_io_show(info->name).text);
    } else {
        status = check_crc(folder, weight, esp_sparse_crc32c(made), error);
    }
    if (status != ESP_OK) {
        esp_sparse_free(made);
        return status;
    }
    *sparse = made;
    return ESP_OK;
}

esp_status esp_checkpoint_read_sparse(const esp_checkpoint *checkpoint, int64_t index,
                                      esp_sparse **sparse, esp_error *error)
{
    const esp_weight *weight = &checkpoint->weights[index];
    const esp_weight_info *info = &weight->info;
    esp_sparse_part parts[ESP_SPARSE_MAX_PARTS] = {0};
    int count = 0;
    if (info->rank != 2 || !esp_dtype_is_weight(info->dtype)) {
        return esp_fail(
            error, ESP_BAD_ARGUMENT, "checkpoint.not_a_matrix",
            "%s: tensor \"%s\" is no matrix of F32, F16 or BF16; read it as a dense tensor",
            checkpoint->path, esp_io_show(info->name).text);
    }
    if (checkpoint->maker != NULL) {
        return checkpoint->maker->sparse(checkpoint->maker_user, info, sparse, error);
    }
    if (weight->form != ESP_FORM_ESPALIER) {
        return esp_foreign_read_sparse(checkpoint, weight, sparse, error);
    }
    ESP_TRY(esp_sparse_layout(&info->pattern, info->dtype, info->shape[0], info->shape[1],
                              weight->has_rows, parts, &count, error));
    for (int i = 0; i < count; i++) {
        parts[i].tensor.data = NULL;
    }
    esp_status status = read_parts(checkpoint, weight, parts, error);
    if (status == ESP_OK) {
        status = build(checkpoint, weight, parts, sparse, error);
    }
    free_parts(checkpoint, parts, count);
    return status;
}

/* ---- dense ---- */

static esp_status check_target(const esp_checkpoint *folder, const esp_weight_info *info,
                               const esp_tensor *dense, esp_error *error)
{
    bool same = dense->dtype == info->dtype && dense->rank == info->rank;
    for (int i = 0; same && i < info->rank; i++) {
        same = dense->shape[i] == info->shape[i];
    }
    if (same && (dense->data != NULL || info->dense_bytes == 0)) {
        return ESP_OK;
    }
    char wanted[128];
    esp_shape_print(info->rank, info->shape, wanted, sizeof wanted);
    return esp_fail(
        error, ESP_BAD_ARGUMENT, "checkpoint.wrong_tensor",
        "%s: tensor \"%s\" is %s of %s; the tensor given to read it into is another one or "
        "has no memory",
        folder->path, esp_io_show(info->name).text, wanted, esp_dtype_name(info->dtype));
}

esp_status esp_checkpoint_read_dense(const esp_checkpoint *checkpoint, int64_t index,
                                     esp_tensor *dense, esp_error *error)
{
    const esp_weight *weight = &checkpoint->weights[index];
    ESP_TRY(check_target(checkpoint, &weight->info, dense, error));
    if (weight->form != ESP_FORM_ESPALIER) {
        return esp_foreign_read_dense(checkpoint, weight, dense, error);
    }
    if (weight->info.pattern.kind == ESP_PATTERN_DENSE && checkpoint->maker != NULL) {
        return checkpoint->maker->dense(checkpoint->maker_user, &weight->info, dense, error);
    }
    if (weight->info.pattern.kind == ESP_PATTERN_DENSE) {
        ESP_TRY(read_stored(checkpoint, weight->parts[0], dense->data, error));
        return check_crc(
            checkpoint, weight,
            weight->info.has_crc32c ? esp_crc32c(0, dense->data, weight->info.dense_bytes) : 0,
            error);
    }
    esp_sparse *sparse = NULL;
    ESP_TRY(esp_checkpoint_read_sparse(checkpoint, index, &sparse, error));
    esp_status status = esp_sparse_decode(sparse, dense, error);
    esp_sparse_free(sparse);
    return status;
}
