/* turn.h - the residual stream of a model turned to axes that pruning can do without: another dense
 * model that computes the same. */
#ifndef ESPALIER_TURN_H
#define ESPALIER_TURN_H

#include <espalier/assess.h>
#include <espalier/device.h>
#include <espalier/pattern.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct esp_turn_options {
    esp_pattern pattern; /* that layers are to be pruned by: how axes are dealt to its groups */
    /* Samples, of which axes are learned. Of it, method, targets, dense_inputs, refit, gradual,
     * turn_values, respect, damping, state_dir and on_layer are not looked at. */
    const esp_calibration_options *calibration;
    bool force;
    uint64_t shard_bytes;
    esp_progress_fn progress;
    void *user;
} esp_turn_options;

typedef struct esp_turn_summary {
    int64_t channels; /* of the residual stream */
    int64_t readers;  /* linear layers whose inputs were looked at */
    /* Of the outputs' square, mean over the readers: what the strongest quarter of the channels,
     * and of the axes, makes. */
    double strongest_channels, strongest_axes;
    bool untied; /* the output head was the embedding and is a tensor of its own now */
    size_t source_bytes, stored_bytes;
    double seconds;
} esp_turn_summary;

/* Writes a dense folder. With an orthogonal Q the residual stream x becomes Q x: embeddings and
 * what writes to the stream are turned by Q, what reads it by Q^T, norms' weights going into what
 * reads them, for RMSNorm without weights does not mind. Q's rows are the principal axes of what
 * the stream makes of its readers' outputs, dealt so that each group of neighbours has one of each
 * band of ranks. Weights are rounded to their type once more. A head that was the embedding can be
 * so no longer, because the last norm's weight goes into it alone.
 *
 * "turn.no_samples", "turn.no_rms_norm" (other architectures than Llama and Qwen2),
 * "turn.compressed", "turn.not_finite", "axes.*", "pattern.*", "permutation.unknown_tensor", and
 * what opening the folder as a model and calibrating it refuse. device: that the samples run on.
 * summary may be NULL. */
ESP_MUST_CHECK ESP_API esp_status esp_turn_checkpoint(esp_device *device, const char *model_dir,
                                                      const char *out_dir,
                                                      const esp_turn_options *options,
                                                      esp_turn_summary *summary, esp_error *error);

#ifdef __cplusplus
}
#endif
#endif
