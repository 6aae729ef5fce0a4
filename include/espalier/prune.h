/* prune.h - choosing which weights live: masks for one tensor, and whole checkpoints. */
#ifndef ESPALIER_PRUNE_H
#define ESPALIER_PRUNE_H

#include <espalier/sparse.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum esp_score {
    ESP_SCORE_ABS = 0, /* |w|  */
    ESP_SCORE_SQUARE   /* w^2 */
} esp_score;

/* How V:N:M picks four columns of each group. Free panels take, per panel, the better of the
 * columns of largest summed score and of such a search over neighbouring columns (GREEDY: the
 * former alone; JOINT goes on from there). */
typedef enum esp_search {
    ESP_SEARCH_AUTO = 0, /* exact for M <= 10, swaps above */
    ESP_SEARCH_GREEDY,   /* the four columns of largest summed score over the panel's rows */
    ESP_SEARCH_EXACT,    /* the quadruple that retains most after 2-of-4; M <= 10 */
    ESP_SEARCH_SWAPS, /* greedy, then replace one kept column by a dropped one while that gains */
    ESP_SEARCH_JOINT /* free panels: from AUTO's lists, exchange columns with those that are dropped
                      * and between the fours, by assignments; else as AUTO */
} esp_search;

/* Among what the weights of unstructured@s compete. */
typedef enum esp_scope {
    ESP_SCOPE_TENSOR = 0,
    ESP_SCOPE_ROW /* each row keeps as many; the first rows one more where it does not divide */
} esp_scope;

typedef struct esp_mask_options {
    esp_score score;
    esp_search search;
    esp_scope scope;
    /* V:2:M and panel:V@S: group rows in panels so that these keep more; the mask carries the order
     * of the rows, and the weight stores it. No other tensor is touched; a kernel scatters rows. */
    bool regroup;
} esp_mask_options;

typedef struct esp_mask_report {
    int64_t weights;        /* out * in */
    int64_t kept;           /* live entries of the mask */
    double sparsity;        /* 1 - kept / weights */
    double retained_energy; /* sum of w^2 kept / sum of w^2; 1 for an all-zero tensor */
    double
        log_mask_diversity; /* V:N:M: ln of the number of masks that the pattern allows; else NAN */
} esp_mask_report;

/* dense: [out][in] F32/F16/BF16, any alignment. Equal scores keep the lowest index; NaN scores
 * above everything, so that it is never hidden. options NULL: |w|, auto. report may be NULL.
 * Blocks, rows and columns are kept by their mean score over real weights, and as many of them (of
 * entries for unstructured@s) as docs/formats.md says that the pattern stores.
 * V:N:M: Zhao et al., "Beyond 2:4" (arXiv 2410.16135) for greedy; VENOM (2310.02065) for exact. */
ESP_MUST_CHECK ESP_API esp_status esp_prune_mask(esp_context *context, const esp_tensor *dense,
                                                 const esp_pattern *pattern,
                                                 const esp_mask_options *options, esp_mask **mask,
                                                 esp_mask_report *report, esp_error *error);

/* ---- other masks of one tensor ---- */

typedef enum esp_norm { ESP_NORM_L2 = 0 /* w^2 */, ESP_NORM_L1 /* |w| */ } esp_norm;

/* PyTorch's WeightNormSparsifier (torch.ao.pruning): which blocks are sparse at all, and how many
 * zeros each of those has. */
typedef struct esp_weight_norm_options {
    double level; /* share of blocks; <= 0: none, >= 1: all, else never the last one */
    int64_t block_rows, block_cols; /* 1..65536 */
    int64_t zeros_per_block;        /* 0..block_rows * block_cols; -1: whole blocks */
    esp_norm norm;
} esp_weight_norm_options;
#define ESP_WEIGHT_NORM_DEFAULTS                                                                   \
    {                                                                                              \
        0.5, 1, 4, -1, ESP_NORM_L2                                                                 \
    }

/* An entry lives when the tensor mask or the block mask keeps it. The tensor mask drops the
 * round(level * blocks) (halves to even) blocks of lowest mean score, edge blocks averaging their
 * real weights, but never the last block unless level >= 1. The block mask, which exists when
 * zeros_per_block is less than a block, drops the zeros_per_block lowest scores of every block;
 * what an edge block lacks scores highest. Equal on tie-free input whose blocks divide the shape;
 * our rules elsewhere: equal scores keep the lowest index, NaN scores highest, the mask has the
 * shape of the weight. previous: entries dropped by the step before score 0 (NULL: none), so that
 * steps in a row rank the already masked weight. options NULL: the defaults. ESP_BAD_ARGUMENT
 * "prune.bad_level", "prune.bad_block", "prune.bad_score", "prune.bad_tensor". */
ESP_MUST_CHECK ESP_API esp_status esp_weight_norm_mask(esp_context *context,
                                                       const esp_tensor *dense,
                                                       const esp_weight_norm_options *options,
                                                       const esp_mask *previous, esp_mask **mask,
                                                       esp_error *error);
/* Zhu and Gupta, "To prune, or not to prune" (arXiv 1710.01878): sf + (s0 - sf) * (1 - (t - t0) /
 * (n
 * * dt))^3, held between s0 and sf; sf when n * dt <= 0. */
ESP_API double esp_cubic_sparsity(double s0, double sf, int64_t t, int64_t t0, int64_t n,
                                  int64_t dt);

typedef enum esp_two_way_method {
    ESP_TWO_WAY_GREEDY = 0, /* largest |w| first, while its row and its column have room */
    ESP_TWO_WAY_EXACT       /* the best sum of |w| among the 90 masks of a tile */
} esp_two_way_method;

/* Two of four along rows and along columns: every 4 x 4 tile keeps exactly two entries of each row
 * and column, so that the weight and its transpose are both 2:4 (Hubara et al., arXiv 2102.08124).
 * Greedy takes equal |w| in row-major order; when it ends with seven entries, one row and one
 * column lacking one, the exchange that keeps most gives both their second (lowest row, then
 * column, of equal ones). Exact takes the first of equal masks, ordered by the columns of row 0,
 * then row 1, ... (01, 02, 03, 12, 13, 23). Tiles at the edge are completed by zeros and cut off
 * again, so their rows and columns may keep fewer. NaN counts as the largest. */
ESP_MUST_CHECK ESP_API esp_status esp_two_way_mask(esp_context *context, const esp_tensor *dense,
                                                   esp_two_way_method method, esp_mask **mask,
                                                   esp_error *error);

/* ---- whole checkpoints: tensor by tensor, peak memory about four times the largest tensor ---- */

/* What was (or, in a dry run, would be) done with one tensor. */
typedef struct esp_layer_report {
    const char *name;
    int64_t out_features, in_features; /* 0 for tensors that are not rank-2 linear weights */
    esp_dtype dtype;
    bool pruned;
    esp_pattern pattern; /* as it is stored: V clamped to out */
    const char *note;    /* why it stays dense, or that V was clamped; "" otherwise */
    size_t dense_bytes;
    size_t stored_bytes;
    esp_mask_report mask; /* zero in a dry run */
} esp_layer_report;
typedef void (*esp_layer_report_fn)(void *user, const esp_layer_report *layer);

/* A glob ('*', '?', '[...]', over the whole tensor name, with or without ".weight") and what it
 * gets. */
typedef struct esp_pattern_rule {
    const char *glob;
    esp_pattern pattern;
    const char *source; /* where messages say that it comes from: a file's path; may be NULL */
} esp_pattern_rule;

/* Orders of channels in which the chosen patterns keep more (esp_permutation_search). */
typedef struct esp_permutation esp_permutation;

typedef struct esp_permutation_summary {
    int orders, moved_orders; /* orders of channels that are free; those that are new */
    int64_t moved_channels;
    /* Summed scores that live over all, of the layers that gain by an order, before and after. */
    double kept_before, kept_after;
    /* Where steps were judged by errors: layers, and the mean of their errors before and after. */
    int64_t judged_layers;
    double error_before, error_after;
} esp_permutation_summary;
ESP_API void esp_permutation_get_summary(const esp_permutation *permutation,
                                         esp_permutation_summary *summary);
ESP_API void esp_permutation_free(esp_permutation *permutation);

typedef struct esp_prune_options {
    esp_pattern pattern;           /* for every linear layer that no rule or skip names, but
                                      classifier heads and poolers, which then stay dense */
    const esp_pattern_rule *rules; /* the first match wins */
    int rule_count;
    const char *const *skips; /* globs that stay dense; skips win over rules */
    int skip_count;
    esp_mask_options mask;
    const esp_permutation *permutation; /* of this model: its tensors are reordered; NULL: not */
    bool dry_run;                       /* report only; out_dir is not touched and may be NULL */
    bool force;                         /* replace out_dir if it is a folder made by espalier */
    uint64_t shard_bytes;               /* tensor bytes of one file, at most; 0: all in one file */
    esp_layer_report_fn on_layer;
    esp_progress_fn progress;
    void *user; /* for both callbacks */
} esp_prune_options;

typedef struct esp_prune_summary {
    int layers, pruned_layers;
    int64_t pruned_weights;     /* weights of pruned layers before pruning */
    size_t source_bytes;        /* all tensors of the source */
    size_t stored_bytes;        /* all tensors as stored */
    size_t pruned_source_bytes; /* the pruned layers alone */
    size_t pruned_stored_bytes;
    double mask_seconds; /* time spent choosing masks: pruned_weights / this = weights per second */
    double total_seconds;
} esp_prune_summary;

/* Reads the Hugging Face style folder model_dir, prunes the linear layers and writes the compressed
 * folder out_dir (whole or not at all). A glob that matches nothing is ESP_BAD_ARGUMENT
 * "prune.glob_matches_nothing". Layers that are compressed already are refused with
 * "prune.already_compressed". summary may be NULL. */
ESP_MUST_CHECK ESP_API esp_status esp_prune_checkpoint(esp_context *context, const char *model_dir,
                                                       const char *out_dir,
                                                       const esp_prune_options *options,
                                                       esp_prune_summary *summary,
                                                       esp_error *error);

/* ---- permutation: which channels share a panel and a group is free where nothing outside sees the
 * order; the model computes the same, and the new order costs nothing when it runs ---- */

/* Scores of a weight, [out][in], not negative: what makes it worth keeping. dense is as stored. */
typedef esp_status (*esp_scores_fn)(void *user, const char *name, const esp_tensor *dense,
                                    float *scores, esp_error *error);

/* The error that a layer's outputs have once it is pruned to `pattern` in the orders of now. */
typedef esp_status (*esp_order_error_fn)(void *user, const char *name, const esp_pattern *pattern,
                                         const esp_permutation *orders, double *layer_error,
                                         esp_error *error);

typedef struct esp_permute_options {
    esp_scores_fn scores;   /* NULL: as prune's options say, |w| or w^2 */
    const char *score_name; /* for the record, with `scores` */
    void *score_user;
    /* By which a new order counts: only where the sum over the layers that it touches falls. The
     * search itself goes by scores. NULL: what scores keep decides. */
    esp_order_error_fn order_error;
    void *error_user;
    int rounds;         /* over all orders; 0: 2 */
    bool keep_residual; /* leave the order of the residual stream as it is */
    esp_progress_fn progress;
    void *user;
} esp_permute_options;

/* Looks for orders in which the patterns that prune would give this model's layers (2:4, V:2:M and
 * panel:V@S) keep more: Zhao et al., "Beyond 2:4" (arXiv 2410.16135). Kept together by the rules of
 * the architecture: the hidden channels of a feed-forward layer; values and the columns that mix
 * them, within a head; queries and keys within a head, where no rotary or relative positions depend
 * on their order; whole heads; the residual stream, unless it is the model's output. A new order is
 * taken only where more is kept. Memory: four bytes for each weight that is to be pruned.
 *
 * "permutation.compressed", "permutation.no_pattern", "permutation.unknown_tensor" (a tensor of
 * which the architecture does not say whether it follows an order), and what opening the folder as
 * a model refuses. options NULL: the defaults. */
ESP_MUST_CHECK ESP_API esp_status esp_permutation_search(
    esp_context *context, const char *model_dir, const esp_prune_options *prune,
    const esp_permute_options *options, esp_permutation **permutation, esp_error *error);

typedef enum esp_convert_target {
    ESP_CONVERT_COMPRESS =
        0,             /* dense folder whose zeros already fit options.pattern -> compressed */
    ESP_CONVERT_DENSE, /* compressed folder -> dense with zeros, loads in transformers */
    /* compressed-tensors' forms, from a dense folder with zeros or a compressed one */
    ESP_CONVERT_SPARSE_24_BITMASK, /* layers must be 2:4 */
    ESP_CONVERT_SPARSE_BITMASK     /* any zeros; layers that would not get smaller stay dense */
} esp_convert_target;

/* Changes a folder's form without choosing masks. COMPRESS refuses ("convert.does_not_fit", naming
 * layer and place) a layer that prune would have taken by options but whose zeros do not fit; so
 * does SPARSE_24_BITMASK, which leaves classifier heads and poolers dense, and what a compressed
 * source holds dense, unless a rule says 2:4; its rules are 2:4 or dense, SPARSE_BITMASK has none
 * ("convert.bad_rule"). Of options, mask, permutation and dry_run are ignored, for the bitmasks
 * pattern too, and for DENSE also rules and skips. */
ESP_MUST_CHECK ESP_API esp_status esp_convert_checkpoint(
    esp_context *context, const char *model_dir, const char *out_dir, esp_convert_target target,
    const esp_prune_options *options, esp_prune_summary *summary, esp_error *error);

#ifdef __cplusplus
}
#endif
#endif
