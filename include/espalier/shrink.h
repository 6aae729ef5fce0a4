/* shrink.h - structured pruning: a smaller dense model, without some of its hidden features and
 * heads. */
#ifndef ESPALIER_SHRINK_H
#define ESPALIER_SHRINK_H

#include <espalier/device.h>
#include <espalier/prune.h>

#ifdef __cplusplus
extern "C" {
#endif

struct esp_calibration_options;

typedef struct esp_shrink_options {
    double hidden; /* share of each feed-forward layer's hidden features to remove; [0, 1) */
    double heads;  /* of each attention's heads, whole groups that share keys and values; [0, 1) */
    int64_t multiple; /* hidden features that stay are a multiple of it; 0: 8 */
    /* Samples (<espalier/assess.h>): what goes is what costs outputs least, layer by layer, and the
     * weights that read the rest make up for it. Of it, method, refit, gradual, turn_values,
     * respect, state_dir and on_layer are not looked at. NULL: what goes has the least squares. */
    const struct esp_calibration_options *calibration;
    bool force;
    uint64_t shard_bytes;
    esp_progress_fn progress;
    void *user;
} esp_shrink_options;

typedef struct esp_shrink_summary {
    int64_t layers;
    int64_t hidden_before, hidden_after; /* of each layer */
    int64_t heads_before, heads_after, kv_heads_before, kv_heads_after;
    size_t source_bytes, stored_bytes;
    /* Of what reads the removed channels: the mean over the layers of the squared error of outputs
     * as a share of their square; without a calibration the share of squares that goes, of all
     * weights that lie along the channels. */
    double mean_loss;
    double seconds;
} esp_shrink_summary;

/* Writes a dense folder whose config.json says the new sizes. A hidden feature is a row of what
 * comes in (gate and up), its bias, and a column of what goes out (down); a head is rows of q, k
 * and v and columns of o. Every layer loses as many, because config.json has one number for all.
 *
 * "shrink.bad_options", "shrink.nothing" (the shares remove nothing), "shrink.no_heads"
 * (config.json of this architecture cannot say what size heads have), "shrink.no_hidden" (nor,
 * where it is timm's, any other size), "shrink.compressed", "shrink.uneven" (layers of different
 * sizes), "permutation.unknown_tensor", and what opening the folder as a model refuses. device:
 * that a calibration runs on. summary may be NULL. */
ESP_MUST_CHECK ESP_API esp_status esp_shrink_checkpoint(esp_device *device, const char *model_dir,
                                                        const char *out_dir,
                                                        const esp_shrink_options *options,
                                                        esp_shrink_summary *summary,
                                                        esp_error *error);

#ifdef __cplusplus
}
#endif
#endif
