/* Copies a checkpoint tensor by tensor, changing those that a selection names. */
#ifndef ESP_PIPELINE_REWRITE_H
#define ESP_PIPELINE_REWRITE_H

#include "pipeline/selection.h"
#include "prune/prune.h"

/* Turns one chosen dense weight into its stored form, or leaves *sparse NULL when the writer does
 * so itself; fills report as far as it knows it. */
typedef struct esp_rewrite esp_rewrite;
typedef esp_status (*esp_encode_fn)(esp_rewrite *rewrite, esp_choice *choice,
                                    const esp_weight_info *weight, const esp_tensor *dense,
                                    esp_sparse **sparse, esp_mask_report *report, esp_error *error);

struct esp_rewrite {
    esp_context *context;
    const esp_checkpoint *source;
    esp_selection *selection; /* notes are added to it */
    const esp_prune_options *options;
    const char *what;     /* for the progress display */
    esp_encode_fn encode; /* for chosen tensors; NULL: nothing is read or written (dry run) */
    esp_folder_form form; /* of the target */
    bool decode_rest; /* tensors that are not chosen are written dense, else as they are stored */
    const int64_t *order;         /* of all tensors; NULL: as they come */
    const esp_layer_maker *maker; /* for encode */
    esp_prune_summary summary;
};

/* Runs it. out_dir appears whole or not at all; it is not looked at in a dry run. */
ESP_MUST_CHECK esp_status esp_rewrite_run(esp_rewrite *rewrite, const char *out_dir,
                                          esp_error *error);

#endif
