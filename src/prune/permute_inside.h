/* Private to the search for orders: weights with their panels, and what a channel is worth where.
 */
#ifndef ESP_PRUNE_PERMUTE_INSIDE_H
#define ESP_PRUNE_PERMUTE_INSIDE_H

#include "prune/permute.h"
#include "prune/select.h"

/* A weight and the columns that its panels list. */
typedef struct esp_panels {
    esp_permute_weight *weight;
    int64_t v, panels;
    int64_t m;         /* columns of a group, 4 for 2:4; 0: free lists, which no order binds */
    bool all;          /* 2:4: one panel, which lists every column */
    int64_t kept;      /* listed columns of a panel */
    uint32_t *columns; /* [panels][kept] */
    double score;      /* kept after two of each four */
} esp_panels;

/* panels.columns is to be released, also after a failure. */
ESP_MUST_CHECK esp_status esp_panels_make(esp_context *context, esp_permute_weight *weight,
                                          esp_panels *panels, esp_error *error);
/* Chooses the lists anew, as pruning will, and adds up what is kept. */
ESP_MUST_CHECK esp_status esp_panels_choose(esp_context *context, esp_panels *panels,
                                            esp_error *error);

/* permute_move.c: the same for the scores of all weights that lie on the space's axes. */
ESP_MUST_CHECK esp_status esp_weights_reorder(esp_context *context, esp_permute_weight *weights,
                                              int64_t count, const esp_space *space,
                                              const esp_permutation *permutation,
                                              const uint32_t *source_of, esp_error *error);

/* How a weight takes part in a space. */
typedef struct esp_use {
    const esp_panels *panels;
    const esp_space_part *part;
    bool columns; /* channels are columns in groups; else rows in panels */
} esp_use;

/* permute_columns.c: benefit[i][j] += what the group of place j keeps for certain if channel i of
 * the list takes that place of it and nothing else changes. No two places of the list share a
 * group. benefit: [count][count]. */
ESP_MUST_CHECK esp_status esp_add_column_values(esp_context *context, const esp_use *use,
                                                const uint32_t *channels, int64_t count,
                                                double *benefit, esp_error *error);
/* permute_rows.c: benefit[i][j] += what the rows of unit i keep in the panels of unit j under the
 * present lists. units, targets: first channels; benefit: [count][target_count]. */
ESP_MUST_CHECK esp_status esp_add_row_values(esp_context *context, const esp_use *use, int64_t unit,
                                             const uint32_t *units, int64_t count,
                                             const uint32_t *targets, int64_t target_count,
                                             double *benefit, esp_error *error);

#endif
