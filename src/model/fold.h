/* Which dimensions of which tensors follow which order of channels: what it takes to reorder
 * channels of a model without changing what it computes. */
#ifndef ESP_MODEL_FOLD_H
#define ESP_MODEL_FOLD_H

#include "model/family.h"
#include "prune/prune.h"

/* What runs along a dimension. */
typedef enum esp_channels {
    ESP_CHANNELS_STAY = 0, /* has an order that somebody outside knows */
    ESP_CHANNELS_RESIDUAL,
    ESP_CHANNELS_HIDDEN,  /* of a feed-forward layer */
    ESP_CHANNELS_QUERIES, /* [heads][head_dim] */
    ESP_CHANNELS_KEYS,    /* [kv_heads][head_dim] */
    ESP_CHANNELS_VALUES,  /* [kv_heads][head_dim] */
    ESP_CHANNELS_MIXED,   /* [heads][head_dim]: values as the output projection reads them */
    ESP_CHANNELS_QKV,     /* queries, keys, values behind each other, as many heads of each */
    ESP_CHANNELS_KINDS
} esp_channels;

#define ESP_FOLD_RANK 4

typedef struct esp_fold_rule {
    const char *name; /* '#' stands for the number of a layer */
    unsigned char channels[ESP_FOLD_RANK];
} esp_fold_rule;

/* A family's answer for a configured and prepared model. */
struct esp_fold {
    const esp_fold_rule *rules;
    int rule_count;
    const char *prefix; /* of every name in rules; optional where none matches with it */
    int64_t layers, heads, kv_heads, head_dim;
    bool positions_in_heads; /* queries and keys are turned or looked up by channel: they stay */
    bool residual_is_output;
    /* Where config.json says how many there are; NULL: it cannot (heads whose size is hidden_size
     * over their number). section: the member that holds these keys; NULL: the file itself. */
    const char *section, *hidden_key, *heads_key, *kv_heads_key, *head_dim_key;
};

/* NULL: none knows the tensor. *layer: what '#' stands for, -1 without one. */
const esp_fold_rule *esp_fold_rule_of(const esp_fold *fold, const char *name, int64_t *layer);

/* The orders of a checkpoint's channels. */
typedef struct esp_fold_plan {
    esp_permutation *permutation; /* every tensor bound to its axes, all in the old order */
    esp_space *spaces; /* what of them is free: the residual stream, then layer by layer */
    int space_count;
} esp_fold_plan;

/* model: an outline. "permutation.unknown_tensor", "permutation.wrong_shape". keep_residual: there
 * is no space of it. plan is to be freed after success only. */
ESP_MUST_CHECK esp_status esp_fold_make(const esp_model *model, const esp_checkpoint *checkpoint,
                                        bool keep_residual, esp_fold_plan *plan, esp_error *error);
void esp_fold_plan_free(esp_context *context, esp_fold_plan *plan);

/* fold_rules.c */
extern const esp_fold_rule esp_llama_fold[], esp_bert_fold[], esp_vit_fold[], esp_timm_fold[],
    esp_sam_fold[], esp_sam_original_fold[];
extern const int esp_llama_fold_count, esp_bert_fold_count, esp_vit_fold_count, esp_timm_fold_count,
    esp_sam_fold_count, esp_sam_original_fold_count;

#endif
