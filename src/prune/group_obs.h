/* Private to src/prune: V:2:M and 2:4 group by group, each group's columns and pairs chosen by the
 * second order of all that goes (group_obs.c). */
#ifndef ESP_PRUNE_GROUP_OBS_H
#define ESP_PRUNE_GROUP_OBS_H

#include "prune/prune.h"

/* Columns [column, column + width) of the weights, of which each panel of v rows keeps four and
 * each row two. Pointers are to the group's first column. */
typedef struct esp_obs_group {
    esp_context *context;
    int64_t out, v, column, width;
    esp_search search;    /* EXACT, SWAPS or GREEDY */
    const double *factor; /* U of H^-1 = U^T U, from the group's corner on */
    int64_t factor_stride;
    int64_t reach; /* columns from the group's first on to which updates go at once */
    double *weights;
    int64_t weight_stride;
    double *errors; /* what is left of the update: times U's rows, to all columns further right */
    int64_t error_stride;
    esp_mask *mask;
} esp_obs_group;

ESP_MUST_CHECK esp_status esp_prune_group(const esp_obs_group *group, esp_error *error);

#endif
