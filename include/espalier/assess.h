/* assess.h - judging checkpoints and models: quality on text, and what a folder really holds. */
#ifndef ESPALIER_ASSESS_H
#define ESPALIER_ASSESS_H

#include <espalier/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- quality on text ---- */

typedef struct esp_eval_options {
    int64_t context; /* tokens of a window, the prefix (BOS) included; 0: min(model context, 512) */
    int64_t stride;  /* newly scored tokens of a window; 0: context - prefix (no overlap) */
    int64_t max_tokens; /* score only the first so many; 0: all */
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
    double seconds;
} esp_eval_result;

/* Each token of the text is scored once. The text is tokenised without template; every window
 * starts with the template's prefix. baseline may be NULL; it must share the vocabulary. */
ESP_MUST_CHECK ESP_API esp_status esp_eval_text(const esp_model *model, const esp_model *baseline,
                                                const esp_tokenizer *tokenizer, const char *text,
                                                size_t length, const esp_eval_options *options,
                                                esp_eval_result *result, esp_error *error);

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
