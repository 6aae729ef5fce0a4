/* Writing a model folder: weights are declared first and streamed one by one, and nothing is
 * visible at the target before all of it is on disk. Checksums are known only at the end, so
 * config.json is the last file but the marker. */
#include "io/checkpoint_writer.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "io/config_text.h"
#include "io/foreign_write.h"

/* Room for config.json's new key, the marker and the file system's own needs. */
#define SPARE_BYTES ((uint64_t)1 << 20)

/* ---- create ---- */

static esp_status prepare(esp_checkpoint_writer *writer, const esp_checkpoint *source,
                          const char *target_dir, bool force, esp_error *error)
{
    esp_context *context = writer->context;
    if (source->config_text == NULL) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "checkpoint.no_config",
                        "%s: is a lone file without config.json; give the model's folder, so that "
                        "the new folder can be complete",
                        source->path);
    }
    writer->config = esp_strdup(context, source->config_text);
    if (writer->config == NULL) {
        return esp_fail_memory(error, strlen(source->config_text), "config.json");
    }
    ESP_TRY(esp_target_open(context, source->path, target_dir, force, &writer->target, error));
    ESP_TRY(esp_carry_list(context, source->path, &writer->carry, error));
    return esp_shards_open(context, &writer->shards, error);
}

esp_status esp_checkpoint_writer_create(esp_context *context, const esp_checkpoint *source,
                                        const char *target_dir, bool force,
                                        esp_checkpoint_writer **writer, esp_error *error)
{
    esp_checkpoint_writer *made = esp_alloc_zero(context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "a checkpoint writer");
    }
    made->context = context;
    made->target.marker = -1;
    esp_buffer_init(&made->notes, context);
    esp_status status = prepare(made, source, target_dir, force, error);
    if (status != ESP_OK) {
        esp_checkpoint_writer_free(made);
        return status;
    }
    *writer = made;
    return ESP_OK;
}

void esp_checkpoint_writer_free(esp_checkpoint_writer *writer)
{
    if (writer == NULL) {
        return;
    }
    esp_context *context = writer->context;
    esp_shards_free(&writer->shards);
    esp_target_close(&writer->target);
    esp_carry_free(&writer->carry);
    for (size_t i = 0; i < writer->count; i++) {
        esp_release(context, (void *)(uintptr_t)writer->weights[i].info.name);
    }
    esp_release(context, writer->weights);
    esp_release(context, writer->by_name);
    esp_buffer_free(&writer->notes);
    esp_release(context, writer->config);
    esp_release(context, writer);
}

esp_status esp_writer_check_state(const esp_checkpoint_writer *writer, esp_writer_state wanted,
                                  esp_error *error)
{
    return writer->state == wanted
               ? ESP_OK
               : esp_fail(
                     error, ESP_BAD_ARGUMENT, "checkpoint.wrong_order",
                     "%s: a writer is created, declared to, begun, written to and finished, in "
                     "this order, and not used after a failure",
                     writer->target.path);
}

/* ---- how ---- */

static esp_status check_nothing_declared(const esp_checkpoint_writer *writer, esp_error *error)
{
    /* Declared to is no longer declaring from the start: the same fault, the same message. */
    return esp_writer_check_state(
        writer, writer->count == 0 ? ESP_WRITER_DECLARING : ESP_WRITER_BROKEN, error);
}

esp_status esp_checkpoint_writer_set_form(esp_checkpoint_writer *writer, esp_folder_form form,
                                          esp_error *error)
{
    ESP_TRY(check_nothing_declared(writer, error));
    writer->form = form;
    return ESP_OK;
}

esp_status esp_checkpoint_writer_set_shard_bytes(esp_checkpoint_writer *writer,
                                                 uint64_t shard_bytes, esp_error *error)
{
    ESP_TRY(check_nothing_declared(writer, error));
    writer->shards.limit = shard_bytes;
    return ESP_OK;
}

esp_status esp_checkpoint_writer_note(esp_checkpoint_writer *writer, const char *key,
                                      const char *json, esp_error *error)
{
    ESP_TRY(esp_writer_check_state(writer, ESP_WRITER_DECLARING, error));
    esp_buffer_printf(&writer->notes, ",\n    \"%s\": ", key);
    esp_buffer_text(&writer->notes, json);
    return writer->notes.failed ? esp_fail_memory(error, strlen(json), "config.json") : ESP_OK;
}

static esp_status set(esp_checkpoint_writer *writer, const char *section, const char *key,
                      const char *value, esp_error *error)
{
    char *config = NULL;
    ESP_TRY(esp_writer_check_state(writer, ESP_WRITER_DECLARING, error));
    ESP_TRY(esp_config_set(writer->context, writer->config, section, key, value, &config, error));
    esp_release(writer->context, writer->config);
    writer->config = config;
    return ESP_OK;
}

esp_status esp_checkpoint_writer_set_integer(esp_checkpoint_writer *writer, const char *section,
                                             const char *key, int64_t value, esp_error *error)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRId64, value);
    return set(writer, section, key, text, error);
}

esp_status esp_checkpoint_writer_set_bool(esp_checkpoint_writer *writer, const char *section,
                                          const char *key, bool value, esp_error *error)
{
    return set(writer, section, key, value ? "true" : "false", error);
}

/* ---- declare ---- */

/* Parts of a weight in the file: one of any dtype and rank when plain. */
static esp_status layout_of(esp_folder_form form, const esp_weight_info *info, bool has_rows,
                            esp_sparse_part parts[ESP_SPARSE_MAX_PARTS], int *count,
                            esp_error *error)
{
    if (info->pattern.kind == ESP_PATTERN_DENSE) {
        parts[0] =
            (esp_sparse_part){.name = "", .tensor = {.dtype = info->dtype, .rank = info->rank}};
        memcpy(parts[0].tensor.shape, info->shape, sizeof info->shape);
        *count = 1;
        return ESP_OK;
    }
    if (form != ESP_FORM_ESPALIER) {
        return esp_foreign_layout(form, info, parts, count, error);
    }
    if (info->rank != 2) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "checkpoint.not_a_matrix",
                        "tensor \"%s\" has rank %d; only matrices can be compressed",
                        esp_io_show(info->name).text, info->rank);
    }
    return esp_sparse_layout(&info->pattern, info->dtype, info->shape[0], info->shape[1], has_rows,
                             parts, count, error);
}

static esp_status stored_bytes(esp_folder_form form, const esp_weight_info *info, bool has_rows,
                               size_t *bytes, esp_error *error)
{
    esp_sparse_part parts[ESP_SPARSE_MAX_PARTS];
    int count = 0;
    *bytes = 0;
    ESP_TRY(layout_of(form, info, has_rows, parts, &count, error));
    for (int i = 0; i < count; i++) {
        size_t part;
        ESP_TRY(esp_tensor_size(&parts[i].tensor, NULL, &part, error));
        *bytes += part; /* a part of a weight whose parts fitted a layout */
    }
    return ESP_OK;
}

/* Only the declared size tells whether a row order will come. */
static esp_status find_rows(esp_folder_form form, const esp_weight_info *info, bool *has_rows,
                            esp_error *error)
{
    size_t plain, ordered;
    ESP_TRY(stored_bytes(form, info, false, &plain, error));
    *has_rows = false;
    if (info->stored_bytes == 0 || info->stored_bytes == plain) {
        return ESP_OK;
    }
    if (info->pattern.kind == ESP_PATTERN_PANEL && form == ESP_FORM_ESPALIER) {
        ESP_TRY(stored_bytes(form, info, true, &ordered, error));
        *has_rows = info->stored_bytes == ordered;
    }
    return *has_rows
               ? ESP_OK
               : esp_fail(error, ESP_BAD_ARGUMENT, "checkpoint.wrong_size",
                          "tensor \"%s\": stored_bytes is %zu, its form takes %zu; give 0 for "
                          "the usual size",
                          esp_io_show(info->name).text, info->stored_bytes, plain);
}

static esp_status grow(esp_checkpoint_writer *writer, esp_error *error)
{
    if (writer->count < writer->capacity) {
        return ESP_OK;
    }
    size_t capacity = writer->capacity != 0 ? 2 * writer->capacity : 64;
    esp_promised *grown = esp_realloc(writer->context, writer->weights,
                                      writer->count * sizeof *grown, capacity * sizeof *grown);
    if (grown == NULL) {
        return esp_fail_memory(error, capacity * sizeof *grown, "a table of weights");
    }
    writer->weights = grown;
    writer->capacity = capacity;
    return ESP_OK;
}

esp_status esp_writer_part_name(const esp_checkpoint_writer *writer, const char *weight,
                                const char *part, char **name, esp_error *error)
{
    esp_buffer text;
    bool foreign = writer->form != ESP_FORM_ESPALIER && part[0] != '\0';
    esp_buffer_init(&text, writer->context);
    esp_buffer_append(&text, weight, strlen(weight) - (foreign ? strlen(".weight") : 0));
    if (part[0] != '\0') {
        esp_buffer_text(&text, ".");
        esp_buffer_text(&text, part);
    }
    if (text.failed) {
        esp_buffer_free(&text);
        return esp_fail_memory(error, strlen(weight), "a tensor name");
    }
    *name = text.data;
    return ESP_OK;
}

static esp_status declare_parts(esp_checkpoint_writer *writer, const esp_promised *weight,
                                esp_error *error)
{
    esp_sparse_part parts[ESP_SPARSE_MAX_PARTS];
    int count = 0;
    esp_status status =
        layout_of(writer->form, &weight->info, weight->has_rows, parts, &count, error);
    for (int i = 0; i < count && status == ESP_OK; i++) {
        char *name = NULL;
        status = esp_writer_part_name(writer, weight->info.name, parts[i].name, &name, error);
        if (status == ESP_OK) {
            status = esp_shards_declare(&writer->shards, name, &parts[i].tensor, error);
        }
        esp_release(writer->context, name);
    }
    return status;
}

static esp_status declare(esp_checkpoint_writer *writer, const esp_weight_info *info,
                          esp_error *error)
{
    bool has_rows;
    size_t bytes;
    uint32_t shard;
    if (info->name == NULL || !esp_io_name_is_fine(info->name)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "checkpoint.bad_name",
                        "\"%s\" cannot name a tensor: 1 to %d bytes of UTF-8 were expected",
                        info->name != NULL ? esp_io_show(info->name).text : "", ESP_IO_NAME_MAX);
    }
    ESP_TRY(find_rows(writer->form, info, &has_rows, error));
    ESP_TRY(stored_bytes(writer->form, info, has_rows, &bytes, error));
    ESP_TRY(grow(writer, error));
    ESP_TRY(esp_shards_next(&writer->shards, bytes, &shard, error));
    char *name = esp_strdup(writer->context, info->name);
    if (name == NULL) {
        return esp_fail_memory(error, strlen(info->name) + 1, "a tensor name");
    }
    esp_promised *weight = &writer->weights[writer->count++];
    *weight = (esp_promised){.info = *info, .has_rows = has_rows, .shard = shard};
    weight->info.name = name;
    return declare_parts(writer, weight, error);
}

esp_status esp_checkpoint_writer_declare(esp_checkpoint_writer *writer,
                                         const esp_weight_info *weight, esp_error *error)
{
    ESP_TRY(esp_writer_check_state(writer, ESP_WRITER_DECLARING, error));
    esp_status status = declare(writer, weight, error);
    writer->state = status == ESP_OK ? ESP_WRITER_DECLARING : ESP_WRITER_BROKEN;
    return status;
}

/* ---- begin ---- */

static int compare_names(const void *user, uint32_t a, uint32_t b)
{
    const esp_promised *weights = user;
    return strcmp(weights[a].info.name, weights[b].info.name);
}

static esp_status sort_names(esp_checkpoint_writer *writer, esp_error *error)
{
    writer->by_name = esp_alloc_array(writer->context, writer->count, sizeof *writer->by_name);
    if (writer->by_name == NULL) {
        return esp_fail_memory(error, writer->count * sizeof *writer->by_name, "an index");
    }
    for (size_t i = 0; i < writer->count; i++) {
        writer->by_name[i] = (uint32_t)i;
    }
    return esp_io_sort(writer->context, writer->by_name, writer->count, compare_names,
                       writer->weights, error);
}

static esp_status check_disk(const esp_checkpoint_writer *writer, uint64_t file_bytes,
                             esp_error *error)
{
    uint64_t available, needed;
    ESP_TRY(esp_free_disk(writer->target.temporary, &available, error));
    if (!esp_add_u64(file_bytes, writer->carry.bytes + SPARE_BYTES, &needed) ||
        needed > available) {
        return esp_fail(error, ESP_IO, "checkpoint.no_space",
                        "%s: needs %" PRIu64 " bytes of disk, %" PRIu64 " are free; make room or "
                        "choose another disk",
                        writer->target.path, needed, available);
    }
    return ESP_OK;
}

static esp_status begin(esp_checkpoint_writer *writer, esp_error *error)
{
    uint64_t bytes = 0;
    ESP_TRY(sort_names(writer, error));
    ESP_TRY(esp_shards_place(&writer->shards, &bytes, error));
    ESP_TRY(check_disk(writer, bytes, error));
    ESP_TRY(esp_carry_copy(&writer->carry, &writer->target, error));
    return esp_shards_begin(&writer->shards, &writer->target, error);
}

esp_status esp_checkpoint_writer_begin(esp_checkpoint_writer *writer, esp_error *error)
{
    ESP_TRY(esp_writer_check_state(writer, ESP_WRITER_DECLARING, error));
    esp_status status = begin(writer, error);
    writer->state = status == ESP_OK ? ESP_WRITER_WRITING : ESP_WRITER_BROKEN;
    return status;
}
