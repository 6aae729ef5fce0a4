/* Costs are exact at each step (tableau.h), so a swap is taken if and only if the least squares of
 * what is live then are better, and the search ends: where no swap within a group gains. Exchanging
 * weights of a fixed mask so is SparseSwaps' idea (arXiv 2512.10922); there the others stay. */
#include "prune/row_search.h"

#include <math.h>

#define KEEP 2
#define LEAST_GAIN 1e-9 /* of the row's error: less is rounding */

static void count_live(const esp_tableau *t, int *live)
{
    for (int64_t g = 0; g < t->group_count; g++) {
        live[g] = 0;
        for (int i = 0; i < t->groups[g].count; i++) {
            live[g] += esp_tableau_lives(t, t->groups[g].first + i);
        }
    }
}

static bool drop_cheapest(esp_tableau *t, int *live)
{
    double least = (double)INFINITY;
    int64_t best = -1, best_group = -1;
    for (int64_t g = 0; g < t->group_count; g++) {
        const esp_tableau_group *group = &t->groups[g];
        for (int i = 0; i < group->count && live[g] > KEEP; i++) {
            int64_t k = group->first + i;
            double cost = esp_tableau_lives(t, k) ? esp_tableau_cost(t, k) : (double)INFINITY;
            if (cost < least) {
                least = cost;
                best = k;
                best_group = g;
            }
        }
    }
    if (best < 0) {
        return false;
    }
    live[best_group]--;
    esp_tableau_pivot(t, best);
    return true;
}

typedef struct swap {
    int64_t out, back;
    double cost;
} swap;

static void try_group(const esp_tableau *t, const esp_tableau_group *group, swap *best)
{
    for (int64_t out = group->first; out < group->first + group->count; out++) {
        for (int64_t back = group->first; back < group->first + group->count; back++) {
            if (!esp_tableau_lives(t, out) || esp_tableau_lives(t, back)) {
                continue;
            }
            double cost = esp_tableau_swap_cost(t, group, out, back);
            if (cost < best->cost) {
                *best = (swap){out, back, cost};
            }
        }
    }
}

static bool swap_best(esp_tableau *t)
{
    swap best = {-1, -1, -LEAST_GAIN * t->error};
    for (int64_t g = 0; g < t->group_count; g++) {
        try_group(t, &t->groups[g], &best);
    }
    if (best.out < 0) {
        return false;
    }
    esp_tableau_pivot(t, best.back);
    esp_tableau_pivot(t, best.out);
    return true;
}

void esp_search_row(esp_tableau *t, int *live)
{
    count_live(t, live);
    while (drop_cheapest(t, live)) {
    }
    for (int64_t i = 0; i < 2 * t->n && swap_best(t); i++) {
    }
}
