/* The frontier of speed and loss as a figure. */
#ifndef CLI_FRONTIER_H
#define CLI_FRONTIER_H

#include "cli.h"

typedef struct frontier_view {
    const esp_advised_point *points; /* from dense on */
    int count;
    esp_advised_point chosen;
    bool has_chosen;
    const char *title;
    const char *device; /* its identity, of which the first two parts are shown */
    const char *loss;   /* what it is a share of, for the axis */
} frontier_view;

/* An SVG file, replaced whole: speed-up to the right, loss upwards. */
ESP_MUST_CHECK esp_status frontier_write(const char *path, const frontier_view *view,
                                         esp_error *error);

#endif
