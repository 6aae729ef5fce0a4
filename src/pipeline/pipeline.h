/* The door of src/pipeline: whole checkpoints, tensor by tensor, from one folder into another. */
#ifndef ESP_SRC_PIPELINE_H
#define ESP_SRC_PIPELINE_H

#include <espalier/checkpoint.h>
#include <espalier/prune.h>

#include "base/base.h"
#include "tensor/tensor.h"

/* NULL when the tensor is a linear layer's weight; else why it is not (static text, fit for a
 * table: "embedding", "output head", "not rank 2"...). */
const char *esp_linear_layer_why_not(const esp_weight_info *weight);
/* Of a linear layer, NULL when prune takes it by default; else what it is ("classifier head",
 * "pooler"...): it stays dense unless a rule names it. */
const char *esp_linear_layer_outside(const esp_weight_info *weight);

#define ESP_MAKER_NOTE 64

/* Who makes masks and values of a whole checkpoint's layers, where the weights alone do not. */
typedef struct esp_layer_maker {
    void *user;
    const int64_t *order; /* tensors that it can make, in the order in which it wants to */
    int64_t count;
    const char *why_not; /* for the table: why other linear layers stay dense */
    /* values: a copy of the weights, to become the pruned ones; note: [ESP_MAKER_NOTE], a remark
     * for the table. */
    esp_status (*make)(void *user, int64_t index, const esp_pattern *pattern, esp_tensor *values,
                       esp_mask **mask, char *note, esp_error *error);
    /* JSON for the marker's member `record_name`, after all are made. */
    esp_status (*record)(void *user, esp_buffer *json, esp_error *error);
    const char *record_name;
} esp_layer_maker;

/* esp_prune_checkpoint of an open source by a maker; options->mask is not looked at. */
ESP_MUST_CHECK esp_status esp_prune_by(esp_context *context, const esp_checkpoint *source,
                                       const char *out_dir, const esp_prune_options *options,
                                       const esp_layer_maker *maker, esp_prune_summary *summary,
                                       esp_error *error);

/* The pattern that prune would give each tensor of source, kind DENSE for those that stay as they
 * are. patterns: [esp_checkpoint_count]. Errors as esp_prune_checkpoint. */
ESP_MUST_CHECK esp_status esp_prune_patterns(esp_context *context, const esp_checkpoint *source,
                                             const esp_prune_options *options,
                                             esp_pattern *patterns, esp_error *error);

#endif
