/* prune, with masks and values from a maker: the tensors are visited in its order, so that it never
 * holds more than it is at work on. */
#include <stdio.h>

#include "pipeline/rewrite.h"

static esp_status encode(esp_rewrite *rewrite, const esp_choice *choice, const esp_tensor *dense,
                         const esp_tensor *values, esp_mask *mask, esp_sparse **sparse,
                         esp_mask_report *report, esp_error *error)
{
    ESP_TRY(esp_mask_report_of(rewrite->context, dense, &choice->pattern, mask, report, error));
    return esp_sparse_encode(rewrite->context, &choice->pattern, values, mask, sparse, error);
}

static esp_status make_and_encode(esp_rewrite *rewrite, esp_choice *choice,
                                  const esp_weight_info *weight, const esp_tensor *dense,
                                  esp_sparse **sparse, esp_mask_report *report, esp_error *error)
{
    const esp_layer_maker *maker = rewrite->maker;
    int64_t index = choice - rewrite->selection->choices;
    double start = esp_seconds();
    esp_tensor values;
    esp_mask *mask = NULL;
    char note[ESP_MAKER_NOTE] = "";
    size_t bytes = 0;
    ESP_TRY(esp_tensor_size(dense, NULL, &bytes, error));
    ESP_TRY(esp_tensor_create(rewrite->context, dense->dtype, dense->rank, dense->shape, &values,
                              error));
    memcpy(values.data, dense->data, bytes);
    esp_status status =
        maker->make(maker->user, index, &choice->pattern, &values, &mask, note, error);
    rewrite->summary.mask_seconds += esp_seconds() - start;
    if (status == ESP_OK) {
        status = encode(rewrite, choice, dense, &values, mask, sparse, report, error);
        size_t used = strlen(choice->note);
        snprintf(choice->note + used, sizeof choice->note - used, "%s%s", used > 0 ? "; " : "",
                 note);
    }
    esp_mask_free(mask);
    esp_tensor_free(rewrite->context, &values);
    return status == ESP_OK ? ESP_OK
                            : esp_fail_within(error, status, "%s: %s",
                                              esp_checkpoint_path(rewrite->source), weight->name);
}

/* The maker's tensors last; *order: [selection->count]. What it cannot make stays dense. */
static void order_tensors(const esp_checkpoint *source, const esp_layer_maker *maker,
                          esp_selection *selection, bool *made, int64_t *order)
{
    int64_t at = 0;
    for (int64_t i = 0; i < maker->count; i++) {
        made[maker->order[i]] = true;
    }
    for (int64_t i = 0; i < selection->count; i++) {
        esp_choice *choice = &selection->choices[i];
        if (!made[i]) {
            order[at++] = i;
        }
        if (!made[i] && choice->pruned) {
            esp_weight_info weight = esp_checkpoint_get(source, i);
            esp_choice_stay_dense(choice, &weight, maker->why_not);
        }
    }
    for (int64_t i = 0; i < maker->count; i++) {
        order[at++] = maker->order[i];
    }
}

static esp_status run(esp_rewrite *rewrite, const char *out_dir, esp_error *error)
{
    esp_context *context = rewrite->context;
    size_t count = (size_t)rewrite->selection->count;
    int64_t *order = esp_alloc_array(context, count, sizeof *order);
    bool *made = esp_alloc_array(context, count, sizeof *made);
    esp_status status = ESP_OK;
    if (order == NULL || made == NULL) {
        status = esp_fail_memory(error, count * sizeof *order, "the list of layers");
    } else {
        order_tensors(rewrite->source, rewrite->maker, rewrite->selection, made, order);
        rewrite->order = order;
        status = esp_rewrite_run(rewrite, out_dir, error);
    }
    esp_release(context, order);
    esp_release(context, made);
    return status;
}

esp_status esp_prune_by(esp_context *context, const esp_checkpoint *source, const char *out_dir,
                        const esp_prune_options *options, const esp_layer_maker *maker,
                        esp_prune_summary *summary, esp_error *error)
{
    esp_selection selection;
    ESP_TRY(esp_select_layers(context, source, options, &selection, error));
    esp_rewrite rewrite = {.context = context,
                           .source = source,
                           .selection = &selection,
                           .options = options,
                           .what = "pruning",
                           .encode = make_and_encode,
                           .maker = maker};
    esp_status status = run(&rewrite, out_dir, error);
    esp_selection_free(&selection);
    if (status == ESP_OK && summary != NULL) {
        *summary = rewrite.summary;
    }
    return status;
}
