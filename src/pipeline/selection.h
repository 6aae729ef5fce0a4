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
 * no tensor; "prune.already_compressed" for a chosen layer that is stored compressed in our form.
 */
ESP_MUST_CHECK esp_status esp_select_layers(esp_context *context, const esp_checkpoint *source,
                                            const esp_prune_options *options,
                                            esp_selection *selection, esp_error *error);
/* bitmask_selection.c: what a folder in a foreign form stores compressed. Reads the weights of
 * sparse-bitmask, whose sizes depend on them. */
ESP_MUST_CHECK esp_status esp_select_for_bitmask(esp_context *context, const esp_checkpoint *source,
                                                 esp_folder_form form,
                                                 const esp_prune_options *options,
                                                 esp_selection *selection, esp_error *error);
/* Parts of the above: "prune.glob_matches_nothing"; whether a skip names the tensor; the rule that
 * does, or NULL; the choice to leave it. */
ESP_MUST_CHECK esp_status esp_selection_check_globs(const esp_checkpoint *source,
                                                    const esp_prune_options *options,
                                                    esp_error *error);
bool esp_selection_skips(const esp_prune_options *options, const char *name);
const esp_pattern_rule *esp_selection_rule(const esp_prune_options *options, const char *name);
void esp_choice_stay_dense(esp_choice *choice, const esp_weight_info *weight, const char *note);
void esp_selection_free(esp_selection *selection);

#endif
