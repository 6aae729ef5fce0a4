/* Advice: the linear layers of a checkpoint and what each pattern loses of them. Measuring is
 * advise_measure.c and advise_whole.c, choosing a mix advise_choose.c. */
#include "assess/advise.h"

#include <string.h>

#include "assess/assess.h"
#include "io/io.h"
#include "pipeline/pipeline.h"
#include "prune/prune.h"

esp_status esp_advice_step(esp_advice *advice, const char *what, esp_error *error)
{
    const esp_advise_options *options = advice->options;
    advice->done += 1;
    if (options->progress != NULL &&
        !options->progress(options->user, what, advice->done, advice->total, "steps")) {
        return esp_fail(error, ESP_CANCELLED, "cancelled", "advice was interrupted");
    }
    return ESP_OK;
}

/* ---- which layers, and what holding them in each way stores ---- */

static esp_status check_options(const esp_advise_options *options, esp_error *error)
{
    bool good = options->pattern_count >= 1 && options->pattern_count < ESP_ADVISE_MAX_WAYS &&
                options->token_count >= 1 && options->token_count <= ESP_ADVISE_MAX_TOKENS;
    for (int i = 0; good && i < options->token_count; i++) {
        good = options->tokens[i] >= 1 && options->tokens[i] <= INT32_MAX;
    }
    if (!good) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "advise.bad_options",
                        "advice needs 1 to %d patterns and 1 to %d token counts of at least 1",
                        ESP_ADVISE_MAX_WAYS - 1, ESP_ADVISE_MAX_TOKENS);
    }
    bool fast = options->speedup != 0, small = options->stored_share != 0;
    bool whole = options->whole_speedup != 0;
    if (fast + small + whole > 1 || (fast && !(options->speedup >= 1)) ||
        (whole && !(options->whole_speedup >= 1 && options->whole)) ||
        (small && !(options->stored_share > 0 && options->stored_share <= 1))) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "advise.bad_options",
                        "a speed-up of at least 1 of the linear layers, or of the whole model, "
                        "which must be timed then, or a share of the bytes between 0 and 1 can be "
                        "wished for, one of the three");
    }
    for (int i = 0; i < options->pattern_count; i++) {
        ESP_TRY(esp_pattern_check(&options->patterns[i], error));
    }
    return ESP_OK;
}

static bool is_layer(const esp_weight_info *weight)
{
    return esp_linear_layer_why_not(weight) == NULL && esp_linear_layer_outside(weight) == NULL &&
           weight->shape[0] > 0 && weight->shape[1] > 0;
}

static esp_status take_layers(esp_advice *advice, esp_error *error)
{
    size_t name_bytes = 0;
    for (int64_t i = 0; i < esp_checkpoint_count(advice->checkpoint); i++) {
        esp_weight_info weight = esp_checkpoint_get(advice->checkpoint, i);
        advice->model_bytes += weight.dense_bytes;
        if (is_layer(&weight)) {
            advice->count++;
            name_bytes += strlen(weight.name) + 1;
        }
        if (is_layer(&weight) && weight.pattern.kind != ESP_PATTERN_DENSE &&
            esp_checkpoint_form(advice->checkpoint) == ESP_FORM_ESPALIER) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "prune.already_compressed",
                            "%s: %s is compressed already; advice starts from the dense model",
                            esp_checkpoint_path(advice->checkpoint), weight.name);
        }
    }
    if (advice->count == 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "advise.no_layers", "%s has no linear layer",
                        esp_checkpoint_path(advice->checkpoint));
    }
    size_t count = (size_t)advice->count, all = count * (size_t)advice->ways;
    advice->layers = esp_alloc_array(advice->context, count, sizeof *advice->layers);
    advice->table = esp_alloc_array(advice->context, all, sizeof *advice->table);
    advice->costs = esp_alloc_array(advice->context, all, sizeof *advice->costs);
    advice->scratch = esp_alloc_array(advice->context, count, sizeof *advice->scratch);
    advice->names = esp_alloc_array(advice->context, name_bytes, 1);
    return advice->layers != NULL && advice->table != NULL && advice->costs != NULL &&
                   advice->scratch != NULL && advice->names != NULL
               ? ESP_OK
               : esp_fail_memory(error, all * sizeof *advice->table, "advice");
}

static void describe_way(const esp_weight_info *weight, const esp_pattern *pattern,
                         esp_advised_way *way)
{
    *way = (esp_advised_way){.pattern = *pattern, .possible = true};
    if (pattern->kind == ESP_PATTERN_DENSE) {
        way->stored_bytes = weight->dense_bytes;
        return;
    }
    if (pattern->kind == ESP_PATTERN_PANEL && pattern->v > weight->shape[0]) {
        way->pattern.v = esp_pattern_panel_rows(pattern, weight->shape[0]);
    }
    esp_error ignored = {0};
    if (esp_sparse_layout_bytes(&way->pattern, weight->dtype, weight->shape[0], weight->shape[1],
                                false, &way->stored_bytes, &ignored) != ESP_OK) {
        way->possible = false;
        way->why_not = "the pattern does not fit the shape";
        way->stored_bytes = weight->dense_bytes;
    } else if (way->stored_bytes >= weight->dense_bytes) {
        way->possible = false;
        way->why_not = "would not get smaller";
    }
}

static void describe_layers(esp_advice *advice)
{
    static const esp_pattern dense = {.kind = ESP_PATTERN_DENSE};
    char *name = advice->names;
    int64_t at = 0;
    for (int64_t i = 0; i < esp_checkpoint_count(advice->checkpoint); i++) {
        esp_weight_info weight = esp_checkpoint_get(advice->checkpoint, i);
        if (!is_layer(&weight)) {
            continue;
        }
        esp_advised_way *ways = advice->table + at * advice->ways;
        size_t bytes = strlen(weight.name) + 1;
        memcpy(name, weight.name, bytes);
        for (int k = 0; k < advice->ways; k++) {
            describe_way(&weight, k == 0 ? &dense : &advice->options->patterns[k - 1], &ways[k]);
        }
        advice->layers[at++] = (esp_advised_layer){.name = name,
                                                   .out_features = weight.shape[0],
                                                   .in_features = weight.shape[1],
                                                   .dtype = weight.dtype,
                                                   .ways = ways};
        name += bytes;
    }
}

/* ---- what each way loses ---- */

static esp_status lose_one(esp_advice *advice, const esp_tensor *dense, esp_advised_way *way,
                           esp_error *error)
{
    esp_mask *mask;
    esp_mask_report report;
    ESP_TRY(esp_prune_mask(advice->context, dense, &way->pattern, &advice->options->mask, &mask,
                           &report, error));
    esp_mask_free(mask);
    way->error = 1 - report.retained_energy;
    return ESP_OK;
}

/* Drawn layers of one shape hold the same numbers. */
static bool lose_as_before(esp_advice *advice, int64_t layer)
{
    int64_t before = 0;
    while (before < layer && !esp_advice_same_shape(advice, before, layer)) {
        before++;
    }
    for (int k = 0; before < layer && k < advice->ways; k++) {
        advice->table[layer * advice->ways + k].error =
            advice->table[before * advice->ways + k].error;
    }
    return before < layer;
}

static esp_status lose(esp_advice *advice, int64_t layer, esp_error *error)
{
    const esp_advised_layer *here = &advice->layers[layer];
    if (esp_checkpoint_is_made(advice->checkpoint) && lose_as_before(advice, layer)) {
        advice->done += advice->ways - 1;
        return ESP_OK;
    }
    int64_t index = esp_checkpoint_find(advice->checkpoint, here->name);
    const int64_t shape[2] = {here->out_features, here->in_features};
    esp_tensor dense = {0};
    ESP_TRY(esp_tensor_create(advice->context, here->dtype, 2, shape, &dense, error));
    esp_status status = esp_checkpoint_read_dense(advice->checkpoint, index, &dense, error);
    status = status == ESP_OK ? esp_prune_check_finite(advice->context, &dense, error) : status;
    for (int k = 1; k < advice->ways && status == ESP_OK; k++) {
        esp_advised_way *way = &advice->table[layer * advice->ways + k];
        status = way->possible ? lose_one(advice, &dense, way, error) : (esp_status)ESP_OK;
        status = status == ESP_OK ? esp_advice_step(advice, "masking", error) : status;
    }
    esp_tensor_free(advice->context, &dense);
    return status == ESP_OK ? ESP_OK
                            : esp_fail_within(error, status, "%s: %s",
                                              esp_checkpoint_path(advice->checkpoint), here->name);
}

/* ---- public ---- */

static esp_status make(esp_advice *advice, esp_error *error)
{
    ESP_TRY(take_layers(advice, error));
    describe_layers(advice);
    bool calibrated = advice->options->calibration != NULL;
    bool whole = advice->options->whole;
    advice->total = (double)advice->count * ((calibrated ? 3 : 2) * (advice->ways - 1) + 1) +
                    (whole ? advice->token_count : 0);
    for (int64_t i = 0; i < advice->count; i++) {
        ESP_TRY(lose(advice, i, error));
    }
    if (calibrated) {
        ESP_TRY(esp_advice_calibrate(advice, error));
    }
    ESP_TRY(esp_advice_measure(advice, error));
    for (int t = 0; t < advice->token_count; t++) {
        advice->whole[t].tokens = advice->options->tokens[t];
    }
    if (whole) {
        ESP_TRY(esp_advice_time_whole(advice, error));
    }
    esp_advice_sift(advice);
    return esp_advice_choose(advice, error);
}

esp_status esp_advice_create(esp_device *device, const esp_checkpoint *checkpoint,
                             const esp_advise_options *options, esp_advice **advice,
                             esp_error *error)
{
    ESP_TRY(check_options(options, error));
    esp_advice *made = esp_alloc_zero(device->context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "advice");
    }
    made->context = device->context;
    made->device = device;
    made->checkpoint = checkpoint;
    made->options = options;
    made->ways = options->pattern_count + 1;
    made->token_count = options->token_count;
    esp_status status = make(made, error);
    made->options = NULL;
    if (status != ESP_OK) {
        esp_advice_free(made);
        return status;
    }
    *advice = made;
    return ESP_OK;
}

void esp_advice_free(esp_advice *advice)
{
    if (advice == NULL) {
        return;
    }
    esp_mix_free(&advice->mix);
    esp_release(advice->context, advice->layers);
    esp_release(advice->context, advice->table);
    esp_release(advice->context, advice->costs);
    esp_release(advice->context, advice->scratch);
    esp_release(advice->context, advice->names);
    esp_release(advice->context, advice);
}

int64_t esp_advice_layers(const esp_advice *advice)
{
    return advice->count;
}

esp_advised_layer esp_advice_layer(const esp_advice *advice, int64_t index)
{
    return advice->layers[index];
}

esp_advised_point esp_advice_chosen(const esp_advice *advice)
{
    return advice->chosen;
}

esp_advised_uniform esp_advice_uniform(const esp_advice *advice, int index)
{
    return advice->uniform[index + 1];
}

esp_advised_whole esp_advice_whole(const esp_advice *advice, int index)
{
    return advice->whole[index];
}
