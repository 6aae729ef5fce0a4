/* The second half of a checkpoint writer: data in, and the end. */
#include <inttypes.h>
#include <string.h>

#include "io/checkpoint_writer.h"
#include "io/config_text.h"
#include "io/foreign_write.h"

/* ---- write ---- */

static esp_status find_weight(const esp_checkpoint_writer *writer, const char *name,
                              esp_promised **weight, esp_error *error)
{
    size_t low = 0, high = writer->count;
    esp_promised *found = NULL;
    while (low < high && found == NULL) {
        size_t middle = low + (high - low) / 2;
        esp_promised *candidate = &writer->weights[writer->by_name[middle]];
        int order = strcmp(candidate->info.name, name);
        found = order == 0 ? candidate : NULL;
        low = order < 0 ? middle + 1 : low;
        high = order > 0 ? middle : high;
    }
    if (found == NULL) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "checkpoint.not_declared",
                        "tensor \"%s\" was not declared", esp_io_show(name).text);
    }
    if (found->written) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "checkpoint.written_twice",
                        "tensor \"%s\" is written already", esp_io_show(name).text);
    }
    *weight = found;
    return ESP_OK;
}

static esp_status not_as_declared(const esp_promised *weight, esp_error *error)
{
    char pattern[ESP_PATTERN_TEXT_MAX], shape[128];
    esp_pattern_print(&weight->info.pattern, pattern);
    esp_shape_print(weight->info.rank, weight->info.shape, shape, sizeof shape);
    return esp_fail(
        error, ESP_BAD_ARGUMENT, "checkpoint.not_as_declared",
        "tensor \"%s\" was declared as %s of %s in the form %s%s, what is written differs",
        esp_io_show(weight->info.name).text, shape, esp_dtype_name(weight->info.dtype), pattern,
        weight->has_rows ? " with a row order" : "");
}

static esp_status write_dense(esp_checkpoint_writer *writer, const char *name,
                              const esp_tensor *dense, esp_error *error)
{
    esp_promised *weight = NULL;
    size_t bytes = 0;
    ESP_TRY(find_weight(writer, name, &weight, error));
    const esp_weight_info *info = &weight->info;
    bool bitmask =
        writer->form == ESP_FORM_SPARSE_BITMASK && info->pattern.kind == ESP_PATTERN_UNSTRUCTURED;
    bool same = (info->pattern.kind == ESP_PATTERN_DENSE || bitmask) &&
                dense->dtype == info->dtype && dense->rank == info->rank;
    for (int i = 0; same && i < info->rank; i++) {
        same = dense->shape[i] == info->shape[i];
    }
    if (!same) {
        return not_as_declared(weight, error);
    }
    if (bitmask) {
        return esp_foreign_write(writer, weight, dense, error);
    }
    ESP_TRY(esp_tensor_size(dense, NULL, &bytes, error));
    ESP_TRY(esp_shards_write(&writer->shards, weight->shard, name, dense->data, error));
    weight->crc = esp_crc32c(0, dense->data, bytes);
    weight->written = true;
    return ESP_OK;
}

static bool is_as_declared(const esp_promised *weight, const esp_sparse *sparse)
{
    const esp_weight_info *info = &weight->info;
    esp_pattern pattern = esp_sparse_pattern(sparse);
    return info->rank == 2 && esp_pattern_equal(&info->pattern, &pattern) &&
           info->dtype == esp_sparse_dtype(sparse) &&
           info->shape[0] == esp_sparse_out_features(sparse) &&
           info->shape[1] == esp_sparse_in_features(sparse) &&
           weight->has_rows ==
               (pattern.kind == ESP_PATTERN_PANEL && esp_sparse_find_part(sparse, "rows") != NULL);
}

esp_status esp_writer_write_part(esp_checkpoint_writer *writer, const esp_promised *weight,
                                 const esp_sparse_part *part, esp_error *error)
{
    char *stored = NULL;
    ESP_TRY(esp_writer_part_name(writer, weight->info.name, part->name, &stored, error));
    esp_status status =
        esp_shards_write(&writer->shards, weight->shard, stored, part->tensor.data, error);
    esp_release(writer->context, stored);
    return status;
}

/* Bitmasks are made from dense weights. */
static esp_status write_decoded(esp_checkpoint_writer *writer, esp_promised *weight,
                                const esp_sparse *sparse, esp_error *error)
{
    esp_tensor dense;
    ESP_TRY(esp_tensor_create(writer->context, weight->info.dtype, 2, weight->info.shape, &dense,
                              error));
    esp_status status = esp_sparse_decode(sparse, &dense, error);
    if (status == ESP_OK) {
        status = esp_foreign_write(writer, weight, &dense, error);
    }
    esp_tensor_free(writer->context, &dense);
    return status;
}

static esp_status write_sparse(esp_checkpoint_writer *writer, const char *name,
                               const esp_sparse *sparse, esp_error *error)
{
    esp_promised *weight = NULL;
    ESP_TRY(find_weight(writer, name, &weight, error));
    if (!is_as_declared(weight, sparse)) {
        return not_as_declared(weight, error);
    }
    if (writer->form != ESP_FORM_ESPALIER && weight->info.pattern.kind != ESP_PATTERN_DENSE) {
        return write_decoded(writer, weight, sparse, error);
    }
    for (int i = 0; i < esp_sparse_part_count(sparse); i++) {
        esp_sparse_part part = esp_sparse_get_part(sparse, i);
        ESP_TRY(esp_writer_write_part(writer, weight, &part, error));
    }
    weight->crc = esp_sparse_crc32c(sparse);
    weight->written = true;
    return ESP_OK;
}

/* A disk that failed makes the writer useless, a caller's mistake does not. */
static esp_status after_write(esp_checkpoint_writer *writer, esp_status status)
{
    if (status != ESP_OK && status != ESP_BAD_ARGUMENT) {
        writer->state = ESP_WRITER_BROKEN;
    }
    return status;
}

esp_status esp_checkpoint_writer_write_dense(esp_checkpoint_writer *writer, const char *name,
                                             const esp_tensor *dense, esp_error *error)
{
    ESP_TRY(esp_writer_check_state(writer, ESP_WRITER_WRITING, error));
    return after_write(writer, write_dense(writer, name, dense, error));
}

esp_status esp_checkpoint_writer_write_sparse(esp_checkpoint_writer *writer, const char *name,
                                              const esp_sparse *sparse, esp_error *error)
{
    ESP_TRY(esp_writer_check_state(writer, ESP_WRITER_WRITING, error));
    return after_write(writer, write_sparse(writer, name, sparse, error));
}

esp_status esp_checkpoint_writer_record(esp_checkpoint_writer *writer, const char *name,
                                        const char *value, esp_error *error)
{
    const char *before = writer->target.record != NULL ? writer->target.record : "";
    esp_buffer text;
    esp_buffer_init(&text, writer->context);
    esp_buffer_printf(&text, "%s,\n \"%s\": %s", before, name, value);
    if (text.failed) {
        esp_buffer_free(&text);
        return esp_fail_memory(error, strlen(value), "a record");
    }
    esp_release(writer->context, writer->target.record);
    writer->target.record = text.data;
    return ESP_OK;
}

/* ---- finish ---- */

static void print_weight(const esp_promised *weight, esp_buffer *text)
{
    char pattern[ESP_PATTERN_TEXT_MAX];
    const esp_weight_info *info = &weight->info;
    esp_pattern_print(&info->pattern, pattern);
    esp_buffer_text(text, "\n      ");
    esp_buffer_json_string(text, info->name);
    esp_buffer_printf(text, ": {\"pattern\": \"%s\", \"shape\": [", pattern);
    for (int i = 0; i < info->rank; i++) {
        esp_buffer_printf(text, "%s%" PRId64, i > 0 ? ", " : "", info->shape[i]);
    }
    esp_buffer_printf(text, "], \"dtype\": \"%s\", \"crc32c\": \"%08" PRIx32 "\"}",
                      esp_dtype_name(info->dtype), weight->crc);
}

/* False when every weight is plain: then the folder is an ordinary one. */
static bool print_quantization(const esp_checkpoint_writer *writer, esp_buffer *text)
{
    bool compressed = false;
    esp_buffer_printf(text,
                      "{\n    \"quant_method\": \"espalier\",\n    \"format_version\": %d,\n"
                      "    \"tensors\": {",
                      ESP_FOLDER_FORMAT_VERSION);
    for (size_t i = 0; i < writer->count; i++) {
        const esp_promised *weight = &writer->weights[writer->by_name[i]];
        compressed |= weight->info.pattern.kind != ESP_PATTERN_DENSE;
        esp_buffer_text(text, i > 0 ? "," : "");
        print_weight(weight, text);
    }
    esp_buffer_text(text, "\n    }");
    esp_buffer_text(text, writer->notes.data != NULL ? writer->notes.data : "");
    esp_buffer_text(text, "\n  }");
    return compressed;
}

static esp_status write_config(esp_checkpoint_writer *writer, esp_error *error)
{
    char *config = NULL;
    esp_buffer text;
    esp_buffer_init(&text, writer->context);
    bool compressed = writer->form != ESP_FORM_ESPALIER ? esp_foreign_print_config(writer, &text)
                                                        : print_quantization(writer, &text);
    esp_status status = text.failed
                            ? esp_fail_memory(error, text.length, "config.json")
                            : esp_config_rewrite(writer->context, writer->config,
                                                 compressed ? text.data : NULL, &config, error);
    esp_buffer_free(&text);
    if (status == ESP_OK) {
        status = esp_target_write_text(&writer->target, ESP_CONFIG_FILE, config, error);
    }
    esp_release(writer->context, config);
    return status;
}

static esp_status check_written(const esp_checkpoint_writer *writer, esp_error *error)
{
    for (size_t i = 0; i < writer->count; i++) {
        if (!writer->weights[i].written) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "checkpoint.not_written",
                            "tensor \"%s\" was declared and not written",
                            esp_io_show(writer->weights[i].info.name).text);
        }
    }
    return ESP_OK;
}

esp_status esp_checkpoint_writer_finish(esp_checkpoint_writer *writer, esp_error *error)
{
    ESP_TRY(esp_writer_check_state(writer, ESP_WRITER_WRITING, error));
    ESP_TRY(check_written(writer, error));
    writer->state = ESP_WRITER_BROKEN;
    ESP_TRY(esp_shards_finish(&writer->shards, &writer->target, error));
    ESP_TRY(write_config(writer, error));
    ESP_TRY(esp_target_install(&writer->target, error));
    writer->state = ESP_WRITER_FINISHED;
    return ESP_OK;
}
