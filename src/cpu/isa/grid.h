/* Scores of tokens with the relative positions of one row or column of their grids.
 *
 *   y[t] = sum over d of q[d][t] * table[p(t) - key + size - 1][d]
 *
 * Tokens of a grid row lie side by side. With rows p is the same for all of them, with columns it
 * runs with them, and the same stretch of the table, turned over once, serves every grid row. */
#ifndef ESP_CPU_ISA_GRID_H
#define ESP_CPU_ISA_GRID_H

#include "cpu/isa/vec.h"
#include "cpu/level.h"

#define GRID_COLUMNS 64 /* tokens that are summed together */
#define GRID_FEATURES 32

/* Features first..first+count-1 added to the sums of `tokens` tokens; weights [count][step]: one
 * for all tokens (step 0: weights[f]), or one for each. */
ALWAYS_INLINE void grid_add(const float *q, int64_t stride, const float *weights, int64_t step,
                            int64_t count, int64_t tokens, float *y, bool first)
{
    float sums[GRID_COLUMNS];
    for (int64_t i = 0; i < tokens; i++) {
        sums[i] = first ? 0.0f : y[i];
    }
    for (int64_t f = 0; f < count; f++) {
        const float *from = q + f * stride;
        for (int64_t i = 0; i < tokens; i++) {
            sums[i] += from[i] * (step == 0 ? weights[f] : weights[f * step + i]);
        }
    }
    memcpy(y, sums, (size_t)tokens * sizeof *sums);
}

static void relate_to_row(const esp_relative *r, const float *q, int64_t key, float *y)
{
    int64_t rows = r->columns / r->width;
    for (int64_t row = 0; row < rows; row++) {
        const float *weights = r->table + (row % r->height - key + r->height - 1) * r->head_dim;
        for (int64_t column = 0; column < r->width; column += GRID_COLUMNS) {
            int64_t at = row * r->width + column;
            grid_add(q + at, r->columns, weights, 0, r->head_dim,
                     ESP_MIN(GRID_COLUMNS, r->width - column), y + at, true);
        }
    }
}

static void relate_to_column(const esp_relative *r, const float *q, int64_t key, float *y)
{
    float weights[GRID_FEATURES * GRID_COLUMNS];
    int64_t rows = r->columns / r->width;
    for (int64_t column = 0; column < r->width; column += GRID_COLUMNS) {
        int64_t columns = ESP_MIN(GRID_COLUMNS, r->width - column);
        for (int64_t d = 0; d < r->head_dim; d += GRID_FEATURES) {
            int64_t features = ESP_MIN(GRID_FEATURES, r->head_dim - d);
            for (int64_t i = 0; i < columns; i++) {
                const float *from = r->table + (column + i - key + r->width - 1) * r->head_dim + d;
                for (int64_t f = 0; f < features; f++) {
                    weights[f * GRID_COLUMNS + i] = from[f];
                }
            }
            for (int64_t row = 0; row < rows; row++) {
                int64_t at = row * r->width + column;
                grid_add(q + d * r->columns + at, r->columns, weights, GRID_COLUMNS, features,
                         columns, y + at, d == 0);
            }
        }
    }
}

static void relate(const esp_relative *r, int64_t head, int64_t key)
{
    int64_t size = r->by_row ? r->height : r->width;
    const float *q = r->q + head * r->head_dim * r->columns;
    float *y = r->y + (head * size + key) * r->columns;
    if (r->by_row) {
        relate_to_row(r, q, key, y);
    } else {
        relate_to_column(r, q, key, y);
    }
}

#endif
