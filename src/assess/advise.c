/* Advice: the linear layers of a checkpoint, what each pattern loses of them, and the best mix for
 * a wanted gain. Measuring is advise_measure.c, the search for the mix mix.c. */
#include "assess/advise.h"

#include <math.h>
#include <string.h>

#include "assess/assess.h"
#include "pipeline/pipeline.h"

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
    if ((fast && small) || (fast && !(options->speedup >= 1)) ||
        (small && !(options->stored_share > 0 && options->stored_share <= 1))) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "advise.bad_options",
                        "a speed-up of at least 1 or a share of the bytes between 0 and 1 can be "
                        "wished for, not both");
    }
    for (int i = 0; i < options->pattern_count; i++) {
        ESP_TRY(esp_pattern_check(&options->patterns[i], error));
    }
    return ESP_OK;
}

static bool is_layer(const esp_weight_info *weight)
{
    return esp_linear_layer_why_not(weight) == NULL && weight->shape[0] > 0 && weight->shape[1] > 0;
}

static esp_status take_layers(esp_advice *advice, esp_error *error)
{
    size_t name_bytes = 0;
    for (int64_t i = 0; i < esp_checkpoint_count(advice->checkpoint); i++) {
        esp_weight_info weight = esp_checkpoint_get(advice->checkpoint, i);
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

static esp_status lose(esp_advice *advice, int64_t layer, esp_error *error)
{
    const esp_advised_layer *here = &advice->layers[layer];
    int64_t index = esp_checkpoint_find(advice->checkpoint, here->name);
    const int64_t shape[2] = {here->out_features, here->in_features};
    esp_tensor dense = {0};
    ESP_TRY(esp_tensor_create(advice->context, here->dtype, 2, shape, &dense, error));
    esp_status status = esp_checkpoint_read_dense(advice->checkpoint, index, &dense, error);
    for (int k = 1; k < advice->ways && status == ESP_OK; k++) {
        esp_advised_way *way = &advice->table[layer * advice->ways + k];
        status = way->possible ? lose_one(advice, &dense, way, error) : (esp_status)ESP_OK;
        status = status == ESP_OK ? esp_advice_step(advice, "masking", error) : status;
    }
    esp_tensor_free(advice->context, &dense);
    return status == ESP_OK ? ESP_OK : esp_fail_within(error, status, "%s", here->name);
}

/* ---- mixes ---- */

static double weights_of(const esp_advised_layer *layer)
{
    return (double)layer->out_features * (double)layer->in_features;
}

/* What a way adds to the whole's cost: of time the mean over token counts of its share of the dense
 * time, of memory its share of the bytes. */
static void find_costs(esp_advice *advice, bool by_bytes)
{
    double us[ESP_ADVISE_MAX_TOKENS] = {0}, bytes = 0, weights = 0;
    for (int64_t i = 0; i < advice->count; i++) {
        const esp_advised_way *dense = &advice->table[i * advice->ways];
        bytes += (double)dense->stored_bytes;
        weights += weights_of(&advice->layers[i]);
        for (int t = 0; t < advice->token_count; t++) {
            us[t] += dense->us[t];
        }
    }
    for (int64_t i = 0; i < advice->count * advice->ways; i++) {
        const esp_advised_way *way = &advice->table[i];
        double time = 0;
        for (int t = 0; t < advice->token_count; t++) {
            time += way->us[t] / us[t] / advice->token_count;
        }
        double cost = by_bytes ? (double)way->stored_bytes / bytes : time;
        double share = weights_of(&advice->layers[i / advice->ways]) / weights;
        advice->costs[i] =
            (esp_mix_way){way->possible ? cost : (double)INFINITY, way->error * share};
    }
}

/* Of chosen[layers]. */
static esp_advised_point point_of(const esp_advice *advice, const int *chosen)
{
    double us[2][ESP_ADVISE_MAX_TOKENS] = {{0}}, bytes[2] = {0}, weights = 0, error = 0, time = 0;
    for (int64_t i = 0; i < advice->count; i++) {
        const esp_advised_way *ways = advice->table + i * advice->ways;
        const esp_advised_way *own = &ways[chosen[i]];
        double size = weights_of(&advice->layers[i]);
        bytes[0] += (double)ways[0].stored_bytes;
        bytes[1] += (double)own->stored_bytes;
        weights += size;
        error += own->error * size;
        for (int t = 0; t < advice->token_count; t++) {
            us[0][t] += ways[0].us[t];
            us[1][t] += own->us[t];
        }
    }
    for (int t = 0; t < advice->token_count; t++) {
        time += us[1][t] / us[0][t] / advice->token_count;
    }
    return (esp_advised_point){1 / time, bytes[1] / bytes[0], error / weights};
}

static esp_status solve(esp_advice *advice, bool by_bytes, esp_error *error)
{
    esp_mix_free(&advice->mix);
    find_costs(advice, by_bytes);
    advice->mix = (esp_mix){.context = advice->context,
                            .layers = advice->count,
                            .ways = advice->ways,
                            .table = advice->costs};
    return esp_mix_solve(&advice->mix, error);
}

static double least_cost(const esp_advice *advice)
{
    double least = 0;
    for (int64_t i = 0; i < advice->count; i++) {
        double own = INFINITY;
        for (int k = 0; k < advice->ways; k++) {
            own = fmin(own, advice->costs[i * advice->ways + k].cost);
        }
        least += own;
    }
    return least;
}

static esp_status choose(esp_advice *advice, esp_error *error)
{
    const esp_advise_options *options = advice->options;
    bool by_bytes = options->stored_share != 0;
    double budget =
        by_bytes ? options->stored_share : 1 / (options->speedup != 0 ? options->speedup : 1);
    ESP_TRY(solve(advice, by_bytes, error));
    if (!esp_mix_choose(&advice->mix, budget, advice->scratch)) {
        double least = least_cost(advice);
        if (by_bytes) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "advise.out_of_reach",
                            "no mix of these patterns stores %.3f of the bytes; the smallest "
                            "stores %.3f",
                            budget, least);
        }
        return esp_fail(error, ESP_BAD_ARGUMENT, "advise.out_of_reach",
                        "no mix of these patterns makes the linear layers %.2f times as fast; the "
                        "fastest gives %.2f",
                        options->speedup, 1 / least);
    }
    for (int64_t i = 0; i < advice->count; i++) {
        advice->layers[i].chosen = advice->scratch[i];
    }
    advice->chosen = point_of(advice, advice->scratch);
    return by_bytes ? solve(advice, false, error) : ESP_OK; /* the frontier is of times */
}

/* ---- public ---- */

static esp_status make(esp_advice *advice, esp_error *error)
{
    ESP_TRY(take_layers(advice, error));
    describe_layers(advice);
    bool calibrated = advice->options->calibration != NULL;
    advice->total = (double)advice->count * ((calibrated ? 3 : 2) * (advice->ways - 1) + 1);
    for (int64_t i = 0; i < advice->count; i++) {
        ESP_TRY(lose(advice, i, error));
    }
    if (calibrated) {
        ESP_TRY(esp_advice_calibrate(advice, error));
    }
    ESP_TRY(esp_advice_measure(advice, error));
    return choose(advice, error);
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

int esp_advice_frontier(const esp_advice *advice, esp_advised_point *points, int capacity)
{
    const double *least = advice->mix.least;
    int count = 0;
    double last = -1;
    for (int64_t b = ESP_MIX_STEPS; b >= 0; b--) {
        bool jump = isfinite(least[b]) && (b == 0 || !(least[b - 1] <= least[b]));
        if (!jump || !esp_mix_at(&advice->mix, b, advice->scratch)) {
            continue;
        }
        esp_advised_point point = point_of(advice, advice->scratch);
        if (point.speedup <= last) {
            continue;
        }
        last = point.speedup;
        if (count < capacity) {
            points[count] = point;
        }
        count++;
    }
    return count;
}
