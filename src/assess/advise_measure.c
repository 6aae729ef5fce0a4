/* Times of advice: every distinct shape once, with each pattern at all token counts together. The
 * sparse kernels and the dense ones run in turn in the same rounds, so their ratio is what counts;
 * a way's time is that ratio applied to the dense time of the shape, of which there is one. */
#include <math.h>

#include "assess/advise.h"
#include "assess/assess.h"

/* The fastest of both kinds at each token count. */
typedef struct best_times {
    const int64_t *tokens;
    int count;
    double dense_us[ESP_ADVISE_MAX_TOKENS], sparse_us[ESP_ADVISE_MAX_TOKENS];
    const char *dense[ESP_ADVISE_MAX_TOKENS], *sparse[ESP_ADVISE_MAX_TOKENS];
} best_times;

static void note(void *user, const esp_matmul_problem *problem, const esp_tune_result *result)
{
    best_times *best = user;
    if (result->refused != NULL || !(result->median_us > 0)) {
        return;
    }
    for (int i = 0; i < best->count; i++) {
        double *us = result->runs_dense ? &best->dense_us[i] : &best->sparse_us[i];
        if (best->tokens[i] == problem->tokens && (*us == 0 || result->median_us < *us)) {
            *us = result->median_us;
            *(result->runs_dense ? &best->dense[i] : &best->sparse[i]) = result->kernel;
        }
    }
}

/* The product as a model runs it: f32 activations where memory is the host's, else those of the
 * weights, of which a GPU takes 16-bit ones. */
static esp_matmul_problem problem_of(const esp_advice *advice, const esp_advised_layer *layer,
                                     const esp_pattern *pattern)
{
    bool host = advice->device->backend->upload == NULL;
    esp_dtype weight = host || layer->dtype != ESP_F32 ? layer->dtype : ESP_F16;
    return (esp_matmul_problem){.pattern = *pattern,
                                .weight_type = weight,
                                .act_type = host ? ESP_F32 : weight,
                                .out_type = host ? ESP_F32 : weight,
                                .compute = advice->options->compute,
                                .out_features = layer->out_features,
                                .in_features = layer->in_features,
                                .tokens = advice->options->tokens[0]};
}

/* A pattern that no kernel of the device can run is none of the ways: no failure. */
static esp_status measure(esp_advice *advice, const esp_advised_layer *layer,
                          const esp_pattern *pattern, best_times *best, bool *runs,
                          esp_error *error)
{
    const esp_advise_options *options = advice->options;
    *best = (best_times){.tokens = options->tokens, .count = options->token_count};
    esp_matmul_problem problem = problem_of(advice, layer, pattern);
    esp_tune_options how = {.rounds = options->rounds, .on_result = note, .user = best};
    esp_error why = {0};
    esp_status status = esp_tune_tokens(advice->device, &problem, options->tokens,
                                        options->token_count, &how, &why);
    *runs = status == ESP_OK;
    if (status == ESP_OK || status == ESP_UNSUPPORTED || status == ESP_CHECK_FAILED) {
        return ESP_OK;
    }
    if (error != NULL) {
        *error = why;
    }
    return status;
}

static esp_status measure_dense(esp_advice *advice, const esp_advised_layer *layer,
                                esp_advised_way *dense, esp_error *error)
{
    best_times best;
    bool runs;
    ESP_TRY(measure(advice, layer, &dense->pattern, &best, &runs, error));
    for (int i = 0; i < best.count; i++) {
        dense->us[i] = best.dense_us[i] > 0 ? best.dense_us[i] : best.sparse_us[i];
        dense->kernels[i] = best.dense[i] != NULL ? best.dense[i] : best.sparse[i];
        dense->gain[i] = 1;
        if (!(dense->us[i] > 0)) {
            return esp_fail(error, ESP_UNSUPPORTED, "plan.no_kernel",
                            "%s: device '%s' has no dense kernel for %lldx%lld at %lld tokens",
                            layer->name, advice->device->name, (long long)layer->out_features,
                            (long long)layer->in_features, (long long)best.tokens[i]);
        }
    }
    return ESP_OK;
}

static esp_status measure_way(esp_advice *advice, const esp_advised_layer *layer,
                              const esp_advised_way *dense, esp_advised_way *way, esp_error *error)
{
    best_times best = {.tokens = advice->options->tokens, .count = advice->options->token_count};
    bool runs = false, any = false;
    if (way->possible) {
        ESP_TRY(measure(advice, layer, &way->pattern, &best, &runs, error));
    }
    for (int i = 0; i < best.count; i++) {
        bool both = best.dense_us[i] > 0 && best.sparse_us[i] > 0;
        double beside = both ? best.dense_us[i] : dense->us[i];
        way->gain[i] = best.sparse_us[i] > 0 ? beside / best.sparse_us[i] : 0;
        way->us[i] = dense->us[i] / fmax(way->gain[i], 1); /* where sparse is slower, dense runs */
        way->kernels[i] = way->gain[i] > 1 ? best.sparse[i] : dense->kernels[i];
        any = any || way->gain[i] > 0;
    }
    if (way->possible && !any) {
        way->possible = false;
        way->why_not = runs ? "no sparse kernel agrees with the reference"
                            : "no sparse kernel of this device runs it";
    }
    return ESP_OK;
}

bool esp_advice_same_shape(const esp_advice *advice, int64_t a, int64_t b)
{
    const esp_advised_layer *first = &advice->layers[a], *second = &advice->layers[b];
    return first->out_features == second->out_features &&
           first->in_features == second->in_features && first->dtype == second->dtype;
}

static void copy_times(const esp_advised_way *from, esp_advised_way *to)
{
    esp_advised_way own = *to;
    *to = *from;
    to->error = own.error;
    to->calibrated = own.calibrated;
}

esp_status esp_advice_measure(esp_advice *advice, esp_error *error)
{
    for (int64_t i = 0; i < advice->count; i++) {
        const esp_advised_layer *layer = &advice->layers[i];
        esp_advised_way *ways = advice->table + i * advice->ways;
        int64_t before = 0;
        while (before < i && !esp_advice_same_shape(advice, before, i)) {
            before++;
        }
        for (int k = 0; k < advice->ways; k++) {
            if (before < i) {
                copy_times(&advice->table[before * advice->ways + k], &ways[k]);
            } else if (k == 0) {
                ESP_TRY(measure_dense(advice, layer, &ways[0], error));
            } else {
                ESP_TRY(measure_way(advice, layer, &ways[0], &ways[k], error));
            }
            ESP_TRY(esp_advice_step(advice, "measuring", error));
        }
    }
    return ESP_OK;
}
