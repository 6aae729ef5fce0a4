/* Finished layers of a calibrated pruning, kept beside its output until that is whole, so that a
 * run which was killed goes on where it was.
 *
 * A file for each layer holds what came of it, and in its key all that it depends on: options,
 * samples, the weights as they were, and the file of the layer before. A run takes finished layers
 * from the front as long as their keys are its own; it walks the model through them, which it would
 * have done anyway, and so comes to the same activations and to the same result. Files are written
 * under another name, synced and renamed; one that is not whole fails its checksum and is as good
 * as none. They are for the machine and the build that wrote them. */
#include <dirent.h>
#include <stdio.h>

#include "assess/calibrate.h"

#define MAGIC UINT64_C(0x6573706c61796572) /* espl ayer */

typedef struct state_head {
    uint64_t magic, bytes; /* of the whole file */
    uint64_t key_bytes, value_bytes, words, columns, rows;
    int64_t v, kept;
    int64_t tokens, dead_inputs, iterations;
    double masked_error, error, own_error, residual;
} state_head;

/* ---- names ---- */

static bool is_ours(const char *name)
{
    const char *rest = name + strspn(name, "0123456789");
    return rest > name && (strcmp(rest, ".layer") == 0 || strcmp(rest, ".layer.new") == 0);
}

static void name_file(const esp_calibration *calibration, int64_t number, const char *suffix,
                      char path[4096])
{
    snprintf(path, 4096, "%s/%06lld.layer%s", calibration->options->state_dir, (long long)number,
             suffix);
}

/* A folder of that name must be one of these. */
esp_status esp_calibration_state_check(const esp_calibration *calibration, esp_error *error)
{
    const char *folder = calibration->options->state_dir, *name = NULL;
    if (folder == NULL || !esp_path_exists(folder)) {
        return ESP_OK;
    }
    DIR *opened = opendir(folder);
    esp_status status = ESP_OK;
    bool ours = opened != NULL && strlen(folder) < 4000;
    while (ours && (status = esp_folder_next(opened, folder, &name, error)) == ESP_OK &&
           name != NULL) {
        ours = is_ours(name);
    }
    if (opened != NULL) {
        closedir(opened);
    }
    return status != ESP_OK || ours
               ? status
               : esp_fail(error, ESP_BAD_ARGUMENT, "calibrate.bad_state",
                          "%s: is to hold finished layers of a pruning, and is something else; "
                          "move it away",
                          folder);
}

/* ---- keys ---- */

static void make_key(const esp_calibration *calibration, const esp_calibrated_linear *linear,
                     const esp_pattern *pattern, const esp_tensor *values, char key[ESP_STATE_KEY])
{
    const esp_calibration_options *o = calibration->options;
    const esp_mask_options *mask = &calibration->prune->mask;
    const char *algebra = esp_algebra_name(calibration->algebra);
    uint32_t names = esp_crc32c(0, algebra, strlen(algebra));
    char text[ESP_PATTERN_TEXT_MAX];
    size_t bytes = 0;
    esp_error ignored;
    names = esp_crc32c(names, linear->name, strlen(linear->name));
    uint32_t crc = esp_tensor_size(values, NULL, &bytes, &ignored) == ESP_OK
                       ? esp_crc32c(0, values->data, bytes)
                       : 0;
    esp_pattern_print(pattern, text);
    /* What may be long comes last: were it cut, the checksum before it still tells layers apart. */
    snprintf(
        key, ESP_STATE_KEY,
        "espalier %s, layers on %s, %d threads; %s power %g refit %d gradual %d turn %d respect %d "
        "targets %s inputs %s damping %.17g; "
        "%lld samples of %lld tokens, crc32c %08x; score %d search %d scope %d regroup %d; "
        "%s %08x after %08x; names %08x: %s by %s",
        esp_version(), calibration->device->name, calibration->context->threads,
        esp_method_name(o->method), o->norm_power, o->refit, o->gradual, o->turn_values, o->respect,
        esp_targets_name(o->targets), o->dense_inputs ? "dense" : "pruned", o->damping,
        (long long)calibration->summary.samples, (long long)calibration->summary.tokens,
        (unsigned)calibration->summary.data_crc32c, (int)mask->score, (int)mask->search,
        (int)mask->scope, mask->regroup, text, (unsigned)crc, (unsigned)calibration->state_chain,
        (unsigned)names, linear->name, algebra);
}

/* ---- remembering ---- */

static void put(esp_buffer *file, const void *data, size_t bytes)
{
    if (bytes > 0) {
        esp_buffer_append(file, data, bytes);
    }
}

static void compose(const esp_tensor *values, size_t value_bytes, const char *key,
                    const esp_mask *mask, const esp_calibrated_layer *report, esp_buffer *file)
{
    int64_t v = 0, kept = 0, out = esp_mask_out_features(mask);
    const uint32_t *columns = esp_mask_columns(mask, &v, &kept), *rows = esp_mask_rows(mask);
    state_head head = {.magic = MAGIC,
                       .key_bytes = strlen(key),
                       .value_bytes = value_bytes,
                       .words = (uint64_t)(out * esp_mask_row_words(mask)),
                       .columns = columns != NULL ? (uint64_t)(esp_ceil_div(out, v) * kept) : 0,
                       .rows = rows != NULL ? (uint64_t)out : 0,
                       .v = v,
                       .kept = kept,
                       .tokens = report->tokens,
                       .dead_inputs = report->dead_inputs,
                       .iterations = report->iterations,
                       .masked_error = report->masked_error,
                       .error = report->error,
                       .own_error = report->own_error,
                       .residual = report->residual};
    head.bytes = sizeof head + head.key_bytes + head.value_bytes + head.words * sizeof(uint64_t) +
                 (head.columns + head.rows) * sizeof(uint32_t) + sizeof(uint32_t);
    put(file, &head, sizeof head);
    put(file, key, head.key_bytes);
    put(file, values->data, head.value_bytes);
    put(file, out > 0 ? esp_mask_row(mask, 0) : NULL, head.words * sizeof(uint64_t));
    put(file, columns, head.columns * sizeof *columns);
    put(file, rows, head.rows * sizeof *rows);
    uint32_t crc = esp_crc32c(0, file->data, file->length);
    put(file, &crc, sizeof crc);
}

static esp_status write_file(const esp_calibration *calibration, int64_t number,
                             const esp_buffer *file, esp_error *error)
{
    char path[4096], growing[4096];
    int descriptor = -1;
    name_file(calibration, number, "", path);
    name_file(calibration, number, ".new", growing);
    if (!esp_path_exists(calibration->options->state_dir)) {
        ESP_TRY(esp_folder_create(calibration->options->state_dir, error));
    }
    esp_file_remove(growing);
    esp_file_remove(path);
    ESP_TRY(esp_file_create(growing, &descriptor, error));
    esp_status status = esp_file_write_at(descriptor, growing, file->data, file->length, 0, error);
    if (status != ESP_OK) {
        esp_file_close(descriptor);
        return status;
    }
    ESP_TRY(esp_file_sync_close(descriptor, growing, error));
    return esp_rename_new(growing, path, error);
}

static uint32_t crc_of(const char *file, size_t length)
{
    uint32_t crc;
    memcpy(&crc, file + length - sizeof crc, sizeof crc);
    return crc;
}

esp_status esp_calibration_remember(esp_calibration *calibration,
                                    const esp_calibrated_linear *linear, const char *key,
                                    const esp_tensor *values, const esp_mask *mask,
                                    const esp_calibrated_layer *report, esp_error *error)
{
    if (calibration->options->state_dir == NULL) {
        return ESP_OK;
    }
    size_t bytes = 0;
    esp_buffer file;
    ESP_TRY(esp_tensor_size(values, NULL, &bytes, error));
    esp_buffer_init(&file, calibration->context);
    compose(values, bytes, key, mask, report, &file);
    esp_status status = file.failed
                            ? esp_fail_memory(error, bytes, "a finished layer")
                            : write_file(calibration, linear - calibration->linears, &file, error);
    if (status == ESP_OK) {
        calibration->state_chain = crc_of(file.data, file.length);
    }
    esp_buffer_free(&file);
    return status;
}

/* ---- recalling ---- */

/* Whether the file is whole, of this key, and of a layer of this shape. */
static bool is_whole(const char *file, size_t length, const char *key, size_t value_bytes,
                     const esp_tensor *values, state_head *head)
{
    uint64_t out = (uint64_t)values->shape[0];
    uint64_t words = out * (uint64_t)esp_ceil_div(values->shape[1], 64);
    if (length < sizeof *head + sizeof(uint32_t)) {
        return false;
    }
    memcpy(head, file, sizeof *head);
    bool shaped = head->magic == MAGIC && head->bytes == length && head->key_bytes == strlen(key) &&
                  head->value_bytes == value_bytes && head->words == words &&
                  (head->rows == 0 || head->rows == out) && head->columns < length;
    return shaped &&
           length == sizeof *head + head->key_bytes + value_bytes + words * sizeof(uint64_t) +
                         (head->columns + head->rows) * sizeof(uint32_t) + sizeof(uint32_t) &&
           memcmp(file + sizeof *head, key, head->key_bytes) == 0 &&
           crc_of(file, length) == esp_crc32c(0, file, length - sizeof(uint32_t));
}

static esp_status take_lists(const state_head *head, const char *from, esp_mask *mask,
                             esp_context *context, esp_error *error)
{
    uint32_t *list = esp_alloc_array(context, head->columns + head->rows + 1, sizeof *list);
    if (list == NULL) {
        return esp_fail_memory(error, (head->columns + head->rows) * sizeof *list, "columns");
    }
    memcpy(list, from, (head->columns + head->rows) * sizeof *list);
    esp_status status = ESP_OK;
    if (head->columns > 0) {
        status = esp_mask_set_columns(mask, head->v, head->kept, list, error);
    }
    if (status == ESP_OK && head->rows > 0) {
        status = esp_mask_set_rows(mask, list + head->columns, error);
    }
    esp_release(context, list);
    return status;
}

static esp_status take(esp_context *context, const state_head *head, const char *file,
                       esp_tensor *values, esp_mask **mask, esp_calibrated_layer *report,
                       esp_error *error)
{
    const char *at = file + sizeof *head + head->key_bytes;
    esp_mask *made = NULL;
    ESP_TRY(esp_mask_create(context, values->shape[0], values->shape[1], &made, error));
    if (head->words > 0) {
        memcpy(esp_mask_row_mut(made, 0), at + head->value_bytes, head->words * sizeof(uint64_t));
    }
    esp_status status = take_lists(head, at + head->value_bytes + head->words * sizeof(uint64_t),
                                   made, context, error);
    if (status != ESP_OK) {
        esp_mask_free(made);
        return status;
    }
    memcpy(values->data, at, head->value_bytes);
    report->tokens = head->tokens;
    report->dead_inputs = head->dead_inputs;
    report->iterations = head->iterations;
    report->masked_error = head->masked_error;
    report->error = head->error;
    report->own_error = head->own_error;
    report->residual = head->residual;
    *mask = made;
    return ESP_OK;
}

esp_status esp_calibration_recall(esp_calibration *calibration, const esp_calibrated_linear *linear,
                                  const esp_pattern *pattern, esp_tensor *values, esp_mask **mask,
                                  esp_calibrated_layer *report, char key[ESP_STATE_KEY],
                                  esp_error *error)
{
    char path[4096], *file = NULL;
    size_t length = 0, bytes = 0;
    state_head head;
    esp_error ignored;
    if (calibration->options->state_dir == NULL) {
        return ESP_OK;
    }
    make_key(calibration, linear, pattern, values, key);
    name_file(calibration, linear - calibration->linears, "", path);
    ESP_TRY(esp_tensor_size(values, NULL, &bytes, error));
    if (!esp_path_exists(path) ||
        esp_file_read_all(calibration->context, path, SIZE_MAX / 2, "calibrate.bad_state", &file,
                          &length, &ignored) != ESP_OK) {
        return ESP_OK;
    }
    esp_status status = ESP_OK;
    if (is_whole(file, length, key, bytes, values, &head)) {
        status = take(calibration->context, &head, file, values, mask, report, error);
        calibration->state_chain = crc_of(file, length);
        calibration->recalled += status == ESP_OK;
    }
    esp_release(calibration->context, file);
    return status;
}

void esp_calibration_state_drop(const esp_calibration *calibration)
{
    if (calibration->options->state_dir != NULL) {
        esp_folder_remove(calibration->options->state_dir);
    }
}
