/* convert: another form of the same weights. COMPRESS and the bitmasks store zeros that are there
 * already, and never make new ones; DENSE writes the zeros out. */
#include <math.h>
#include <stdio.h>

#include "io/io.h"
#include "pipeline/rewrite.h"

static esp_status encode_as_it_is(esp_rewrite *rewrite, esp_choice *choice,
                                  const esp_weight_info *weight, const esp_tensor *dense,
                                  esp_sparse **sparse, esp_mask_report *report, esp_error *error)
{
    esp_mask *zeros;
    ESP_TRY(esp_mask_from_dense(rewrite->context, dense, &zeros, error));
    int64_t live = esp_mask_count(zeros);
    esp_mask_free(zeros);
    esp_error why = {0};
    bool left_to_writer = rewrite->form == ESP_FORM_SPARSE_BITMASK;
    esp_status status = left_to_writer ? ESP_OK
                                       : esp_sparse_encode(rewrite->context, &choice->pattern,
                                                           dense, NULL, sparse, &why);
    if (status == ESP_CHECK_FAILED) {
        char pattern[ESP_PATTERN_TEXT_MAX];
        esp_pattern_print(&choice->pattern, pattern);
        return esp_fail(error, ESP_CHECK_FAILED, "convert.does_not_fit",
                        "%s: %s does not fit %s: %s; 'espalier verify' shows what it fits, --skip "
                        "leaves it dense, 'espalier prune' makes it fit",
                        esp_checkpoint_path(rewrite->source), weight->name, pattern, why.message);
    }
    if (status != ESP_OK) {
        return esp_fail(error, status, why.code, "%s: %s", weight->name, why.message);
    }
    int64_t weights = weight->shape[0] * weight->shape[1];
    *report = (esp_mask_report){.weights = weights,
                                .kept = live,
                                .sparsity = 1 - (double)live / (double)weights,
                                .retained_energy = 1,
                                .log_mask_diversity = (double)NAN};
    return ESP_OK;
}

static bool is_any_compressed(const esp_checkpoint *source)
{
    for (int64_t i = 0; i < esp_checkpoint_count(source); i++) {
        if (!esp_checkpoint_is_plain(source, i)) {
            return true;
        }
    }
    return false;
}

/* Nothing is chosen: every tensor is carried over, decoded. */
static esp_status select_none(esp_context *context, const esp_checkpoint *source,
                              esp_selection *selection, esp_error *error)
{
    int64_t count = esp_checkpoint_count(source);
    esp_choice *choices = esp_alloc_array(context, (size_t)count, sizeof *choices);
    if (choices == NULL) {
        return esp_fail_memory(error, (size_t)count * sizeof *choices, "the list of layers");
    }
    for (int64_t i = 0; i < count; i++) {
        esp_weight_info weight = esp_checkpoint_get(source, i);
        const char *why_not = esp_linear_layer_why_not(&weight);
        choices[i].linear = why_not == NULL;
        if (weight.pattern.kind != ESP_PATTERN_DENSE) {
            char stored[ESP_PATTERN_TEXT_MAX];
            esp_pattern_print(&weight.pattern, stored);
            snprintf(choices[i].note, sizeof choices[i].note, "was %s", stored);
        } else if (!esp_checkpoint_is_plain(source, i)) {
            snprintf(choices[i].note, sizeof choices[i].note, "was %s",
                     esp_form_name(esp_checkpoint_form(source)));
        }
    }
    *selection = (esp_selection){context, choices, count};
    return ESP_OK;
}

static esp_folder_form form_of(esp_convert_target target)
{
    return target == ESP_CONVERT_SPARSE_24_BITMASK ? ESP_FORM_SPARSE_24_BITMASK
           : target == ESP_CONVERT_SPARSE_BITMASK  ? ESP_FORM_SPARSE_BITMASK
                                                   : ESP_FORM_ESPALIER;
}

static esp_status convert_open(esp_context *context, const esp_checkpoint *source,
                               const char *out_dir, esp_convert_target target,
                               const esp_prune_options *options, esp_prune_summary *summary,
                               esp_error *error)
{
    bool to_dense = target == ESP_CONVERT_DENSE;
    esp_folder_form form = form_of(target);
    if (to_dense && !is_any_compressed(source) && options->shard_bytes == 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "convert.not_compressed",
                        "%s: is dense already; there is nothing to convert",
                        esp_checkpoint_path(source));
    }
    esp_prune_options used = *options;
    used.dry_run = false;
    used.permutation = NULL;
    used.mask = (esp_mask_options){0};
    esp_selection selection;
    if (to_dense) {
        ESP_TRY(select_none(context, source, &selection, error));
    } else if (form != ESP_FORM_ESPALIER) {
        ESP_TRY(esp_select_for_bitmask(context, source, form, &used, &selection, error));
    } else {
        ESP_TRY(esp_select_layers(context, source, &used, &selection, error));
    }
    esp_rewrite rewrite = {.context = context,
                           .source = source,
                           .selection = &selection,
                           .options = &used,
                           .what = "converting",
                           .encode = encode_as_it_is,
                           .form = form,
                           .decode_rest = to_dense || form != ESP_FORM_ESPALIER};
    esp_status status = esp_rewrite_run(&rewrite, out_dir, error);
    esp_selection_free(&selection);
    if (status == ESP_OK && summary != NULL) {
        *summary = rewrite.summary;
    }
    return status;
}

esp_status esp_convert_checkpoint(esp_context *context, const char *model_dir, const char *out_dir,
                                  esp_convert_target target, const esp_prune_options *options,
                                  esp_prune_summary *summary, esp_error *error)
{
    if (out_dir == NULL) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "convert.no_target",
                        "converting writes a new folder: give its name");
    }
    esp_checkpoint *source;
    ESP_TRY(esp_checkpoint_open(context, model_dir, &source, error));
    esp_status status = convert_open(context, source, out_dir, target, options, summary, error);
    esp_checkpoint_close(source);
    return status;
}
