/* The door of src/prune: dense weights in, masks out (esp_prune_mask of the public header). Whole
 * checkpoints are src/pipeline's business. */
#ifndef ESP_SRC_PRUNE_H
#define ESP_SRC_PRUNE_H

#include <espalier/prune.h>

#include "base/base.h"
#include "format/format.h"
#include "prune/calibrated.h"
#include "tensor/tensor.h"

#endif
