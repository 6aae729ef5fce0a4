/* The best mix of ways against all mixes, on small problems. */
#include <math.h>

#include "assess/mix.h"
#include "base/random.h"
#include "test.h"

#define LAYERS 5
#define WAYS 4
#define MIXES 1024 /* WAYS ^ LAYERS */

static void draw(esp_random *random, esp_mix_way table[LAYERS][WAYS])
{
    for (int i = 0; i < LAYERS; i++) {
        /* Dense: its share of the whole, no loss. Some ways cost more, some are impossible. */
        table[i][0] = (esp_mix_way){1.0 / LAYERS, 0};
        for (int k = 1; k < WAYS; k++) {
            double cost = esp_random_uniform(random) * 1.3 / LAYERS;
            bool possible = esp_random_uniform(random) > 0.2;
            table[i][k] = (esp_mix_way){possible ? cost : (double)INFINITY,
                                        0.01 + esp_random_uniform(random)};
        }
    }
}

static double cost_of(esp_mix_way table[LAYERS][WAYS], const int *chosen, double *loss)
{
    double cost = 0;
    *loss = 0;
    for (int i = 0; i < LAYERS; i++) {
        cost += table[i][chosen[i]].cost;
        *loss += table[i][chosen[i]].loss;
    }
    return cost;
}

/* The least loss of all mixes within a budget; INFINITY: none is. */
static double best_of_all(esp_mix_way table[LAYERS][WAYS], double budget)
{
    double best = INFINITY;
    for (int mix = 0; mix < MIXES; mix++) {
        int chosen[LAYERS], rest = mix;
        double loss;
        for (int i = 0; i < LAYERS; i++, rest /= WAYS) {
            chosen[i] = rest % WAYS;
        }
        if (cost_of(table, chosen, &loss) <= budget) {
            best = fmin(best, loss);
        }
    }
    return best;
}

/* Costs are told apart by a step each, so a mix that is better may cost that much less at most. */
static void against_all_mixes(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int round = 0; round < 200; round++) {
        esp_mix_way table[LAYERS][WAYS];
        test_sub(run, "problem %d", round);
        draw(&random, table);
        esp_mix mix = {.context = context, .layers = LAYERS, .ways = WAYS, .table = table[0]};
        REQUIRE_OK(esp_mix_solve(&mix, error));
        for (double budget = 0.05; budget <= 1.0; budget += 0.05) {
            int chosen[LAYERS];
            double loss = INFINITY, slack = (LAYERS + 1.0) / ESP_MIX_STEPS;
            bool found = esp_mix_choose(&mix, budget, chosen);
            if (found) {
                CHECK(cost_of(table, chosen, &loss) <= budget * (1 + 1e-9));
            }
            CHECK(loss >= best_of_all(table, budget * (1 + 1e-9)) - 1e-12);
            CHECK(loss <= best_of_all(table, budget - slack) + 1e-12);
        }
        esp_mix_free(&mix);
    }
    test_context_free(run, context);
}

static void the_whole_budget(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_mix_way table[3][2] = {{{0.5, 0}, {0.1, 1}}, {{0.3, 0}, {0.2, 1}}, {{0.2, 0}, {0.4, 1}}};
    esp_mix mix = {.context = context, .layers = 3, .ways = 2, .table = table[0]};
    int chosen[3];
    REQUIRE_OK(esp_mix_solve(&mix, error));
    CHECK(esp_mix_choose(&mix, 1, chosen));
    CHECK(chosen[0] == 0 && chosen[1] == 0 && chosen[2] == 0);
    CHECK(esp_mix_choose(&mix, 0.6, chosen));
    CHECK(chosen[0] == 1 && chosen[1] == 0 && chosen[2] == 0);
    CHECK(!esp_mix_choose(&mix, 0.49, chosen));
    esp_mix_free(&mix);
    test_context_free(run, context);
}

static const test_case cases[] = {{"against_all_mixes", against_all_mixes},
                                  {"the_whole_budget", the_whole_budget}};
TEST_MAIN(cases)
