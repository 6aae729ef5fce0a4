/* The door of src/pipeline: whole checkpoints, tensor by tensor, from one folder into another. */
#ifndef ESP_SRC_PIPELINE_H
#define ESP_SRC_PIPELINE_H

#include <espalier/checkpoint.h>
#include <espalier/prune.h>

#include "base/base.h"
#include "tensor/tensor.h"

/* NULL when the tensor is a linear layer's weight, which prune takes by default; else why it is not
 * (static text, fit for a table: "embedding", "output head", "not rank 2"...). */
const char *esp_linear_layer_why_not(const esp_weight_info *weight);

/* The pattern that prune would give each tensor of source, kind DENSE for those that stay as they
 * are. patterns: [esp_checkpoint_count]. Errors as esp_prune_checkpoint. */
ESP_MUST_CHECK esp_status esp_prune_patterns(esp_context *context, const esp_checkpoint *source,
                                             const esp_prune_options *options,
                                             esp_pattern *patterns, esp_error *error);

#endif
