/* prune: mask and compress each chosen layer. */
#include "pipeline/rewrite.h"
#include "prune/prune.h"

/* "PATH: NAME: what is wrong" */
static esp_status fail_at(const esp_rewrite *rewrite, const esp_weight_info *weight,
                          esp_status status, esp_error *error)
{
    return esp_fail_within(error, status, "%s: %s", esp_checkpoint_path(rewrite->source),
                           weight->name);
}

static esp_status mask_and_encode(esp_rewrite *rewrite, esp_choice *choice,
                                  const esp_weight_info *weight, const esp_tensor *dense,
                                  esp_sparse **sparse, esp_mask_report *report, esp_error *error)
{
    esp_mask *mask;
    double start = esp_seconds();
    esp_status status = esp_prune_check_finite(rewrite->context, dense, error);
    if (status == ESP_OK) {
        status = esp_prune_mask(rewrite->context, dense, &choice->pattern, &rewrite->options->mask,
                                &mask, report, error);
    }
    if (status != ESP_OK) {
        return fail_at(rewrite, weight, status, error);
    }
    rewrite->summary.mask_seconds += esp_seconds() - start;
    status = esp_sparse_encode(rewrite->context, &choice->pattern, dense, mask, sparse, error);
    esp_mask_free(mask);
    return status == ESP_OK ? ESP_OK : fail_at(rewrite, weight, status, error);
}

static esp_status prune_open(esp_context *context, const esp_checkpoint *source,
                             const char *out_dir, const esp_prune_options *options,
                             esp_prune_summary *summary, esp_error *error)
{
    if (options->permutation != NULL) {
        ESP_TRY(esp_permutation_check(options->permutation, error));
    }
    esp_selection selection;
    ESP_TRY(esp_select_layers(context, source, options, &selection, error));
    esp_rewrite rewrite = {.context = context,
                           .source = source,
                           .selection = &selection,
                           .options = options,
                           .what = "pruning",
                           .encode = mask_and_encode};
    esp_status status = esp_rewrite_run(&rewrite, out_dir, error);
    esp_selection_free(&selection);
    if (status == ESP_OK && summary != NULL) {
        *summary = rewrite.summary;
    }
    return status;
}

esp_status esp_prune_checkpoint(esp_context *context, const char *model_dir, const char *out_dir,
                                const esp_prune_options *options, esp_prune_summary *summary,
                                esp_error *error)
{
    if (out_dir == NULL && !options->dry_run) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "prune.no_target",
                        "pruning writes a new folder: give its name, or ask for a dry run");
    }
    esp_checkpoint *source;
    ESP_TRY(esp_checkpoint_open(context, model_dir, &source, error));
    esp_status status = prune_open(context, source, out_dir, options, summary, error);
    esp_checkpoint_close(source);
    return status;
}
