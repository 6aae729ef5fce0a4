/* Operands of a measurement on host memory, and the comparison of its results. */
#include <math.h>

#include "op/op.h"

static int64_t place(esp_layout layout, int64_t features, int64_t tokens, int64_t feature,
                     int64_t token)
{
    return layout == ESP_FEATURE_MAJOR ? feature * tokens + token : token * features + feature;
}

void esp_spread_host(const esp_spread *spread)
{
    const char *few = spread->few;
    char *all = spread->all;
    size_t width = spread->width, row = (size_t)spread->features * width;
    for (int64_t t = 0; t < spread->tokens; t++) {
        int64_t v = spread->map[t];
        if (spread->layout == ESP_TOKEN_MAJOR) {
            memcpy(all + (size_t)t * row, few + (size_t)v * row, row);
            continue;
        }
        for (int64_t f = 0; f < spread->features; f++) {
            memcpy(all + (size_t)(f * spread->tokens + t) * width,
                   few + (size_t)(f * spread->vectors + v) * width, width);
        }
    }
}

double esp_differ_host(const esp_difference *d)
{
    double worst = 0;
    for (int64_t o = 0; o < d->rows; o++) {
        for (int64_t t = 0; t < d->tokens; t++) {
            int64_t v = d->map[t];
            int64_t at = place(d->layout, d->rows, d->tokens, o, t);
            int64_t few = place(d->layout, d->rows, d->vectors, o, v);
            float got = esp_weight_at(d->dtype, d->all, at);
            float wanted = esp_weight_at(d->dtype, d->few, few);
            double off = got == wanted ? 0
                         : d->bounds == NULL
                             ? (double)INFINITY
                             : fabs((double)got - (double)wanted) / d->bounds[o * d->vectors + v];
            if (!(off <= worst)) { /* NaN comes through, and stays */
                worst = off;
                if (isnan(off)) {
                    return off;
                }
            }
        }
    }
    return worst;
}
