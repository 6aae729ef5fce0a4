/* The door of src/nn: the layers of which models are made. They own weights or tables, never
 * activations; scratch comes from the caller, nothing is allocated per call.
 *
 * Activations are f32 and feature-major [features][tokens]. All pointers are memory of the device,
 * which for ref and cpu is the host's. */
#ifndef ESP_SRC_NN_H
#define ESP_SRC_NN_H

#include "plan/plan.h"

struct esp_linear;
struct esp_linear_call;

/* Looks at each product before it runs; a failure ends the call that it is part of. */
typedef struct esp_tap {
    esp_status (*see)(void *user, const struct esp_linear *linear,
                      const struct esp_linear_call *call, esp_error *error);
    void *user;
} esp_tap;

/* What every layer needs to run. `workspace` fits the largest product of the session. */
typedef struct esp_nn {
    esp_device *device;
    const esp_ops *ops;
    esp_compute compute;             /* never AUTO */
    const esp_plan_options *options; /* but `forms`, which each weight has of its own */
    void *workspace;
    size_t workspace_bytes;      /* fits what predictions choose, whatever is measured meanwhile */
    struct esp_plan_slot *plans; /* two per linear layer, by its number; NULL: plan every call */
    const esp_tap *tap;          /* NULL: nobody looks */
} esp_nn;

/* A plan that was made before: slot 0 of a layer for one token, slot 1 for the last other count. */
typedef struct esp_plan_slot {
    int64_t tokens; /* 0: empty */
    esp_plan plan;
} esp_plan_slot;

/* "model.missing_operation", naming it, when the device cannot do what a decoder or, else, an
 * encoder needs. */
ESP_MUST_CHECK esp_status esp_nn_check_ops(const esp_device *device, bool decoder,
                                           esp_error *error);
/* Turns a failed operation of the table into an error. */
ESP_MUST_CHECK esp_status esp_nn_done(esp_status status, const char *operation, esp_error *error);

/* ---- linear: y = W x + bias, W dense or compressed ---- */

typedef struct esp_linear {
    esp_packed *weight;
    float *bias; /* [out], or NULL */
    char name[64];
    int64_t number;      /* among the layers of its model */
    bool adds;           /* its output is added to the residual stream */
    unsigned activation; /* the esp_epilogue bit of one, or 0 */
    bool is_head;        /* writes token-major */
} esp_linear;

typedef struct esp_linear_call {
    const float *x;
    int64_t x_stride; /* 0: tight */
    float *y;
    const float *residual; /* where the layer adds: laid out as y; may be y */
    int64_t tokens;
} esp_linear_call;

void esp_linear_free(esp_linear *linear, esp_device *device);
/* The product that a layer is at a token count. */
esp_matmul_problem esp_linear_problem(const esp_linear *linear, esp_compute compute,
                                      int64_t tokens);
/* The choice of its kernel; an error begins with the layer's name. */
ESP_MUST_CHECK esp_status esp_linear_plan(esp_device *device, const esp_linear *linear,
                                          const esp_matmul_problem *problem,
                                          const esp_plan_options *options, esp_plan *plan,
                                          esp_error *error);
ESP_MUST_CHECK esp_status esp_linear_run(const esp_nn *nn, const esp_linear *linear,
                                         const esp_linear_call *call, esp_error *error);

/* ---- rotary positions ---- */

typedef enum esp_rope_kind { ESP_ROPE_DEFAULT = 0, ESP_ROPE_LINEAR, ESP_ROPE_LLAMA3 } esp_rope_kind;

typedef struct esp_rope_config {
    esp_rope_kind kind;
    double theta;
    double factor;                            /* LINEAR, LLAMA3 */
    double low_freq_factor, high_freq_factor; /* LLAMA3 */
    double original_max_position_embeddings;  /* LLAMA3 */
} esp_rope_config;

/* frequencies: [head_dim / 2], radians per position. */
void esp_rope_frequencies(const esp_rope_config *config, int64_t head_dim, float *frequencies);
/* The same for positions one by one. */
void esp_rope_angles_at(const float *frequencies, int64_t head_dim, const int64_t *positions,
                        int64_t tokens, float *cosines, float *sines);
/* cosines, sines: [head_dim / 2][tokens] for positions past, past + 1, ... */
void esp_rope_angles(const float *frequencies, int64_t head_dim, int64_t past, int64_t tokens,
                     float *cosines, float *sines);

/* ---- attention with grouped queries ---- */

typedef struct esp_attention_layer {
    esp_linear q, k, v, o;
    int64_t heads, kv_heads, head_dim;
} esp_attention_layer;

typedef struct esp_attention_call {
    float *x;            /* [hidden][tokens]: the residual stream, added to */
    const float *normed; /* [hidden][tokens] */
    const float *cosines, *sines;
    float *q, *k, *v, *mixed; /* scratch: [heads | kv_heads * head_dim][tokens] */
    /* One sequence, which `tokens` go on; or, where places is not NULL, one for each token. */
    float *key_cache, *value_cache; /* [kv_heads][capacity][head_dim] */
    int64_t tokens, past, capacity;
    const esp_cache_place *places; /* [tokens] */
    void *const *workspaces;       /* [1], or of each place: of the attention operation */
} esp_attention_call;

ESP_MUST_CHECK esp_status esp_attention_run(const esp_nn *nn, const esp_attention_layer *layer,
                                            const esp_attention_call *call, esp_error *error);

/* ---- attention both ways, among the tokens of a text; texts lie side by side ---- */

typedef struct esp_text_attention_call {
    float *x;             /* [hidden][tokens]: read, and added to */
    float *q, *k, *v;     /* scratch [heads * head_dim][tokens] */
    float *mixed;         /* the same */
    float *keys, *values; /* scratch [heads][tokens][head_dim] */
    const int64_t *ends;  /* [texts]: the first token behind each text */
    int64_t texts, tokens;
    void *workspace; /* of the attention operation for the longest text */
} esp_text_attention_call;

/* x += o(attention(q x, k x, v x)); kv_heads is heads. */
ESP_MUST_CHECK esp_status esp_text_attention_run(const esp_nn *nn, const esp_attention_layer *layer,
                                                 const esp_text_attention_call *call,
                                                 esp_error *error);
/* The operation for a text of `tokens` among `stride` ones, but its memory. */
esp_attention esp_text_attention_of(const esp_attention_layer *layer, int64_t tokens,
                                    int64_t stride);

/* ---- gated feed-forward: down(silu(gate x) * up x) ---- */

typedef struct esp_mlp_layer {
    esp_linear gate, up, down;
    int64_t intermediate;
} esp_mlp_layer;

/* x += ...; gate, up: scratch [intermediate][tokens]. */
ESP_MUST_CHECK esp_status esp_mlp_run(const esp_nn *nn, const esp_mlp_layer *layer,
                                      const float *normed, float *gate, float *up, float *x,
                                      int64_t tokens, esp_error *error);

/* ---- attention both ways, among the tokens of a group: an image, a window of one ---- */

typedef struct esp_group_attention_layer {
    esp_linear qkv[3]; /* q, k, v; or one whose rows are theirs, in this order */
    int projections;   /* 3 or 1 */
    esp_linear o;
    float *row_table, *column_table; /* [2 * height | width - 1][head_dim]; NULL: none */
    int64_t heads, head_dim;
} esp_group_attention_layer;

/* Scratch is f32; hidden is heads * head_dim. */
typedef struct esp_group_attention_call {
    const float *x;        /* [features][tokens] */
    float *y;              /* [features][tokens] */
    const float *residual; /* where o adds: may be y */
    float *qkv;            /* scratch [3 * hidden][tokens] */
    float *keys, *values;  /* scratch [heads][tokens][head_dim] */
    float *mixed;          /* scratch [hidden][tokens]; may be x */
    float *row_bias,
        *column_bias;      /* scratch [heads][height | width][tokens] where there are tables */
    int64_t tokens, group; /* tokens is a multiple of group */
    int64_t height, width; /* of a group, as a grid, where there are tables */
    void *workspace;       /* of the attention operation */
} esp_group_attention_call;

ESP_MUST_CHECK esp_status esp_group_attention_run(const esp_nn *nn,
                                                  const esp_group_attention_layer *layer,
                                                  const esp_group_attention_call *call,
                                                  esp_error *error);
/* The attention operation of one group, for its workspace and its launch. */
esp_attention esp_group_attention_of(const esp_group_attention_layer *layer,
                                     const esp_group_attention_call *call, int64_t first);

/* ---- images ---- */

/* pixels [images][channels][height][width], host memory, to y [channels * patch * patch][images *
 * patches]: what a convolution with stride `patch` multiplies. Pixels beyond the last whole patch
 * are left out. */
typedef struct esp_patches {
    const float *pixels;
    float *y;
    int64_t images, channels, height, width, patch;
} esp_patches;

void esp_patches_cut(esp_context *context, const esp_patches *cut);
/* Position embeddings [side * side][features] for another grid, bicubic: to[f * stride + row *
 * columns + column]. */
void esp_positions_resize(const float *from, int64_t side, int64_t features, int64_t rows,
                          int64_t columns, float *to, int64_t stride);

/* "model.missing_operation" when the device cannot do what a model of images needs. */
ESP_MUST_CHECK esp_status esp_nn_check_image_ops(const esp_device *device, esp_error *error);

/* ---- sampling ---- */

typedef struct esp_sampler {
    float temperature; /* 0: greedy */
    float top_p;       /* 0 or 1: off */
    esp_random random;
} esp_sampler;

/* One index into logits[count]. NaN is never chosen; of equals the first. scratch: [count]. -1 when
 * every logit is NaN or -infinity. */
int64_t esp_sample(esp_sampler *sampler, const float *logits, int64_t count, int32_t *scratch);

#endif
