/* assess.h - judging checkpoints and models: quality on text, and what a folder really holds. */
#ifndef ESPALIER_ASSESS_H
#define ESPALIER_ASSESS_H

#include <espalier/prune.h>
#include <espalier/vision.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- how sure an evaluation is ---- */

/* Sums over the tokens of one part of what was evaluated: a document or a window of a text, or an
 * image. */
typedef struct esp_eval_part {
    int64_t index;  /* of the document, window or image */
    int64_t tokens; /* 1 for an image */
    double nats, baseline_nats, kl;
    int64_t top1; /* of an image: 1 when its label is the first */
} esp_eval_part;
typedef void (*esp_eval_part_fn)(void *user, const esp_eval_part *part);

typedef struct esp_eval_parts {
    /* The text's documents one after the other, in bytes; their sum is the text's length
     * ("eval.bad_documents"). NULL: every window is a part. Images are parts themselves. */
    const size_t *document_bytes;
    int64_t document_count;
    int64_t resamples; /* of the parts; 0: no intervals */
    uint64_t seed;     /* of the resamples */
    esp_eval_part_fn on_part;
    void *user;
} esp_eval_parts;

typedef struct esp_interval {
    double low, high;
} esp_interval;

/* 95 % by the percentile bootstrap: as many parts as there are, drawn with replacement, each with
 * all its tokens, again and again; the values that 2.5 % of the resamples lie below and above. What
 * it leaves out is how much another calibration, or another model of the kind, would differ. */
typedef struct esp_eval_intervals {
    int64_t parts, resamples; /* 0: none were asked for */
    esp_interval nats;        /* a token or an image */
    esp_interval excess;      /* nats above the baseline's; with a baseline */
    esp_interval kl;          /* with a baseline */
    esp_interval top1;        /* of images */
} esp_eval_intervals;

/* ---- quality on text ---- */

typedef struct esp_eval_options {
    int64_t context; /* tokens of a window, the prefix (BOS) included; 0: min(model context, 512) */
    int64_t stride;  /* newly scored tokens of a window; 0: context - prefix (no overlap) */
    int64_t max_tokens; /* score only the first so many; 0: all */
    esp_eval_parts parts;
    esp_progress_fn progress;
    void *user;
} esp_eval_options;

typedef struct esp_eval_result {
    int64_t tokens;                  /* scored */
    size_t text_bytes;               /* of the scored tokens */
    int64_t context, stride, prefix; /* as used; prefix: BOS tokens at each window's start */
    double nats;                     /* sum of -ln p */
    double perplexity;               /* exp(nats / tokens) */
    double bits_per_byte;            /* nats / ln 2 / text_bytes */
    bool has_baseline;
    double baseline_perplexity;
    double mean_kl;        /* mean over tokens of KL(baseline || model), nats */
    double top1_agreement; /* share of positions where both prefer the same token */
    esp_eval_intervals intervals;
    double seconds;
} esp_eval_result;

/* Each token of the text is scored once. The text is tokenised without template; every window
 * starts with the template's prefix. baseline may be NULL; it must share the vocabulary. A token is
 * of the document in which its first byte lies. Intervals need two parts ("eval.one_part"). */
ESP_MUST_CHECK ESP_API esp_status esp_eval_text(const esp_model *model, const esp_model *baseline,
                                                const esp_tokenizer *tokenizer, const char *text,
                                                size_t length, const esp_eval_options *options,
                                                esp_eval_result *result, esp_error *error);

/* ---- retrieval by vectors of texts ---- */

typedef struct esp_retrieval_options {
    esp_progress_fn progress;
    void *user;
} esp_retrieval_options;

typedef struct esp_retrieval_scores {
    double recall_1,
        recall_10;          /* share of queries whose document is the first, among the first ten */
    double reciprocal_rank; /* mean of 1 / rank (MRR) */
} esp_retrieval_scores;

typedef struct esp_retrieval_result {
    int64_t pairs, tokens;
    int64_t cut_texts; /* longer than the model's context: their ends are left out */
    esp_retrieval_scores scores;
    bool has_baseline;
    esp_retrieval_scores baseline;
    double mean_cosine; /* between the two models' vectors of the same text */
    double seconds;     /* of the model's vectors */
} esp_retrieval_result;

/* Document i is the right one for query i; all documents are ranked by the cosine of the vectors.
 * The model must be an encoder; baseline may be NULL. */
ESP_MUST_CHECK ESP_API esp_status esp_eval_retrieval(
    const esp_model *model, const esp_model *baseline, const esp_tokenizer *tokenizer,
    const esp_text *queries, const esp_text *documents, int64_t pairs,
    const esp_retrieval_options *options, esp_retrieval_result *result, esp_error *error);

/* ---- multiple choice ---- */

/* Which ending goes on from the context is asked; `answer` is the right one, from 0. */
typedef struct esp_question {
    esp_text context;
    const esp_text *endings; /* none is empty; a space that parts words belongs to the ending */
    int count, answer;
} esp_question;

typedef struct esp_choice_options {
    esp_progress_fn progress;
    void *user;
} esp_choice_options;

typedef struct esp_choice_scores {
    int64_t right;            /* questions whose answer has the largest ln p */
    int64_t right_normalized; /* the largest ln p divided by bytes ("acc_norm") */
    double accuracy, accuracy_normalized;
} esp_choice_scores;

typedef struct esp_choice_result {
    int64_t questions, endings;
    int64_t cut_questions; /* longer than the model's context: their beginnings are left out */
    esp_choice_scores scores;
    bool has_baseline;
    esp_choice_scores baseline;
    double agreement; /* share of questions where both choose the same ending, by bytes */
    double seconds;   /* of the model */
} esp_choice_result;

/* Each question is asked of a decoder, from the template's prefix (BOS) on. baseline may be NULL;
 * it must share the tokenizer. "eval.bad_question". */
ESP_MUST_CHECK ESP_API esp_status esp_eval_choices(const esp_model *model,
                                                   const esp_model *baseline,
                                                   const esp_tokenizer *tokenizer,
                                                   const esp_question *questions, int64_t count,
                                                   const esp_choice_options *options,
                                                   esp_choice_result *result, esp_error *error);

/* ---- quality on images ---- */

/* Image `index` of a set; its pixels must stay until the next call. */
typedef esp_status (*esp_read_image_fn)(void *user, int64_t index, esp_image *image,
                                        esp_error *error);

typedef struct esp_image_set {
    int64_t count;
    const int64_t *labels; /* [count], of the model's; NULL: not known */
    esp_read_image_fn read;
    void *user;
} esp_image_set;

typedef struct esp_image_eval_options {
    int64_t batch; /* images at once, where they come out at one size; 0: 16 */
    esp_eval_parts parts;
    esp_progress_fn progress;
    void *user;
} esp_image_eval_options;

typedef struct esp_image_eval_result {
    int64_t images;
    /* Of a classifier with labels */
    int64_t top1, top5; /* images whose label is the first, among the first five */
    double nats;        /* mean of -ln p of the label */
    bool has_baseline;
    int64_t baseline_top1, baseline_top5;
    double mean_kl;        /* of a classifier: mean of KL(baseline || model), nats */
    double top1_agreement; /* of a classifier: share of images where both prefer the same label */
    /* All numbers of the result against the baseline's, image by image */
    double mean_cosine, least_cosine;
    double relative_error; /* root of (sum of squared differences / sum of squares), all images */
    double largest_error;
    esp_eval_intervals intervals; /* of a classifier */
    double seconds;
} esp_image_eval_result;

/* Runs each image of the set once. Labels are needed from a classifier ("eval.no_labels"). baseline
 * may be NULL; its results must have the model's shape ("eval.shape_differs"). */
ESP_MUST_CHECK ESP_API esp_status esp_eval_images(const esp_model *model, const esp_model *baseline,
                                                  const esp_image_processor *processor,
                                                  const esp_image_set *set,
                                                  const esp_image_eval_options *options,
                                                  esp_image_eval_result *result, esp_error *error);

/* ---- pruning that knows what layers read ---- */

typedef enum esp_method {
    ESP_METHOD_MAGNITUDE = 0, /* |w| */
    ESP_METHOD_SQUARE,        /* w^2 */
    ESP_METHOD_OBD,           /* ||x||^2 w^2 / 2 (LeCun et al., 1989) */
    ESP_METHOD_WANDA,         /* |w| ||x|| (Sun et al., arXiv 2306.11695) */
    ESP_METHOD_RIA,           /* relative importance and activations (Zhang et al., ICLR 2024) */
    ESP_METHOD_SPARSE_GPT,    /* with updates of what is kept (Frantar and Alistarh, 2301.00774) */
    ESP_METHOD_OBS,   /* V:2:M and free panels: columns by second order, one by one, with updates;
                         for other patterns SparseGPT */
    ESP_METHOD_JOINT, /* 2:4, V:2:M and free panels: columns and two of each four together, by the
                        least squares of all that is kept; for other patterns SparseGPT */
    ESP_METHOD_VENOM  /* V:2:M and 2:4: as SparseGPT, but columns and pairs of a group by the exact
                        second order of all that goes (Castro et al., arXiv 2310.02065), kept ones of
                        the group following, too; for other patterns SparseGPT */
} esp_method;

/* What the outputs of a pruned layer are to come near to, in SparseGPT and in a refit. */
typedef enum esp_targets {
    /* The dense model's; layers that add to the residual stream also make up for what the stream
     * has lost by then */
    ESP_TARGETS_STREAM = 0,
    ESP_TARGETS_DENSE, /* the dense model's */
    ESP_TARGETS_LAYER  /* those of the layer's own dense weights on the same inputs */
} esp_targets;

/* Seen once a pruned layer is done. Errors are |W X - Y|^2 / |Y|^2 over the calibration's tokens, Y
 * being the nearest outputs to the target that any weights give. */
typedef struct esp_calibrated_layer {
    const char *name;
    int64_t tokens, dead_inputs; /* features that are 0 at every token */
    double masked_error;         /* before the refit; equal to error without one */
    double error;                /* as stored */
    /* |W X - V X|^2 / |V X|^2, V being the layer's dense weights: what the layer does to what it
     * reads, whatever the target was */
    double own_error;
    int64_t iterations; /* of the refit; 0: none */
    double residual;    /* of the refit's rows, the largest, relative */
    /* What it took: second moments, of the first layer that reads them; the target; mask and values
     * by the method; the refit. 0 of what was not done, or was finished before */
    double moments_seconds, target_seconds, mask_seconds, refit_seconds;
} esp_calibrated_layer;
typedef void (*esp_calibrated_layer_fn)(void *user, const esp_calibrated_layer *layer);

typedef struct esp_calibration_options {
    /* One of them: text for decoders and encoders, images for models of images. */
    const char *text;
    size_t text_bytes;
    const esp_image_set *images;
    const char *source; /* what messages call them: a path; NULL: "the text", "the images" */
    esp_method method;
    /* Of WANDA and RIA: the power of ||x||; 0: 1 and 1/2, as their papers have it. WANDA by 2,
     * among all of the tensor, is torchao's. At most 8 */
    double norm_power;
    bool refit; /* least squares of the kept weights */
    /* V:2:M in steps that keep ever less, each refitted before the next is scored: 5, 4, 3 and 2 of
     * 8, from 7, 6, 4 and 4 columns of a panel. With refit, not with OBS and JOINT, which drop one
     * after the other anyway. Other patterns are pruned at once. */
    bool gradual;
    /* Values of attention are turned to the principal axes of what their output projection reads,
     * which leaves the model's outputs as they are and pruning it less to lose; where v has no bias
     * and both weights are pruned. Not with respect. */
    bool turn_values;
    bool respect;        /* zeros of the weights stay zeros; else many of them are refused */
    esp_targets targets; /* of SparseGPT and refit */
    /* Layers read what the dense model gives them, so that each is pruned, and judged, as if it
     * were the only one; targets are then the layer's own whatever `targets` says */
    bool dense_inputs;
    double damping;  /* added to H's diagonal, as a share of its mean; 0: 0.01 */
    int64_t tokens;  /* at most; 0: 65536 */
    int64_t context; /* tokens of a piece of text; 0: min(model context, 2048) */
    uint64_t seed;   /* of the choice where there is more than `tokens` */
    /* A folder for finished layers, made when there is one and removed when all are written. What
     * another run by the same options left there is not computed again, and the result is the same
     * as if it had been. NULL: none are kept. "calibrate.bad_state" */
    const char *state_dir;
    esp_calibrated_layer_fn on_layer;
    void *user;
} esp_calibration_options;

typedef struct esp_calibration_summary {
    int64_t samples, tokens; /* pieces of text or images; tokens of all */
    uint32_t data_crc32c;    /* of the samples as the model takes them: ids or pixels */
    int64_t widest_in;       /* input features of the widest layer */
    double tokens_per_input; /* tokens / widest_in */
    int recalled;            /* layers from state_dir */
    int turned_layers;       /* layers whose values were turned */
    double mean_error;       /* of the pruned layers */
    double median_error, median_masked_error, median_own_error;
    double damping;
    double norm_power;   /* of ||x|| in the scores; 0: they have none */
    int64_t dead_inputs; /* features that are 0 at every token, summed over the pruned layers */
    const char *algebra; /* "OpenBLAS", "plain loops", or of a GPU "cuBLAS and cuSOLVER" */
    char layers_on[16];  /* the device that ran the model's layers */
    double seconds;
} esp_calibration_summary;

/* "magnitude", "sparsegpt"; "stream"; never NULL. */
ESP_API const char *esp_method_name(esp_method method);
ESP_API const char *esp_targets_name(esp_targets targets);

/* esp_prune_checkpoint with masks and values found layer by layer: inputs are those of the model as
 * pruned so far. The result is the same each time on one machine with one number of threads, by
 * which the kernels that run the layers are chosen. Two copies of one layer are held, and the
 * activations of all samples at its beginning, dense and pruned. What no sample reaches (a pooler,
 * a classifier's head) stays dense. prune->mask: search and scope, the score is the method's. The
 * options, and what came of them, are recorded in the folder's marker. Refusals: "calibrate.*",
 * "model.*" and prune's. */
ESP_MUST_CHECK ESP_API esp_status esp_prune_calibrated(
    esp_device *device, const char *model_dir, const char *out_dir, const esp_prune_options *prune,
    const esp_calibration_options *options, esp_prune_summary *summary,
    esp_calibration_summary *calibration, esp_error *error);

/* esp_permutation_search by what weights cost the outputs that the samples give: w^2 / [H^-1]_jj,
 * of each layer as a share of all, H from the dense model. A new order counts only where the layers
 * that it touches, pruned anew in it by calibration's method on what the dense model gives them,
 * lose less of their outputs: every layer is pruned once at first, and then, in each round, once
 * for every space of orders that moved. For prune->permutation of esp_prune_calibrated with the
 * same samples. Memory: for all layers at once two bytes for each pair of inputs that a group of
 * layers reads and four for each weight, and the widest layer at work in f64. Of calibration,
 * targets, turn_values and on_layer are not looked at; permute's scores neither, and it may be
 * NULL. */
ESP_MUST_CHECK ESP_API esp_status esp_permutation_calibrate(
    esp_device *device, const char *model_dir, const esp_prune_options *prune,
    const esp_permute_options *permute, const esp_calibration_options *calibration,
    esp_permutation **permutation, esp_error *error);

/* ---- verify: what does this folder hold? ---- */

typedef struct esp_verify_layer {
    const char *name;
    esp_weight_info weight;
    int64_t zeros, negative_zeros, nans, infinities; /* of the decoded tensor */
    bool checked_crc32c;                             /* a checksum was there, and is right */
    /* Patterns that the zeros of a rank-2 weight fit, most specific first, e.g. "64:2:8, 2:4";
     * empty for none. For compressed weights: what is stored. */
    char fits[128];
    /* Patterns that this shape could take (multiples, sizes), or why none: for rank-2 weights. */
    char qualifies[160];
} esp_verify_layer;
typedef void (*esp_verify_fn)(void *user, const esp_verify_layer *layer);

typedef struct esp_verify_options {
    bool strict; /* NaN or infinity is an error ("model.not_finite"), not a warning */
    esp_verify_fn on_layer;
    esp_progress_fn progress;
    void *user;
} esp_verify_options;

typedef struct esp_verify_summary {
    int64_t tensors, weights;
    int64_t zeros, negative_zeros, nans, infinities;
    int64_t compressed_tensors;
    int64_t checksums; /* verified */
} esp_verify_summary;

/* Reads every tensor: file structure, format invariants, checksums, values. The first fault ends it
 * with the code of that fault. */
ESP_MUST_CHECK ESP_API esp_status esp_verify_checkpoint(esp_context *context, const char *path,
                                                        const esp_verify_options *options,
                                                        esp_verify_summary *summary,
                                                        esp_error *error);

#ifdef __cplusplus
}
#endif
#endif
