/* Which layers a compressed-tensors folder stores as bitmasks. sparse-24-bitmask takes each linear
 * layer but classifier heads and poolers, and encoding refuses those that are not 2:4; in a
 * compressed source a dense layer was left dense on purpose. Rules decide otherwise. sparse-bitmask
 * takes what gets smaller by it. */
#include <stdio.h>

#include "io/io.h"
#include "pipeline/selection.h"

static const esp_pattern pattern_2_4 = {.kind = ESP_PATTERN_PANEL};

static void take(esp_choice *choice, const esp_weight_info *weight, const esp_pattern *pattern,
                 size_t stored_bytes)
{
    if (stored_bytes >= weight->dense_bytes) {
        esp_choice_stay_dense(choice, weight, "would not get smaller");
        return;
    }
    choice->pruned = true;
    choice->pattern = *pattern;
    choice->stored_bytes = stored_bytes;
}

/* Of a layer that no rule names. NULL: it does not. */
static const char *why_dense(const esp_checkpoint *source, int64_t index)
{
    esp_weight_info weight = esp_checkpoint_get(source, index);
    if (esp_checkpoint_is_compressed(source) || esp_checkpoint_form(source) != ESP_FORM_ESPALIER) {
        return esp_checkpoint_is_plain(source, index) ? "dense in the source" : NULL;
    }
    return esp_linear_layer_outside(&weight);
}

static void choose_2_4(const esp_checkpoint *source, const esp_prune_options *options,
                       int64_t index, esp_choice *choice)
{
    esp_weight_info weight = esp_checkpoint_get(source, index);
    const esp_pattern_rule *rule = esp_selection_rule(options, weight.name);
    const char *dense = rule == NULL                              ? why_dense(source, index)
                        : rule->pattern.kind == ESP_PATTERN_DENSE ? "dense by rule"
                                                                  : NULL;
    if (dense != NULL) {
        esp_choice_stay_dense(choice, &weight, dense);
    } else if (weight.shape[1] % 4 != 0) {
        esp_choice_stay_dense(choice, &weight, "columns are no multiple of 4");
    } else {
        take(choice, &weight, &pattern_2_4,
             esp_bitmask_bytes(ESP_FORM_SPARSE_24_BITMASK, weight.dtype, weight.shape[0],
                               weight.shape[1], 0));
    }
}

static esp_status count_live(esp_context *context, const esp_checkpoint *source, int64_t index,
                             int64_t *live, esp_error *error)
{
    esp_weight_info weight = esp_checkpoint_get(source, index);
    esp_tensor dense;
    esp_mask *mask = NULL;
    ESP_TRY(esp_tensor_create(context, weight.dtype, weight.rank, weight.shape, &dense, error));
    esp_status status = esp_checkpoint_read_dense(source, index, &dense, error);
    if (status == ESP_OK) {
        status = esp_mask_from_dense(context, &dense, &mask, error);
    }
    if (status == ESP_OK) {
        *live = esp_mask_count(mask);
    }
    esp_mask_free(mask);
    esp_tensor_free(context, &dense);
    return status;
}

static esp_status choose_any(esp_context *context, const esp_checkpoint *source, int64_t index,
                             esp_choice *choice, esp_error *error)
{
    esp_weight_info weight = esp_checkpoint_get(source, index);
    int64_t live = 0;
    ESP_TRY(count_live(context, source, index, &live, error));
    double weights = (double)weight.shape[0] * (double)weight.shape[1];
    esp_pattern pattern = {.kind = ESP_PATTERN_UNSTRUCTURED,
                           .sparsity = 1 - (double)live / weights};
    take(choice, &weight, &pattern,
         esp_bitmask_bytes(ESP_FORM_SPARSE_BITMASK, weight.dtype, weight.shape[0], weight.shape[1],
                           live));
    return ESP_OK;
}

static esp_status choose(esp_context *context, const esp_checkpoint *source, esp_folder_form form,
                         const esp_prune_options *options, int64_t index, esp_choice *choice,
                         esp_error *error)
{
    esp_weight_info weight = esp_checkpoint_get(source, index);
    const char *why_not = esp_linear_layer_why_not(&weight);
    choice->linear = why_not == NULL;
    if (why_not != NULL) {
        esp_choice_stay_dense(choice, &weight, why_not);
    } else if (esp_selection_skips(options, weight.name)) {
        esp_choice_stay_dense(choice, &weight, "skipped");
    } else if (weight.shape[0] == 0 || weight.shape[1] == 0) {
        esp_choice_stay_dense(choice, &weight, "empty");
    } else if (form == ESP_FORM_SPARSE_24_BITMASK) {
        choose_2_4(source, options, index, choice);
    } else {
        return choose_any(context, source, index, choice, error);
    }
    return ESP_OK;
}

static esp_status check_rules(esp_folder_form form, const esp_prune_options *options,
                              esp_error *error)
{
    for (int i = 0; i < options->rule_count; i++) {
        const esp_pattern_rule *rule = &options->rules[i];
        if (form != ESP_FORM_SPARSE_24_BITMASK ||
            (rule->pattern.kind != ESP_PATTERN_DENSE &&
             !esp_pattern_equal(&rule->pattern, &pattern_2_4))) {
            return esp_fail(
                error, ESP_BAD_ARGUMENT, "convert.bad_rule", "pattern rule '%s': of %s, %s",
                rule->glob, esp_form_name(form),
                form == ESP_FORM_SPARSE_24_BITMASK
                    ? "layers are 2:4 or dense"
                    : "any zeros are stored; leave rules out, or skip what shall stay dense");
        }
    }
    return ESP_OK;
}

esp_status esp_select_for_bitmask(esp_context *context, const esp_checkpoint *source,
                                  esp_folder_form form, const esp_prune_options *options,
                                  esp_selection *selection, esp_error *error)
{
    ESP_TRY(check_rules(form, options, error));
    ESP_TRY(esp_selection_check_globs(source, options, error));
    int64_t count = esp_checkpoint_count(source);
    esp_choice *choices = esp_alloc_array(context, (size_t)count, sizeof *choices);
    if (choices == NULL) {
        return esp_fail_memory(error, (size_t)count * sizeof *choices, "the list of layers");
    }
    for (int64_t i = 0; i < count; i++) {
        esp_status status = choose(context, source, form, options, i, &choices[i], error);
        if (status != ESP_OK) {
            esp_release(context, choices);
            return status;
        }
    }
    *selection = (esp_selection){context, choices, count};
    return ESP_OK;
}
