/* Calibrated pruning inside: a model walked layer by layer in two copies, the dense one and the one
 * that is pruned on the way, over the same samples. */
#ifndef ESP_ASSESS_CALIBRATE_H
#define ESP_ASSESS_CALIBRATE_H

#include "assess/assess.h"
#include "model/model.h"
#include "pipeline/pipeline.h"
#include "prune/prune.h"

/* A batch on its way: where it is now in both models. */
typedef struct esp_walked_batch {
    esp_walk_batch batch; /* ids are owned; pixels are gone */
    int64_t tokens;
    void *dense, *pruned; /* streams of the walks */
} esp_walked_batch;

/* A linear layer of the model's layers. */
typedef struct esp_calibrated_linear {
    int64_t index; /* of its weight in the checkpoint */
    int64_t layer;
    const char *name; /* of the checkpoint, with ".weight" */
    int group;        /* of the linear layers of its layer that read the same; -1: not known yet */
    bool pruned;
    double error, masked_error, own_error; /* once pruned */
} esp_calibrated_linear;

/* What the layers of one group read, and what they should make of it. */
typedef struct esp_group_inputs {
    int64_t layer;
    int group;       /* -1: none */
    int64_t in, out; /* out: of the residual's, 0: no such */
    int64_t tokens;
    double *gram;     /* [in][in]: of the pruned model's inputs; damped once summed */
    double *cross;    /* [in][in]: dense inputs times pruned inputs; NULL: not asked for */
    double *residual; /* [out][in]: (dense - pruned residual) times pruned inputs; NULL: none */
    double *inverse;  /* [in][in]: of gram; NULL: not needed yet */
    double damping;   /* that was added to the diagonal */
    int64_t dead;     /* inputs that are always 0 */
} esp_group_inputs;

typedef struct esp_turning esp_turning;

typedef struct esp_calibration {
    esp_context *context;
    esp_device *device; /* that runs the layers */
    esp_device *host;   /* opened for layers that the device of the algebra cannot run, or NULL */
    esp_checkpoint *checkpoint;
    const esp_prune_options *prune;
    const esp_calibration_options *options;
    esp_algebra *algebra;
    esp_walk *dense, *pruned;
    esp_walked_batch *samples;
    int64_t sample_count;
    esp_calibrated_linear *linears; /* in the order of the walk */
    int64_t linear_count;
    bool looks_only;   /* nothing is pruned: the dense walk stays where it is */
    bool judges;       /* errors are wanted whatever the method looks at */
    bool host_will_do; /* where the device has no algebra */
    int64_t layer;     /* that the walks hold; -1: none */
    esp_group_inputs inputs;
    esp_turning *turning; /* NULL: nothing is turned */
    double *layer_room;   /* of the layer that is pruned, [layer_doubles]; calibrate_layer.c */
    size_t layer_doubles;
    uint32_t state_chain; /* of the file of the latest layer, where finished layers are kept */
    int recalled;         /* layers that were finished before */
    double done, total;   /* weights, for the progress */
    double error_sum;
    int64_t pruned_count;
    esp_calibration_summary summary;
} esp_calibration;

/* calibrate.c: what a caller may have asked wrongly; opening checks it, too. */
ESP_MUST_CHECK esp_status esp_calibration_check(const esp_calibration_options *options,
                                                esp_error *error);
/* Algebra, samples and the list of layers; close after a failure too. */
ESP_MUST_CHECK esp_status esp_calibration_open(esp_calibration *calibration, const char *model_dir,
                                               esp_error *error);
void esp_calibration_close(esp_calibration *calibration);
/* Of a weight in the checkpoint; NULL: no sample reaches it. */
esp_calibrated_linear *esp_calibration_linear(const esp_calibration *calibration, int64_t index);

/* From now on the pruned model runs the linear layer, named with ".weight", by these weights. */
ESP_MUST_CHECK esp_status esp_calibration_replace(esp_calibration *calibration, const char *name,
                                                  const esp_tensor *values, esp_error *error);

/* calibrate_data.c: walks, samples and their embeddings. */
ESP_MUST_CHECK esp_status esp_calibration_load(esp_calibration *calibration, const char *model_dir,
                                               esp_error *error);
void esp_calibration_drop(esp_calibration *calibration);

/* calibrate_inputs.c */

/* Brings both models to `layer`, the layers before it having been pruned. */
ESP_MUST_CHECK esp_status esp_calibration_advance(esp_calibration *calibration, int64_t layer,
                                                  esp_error *error);
/* calibration->inputs becomes that of a linear layer of the present layer. */
ESP_MUST_CHECK esp_status esp_calibration_collect(esp_calibration *calibration,
                                                  const esp_calibrated_linear *linear,
                                                  esp_error *error);
void esp_group_inputs_free(const esp_calibration *calibration, esp_group_inputs *inputs);
/* Where a device does the algebra: what calibration->inputs hold goes there as it is now, once for
 * all layers; and a device's copies are given up. */
ESP_MUST_CHECK esp_status esp_calibration_hold(const esp_calibration *calibration,
                                               esp_error *error);
void esp_calibration_let_go(const esp_calibration *calibration, const esp_group_inputs *inputs);
/* "cancelled" when the caller of it all says so; share: of the present tensor's work. */
ESP_MUST_CHECK esp_status esp_calibration_step(const esp_calibration *calibration, double share,
                                               double weights, esp_error *error);

/* calibrate_layer.c: mask and values of one layer from calibration->inputs. */
ESP_MUST_CHECK esp_status esp_calibration_prune(esp_calibration *calibration,
                                                const esp_calibrated_linear *linear,
                                                const esp_pattern *pattern, esp_tensor *values,
                                                esp_mask **mask, esp_calibrated_layer *report,
                                                esp_error *error);
/* Units of columns that a layer does without (esp_unit_obs): kept [keep], ascending. */
typedef struct esp_unit_choice {
    int64_t units, width, keep;
    uint32_t *kept;
} esp_unit_choice;
/* values: the weights, to become those of what is kept, 0 elsewhere. */
ESP_MUST_CHECK esp_status esp_calibration_remove(esp_calibration *calibration,
                                                 const esp_calibrated_linear *linear,
                                                 const esp_unit_choice *units, esp_tensor *values,
                                                 esp_calibrated_layer *report, esp_error *error);
/* Sums X X^T of what a layer reads in the dense model, over the first samples; gram: [in][in]. */
ESP_MUST_CHECK esp_status esp_calibration_dense_moments(esp_calibration *calibration,
                                                        const esp_calibrated_linear *linear,
                                                        int64_t most_samples, double *gram,
                                                        esp_error *error);

/* What messages call the samples. */
static inline const char *esp_calibration_source(const esp_calibration_options *options)
{
    return options->source != NULL   ? options->source
           : options->images != NULL ? "the images"
                                     : "the text";
}

/* calibrate_weights.c. That all are numbers, "calibrate.not_finite". zeros: the share of them;
 * NULL: nobody asks. */
ESP_MUST_CHECK esp_status esp_calibration_check_weights(const esp_calibration *calibration,
                                                        const esp_tensor *values, double *zeros,
                                                        esp_error *error);
/* And that the model is a dense one, or its zeros are to stay: "calibrate.already_pruned". */
ESP_MUST_CHECK esp_status esp_calibration_check_dense(const esp_calibration *calibration,
                                                      const esp_tensor *values, esp_error *error);
/* The first of the second moments that were summed. */
ESP_MUST_CHECK esp_status esp_calibration_check_inputs(const esp_calibration *calibration,
                                                       esp_error *error);

/* Neighbours that a pattern picks from together: how axes are dealt (esp_deal_ranks). */
static inline int64_t esp_turn_group(const esp_pattern *pattern)
{
    if (pattern->kind == ESP_PATTERN_NM) {
        return pattern->group;
    }
    return pattern->kind == ESP_PATTERN_PANEL && pattern->m > 0 ? pattern->m : 4;
}

/* calibrate_orders.c: refuses what the machine has no memory for; available 0: nobody knows. */
ESP_MUST_CHECK esp_status esp_orders_check_memory(double bytes, uint64_t available,
                                                  esp_error *error);

/* calibrate_turn.c: values of attention; nothing is done without options->turn_values. */
ESP_MUST_CHECK esp_status esp_calibration_turn_open(esp_calibration *calibration, esp_error *error);
void esp_calibration_turn_close(esp_calibration *calibration);
/* How many layers are. */
int esp_calibration_turned(const esp_calibration *calibration);
/* weights: [out][in] of the layer, as they were. */
ESP_MUST_CHECK esp_status esp_calibration_turn_weights(esp_calibration *calibration,
                                                       const esp_calibrated_linear *linear,
                                                       int64_t out, int64_t in, double *weights,
                                                       esp_error *error);
/* cross of calibration->inputs: the dense inputs become those of the turned layer. May be NULL. */
ESP_MUST_CHECK esp_status esp_calibration_turn_inputs(esp_calibration *calibration,
                                                      const esp_calibrated_linear *linear,
                                                      double *cross, esp_error *error);

/* calibrate_state.c: finished layers in options->state_dir; nothing is done where that is NULL. */
#define ESP_STATE_KEY 1024
ESP_MUST_CHECK esp_status esp_calibration_state_check(const esp_calibration *calibration,
                                                      esp_error *error);
/* values, *mask and *report of a layer that was finished before; else *mask stays NULL, and key is
 * for remembering the layer. values: as they were. */
ESP_MUST_CHECK esp_status esp_calibration_recall(esp_calibration *calibration,
                                                 const esp_calibrated_linear *linear,
                                                 const esp_pattern *pattern, esp_tensor *values,
                                                 esp_mask **mask, esp_calibrated_layer *report,
                                                 char key[ESP_STATE_KEY], esp_error *error);
ESP_MUST_CHECK esp_status esp_calibration_remember(esp_calibration *calibration,
                                                   const esp_calibrated_linear *linear,
                                                   const char *key, const esp_tensor *values,
                                                   const esp_mask *mask,
                                                   const esp_calibrated_layer *report,
                                                   esp_error *error);
void esp_calibration_state_drop(const esp_calibration *calibration);

/* H^-1 of calibration->inputs, once for all layers that read the same. */
ESP_MUST_CHECK esp_status esp_calibration_invert(esp_calibration *calibration, esp_error *error);
/* Whether a method looks at more than the weights. */
bool esp_calibration_looks(const esp_calibration_options *options);
/* Whether it looks at what the dense model reads, too. */
bool esp_calibration_looks_at_dense(const esp_calibration_options *options);

#endif
