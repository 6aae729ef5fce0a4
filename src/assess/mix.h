/* The best mix of ways: one way for each layer, so that the sum of costs stays within a budget and
 * the sum of losses is least (a multiple-choice knapsack). */
#ifndef ESP_ASSESS_MIX_H
#define ESP_ASSESS_MIX_H

#include "base/base.h"

#define ESP_MIX_STEPS 4000 /* of the whole cost: how finely a budget is told apart */

/* Losses and costs are at least 0; costs are shares of the whole, where way 0 of all layers
 * together costs 1. A cost that is not finite is no way. */
typedef struct esp_mix_way {
    double cost, loss;
} esp_mix_way;

typedef struct esp_mix {
    esp_context *context;
    int64_t layers;
    int ways;
    const esp_mix_way *table; /* [layers][ways] */
    double *least;  /* [ESP_MIX_STEPS + 1]: least loss at a cost of at most so many steps */
    uint8_t *taken; /* [layers][ESP_MIX_STEPS + 1] */
} esp_mix;

/* Solves for all budgets at once; ways <= 255. */
ESP_MUST_CHECK esp_status esp_mix_solve(esp_mix *mix, esp_error *error);
/* The ways at a budget, a share of the whole: chosen[layers]. false: the budget is too small for
 * any. */
bool esp_mix_choose(const esp_mix *mix, double budget, int *chosen);
/* The same for a budget in steps, by rounded costs: one way for each layer of least[steps]. */
bool esp_mix_at(const esp_mix *mix, int64_t steps, int *chosen);
void esp_mix_free(esp_mix *mix);

#endif
