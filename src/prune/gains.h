/* By how much columns would add to what groups keep. */
#ifndef ESP_PRUNE_GAINS_H
#define ESP_PRUNE_GAINS_H

#include "prune/prune.h"

#define ESP_GAINS_WIDTH 32
#define ESP_GAINS_HEIGHT 4

/* A group of which three columns are held keeps a + b of a row, the larger two; with a fourth
 * column of score s it keeps max(0, s - b) more. Of a tile of both:
 * gains[h][w] = sum over rows of max(0, scores[row * stride + h] - seconds[row * stride + w]),
 * in f32. */
void esp_sum_gains(const esp_context *context, const float *scores, const float *seconds,
                   int64_t rows, int64_t stride, float gains[ESP_GAINS_HEIGHT][ESP_GAINS_WIDTH]);

#endif
