/* The Llama family inside: weights of a loaded model and the state of a session. */
#ifndef ESP_MODEL_LLAMA_H
#define ESP_MODEL_LLAMA_H

#include "model/config.h"
#include "model/model.h"

typedef struct esp_llama_layer {
    float *input_norm, *post_attention_norm; /* [hidden] */
    esp_attention_layer attention;
    esp_mlp_layer mlp;
} esp_llama_layer;

struct esp_model {
    esp_context *context;
    esp_device *device;
    esp_llama_config config;
    esp_compute compute;           /* resolved */
    char *kernel_glob;             /* NULL: any */
    esp_plan_options plan_options; /* but forms; kernel_glob as above */
    esp_memory memory;
    int64_t tokens; /* token count that matters most; at least 1 */
    esp_packed *embedding;
    esp_tensor table; /* view of embedding: [vocabulary][hidden] */
    esp_llama_layer *layers;
    float *norm;        /* [hidden] */
    esp_linear head;    /* when tied its weight is `embedding`, held once */
    float *frequencies; /* [head_dim / 2], host memory */
    esp_model_info info;
};

struct esp_session {
    const esp_model *model;
    int64_t capacity, max_batch, length;
    float *cache;       /* [layers][keys, values][kv_heads][capacity][head_dim] */
    int64_t cache_step; /* floats of one layer's keys */
    float *scratch;     /* all the following, [features][max_batch] each */
    float *x, *normed, *q, *k, *v, *mixed, *gate, *up, *cosines, *sines;
    void *workspace, *attention_workspace;
    size_t workspace_bytes;
    esp_plan_slot *plans; /* [linear layers][2] */
    float *logits;        /* [vocabulary], host memory, for generation */
    int32_t *order;       /* [vocabulary], host memory */
    esp_observe_fn observe;
    void *observe_user;
};

#define ESP_LLAMA_LINEARS 7 /* of one layer */

/* Linear layers, lm_head included. */
int64_t esp_llama_linears(const esp_model *model);
/* Every linear layer by number, lm_head last; NULL behind it. */
const esp_linear *esp_llama_linear(const esp_model *model, int64_t number);

/* The forms that a layer's weight is to be held in (forms.c). linear->weight is not there yet. */
ESP_MUST_CHECK esp_status esp_llama_forms(const esp_model *model, const esp_linear *linear,
                                          const esp_sparse *sparse, unsigned *forms,
                                          esp_error *error);

/* Fills weights and info of a model whose config is read. "model.*" */
ESP_MUST_CHECK esp_status esp_llama_load(esp_model *model, const esp_checkpoint *checkpoint,
                                         const esp_model_options *options, esp_error *error);
void esp_llama_free(esp_model *model);

typedef struct esp_llama_batch {
    const int32_t *ids;
    int64_t tokens;  /* 1..max_batch */
    float *logits;   /* NULL: none */
    bool all_logits; /* [tokens][vocabulary], else [vocabulary] of the last token */
} esp_llama_batch;

/* One batch through the network, at positions session->length on; the length is not changed. */
ESP_MUST_CHECK esp_status esp_llama_forward(esp_session *session, const esp_llama_batch *batch,
                                            esp_error *error);

#endif
