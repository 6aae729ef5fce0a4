/* Attention in windows where they lie, as the groups of which it is made: what the far back end has
 * besides the reference's operations. */
#ifndef ESP_TESTS_FAR_WINDOWS_H
#define ESP_TESTS_FAR_WINDOWS_H

#include <stdlib.h>

#include "op/op.h"

typedef struct far_windows {
    const esp_window_attention *of;
    int64_t across, in_image, tokens, columns; /* of an image, of it, of a window; of all windows */
} far_windows;

/* Where place i of all windows lies in the images; -1 outside. */
static inline int64_t far_window_place(const far_windows *w, int64_t i)
{
    const esp_window_attention *a = w->of;
    int64_t window = i / w->tokens, t = i % w->tokens, number = window % w->in_image;
    int64_t row = number / w->across * a->window + t / a->window;
    int64_t column = number % w->across * a->window + t % a->window;
    bool inside = row < a->height && column < a->width;
    return inside ? window / w->in_image * a->pitch + row * a->width + column : -1;
}

static inline float *far_to_windows(const far_windows *w, const float *from, const float *outside)
{
    int64_t rows = w->of->heads * w->of->head_dim;
    float *to = malloc((size_t)(rows * w->columns) * sizeof *to);
    for (int64_t f = 0; f < rows; f++) {
        for (int64_t i = 0; i < w->columns; i++) {
            int64_t place = far_window_place(w, i);
            to[f * w->columns + i] = place >= 0        ? from[f * w->of->columns + place]
                                     : outside != NULL ? outside[f]
                                                       : 0.0f;
        }
    }
    return to;
}

static inline esp_status far_attend_as_groups(const esp_ops *ops, esp_device *device,
                                              const esp_window_attention *a)
{
    int64_t side = a->window, across = (a->width + side - 1) / side;
    int64_t in_image = (a->height + side - 1) / side * across;
    far_windows w = {a, across, in_image, side * side, a->images * in_image * side * side};
    float *q = far_to_windows(&w, a->q, NULL), *k = far_to_windows(&w, a->k, a->key_bias);
    float *v = far_to_windows(&w, a->v, a->value_bias), *y = far_to_windows(&w, a->q, NULL);
    esp_group_attention groups = {.q = q,
                                  .k = k,
                                  .v = v,
                                  .y = y,
                                  .heads = a->heads,
                                  .head_dim = a->head_dim,
                                  .columns = w.columns,
                                  .groups = a->images * in_image,
                                  .tokens = w.tokens,
                                  .pitch = w.tokens,
                                  .scale = a->scale,
                                  .row_table = a->row_table,
                                  .column_table = a->column_table,
                                  .grid_width = a->row_table != NULL ? side : 0};
    size_t bytes = ops->group_workspace_bytes(device, &groups);
    groups.workspace = aligned_alloc(64, (bytes + 127) / 64 * 64);
    esp_status status = ops->attend_groups(device, NULL, &groups);
    for (int64_t i = 0; i < w.columns; i++) {
        int64_t place = far_window_place(&w, i);
        for (int64_t f = 0; f < a->heads * a->head_dim && place >= 0; f++) {
            ((float *)a->y)[f * a->columns + place] = y[f * w.columns + i];
        }
    }
    free(groups.workspace);
    free(q);
    free(k);
    free(v);
    free(y);
    return status;
}

#endif
