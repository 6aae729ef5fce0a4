/* What happens to each tensor of a checkpoint, decided before anything is read or written. */
#ifndef ESP_PIPELINE_SELECTION_H
#define ESP_PIPELINE_SELECTION_H

#include "pipeline/pipeline.h"

typedef struct esp_choice {
    bool linear;         /* a linear layer by name and shape */
    bool pruned;         /* takes `pattern`; otherwise the tensor is carried over as it is */
    esp_pattern pattern; /* as stored: V clamped to out */
    size_t stored_bytes;
    char note[96];
} esp_choice;

typedef struct esp_selection {
    esp_context *context;
    esp_choice *choices; /* one per tensor of the checkpoint */
    int64_t count;
} esp_selection;

/* "prune.glob_matches_nothing" for a rule that reaches no linear layer and for a skip that reaches
 * no tensor; "prune.already_compressed" for a chosen layer that is stored compressed. */
ESP_MUST_CHECK esp_status esp_select_layers(esp_context *context, const esp_checkpoint *source,
                                            const esp_prune_options *options,
                                            esp_selection *selection, esp_error *error);
void esp_selection_free(esp_selection *selection);

#endif
