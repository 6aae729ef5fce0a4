/* One tensor at a time: read, change, write, free. At most the dense tensor, its mask, its
 * compressed form and the scratch of the mask search live at once, which keeps the peak near four
 * times the largest tensor whatever the size of the checkpoint. */
#include "pipeline/rewrite.h"

#include "io/io.h"
#include "prune/prune.h"

/* What our form takes of a weight that comes from a foreign one. */
static size_t own_bytes(const esp_weight_info *weight)
{
    size_t bytes = weight->dense_bytes;
    if (weight->pattern.kind != ESP_PATTERN_DENSE) {
        esp_status status =
            esp_sparse_layout_bytes(&weight->pattern, weight->dtype, weight->shape[0],
                                    weight->shape[1], false, &bytes, NULL);
        return status == ESP_OK ? bytes : 0; /* 0: the writer will say what is wrong */
    }
    return bytes;
}

/* As the target folder will hold the tensor. */
static esp_weight_info target_weight(const esp_rewrite *rewrite, int64_t index)
{
    const esp_choice *choice = &rewrite->selection->choices[index];
    esp_weight_info weight = esp_checkpoint_get(rewrite->source, index);
    if (choice->pruned) {
        weight.pattern = choice->pattern;
        weight.stored_bytes = choice->stored_bytes;
    } else if (rewrite->decode_rest) {
        weight.pattern = (esp_pattern){.kind = ESP_PATTERN_DENSE};
        weight.stored_bytes = weight.dense_bytes;
    } else if (esp_checkpoint_form(rewrite->source) != ESP_FORM_ESPALIER) {
        weight.stored_bytes = own_bytes(&weight);
    }
    weight.has_crc32c = false;
    return weight;
}

static bool is_weight_changed(const esp_rewrite *rewrite, int64_t index)
{
    return rewrite->selection->choices[index].pruned;
}

/* As the source holds it, in the new order of channels where there is one. */
static esp_status read_dense(const esp_rewrite *rewrite, int64_t index, esp_tensor *dense,
                             esp_error *error)
{
    const esp_permutation *permutation = rewrite->options->permutation;
    ESP_TRY(esp_checkpoint_read_dense(rewrite->source, index, dense, error));
    return permutation == NULL
               ? ESP_OK
               : esp_permutation_apply(permutation, esp_checkpoint_get(rewrite->source, index).name,
                                       dense, error);
}

static esp_status copy_dense(const esp_rewrite *rewrite, int64_t index,
                             const esp_weight_info *weight, esp_checkpoint_writer *writer,
                             esp_error *error)
{
    esp_tensor dense;
    ESP_TRY(esp_tensor_create(rewrite->context, weight->dtype, weight->rank, weight->shape, &dense,
                              error));
    esp_status status = read_dense(rewrite, index, &dense, error);
    if (status == ESP_OK) {
        status = esp_checkpoint_writer_write_dense(writer, weight->name, &dense, error);
    }
    esp_tensor_free(rewrite->context, &dense);
    return status;
}

static esp_status copy_sparse(const esp_rewrite *rewrite, int64_t index,
                              const esp_weight_info *weight, esp_checkpoint_writer *writer,
                              esp_error *error)
{
    esp_sparse *sparse;
    ESP_TRY(esp_checkpoint_read_sparse(rewrite->source, index, &sparse, error));
    esp_status status = esp_checkpoint_writer_write_sparse(writer, weight->name, sparse, error);
    esp_sparse_free(sparse);
    return status;
}

static esp_status change(esp_rewrite *rewrite, int64_t index, const esp_weight_info *weight,
                         esp_checkpoint_writer *writer, esp_mask_report *report, esp_error *error)
{
    esp_tensor dense;
    ESP_TRY(esp_tensor_create(rewrite->context, weight->dtype, weight->rank, weight->shape, &dense,
                              error));
    esp_sparse *sparse = NULL;
    esp_status status = read_dense(rewrite, index, &dense, error);
    if (status == ESP_OK) {
        status = rewrite->encode(rewrite, &rewrite->selection->choices[index], weight, &dense,
                                 &sparse, report, error);
    }
    if (status == ESP_OK && sparse == NULL) {
        status = esp_checkpoint_writer_write_dense(writer, weight->name, &dense, error);
    }
    esp_tensor_free(rewrite->context, &dense);
    if (status == ESP_OK && sparse != NULL) {
        status = esp_checkpoint_writer_write_sparse(writer, weight->name, sparse, error);
    }
    esp_sparse_free(sparse);
    return status;
}

static void add_to_summary(esp_rewrite *rewrite, int64_t index, const esp_weight_info *target)
{
    const esp_choice *choice = &rewrite->selection->choices[index];
    esp_weight_info source = esp_checkpoint_get(rewrite->source, index);
    esp_prune_summary *summary = &rewrite->summary;
    summary->layers += choice->linear;
    summary->source_bytes += source.stored_bytes;
    summary->stored_bytes += target->stored_bytes;
    bool decoded = rewrite->decode_rest && !esp_checkpoint_is_plain(rewrite->source, index);
    if (choice->pruned || decoded) {
        summary->pruned_layers++;
        summary->pruned_weights += source.shape[0] * source.shape[1];
        summary->pruned_source_bytes += source.stored_bytes;
        summary->pruned_stored_bytes += target->stored_bytes;
    }
}

static void report_layer(const esp_rewrite *rewrite, int64_t index, const esp_weight_info *target,
                         const esp_mask_report *mask)
{
    const esp_choice *choice = &rewrite->selection->choices[index];
    esp_layer_report layer = {.name = target->name,
                              .dtype = target->dtype,
                              .pruned = choice->pruned,
                              .pattern = target->pattern,
                              .note = choice->note,
                              .dense_bytes = target->dense_bytes,
                              .stored_bytes = target->stored_bytes,
                              .mask = *mask};
    if (choice->linear) {
        layer.out_features = target->shape[0];
        layer.in_features = target->shape[1];
    }
    if (rewrite->options->on_layer != NULL) {
        rewrite->options->on_layer(rewrite->options->user, &layer);
    }
}

/* Weights of a tensor, for the progress display: those of chosen tensors cost nearly all the time.
 */
static double weights_of(const esp_rewrite *rewrite, int64_t index)
{
    esp_weight_info weight = esp_checkpoint_get(rewrite->source, index);
    bool counts = is_weight_changed(rewrite, index) || rewrite->decode_rest;
    double product = 1;
    for (int i = 0; i < weight.rank; i++) {
        product *= (double)weight.shape[i];
    }
    return counts ? product : 0;
}

static esp_status step(const esp_rewrite *rewrite, double done, double total, esp_error *error)
{
    const esp_prune_options *options = rewrite->options;
    if (options->progress != NULL &&
        !options->progress(options->user, rewrite->what, done, total, "weights")) {
        return esp_fail(error, ESP_CANCELLED, "cancelled",
                        "%s was interrupted; nothing was written", rewrite->what);
    }
    return ESP_OK;
}

static esp_status rewrite_tensor(esp_rewrite *rewrite, int64_t index, esp_checkpoint_writer *writer,
                                 esp_error *error)
{
    esp_weight_info source = esp_checkpoint_get(rewrite->source, index);
    esp_weight_info target = target_weight(rewrite, index);
    esp_mask_report mask = {0};
    if (rewrite->encode == NULL && is_weight_changed(rewrite, index)) {
        mask.weights = source.shape[0] * source.shape[1];
    } else if (writer != NULL && is_weight_changed(rewrite, index)) {
        ESP_TRY(change(rewrite, index, &source, writer, &mask, error));
    } else if (writer != NULL && target.pattern.kind == ESP_PATTERN_DENSE) {
        ESP_TRY(copy_dense(rewrite, index, &source, writer, error));
    } else if (writer != NULL) {
        ESP_TRY(copy_sparse(rewrite, index, &source, writer, error));
    }
    add_to_summary(rewrite, index, &target);
    report_layer(rewrite, index, &target, &mask);
    return ESP_OK;
}

static esp_status rewrite_all(esp_rewrite *rewrite, esp_checkpoint_writer *writer, esp_error *error)
{
    int64_t count = esp_checkpoint_count(rewrite->source);
    double total = 0, done = 0;
    for (int64_t i = 0; i < count; i++) {
        total += weights_of(rewrite, i);
    }
    for (int64_t i = 0; i < count; i++) {
        int64_t index = rewrite->order != NULL ? rewrite->order[i] : i;
        ESP_TRY(step(rewrite, done, total, error));
        ESP_TRY(rewrite_tensor(rewrite, index, writer, error));
        done += weights_of(rewrite, index);
    }
    return step(rewrite, done, total, error);
}

/* How it was made, for the marker. */
static esp_status record(const esp_rewrite *rewrite, esp_checkpoint_writer *writer,
                         esp_error *error)
{
    const esp_layer_maker *maker = rewrite->maker;
    if (maker == NULL) {
        return ESP_OK;
    }
    esp_buffer json;
    esp_buffer_init(&json, rewrite->context);
    esp_status status = maker->record(maker->user, &json, error);
    if (status == ESP_OK && json.failed) {
        status = esp_fail_memory(error, json.length, "a record");
    }
    if (status == ESP_OK) {
        status = esp_checkpoint_writer_record(writer, maker->record_name, json.data, error);
    }
    esp_buffer_free(&json);
    return status;
}

static esp_status note_permutation(const esp_rewrite *rewrite, esp_checkpoint_writer *writer,
                                   esp_error *error)
{
    if (rewrite->options->permutation == NULL) {
        return ESP_OK;
    }
    esp_buffer text;
    esp_buffer_init(&text, rewrite->context);
    esp_permutation_print(rewrite->options->permutation, &text);
    esp_status status = text.failed
                            ? esp_fail_memory(error, text.length, "config.json")
                            : esp_checkpoint_writer_note(writer, "permutation", text.data, error);
    esp_buffer_free(&text);
    return status;
}

static esp_status write_all(esp_rewrite *rewrite, esp_checkpoint_writer *writer, esp_error *error)
{
    ESP_TRY(esp_checkpoint_writer_set_form(writer, rewrite->form, error));
    ESP_TRY(esp_checkpoint_writer_set_shard_bytes(writer, rewrite->options->shard_bytes, error));
    ESP_TRY(note_permutation(rewrite, writer, error));
    for (int64_t i = 0; i < esp_checkpoint_count(rewrite->source); i++) {
        esp_weight_info weight = target_weight(rewrite, i);
        ESP_TRY(esp_checkpoint_writer_declare(writer, &weight, error));
    }
    ESP_TRY(esp_checkpoint_writer_begin(writer, error));
    ESP_TRY(rewrite_all(rewrite, writer, error));
    ESP_TRY(record(rewrite, writer, error));
    return esp_checkpoint_writer_finish(writer, error);
}

esp_status esp_rewrite_run(esp_rewrite *rewrite, const char *out_dir, esp_error *error)
{
    double start = esp_seconds();
    esp_status status;
    if (rewrite->options->dry_run) {
        rewrite->encode = NULL;
        status = rewrite_all(rewrite, NULL, error);
    } else {
        esp_checkpoint_writer *writer;
        ESP_TRY(esp_checkpoint_writer_create(rewrite->context, rewrite->source, out_dir,
                                             rewrite->options->force, &writer, error));
        status = write_all(rewrite, writer, error);
        esp_checkpoint_writer_free(writer);
    }
    rewrite->summary.total_seconds = esp_seconds() - start;
    return status;
}
