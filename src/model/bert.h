/* BERT inside: weights of a loaded encoder and the scratch of one at work. */
#ifndef ESP_MODEL_BERT_H
#define ESP_MODEL_BERT_H

#include "model/family.h"

typedef struct esp_bert_config {
    int64_t vocabulary, hidden, intermediate, layers, heads, positions, types;
    float eps;
    unsigned activation; /* esp_epilogue */
} esp_bert_config;

typedef struct esp_bert_norm {
    float *weight, *bias; /* [hidden] */
} esp_bert_norm;

typedef struct esp_bert_layer {
    esp_group_layer attention;
    esp_bert_norm attention_norm;
    esp_linear up, down; /* the activation is up's */
    esp_bert_norm output_norm;
} esp_bert_layer;

/* esp_model.parts of this family. */
typedef struct esp_bert {
    esp_bert_config config;
    char prefix[8]; /* of the tensors' names: "" or "bert." */
    esp_packed *packed[3];
    esp_tensor words, positions, types; /* views of packed: [...][hidden] */
    esp_bert_norm norm;
    esp_bert_layer *layers;
} esp_bert;

/* What the host tells the device of a batch, in one piece of mail: the rows of the tables that each
 * column takes, where texts begin and how long they are. */
typedef struct esp_bert_mail {
    esp_mail mail;
    size_t step; /* bytes of each of the five lists */
} esp_bert_mail;

struct esp_embedder {
    const esp_model *model;
    const esp_bert *bert; /* its parts */
    int64_t max_tokens;   /* columns of a batch */
    int64_t max_texts;
    esp_lane lane;
    esp_taken taken;
    void *scratch; /* all the following, [features][max_tokens] each */
    void *x, *qkv, *mixed, *inner;
    void *workspace, *attention_workspace;
    size_t workspace_bytes;
    esp_plan_slot *plans; /* [linear layers][2] */
    esp_bert_mail mail;
    float *vectors; /* [max_texts][hidden]: of the device, where it is a far one */
    esp_observe_fn observe;
    void *observe_user;
};

/* config.json. "config.*" */
ESP_MUST_CHECK esp_status esp_bert_config_read(const esp_config_file *file, esp_bert_config *config,
                                               esp_error *error);
/* What a folder of sentence-transformers says beside config.json: pooling, whether vectors are
 * normalised, and a longest text, which shortens info->context. */
ESP_MUST_CHECK esp_status esp_sentence_config_read(esp_context *context, const char *folder,
                                                   esp_model_info *info, esp_error *error);

typedef struct esp_bert_batch {
    const int32_t *ids;
    const int64_t *lengths;
    int64_t texts, columns; /* columns: of all texts, each from a multiple of the step on */
    float *vectors;         /* [texts][hidden] */
} esp_bert_batch;

/* One batch through the network, and its vectors. */
ESP_MUST_CHECK esp_status esp_bert_forward(esp_embedder *embedder, const esp_bert_batch *batch,
                                           esp_error *error);

extern const esp_layer_net esp_bert_layers; /* bert.c */

#endif
