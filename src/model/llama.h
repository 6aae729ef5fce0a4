/* Decoders of the Llama family inside: weights of a loaded model and the state of a session. */
#ifndef ESP_MODEL_LLAMA_H
#define ESP_MODEL_LLAMA_H

#include "model/config.h"
#include "model/family.h"

typedef struct esp_llama_layer {
    float *input_norm, *post_attention_norm; /* [hidden] */
    esp_attention_layer attention;
    esp_mlp_layer mlp;
} esp_llama_layer;

/* esp_model.parts of this family. */
typedef struct esp_llama {
    esp_llama_config config;
    esp_packed *embedding;
    esp_tensor table; /* view of embedding: [vocabulary][hidden] */
    esp_llama_layer *layers;
    float *norm;        /* [hidden] */
    esp_linear head;    /* when tied its weight is `embedding`, held once */
    float *frequencies; /* [head_dim / 2] */
} esp_llama;

/* What the host tells the device of a batch, in one piece of mail. */
typedef struct esp_llama_mail {
    esp_mail mail;
    size_t positions_at, last_at, places_at; /* bytes; ids are first */
} esp_llama_mail;

struct esp_session {
    const esp_model *model;
    const esp_llama *llama; /* its parts */
    int64_t capacity, max_batch, length;
    esp_lane lane;
    esp_taken taken;
    void *cache;        /* [layers][keys, values][kv_heads][capacity][head_dim] */
    int64_t cache_step; /* elements of one layer's keys */
    int64_t cached;     /* layers that the cache is of: all, or 1 where they run alone */
    void *scratch;      /* all the following, [features][max_batch] each */
    void *x, *normed, *qkv, *mixed, *inner;
    float *cosines, *sines;
    esp_known_moments moments; /* of x, or of `last` */
    void *last;                /* [hidden]: of the last token, behind the last layer or its norm */
    void *workspace, *attention_workspace;
    size_t workspace_bytes;
    esp_plan_slot *plans; /* [linear layers][2] */
    esp_llama_mail mail;  /* ids, positions, places of [layers][tokens] */
    void **workspaces;    /* [max_batch], host memory: of sequences that take a step together */
    float *logits;        /* [vocabulary], host memory, for generation */
    float *rows;          /* [row_count][vocabulary]: of the device, where it is a far one */
    int64_t row_count;
    esp_mail best;  /* int32 [row_count]: the largest of each, there and here */
    int32_t *order; /* [vocabulary], host memory */
    esp_observe_fn observe;
    void *observe_user;
};

typedef struct esp_llama_batch {
    const int32_t *ids;
    int64_t tokens;  /* 1..max_batch */
    float *logits;   /* NULL: none */
    bool all_logits; /* [tokens][vocabulary], else [vocabulary] of the last token */
    int32_t *best;   /* on far devices, instead of logits: the ids of the largest; NULL: none */
    /* NULL: the tokens go on the session's sequence. Else [tokens]: each goes on that of its own.
     */
    esp_session *const *sessions;
} esp_llama_batch;

/* One batch through the network, at positions length on; lengths are not changed. Scratch is that
 * of `session`. */
ESP_MUST_CHECK esp_status esp_llama_forward(esp_session *session, const esp_llama_batch *batch,
                                            esp_error *error);

extern const esp_layer_net esp_llama_layers; /* llama.c */

#endif
