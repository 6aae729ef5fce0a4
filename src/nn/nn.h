/* The door of src/nn: the layers of which models are made. They own weights or tables, never
 * activations; scratch comes from the caller, nothing is allocated per call.
 *
 * Activations are feature-major [features][columns] and have the type of the table of operations
 * (op.h): f32 on ref and cpu. All pointers are memory of the device, which for ref and cpu is the
 * host's, unless a comment says otherwise. */
#ifndef ESP_SRC_NN_H
#define ESP_SRC_NN_H

#include "plan/plan.h"

/* ---- talking to a device (lane.c) ---- */

#define ESP_LANE_GRAPHS 8

/* Work that was given once and can be given again. */
typedef struct esp_lane_graph {
    int64_t key[4];
    int seen; /* calls */
    void *graph;
} esp_lane_graph;

/* One user's way to a device: a stream, where the device has them, and graphs of repeated work. */
typedef struct esp_lane {
    esp_device *device;
    void *stream;
    bool sent; /* copies from the host may be under way */
    esp_lane_graph graphs[ESP_LANE_GRAPHS];
    int kept;
} esp_lane;

ESP_MUST_CHECK esp_status esp_lane_open(esp_device *device, esp_lane *lane, esp_error *error);
void esp_lane_close(esp_lane *lane); /* waits for its work; an empty lane is fine */
/* Device memory is not the host's. */
bool esp_device_is_far(const esp_device *device);
/* Before the host writes anew what was sent. */
ESP_MUST_CHECK esp_status esp_lane_ready(esp_lane *lane, esp_error *error);
/* Gives work to the lane's stream, as a graph from its second call under a key on: it must launch
 * the same on the same memory, whatever the memory holds. */
typedef esp_status (*esp_lane_fn)(void *user, esp_error *error);
ESP_MUST_CHECK esp_status esp_lane_run(esp_lane *lane, const int64_t key[4], esp_lane_fn work,
                                       void *user, esp_error *error);
/* From device to any host memory; waits for the lane's work. */
ESP_MUST_CHECK esp_status esp_lane_receive(esp_lane *lane, void *to, const void *from, size_t bytes,
                                           esp_error *error);

/* What the host writes and the device reads, or the other way: one memory where they share it. */
typedef struct esp_mail {
    void *host, *device;
    size_t bytes; /* that were taken of the device */
} esp_mail;

ESP_MUST_CHECK esp_status esp_mail_take(esp_device *device, size_t bytes, const char *what,
                                        esp_mail *mail, esp_error *error);
void esp_mail_free(esp_device *device, esp_mail *mail);
ESP_MUST_CHECK esp_status esp_mail_send(esp_lane *lane, const esp_mail *mail, size_t bytes,
                                        esp_error *error);

/* ---- what every layer needs to run ---- */

struct esp_linear;
struct esp_linear_call;

/* Looks at each product before it runs; a failure ends the call that it is part of. */
typedef struct esp_tap {
    esp_status (*see)(void *user, const struct esp_linear *linear,
                      const struct esp_linear_call *call, esp_error *error);
    void *user;
} esp_tap;

/* Of the tokens of one area of activations: what the last product that wrote it left, or an
 * operation found. Room is for `most` parts of `columns`. */
typedef struct esp_known_moments {
    void *memory;
    int64_t most, columns;
    const void *x; /* of what; NULL: of nothing */
    int64_t tokens;
    int parts;
} esp_known_moments;

/* `workspace` fits the largest product of the session. */
typedef struct esp_nn {
    esp_device *device;
    const esp_ops *ops;
    void *stream;
    esp_compute compute;             /* never AUTO */
    const esp_plan_options *options; /* but `forms`, which each weight has of its own */
    void *workspace;
    size_t workspace_bytes;      /* fits what predictions choose, whatever is measured meanwhile */
    struct esp_plan_slot *plans; /* two per linear layer, by its number; NULL: plan every call */
    const esp_tap *tap;          /* NULL: nobody looks */
    esp_known_moments *moments;  /* NULL: no weight holds a norm */
} esp_nn;

/* A plan that was made before: slot 0 of a layer for one token, slot 1 for the last other count. */
typedef struct esp_plan_slot {
    int64_t tokens; /* 0: empty */
    esp_plan plan;
    unsigned later; /* esp_epilogue bits that follow as an operation */
} esp_plan_slot;

/* The columns that so many tokens take; `pitch`: each of the groups that lie side by side. */
static inline int64_t esp_ops_columns(const esp_ops *ops, int64_t tokens)
{
    int64_t step = tokens > ops->few && ops->line > 0 ? ops->line : ops->step;
    return tokens == 1 ? 1 : esp_ceil_div(tokens, step) * step;
}

static inline int64_t esp_ops_pitch(const esp_ops *ops, int64_t tokens)
{
    return esp_ceil_div(tokens, ops->step) * ops->step;
}

/* The operations of a device on activations of a type; any of its tables, to see what it can. */
const esp_ops *esp_nn_ops(const esp_device *device, esp_dtype type);
const esp_ops *esp_nn_any_ops(const esp_device *device);

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
    /* Where the weight and the bias hold the norm of what the layer reads: */
    bool holds_norm;
    float *row_sums; /* [out]: as esp_normed; NULL: a norm without a mean */
    float *own_bias; /* [out]: the bias without the norm's, or NULL */
    char name[64];
    int64_t number;      /* among the layers of its model */
    bool adds;           /* its output is added to the residual stream */
    unsigned activation; /* the esp_epilogue bit of one, or 0 */
    bool is_head;        /* writes token-major, f32 */
} esp_linear;

/* An operation on what a product reads, or several products do: part of the product where its
 * kernel takes it, or finishes it (a norm that the weight holds), and one that runs before it where
 * not. */
typedef struct esp_prepare {
    esp_prologue prologue;
    bool centers;      /* a layer norm, which no kernel takes; prologue: its weight and eps */
    const float *bias; /* of one */
    void *to;  /* where it goes if it runs by itself: laid out as x; with swiglu it may be x */
    bool done; /* it is there */
} esp_prepare;

typedef struct esp_linear_call {
    const void *x;
    int64_t x_stride;              /* 0: tight */
    void *y;                       /* a head's: f32 [tokens][out] */
    const void *residual;          /* where the layer adds: laid out as y; may be y */
    int64_t tokens;                /* columns */
    esp_prepare *prepare;          /* of x, which is tight then; NULL: x is read as it is */
    const struct esp_linear *next; /* the layer that reads its weight next; NULL: unknown */
    /* NULL, or the layer that reads y next, behind a norm, at the same token count. */
    const struct esp_linear *reader;
    bool gates; /* y = silu(the first half of the rows) * the second, where esp_linear_gates */
} esp_linear_call;

/* The product reads rms_norm(x), layer_norm(x), or silu(x) * up; `to` is scratch. */
esp_prepare esp_prepare_norm(const float *weight, float eps, void *to);
esp_prepare esp_prepare_layer_norm(const float *weight, const float *bias, float eps, void *to);
esp_prepare esp_prepare_gate(const void *up, void *to);

void esp_linear_free(esp_linear *linear, esp_device *device);
/* The product that a layer is at a token count. */
esp_matmul_problem esp_linear_problem(const esp_linear *linear, esp_compute compute,
                                      esp_dtype activations, int64_t tokens);
/* The choice of its kernel; an error begins with the layer's name. */
ESP_MUST_CHECK esp_status esp_linear_plan(esp_device *device, const esp_linear *linear,
                                          const esp_matmul_problem *problem,
                                          const esp_plan_options *options, esp_plan *plan,
                                          esp_error *error);
/* The same as a layer runs: where the kernel has no epilogue, bias and activation are *later. */
ESP_MUST_CHECK esp_status esp_linear_choose(esp_device *device, const esp_linear *linear,
                                            const esp_ops *ops, esp_compute compute, int64_t tokens,
                                            const esp_plan_options *options, esp_plan *plan,
                                            unsigned *later, esp_error *error);
/* Whether esp_linear_run can be given `gates` at a token count. */
bool esp_linear_gates(const esp_nn *nn, const esp_linear *linear, int64_t tokens);
ESP_MUST_CHECK esp_status esp_linear_run(const esp_nn *nn, const esp_linear *linear,
                                         const esp_linear_call *call, esp_error *error);

/* Something that is no linear layer writes x. */
void esp_moments_forget(const esp_nn *nn, const void *x);

/* ---- the tokens that go on behind the last layer's attention (kept.c) ---- */

typedef struct esp_kept_tokens {
    const int32_t *index; /* device memory, [count]: their columns; < 0: none, a column of zeros */
    int64_t count;
    void *mixed; /* scratch [features that attention mixes][count]; not what it mixed */
    void *x;     /* [hidden][count]: the residual stream, theirs */
} esp_kept_tokens;

/* kept->x = o(theirs of mixed) + theirs of x, both of `columns`. */
ESP_MUST_CHECK esp_status esp_kept_project(const esp_nn *nn, const esp_linear *o,
                                           const esp_kept_tokens *kept, const void *mixed,
                                           const void *x, int64_t columns, const esp_linear *reader,
                                           esp_error *error);
/* For layers on kept tokens, which may be too few for a sparse weight to win. `options` is room. */
esp_nn esp_kept_nn(const esp_nn *nn, esp_plan_options *options);

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

/* ---- attention with grouped queries ---- */

typedef struct esp_attention_layer {
    esp_linear qkv[3]; /* q, k, v; or one whose rows are theirs, in this order */
    int projections;   /* 3 or 1 */
    esp_linear o;
    int64_t heads, kv_heads, head_dim;
} esp_attention_layer;

typedef struct esp_attention_call {
    void *x;                /* [hidden][columns]: the residual stream, added to */
    esp_prepare *prepare;   /* what the layer reads of x: its norm */
    const esp_linear *next; /* the layer behind, which reads x; NULL: unknown */
    const float *cosines, *sines;
    void *qkv, *mixed; /* scratch: [(heads + 2 kv_heads) * head_dim][columns], [heads * head_dim] */
    int64_t tokens, columns;
    /* One sequence, which `tokens` go on; or, where places is not NULL, one for each token. */
    esp_cache_place one;
    const esp_cache_place *places; /* [tokens] */
    int64_t longest;               /* of places: past + 1 is no more */
    void *const *workspaces; /* host memory: [1], or of each place: of the attention operation */
    const esp_kept_tokens *kept; /* x is left alone and theirs added to; NULL: all go on */
} esp_attention_call;

ESP_MUST_CHECK esp_status esp_attention_run(const esp_nn *nn, const esp_attention_layer *layer,
                                            const esp_attention_call *call, esp_error *error);

/* ---- gated feed-forward: down(silu(gate x) * up x) ---- */

typedef enum esp_mlp_kind {
    ESP_MLP_APART = 0, /* gate and up are products of their own */
    ESP_MLP_STACKED,   /* one: rows of gate, then rows of up */
    ESP_MLP_PAIRED     /* one: rows 2 i and 2 i + 1 are gate's and up's row i */
} esp_mlp_kind;

typedef struct esp_mlp_layer {
    esp_linear gate, up, down; /* gate: also of both; paired, its activation is swiglu */
    esp_mlp_kind kind;
    int64_t intermediate;
} esp_mlp_layer;

/* x += ...(prepare x); inner: scratch [2 * intermediate][columns]. reader: as in esp_linear_call.
 */
ESP_MUST_CHECK esp_status esp_mlp_run(const esp_nn *nn, const esp_mlp_layer *layer,
                                      esp_prepare *prepare, void *inner, void *x, int64_t columns,
                                      const esp_linear *reader, esp_error *error);

/* ---- attention both ways, among the tokens of a group: a text, an image, a window of one ---- */

typedef struct esp_group_layer {
    esp_linear qkv[3]; /* q, k, v; or one whose rows are theirs, in this order */
    int projections;   /* 3 or 1 */
    esp_linear o;
    float *row_table, *column_table; /* [2 * height | width - 1][head_dim]; NULL: none */
    int64_t heads, head_dim;
} esp_group_layer;

/* hidden is heads * head_dim. */
typedef struct esp_group_call {
    const void *x;            /* [features][columns] */
    esp_prepare *prepare;     /* what the layer reads of x; NULL: x */
    void *y;                  /* [features][columns] */
    const void *residual;     /* where o adds: may be y */
    const esp_linear *reader; /* of y, as in esp_linear_call */
    void *qkv;                /* scratch [3 * hidden][columns] */
    void *mixed;              /* scratch [hidden][columns]; may be x */
    int64_t columns;
    int64_t groups, tokens, pitch;  /* as esp_group_attention */
    bool varied;                    /* groups lie by the two lists instead */
    const int32_t *starts, *counts; /* [groups] */
    int64_t read;                   /* as esp_group_attention; for kept tokens */
    int64_t grid_width;             /* of a group, as a grid, where there are tables */
    void *workspace;                /* of the attention operation */
    const esp_kept_tokens *kept;    /* y and residual are theirs; NULL: all go on */
    /* Not 0: the groups are windows of images, grids of grid_width tokens a row that lie as groups
     * do above. For what esp_group_takes_windows says. */
    int64_t window;
} esp_group_call;

ESP_MUST_CHECK esp_status esp_group_run(const esp_nn *nn, const esp_group_layer *layer,
                                        const esp_group_call *call, esp_error *error);
bool esp_group_takes_windows(const esp_device *device, const esp_ops *ops,
                             const esp_group_layer *layer, const esp_group_call *call);
/* The attention operation of a call, for its workspace and its launch. */
esp_group_attention esp_group_attention_of(const esp_ops *ops, const esp_group_layer *layer,
                                           const esp_group_call *call);

/* ---- images ---- */

/* Position embeddings [side * side][features] for another grid, bicubic: to[f * stride + row *
 * columns + column]; host memory. */
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
