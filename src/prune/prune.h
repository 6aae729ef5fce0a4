/* The door of src/prune: dense weights in, masks out (esp_prune_mask of the public header), and
 * orders of channels in which they keep more. Whole checkpoints are src/pipeline's business. */
#ifndef ESP_SRC_PRUNE_H
#define ESP_SRC_PRUNE_H

#include <espalier/prune.h>

#include "base/base.h"
#include "format/format.h"
#include "tensor/tensor.h"

/* the search of prune's options, or what AUTO means */
esp_search esp_prune_search_of(esp_search search, const esp_pattern *pattern);

#include "prune/permutation.h"
#include "prune/permute.h"

#endif
