/* The door of src/prune: dense weights in, masks out (esp_prune_mask of the public header), and
 * orders of channels in which they keep more. Whole checkpoints are src/pipeline's business. */
#ifndef ESP_SRC_PRUNE_H
#define ESP_SRC_PRUNE_H

#include <espalier/prune.h>

#include "base/base.h"
#include "format/format.h"
#include "prune/calibrated.h"
#include "tensor/tensor.h"

/* What a mask that was chosen elsewhere keeps of dense. */
ESP_MUST_CHECK esp_status esp_mask_report_of(esp_context *context, const esp_tensor *dense,
                                             const esp_pattern *pattern, esp_mask *mask,
                                             esp_mask_report *report, esp_error *error);
/* finite.c: that all weights are numbers, "prune.not_finite" naming the place of the first that is
 * none. Masks rank such above everything, so that none is hidden; whole models that hold any are
 * refused. */
ESP_MUST_CHECK esp_status esp_prune_check_finite(esp_context *context, const esp_tensor *weights,
                                                 esp_error *error);
/* regroup.c: the order in which rows share panels so that these keep more of scores [out][in], not
 * negative; stored row -> output row, [out]. */
ESP_MUST_CHECK esp_status esp_regroup_rows(esp_context *context, const esp_pattern *pattern,
                                           const esp_mask_options *options, int64_t out, int64_t in,
                                           float *scores, uint32_t *rows, esp_error *error);
/* The mask of output rows, which carries that order, from the one of stored rows. */
ESP_MUST_CHECK esp_status esp_mask_of_stored(esp_context *context, const esp_mask *stored,
                                             const uint32_t *rows, esp_mask **mask,
                                             esp_error *error);
/* ln of the number of masks that V:2:M, or 2:4 as M = 4, allows; NAN of other patterns. */
double esp_pattern_log_diversity(const esp_pattern *pattern, int64_t out, int64_t in);
/* Whether masks by these options carry a row order for a weight of `out` rows. */
bool esp_prune_stores_rows(const esp_mask_options *options, const esp_pattern *pattern,
                           int64_t out);
/* "prune.exact_too_wide" */
ESP_MUST_CHECK esp_status esp_prune_check_search(esp_search search, const esp_pattern *pattern,
                                                 esp_error *error);
/* the search of prune's options, or what AUTO means */
esp_search esp_prune_search_of(esp_search search, const esp_pattern *pattern);

#include "prune/permutation.h"
#include "prune/permute.h"
#include "prune/ranks.h"

#endif
