/* Least squares of one row of weights while weights go and come back: the inverse second moments
 * under the sweep operator (Beaton, 1964; Goodnight, 1979), so that what any one weight costs or
 * gains is at hand, exactly, with all others following.
 *
 * Of n weights some are live, the others dropped (0). With A the matrix after sweeping those that
 * are dropped out of H^-1, and v the row's values swept along,
 *     live k:    v_k is its best value, and dropping it costs v_k^2 / A_kk      (A_kk > 0)
 *     dropped k: letting it live again costs v_k^2 / A_kk, which is a gain      (A_kk < 0)
 * and pivot(k) does either. The costs of all pivots sum up to the row's squared error. */
#ifndef ESP_PRUNE_TABLEAU_H
#define ESP_PRUNE_TABLEAU_H

#include "prune/prune.h"

/* Pivots are gathered, and reach the matrix as one product of this depth. */
#define ESP_TABLEAU_PENDING 32
/* Places of a group, of which any two may be asked about together. */
#define ESP_TABLEAU_WIDEST 4

/* Places [first, first + count). */
typedef struct esp_tableau_group {
    int64_t first;
    int count;
} esp_tableau_group;

typedef struct esp_tableau {
    const esp_algebra *algebra;
    int64_t n;
    const esp_tableau_group *groups;
    int64_t group_count;
    double *matrix;            /* [n][n], as of the last flush; block rows left of diagonal */
    double *diagonal, *values; /* [n], of now */
    double *near;              /* [n][WIDEST]: A within the groups, of now */
    double *line;              /* [n]: column of the latest pivot */
    double *pending, *scaled;  /* [PENDING][n], [n][PENDING] */
    double pivots[ESP_TABLEAU_PENDING];
    int pending_count;
    double error; /* so far */
} esp_tableau;

/* Doubles of room for n places. */
static inline size_t esp_tableau_doubles(int64_t n)
{
    return (size_t)n * (size_t)(n + 3 + ESP_TABLEAU_WIDEST + 2 * ESP_TABLEAU_PENDING);
}
/* room: esp_tableau_doubles(n); groups tile the places. */
void esp_tableau_bind(esp_tableau *tableau, int64_t n, const esp_tableau_group *groups,
                      int64_t group_count, double *room);
/* matrix: [n][n], stride apart, symmetric, nothing pending; values: [n]. */
void esp_tableau_load(esp_tableau *tableau, const double *matrix, int64_t stride,
                      const double *values);
/* Drops a live weight, or lets a dropped one live. */
void esp_tableau_pivot(esp_tableau *tableau, int64_t k);
/* Brings the matrix up to date: what is left of the diagonal and on it. */
void esp_tableau_flush(esp_tableau *tableau);

static inline bool esp_tableau_lives(const esp_tableau *tableau, int64_t k)
{
    return tableau->diagonal[k] > 0;
}
static inline double esp_tableau_cost(const esp_tableau *tableau, int64_t k)
{
    return tableau->values[k] * tableau->values[k] / tableau->diagonal[k];
}
/* What dropping the live `out` and reviving the dropped `back` of one group costs. */
double esp_tableau_swap_cost(const esp_tableau *tableau, const esp_tableau_group *group,
                             int64_t out, int64_t back);

#endif
