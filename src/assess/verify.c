/* verify: opens the folder (which checks its structure), then reads every tensor once. A compressed
 * weight is checked as a format, by checksum and, decoded, by its values; a dense weight's zeros
 * are held against the patterns. */
#include <stdio.h>

#include "assess/fit.h"
#include "tensor/tensor.h"

typedef struct verify_run {
    esp_context *context;
    const esp_checkpoint *checkpoint;
    const esp_verify_options *options;
    esp_verify_summary summary;
} verify_run;

static esp_status describe_fits(const verify_run *run, const esp_weight_info *weight,
                                const esp_tensor *dense, esp_verify_layer *layer, esp_error *error)
{
    if (weight->rank != 2 || !esp_dtype_is_weight(weight->dtype)) {
        return ESP_OK;
    }
    if (weight->pattern.kind != ESP_PATTERN_DENSE) {
        char stored[ESP_PATTERN_TEXT_MAX];
        esp_pattern_print(&weight->pattern, stored);
        snprintf(layer->fits, sizeof layer->fits, "%s", stored);
        return ESP_OK;
    }
    esp_mask *mask;
    ESP_TRY(esp_mask_from_dense(run->context, dense, &mask, error));
    esp_fit_patterns(run->context, mask, layer->fits);
    esp_mask_free(mask);
    return ESP_OK;
}

/* The dense values, through the compressed form where there is one, so that it is checked. */
static esp_status read_values(const verify_run *run, int64_t index, const esp_weight_info *weight,
                              esp_tensor *dense, esp_error *error)
{
    if (weight->rank != 2 || !esp_dtype_is_weight(weight->dtype)) {
        return esp_checkpoint_read_dense(run->checkpoint, index, dense, error);
    }
    esp_sparse *sparse;
    ESP_TRY(esp_checkpoint_read_sparse(run->checkpoint, index, &sparse, error));
    esp_status status = esp_sparse_decode(sparse, dense, error);
    esp_sparse_free(sparse);
    return status;
}

static esp_status describe_values(verify_run *run, const esp_weight_info *weight,
                                  const esp_tensor *dense, esp_value_counts *counts,
                                  esp_verify_layer *layer, esp_error *error)
{
    *counts = esp_count_values(run->context, dense);
    layer->zeros = counts->zeros;
    layer->negative_zeros = counts->negative_zeros;
    layer->nans = counts->nans;
    layer->infinities = counts->infinities;
    layer->checked_crc32c = weight->has_crc32c;
    esp_fit_qualifies(weight, layer->qualifies);
    return describe_fits(run, weight, dense, layer, error);
}

static void add_to_summary(verify_run *run, const esp_verify_layer *layer, int64_t elems)
{
    esp_verify_summary *summary = &run->summary;
    summary->tensors++;
    summary->weights += elems;
    summary->zeros += layer->zeros;
    summary->negative_zeros += layer->negative_zeros;
    summary->nans += layer->nans;
    summary->infinities += layer->infinities;
    summary->compressed_tensors += layer->weight.pattern.kind != ESP_PATTERN_DENSE;
    summary->checksums += layer->checked_crc32c;
}

static esp_status not_finite(const verify_run *run, const esp_verify_layer *layer, int64_t at,
                             esp_error *error)
{
    return esp_fail(error, ESP_CHECK_FAILED, "model.not_finite",
                    "%s: %s holds %lld NaN and %lld infinite values, the first at element %lld; "
                    "weights should be finite (without --strict this is a warning)",
                    esp_checkpoint_path(run->checkpoint), layer->name, (long long)layer->nans,
                    (long long)layer->infinities, (long long)at);
}

static esp_status verify_tensor(verify_run *run, int64_t index, esp_error *error)
{
    esp_weight_info weight = esp_checkpoint_get(run->checkpoint, index);
    esp_tensor dense;
    int64_t elems;
    ESP_TRY(
        esp_tensor_create(run->context, weight.dtype, weight.rank, weight.shape, &dense, error));
    esp_verify_layer layer = {.name = weight.name, .weight = weight};
    esp_value_counts counts = {.first_bad = -1};
    esp_status status = esp_tensor_size(&dense, &elems, NULL, error);
    if (status == ESP_OK) {
        status = read_values(run, index, &weight, &dense, error);
    }
    if (status == ESP_OK) {
        status = describe_values(run, &weight, &dense, &counts, &layer, error);
    }
    esp_tensor_free(run->context, &dense);
    ESP_TRY(status);
    add_to_summary(run, &layer, elems);
    if (run->options->on_layer != NULL) {
        run->options->on_layer(run->options->user, &layer);
    }
    if (run->options->strict && counts.first_bad >= 0) {
        return not_finite(run, &layer, counts.first_bad, error);
    }
    return ESP_OK;
}

static esp_status step(const verify_run *run, double done, double total, esp_error *error)
{
    const esp_verify_options *options = run->options;
    if (options->progress != NULL &&
        !options->progress(options->user, "verifying", done, total, "bytes")) {
        return esp_fail(error, ESP_CANCELLED, "cancelled", "verifying was interrupted");
    }
    return ESP_OK;
}

static esp_status verify_all(verify_run *run, esp_error *error)
{
    int64_t count = esp_checkpoint_count(run->checkpoint);
    double total = 0, done = 0;
    for (int64_t i = 0; i < count; i++) {
        total += (double)esp_checkpoint_get(run->checkpoint, i).stored_bytes;
    }
    for (int64_t i = 0; i < count; i++) {
        ESP_TRY(step(run, done, total, error));
        ESP_TRY(verify_tensor(run, i, error));
        done += (double)esp_checkpoint_get(run->checkpoint, i).stored_bytes;
    }
    return step(run, done, total, error);
}

esp_status esp_verify_checkpoint(esp_context *context, const char *path,
                                 const esp_verify_options *options, esp_verify_summary *summary,
                                 esp_error *error)
{
    static const esp_verify_options defaults;
    verify_run run = {.context = context, .options = options != NULL ? options : &defaults};
    esp_checkpoint *checkpoint;
    ESP_TRY(esp_checkpoint_open(context, path, &checkpoint, error));
    run.checkpoint = checkpoint;
    esp_status status = verify_all(&run, error);
    esp_checkpoint_close(checkpoint);
    if (status == ESP_OK && summary != NULL) {
        *summary = run.summary;
    }
    return status;
}
