/* advise.h - should a layer be pruned at all, and to what? Measured times of every candidate on
 * this device against what each would lose, and the best mix for a wanted gain. */
#ifndef ESPALIER_ADVISE_H
#define ESPALIER_ADVISE_H

#include <espalier/checkpoint.h>
#include <espalier/prune.h>
#include <espalier/tuning.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ESP_ADVISE_MAX_TOKENS 8 /* token counts of one question */

struct esp_calibration_options;

typedef struct esp_advise_options {
    const esp_pattern *patterns; /* candidates beside dense */
    int pattern_count;
    const int64_t *tokens; /* token counts that matter, each as much as the others */
    int token_count;       /* 1..ESP_ADVISE_MAX_TOKENS */
    double speedup;        /* wanted of all linear layers together; 0: no wish */
    double stored_share;   /* at most this share of their bytes; 0: no wish */
    double whole_speedup;  /* wanted of the whole model; 0: no wish. One of the three */
    bool whole;            /* time the whole dense model, too, and predict it with the mix */
    esp_compute compute;
    esp_mask_options mask; /* how masks are chosen whose loss is counted */
    /* Samples and method by which losses are found instead, layer by layer, on the inputs of the
     * dense model (<espalier/assess.h>); targets are not looked at. NULL: losses are the masks'. */
    const struct esp_calibration_options *calibration;
    int rounds; /* of a measurement; 0: as esp_tune */
    esp_progress_fn progress;
    void *user;
} esp_advise_options;

/* One way to hold a layer: a pattern, or dense. */
typedef struct esp_advised_way {
    esp_pattern pattern; /* as this shape stores it */
    bool possible;       /* some sparse kernel runs it, and it gets smaller; dense: true */
    const char *why_not; /* static text, where it is not */
    size_t stored_bytes;
    /* Share of the sum of squares of the weights that the mask drops, which is the relative error
     * of outputs for inputs that do not correlate; calibrated: the squared error of the outputs as
     * a share of their square, as pruned by the calibration's method. */
    double error;
    bool calibrated;
    double us[ESP_ADVISE_MAX_TOKENS];   /* of the faster kernel, sparse or dense, at each count */
    double gain[ESP_ADVISE_MAX_TOKENS]; /* dense over sparse in the same rounds; 0: no sparse one */
    const char *kernels[ESP_ADVISE_MAX_TOKENS]; /* of the faster one */
} esp_advised_way;

/* A linear layer. */
typedef struct esp_advised_layer {
    const char *name; /* of the weight, with ".weight" */
    int64_t out_features, in_features;
    esp_dtype dtype;
    const esp_advised_way *ways; /* [pattern_count + 1]: dense first */
    int chosen;                  /* index among ways; 0 without a wish */
} esp_advised_layer;

/* A mix of ways such that no other one is both faster (smaller) and loses less. */
typedef struct esp_advised_point {
    double speedup;       /* of all linear layers: mean over token counts of dense time over time */
    double stored_share;  /* of their bytes */
    double error;         /* mean of the layers' errors, weighted by their weights' number */
    double whole_speedup; /* of the whole model, predicted; the same mean. 0: not known */
    uint64_t model_bytes; /* of all tensors of the checkpoint */
} esp_advised_point;

/* The whole model at one token count: a decoder's step behind 128 tokens, or with more than one
 * token a prompt of so many; texts of up to 128 tokens; whole images. */
typedef struct esp_advised_whole {
    int64_t tokens;
    char why_not[256]; /* "": it was timed */
    double dense_us;   /* a run of the dense model, measured */
    /* What of it the listed layers take, as they were measured, but no more than all; and the rest,
     * which is taken to stay as it is when they are pruned. */
    double linear_us, other_us;
    double advised_us; /* with the mix that was chosen, predicted */
} esp_advised_whole;

/* One pattern for all layers that can have it, and what the paper's two-phase sifting makes of it
 * (Zhao et al., arXiv 2410.16135), by speeds that were measured here. */
typedef struct esp_advised_uniform {
    esp_pattern pattern;
    esp_advised_point point;
    /* ln of the number of masks that the pattern allows to all layers, 2:4 being M = 4; NAN of
     * patterns that are neither that nor V:2:M, which it does not compare with */
    double log_mask_diversity;
    bool reaches;  /* the wish */
    bool smallest; /* phase 1: it does, and no smaller M of the same V does */
    bool sifted;   /* phase 2: of these the one of the largest diversity */
} esp_advised_uniform;

typedef struct esp_advice esp_advice;

/* Reads each linear layer that prune would take, masks it with every pattern, and measures every
 * distinct shape on the device (esp_tune, whose times stay in the context's table). Dense
 * checkpoints only: "prune.already_compressed". "advise.bad_options"; "advise.out_of_reach", which
 * names what is possible, when no mix fulfils the wish; "advise.no_whole", where the wish is one of
 * the whole model, which cannot be timed. Of a drawn checkpoint each shape is masked once. */
ESP_MUST_CHECK ESP_API esp_status esp_advice_create(esp_device *device,
                                                    const esp_checkpoint *checkpoint,
                                                    const esp_advise_options *options,
                                                    esp_advice **advice, esp_error *error);
ESP_API void esp_advice_free(esp_advice *advice);
ESP_API int64_t esp_advice_layers(const esp_advice *advice);
ESP_API esp_advised_layer esp_advice_layer(const esp_advice *advice, int64_t index);
/* The mix that was chosen for the wish; without one: all dense. */
ESP_API esp_advised_point esp_advice_chosen(const esp_advice *advice);
/* Token count `index` of the options, in their order; zero times where options.whole is not set. */
ESP_API esp_advised_whole esp_advice_whole(const esp_advice *advice, int index);
/* Candidate `index` of the options. Without a wish nothing is sifted. */
ESP_API esp_advised_uniform esp_advice_uniform(const esp_advice *advice, int index);
/* Points from dense to the fastest (smallest) mix: writes at most capacity, returns how many there
 * are. */
ESP_API int esp_advice_frontier(const esp_advice *advice, esp_advised_point *points, int capacity);

#ifdef __cplusplus
}
#endif
#endif
