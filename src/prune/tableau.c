/* Pivots one after the other cost a pass over the matrix each. Here a pivot touches its own column,
 * the diagonal, the values and what lies within groups; the rest is owed, and paid for many pivots
 * by one product. For that a pivot must be a change of rank one:
 *     A - c c^T / p,   c the pivot's column but c_k = p - sign(p),   p = A_kk,
 * has A_ik / |p| in line k, as sweeping asks, and only the diagonal's entry (-1 / p) is put right
 * by hand, which is kept apart anyway. */
#include "prune/tableau.h"

#include <math.h>

#define BLOCK 128 /* rows of which all columns up to the diagonal block are kept */

void esp_tableau_bind(esp_tableau *t, int64_t n, const esp_tableau_group *groups,
                      int64_t group_count, double *room)
{
    t->n = n;
    t->groups = groups;
    t->group_count = group_count;
    t->matrix = room;
    t->diagonal = room + n * n;
    t->values = t->diagonal + n;
    t->line = t->values + n;
    t->near = t->line + n;
    t->pending = t->near + n * ESP_TABLEAU_WIDEST;
    t->scaled = t->pending + n * ESP_TABLEAU_PENDING;
}

static int64_t block_end(const esp_tableau *t, int64_t row)
{
    return ESP_MIN(t->n, (row / BLOCK + 1) * BLOCK);
}

void esp_tableau_load(esp_tableau *t, const double *matrix, int64_t stride, const double *values)
{
    for (int64_t i = 0; i < t->n; i++) {
        memcpy(t->matrix + i * t->n, matrix + i * stride,
               (size_t)block_end(t, i) * sizeof *t->matrix);
        t->diagonal[i] = matrix[i * stride + i];
    }
    memcpy(t->values, values, (size_t)t->n * sizeof *t->values);
    for (int64_t g = 0; g < t->group_count; g++) {
        const esp_tableau_group *group = &t->groups[g];
        for (int i = 0; i < group->count; i++) {
            for (int j = 0; j < group->count; j++) {
                t->near[(group->first + i) * ESP_TABLEAU_WIDEST + j] =
                    matrix[(group->first + i) * stride + group->first + j];
            }
        }
    }
    t->pending_count = 0;
    t->error = 0;
}

void esp_tableau_flush(esp_tableau *t)
{
    for (int64_t row = 0; row < t->n && t->pending_count > 0; row += BLOCK) {
        int64_t end = block_end(t, row);
        const esp_algebra_product owed = {.rows = end - row,
                                          .columns = end,
                                          .depth = t->pending_count,
                                          .alpha = -1,
                                          .beta = 1,
                                          .a = t->scaled + row * ESP_TABLEAU_PENDING,
                                          .a_stride = ESP_TABLEAU_PENDING,
                                          .b = t->pending,
                                          .b_stride = t->n,
                                          .c = t->matrix + row * t->n,
                                          .c_stride = t->n};
        esp_algebra_multiply(t->algebra, &owed);
    }
    for (int64_t i = 0; i < t->n; i++) {
        t->matrix[i * t->n + i] = t->diagonal[i];
    }
    t->pending_count = 0;
}

/* Column k of A as it is now. */
static void read_column(const esp_tableau *t, int64_t k)
{
    int64_t n = t->n, end = block_end(t, k);
    double *line = t->line;
    memcpy(line, t->matrix + k * n, (size_t)end * sizeof *line);
    for (int64_t i = end; i < n; i++) {
        line[i] = t->matrix[i * n + k];
    }
    for (int b = 0; b < t->pending_count; b++) {
        const double *column = t->pending + b * n;
        double times = column[k] / t->pivots[b];
        for (int64_t i = 0; i < n; i++) {
            line[i] -= times * column[i];
        }
    }
    line[k] = t->diagonal[k];
}

static void update_near(const esp_tableau *t, double by_pivot)
{
    for (int64_t g = 0; g < t->group_count; g++) {
        const double *c = t->line + t->groups[g].first;
        double *near = t->near + t->groups[g].first * ESP_TABLEAU_WIDEST;
        for (int i = 0; i < t->groups[g].count; i++) {
            for (int j = 0; j < t->groups[g].count; j++) {
                near[i * ESP_TABLEAU_WIDEST + j] -= c[i] * c[j] * by_pivot;
            }
        }
    }
}

void esp_tableau_pivot(esp_tableau *t, int64_t k)
{
    read_column(t, k);
    double pivot = t->diagonal[k], value = t->values[k], *line = t->line;
    double by_pivot = 1 / pivot, times = value * by_pivot;
    t->error += value * times;
    for (int64_t i = 0; i < t->n; i++) {
        t->diagonal[i] -= line[i] * line[i] * by_pivot;
        t->values[i] -= line[i] * times;
    }
    t->diagonal[k] = -by_pivot;
    t->values[k] = value * fabs(by_pivot);
    line[k] = pivot - copysign(1, pivot);
    update_near(t, by_pivot);
    int at = t->pending_count++;
    memcpy(t->pending + at * t->n, line, (size_t)t->n * sizeof *line);
    for (int64_t i = 0; i < t->n; i++) {
        t->scaled[i * ESP_TABLEAU_PENDING + at] = line[i] * by_pivot;
    }
    t->pivots[at] = pivot;
    if (t->pending_count == ESP_TABLEAU_PENDING) {
        esp_tableau_flush(t);
    }
}

double esp_tableau_swap_cost(const esp_tableau *t, const esp_tableau_group *group, int64_t out,
                             int64_t back)
{
    double shared = t->near[out * ESP_TABLEAU_WIDEST + back - group->first];
    double gain = esp_tableau_cost(t, back), times = shared / t->diagonal[back];
    double value = t->values[out] - times * t->values[back];
    return gain + value * value / (t->diagonal[out] - times * shared);
}
