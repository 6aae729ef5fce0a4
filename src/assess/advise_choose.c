/* The mix of an advice: what each way costs towards the wish (mix.c solves for all budgets at
 * once), which mix fulfils it, and the frontier. A wish for the whole model is one for the linear
 * layers with what they leave of the time taken off; a token count weighs by their share of its
 * time. */
#include <math.h>

#include "assess/advise.h"
#include "assess/assess.h"

typedef enum wish_kind { WISH_LINEAR, WISH_WHOLE, WISH_BYTES } wish_kind;

static double weights_of(const esp_advised_layer *layer)
{
    return (double)layer->out_features * (double)layer->in_features;
}

static bool is_whole_known(const esp_advice *advice)
{
    bool known = true;
    for (int t = 0; t < advice->token_count; t++) {
        known = known && advice->whole[t].dense_us > 0;
    }
    return known;
}

/* The mean over token counts of the share that the listed layers have of the dense model's time. */
static double linear_share(const esp_advice *advice)
{
    double share = 0;
    for (int t = 0; t < advice->token_count; t++) {
        share += advice->whole[t].linear_us / advice->whole[t].dense_us / advice->token_count;
    }
    return share;
}

/* How much a token count's share of the linear layers' time weighs; all together 1. */
static double token_weight(const esp_advice *advice, int t, wish_kind wish)
{
    const esp_advised_whole *whole = &advice->whole[t];
    double even = 1.0 / advice->token_count;
    return wish == WISH_WHOLE ? whole->linear_us / whole->dense_us * even / linear_share(advice)
                              : even;
}

/* What a way adds to the whole's cost: of time the weighted mean over token counts of its share of
 * the dense time, of memory its share of the bytes. */
static void find_costs(esp_advice *advice, wish_kind wish)
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
            time += way->us[t] / us[t] * token_weight(advice, t, wish);
        }
        double cost = wish == WISH_BYTES ? (double)way->stored_bytes / bytes : time;
        double share = weights_of(&advice->layers[i / advice->ways]) / weights;
        advice->costs[i] =
            (esp_mix_way){way->possible ? cost : (double)INFINITY, way->error * share};
    }
}

esp_advised_point esp_advice_point_of(const esp_advice *advice, const int *chosen)
{
    double us[2][ESP_ADVISE_MAX_TOKENS] = {{0}}, bytes[2] = {0}, weights = 0, error = 0, time = 0;
    double whole = 0;
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
        const esp_advised_whole *dense = &advice->whole[t];
        time += us[1][t] / us[0][t] / advice->token_count;
        whole += (dense->other_us + dense->linear_us * us[1][t] / us[0][t]) / dense->dense_us /
                 advice->token_count;
    }
    return (esp_advised_point){.speedup = 1 / time,
                               .stored_share = bytes[1] / bytes[0],
                               .error = error / weights,
                               .whole_speedup = is_whole_known(advice) ? 1 / whole : 0,
                               .model_bytes =
                                   advice->model_bytes - (uint64_t)bytes[0] + (uint64_t)bytes[1]};
}

static esp_status solve(esp_advice *advice, wish_kind wish, esp_error *error)
{
    esp_mix_free(&advice->mix);
    find_costs(advice, wish);
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

static wish_kind wish_of(const esp_advise_options *options)
{
    return options->stored_share != 0    ? WISH_BYTES
           : options->whole_speedup != 0 ? WISH_WHOLE
                                         : WISH_LINEAR;
}

/* What the linear layers may cost, as a share of what they cost dense; can be below 0. */
static double budget_of(const esp_advice *advice, wish_kind wish)
{
    const esp_advise_options *options = advice->options;
    if (wish == WISH_WHOLE) {
        double share = linear_share(advice);
        return (1 / options->whole_speedup - (1 - share)) / share;
    }
    return wish == WISH_BYTES ? options->stored_share
                              : 1 / (options->speedup != 0 ? options->speedup : 1);
}

static esp_status out_of_reach(const esp_advice *advice, wish_kind wish, esp_error *error)
{
    const esp_advise_options *options = advice->options;
    double least = least_cost(advice);
    if (wish == WISH_BYTES) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "advise.out_of_reach",
                        "no mix of these patterns stores %.3f of the bytes; the smallest stores "
                        "%.3f",
                        options->stored_share, least);
    }
    if (wish == WISH_WHOLE) {
        double share = linear_share(advice);
        return esp_fail(error, ESP_BAD_ARGUMENT, "advise.out_of_reach",
                        "no mix of these patterns makes the model %.2f times as fast; the fastest "
                        "gives %.2f, for the linear layers are %.2f of its time",
                        options->whole_speedup, 1 / (1 - share + share * least), share);
    }
    return esp_fail(error, ESP_BAD_ARGUMENT, "advise.out_of_reach",
                    "no mix of these patterns makes the linear layers %.2f times as fast; the "
                    "fastest gives %.2f",
                    options->speedup, 1 / least);
}

static esp_status check_whole(const esp_advice *advice, esp_error *error)
{
    for (int t = 0; t < advice->token_count; t++) {
        const esp_advised_whole *whole = &advice->whole[t];
        if (!(whole->dense_us > 0)) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "advise.no_whole",
                            "%s: the whole model cannot be timed at %lld tokens, so nothing can "
                            "be advised for it as a whole: %.200s",
                            esp_checkpoint_path(advice->checkpoint), (long long)whole->tokens,
                            whole->why_not);
        }
    }
    return ESP_OK;
}

static void predict_whole(esp_advice *advice)
{
    for (int t = 0; t < advice->token_count; t++) {
        esp_advised_whole *whole = &advice->whole[t];
        double dense = 0, mixed = 0;
        for (int64_t i = 0; i < advice->count; i++) {
            const esp_advised_way *ways = advice->table + i * advice->ways;
            dense += ways[0].us[t];
            mixed += ways[advice->layers[i].chosen].us[t];
        }
        whole->advised_us = whole->other_us + whole->linear_us * mixed / dense;
    }
}

esp_status esp_advice_choose(esp_advice *advice, esp_error *error)
{
    wish_kind wish = wish_of(advice->options);
    if (wish == WISH_WHOLE) {
        ESP_TRY(check_whole(advice, error));
    }
    ESP_TRY(solve(advice, wish, error));
    double budget = budget_of(advice, wish);
    if (budget < 0 || !esp_mix_choose(&advice->mix, budget, advice->scratch)) {
        return out_of_reach(advice, wish, error);
    }
    for (int64_t i = 0; i < advice->count; i++) {
        advice->layers[i].chosen = advice->scratch[i];
    }
    advice->chosen = esp_advice_point_of(advice, advice->scratch);
    predict_whole(advice);
    return wish == WISH_BYTES ? solve(advice, WISH_LINEAR, error)
                              : ESP_OK; /* the frontier is of times */
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
        esp_advised_point point = esp_advice_point_of(advice, advice->scratch);
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
