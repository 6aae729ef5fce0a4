/* A multiple-choice knapsack by dynamic programming over the cost in whole steps, rounded down;
 * what is chosen in the end is held to the budget by its exact cost. */
#include "assess/mix.h"

#include <math.h>
#include <string.h>

#define NO_WAY 255

static int64_t steps_of(double cost)
{
    return isfinite(cost) && cost <= 2 ? (int64_t)floor(cost * ESP_MIX_STEPS) : -1;
}

/* Budget b of layers 0..layer from those of layers before it. */
static void extend(const esp_mix *mix, int64_t layer, const double *before, double *after)
{
    const esp_mix_way *ways = mix->table + layer * mix->ways;
    uint8_t *taken = mix->taken + layer * (ESP_MIX_STEPS + 1);
    for (int64_t b = 0; b <= ESP_MIX_STEPS; b++) {
        after[b] = INFINITY;
        taken[b] = NO_WAY;
    }
    for (int way = 0; way < mix->ways; way++) {
        int64_t steps = steps_of(ways[way].cost);
        for (int64_t b = steps; steps >= 0 && b <= ESP_MIX_STEPS; b++) {
            double loss = before[b - steps] + ways[way].loss;
            if (loss < after[b]) {
                after[b] = loss;
                taken[b] = (uint8_t)way;
            }
        }
    }
}

esp_status esp_mix_solve(esp_mix *mix, esp_error *error)
{
    size_t row = ESP_MIX_STEPS + 1;
    double *before = esp_alloc_array(mix->context, row, sizeof *before);
    mix->least = esp_alloc_array(mix->context, row, sizeof *mix->least);
    mix->taken = esp_alloc_array(mix->context, (size_t)mix->layers * row, 1);
    if (before == NULL || mix->least == NULL || mix->taken == NULL) {
        esp_release(mix->context, before);
        return esp_fail_memory(error, (size_t)mix->layers * row, "mixes of ways");
    }
    memset(mix->least, 0, row * sizeof *mix->least);
    for (int64_t layer = 0; layer < mix->layers; layer++) {
        memcpy(before, mix->least, row * sizeof *before);
        extend(mix, layer, before, mix->least);
    }
    esp_release(mix->context, before);
    return ESP_OK;
}

static bool walk_back(const esp_mix *mix, int64_t b, int *chosen, double *cost)
{
    *cost = 0;
    for (int64_t layer = mix->layers - 1; layer >= 0; layer--) {
        uint8_t way = mix->taken[layer * (ESP_MIX_STEPS + 1) + b];
        if (way == NO_WAY) {
            return false;
        }
        const esp_mix_way *taken = &mix->table[layer * mix->ways + way];
        chosen[layer] = way;
        *cost += taken->cost;
        b -= steps_of(taken->cost);
    }
    return true;
}

/* Costs were rounded down, so the sum may be over the budget by up to a step a layer: then a
 * smaller one is taken. */
bool esp_mix_choose(const esp_mix *mix, double budget, int *chosen)
{
    double cost;
    int64_t b = (int64_t)floor(fmin(fmax(budget, 0), 1) * ESP_MIX_STEPS);
    for (; b >= 0; b--) {
        if (walk_back(mix, b, chosen, &cost) && cost <= budget * (1 + 1e-9)) {
            return true;
        }
    }
    return false;
}

bool esp_mix_at(const esp_mix *mix, int64_t steps, int *chosen)
{
    double cost;
    return walk_back(mix, steps, chosen, &cost);
}

void esp_mix_free(esp_mix *mix)
{
    esp_release(mix->context, mix->least);
    esp_release(mix->context, mix->taken);
}
