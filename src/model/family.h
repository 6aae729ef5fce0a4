/* What the architectures share inside: a loaded model, the lists of tensors that one is made of,
 * and the record by which the rest of this room knows each of them. */
#ifndef ESP_MODEL_FAMILY_H
#define ESP_MODEL_FAMILY_H

#include <stdatomic.h>

#include "format/format.h"
#include "model/config_value.h"
#include "model/model.h"
#include "nn/nn.h"

typedef struct esp_family esp_family;
typedef struct esp_fold esp_fold; /* fold.h */

/* Device memory for what a model works on, over all that are at work: now, and at most so far. */
typedef struct esp_memory_use {
    atomic_size_t now, most;
} esp_memory_use;

/* Device memory that one owner took and frees as a whole. */
typedef struct esp_taken {
    esp_device *device;
    esp_memory_use *use; /* where it counts, too; NULL: nowhere */
    size_t bytes;
} esp_taken;

struct esp_model {
    esp_context *context;
    esp_device *device;
    const esp_family *family;
    void *parts;                   /* the family's own: numbers, layers, tables */
    esp_compute compute;           /* resolved */
    const esp_ops *ops;            /* on activations of this model's type */
    char *kernel_glob;             /* NULL: any */
    esp_plan_options plan_options; /* but forms; kernel_glob as above */
    esp_memory memory;
    int64_t tokens;      /* token count that matters most; at least 1 */
    esp_model_info info; /* but resident_bytes */
    esp_taken weights;   /* all that stays with the model */
    esp_memory_use use;  /* by all else */
    bool by_layer;       /* layers run alone (walk.c), so a session keeps the cache of one */
};

/* ---- tensors ---- */

typedef enum esp_role {
    ESP_ROLE_LINEAR = 0, /* [out][in], dense or compressed */
    ESP_ROLE_TABLE,      /* [out][in], rows of which are looked up: dense */
    ESP_ROLE_VECTOR      /* `out` numbers in all, widened to f32 */
} esp_role;

/* Where a norm's numbers go; bias NULL: it has none of its kind, and no mean either (RMS). */
typedef struct esp_norm_at {
    float **weight, **bias;
} esp_norm_at;

/* A tensor that the model needs and where it goes. */
typedef struct esp_want {
    char name[96];
    char old_name[96]; /* what older files call it; "": nothing else */
    esp_role role;
    int64_t out, in; /* in: 0 for vectors */
    int rank;        /* as stored */
    int64_t shape[4];
    esp_packed **weight; /* of linear layers and tables */
    esp_linear *linear;
    esp_tensor *table; /* a view of the packed weight's own memory: no second copy */
    float **vector;    /* memory of the device */
    esp_norm_at reads; /* of a linear layer: the norm of which it reads the output; zeros: none */
    bool inner;        /* counts among the model's linear layers: no head */
    /* Tensors that become one: their rows one behind the other, or with `pairs` in turn. The first
     * has `name`. 0 or 1: it is one. */
    int stacked;
    bool pairs;
    char others[ESP_MOST_STACKED - 1][96];
    int64_t rows[ESP_MOST_STACKED];
} esp_want;

#define ESP_MAX_WANTS 24

/* The tensors of one part of a model: a layer, or what comes before or behind all of them. */
typedef struct esp_want_list {
    esp_want wants[ESP_MAX_WANTS];
    int count;
    char prefix[64]; /* of the names that are added */
    /* The norm whose output the linear layers that are added read, and nothing but linear layers
     * does; zeros: none such. */
    esp_norm_at reads;
} esp_want_list;

void esp_want_vector(esp_want_list *list, const char *name, int64_t size, float **target);
/* name without ".weight"; with a bias, which is wanted then. */
void esp_want_linear(esp_want_list *list, const char *name, int64_t out, int64_t in, bool bias,
                     esp_linear *target);
/* Linear layers of one input as one; their names without ".weight". */
typedef struct esp_stack {
    const char *names[ESP_MOST_STACKED];
    int64_t rows[ESP_MOST_STACKED];
    int count;
    bool pairs;
} esp_stack;
void esp_want_stack(esp_want_list *list, const esp_stack *stack, int64_t in, bool bias,
                    esp_linear *target);
/* Whether it is worth it on the model's device and can be: tensors are of one type and a pattern
 * that can be stacked. prefix: of their names. */
bool esp_model_stacks(const esp_model *model, const esp_checkpoint *checkpoint, const char *prefix,
                      const esp_stack *stack);
void esp_want_table(esp_want_list *list, const char *name, int64_t rows, int64_t columns,
                    esp_packed **target, esp_tensor *view);

/* All numbers of a tensor; name as it is. */
void esp_want_values(esp_want_list *list, const char *name, int rank, const int64_t *shape,
                     float **target);
/* A convolution, stored [out][channels][side][side], as the product that it is; stays dense. */
void esp_want_convolution(esp_want_list *list, const char *name, int64_t out, int64_t channels,
                          int64_t side, bool bias, esp_linear *target);

/* ---- families ---- */

typedef struct esp_image_net esp_image_net; /* vision.h */

/* How the layers of a family run one by one, the work being given to the runner's lane. A runner is
 * what runs whole models of it: a session, an embedder, a batch of images. */
typedef struct esp_layer_net {
    int64_t
        first_part; /* list_part's number of layer 0; parts before it that hold the embedding: */
    int64_t embedding_part;
    esp_status (*create)(const esp_model *model, const esp_walk_size *size, void **runner,
                         esp_error *error);
    void (*release)(void *runner);
    esp_walk_places (*places)(const void *runner, const esp_walk_batch *batch);
    /* The stream of activations, [hidden][columns] of the model's type, in the device's memory. */
    void *(*stream)(void *runner);
    esp_status (*embed)(void *runner, const esp_walk_batch *batch, esp_error *error);
    esp_status (*layer)(void *runner, int64_t index, const esp_walk_batch *batch,
                        const esp_tap *tap, esp_error *error);
} esp_layer_net;

struct esp_family {
    const char *model_type; /* of config.json */
    /* What "architectures" may say; NULL-terminated. The first one is meant where it says nothing.
     */
    const char *const *architectures;
    esp_model_kind kind;
    size_t parts_bytes;
    /* Fills parts and info with what config.json and files beside it say. folder: of the model. */
    esp_status (*configure)(esp_model *model, const esp_config_file *config, const char *folder,
                            esp_error *error);
    /* After configure: takes memory for layers and says what their shapes are. checkpoint: for
     * names that differ between writers. */
    esp_status (*prepare)(esp_model *model, const esp_checkpoint *checkpoint, esp_error *error);
    int64_t (*part_count)(const esp_model *model);
    void (*list_part)(esp_model *model, int64_t part, esp_want_list *list);
    /* Before the weights are read: which layers become one (esp_model_stacks). NULL: none. */
    void (*stack)(esp_model *model, const esp_checkpoint *checkpoint);
    /* A tensor that checkpoints carry and the model does not need. */
    bool (*is_spare)(const char *name);
    /* Which of its orders of channels are free. */
    void (*fold)(const esp_model *model, esp_fold *fold);
    /* After all weights are read; NULL: nothing is left to do. */
    void (*finish)(esp_model *model);
    /* Linear layer `number`, the head last; NULL behind it. */
    esp_linear *(*linear_at)(esp_model *model, int64_t number);
    /* Columns of a layer in a call, where they are not those of all tokens: else, and always where
     * this is NULL, 0. *few: as esp_model_layer has it. */
    int64_t (*columns_at)(const esp_model *model, const esp_linear *linear, esp_model_call call,
                          bool *few);
    void (*release)(esp_model *model); /* all but parts */
    const esp_image_net *images;       /* NULL: takes no images */
    const esp_layer_net *layers;
};

extern const esp_family esp_llama_family, esp_qwen2_family, esp_bert_family;

/* The object that config.json's text is, said as Hugging Face's classes say it also where it is
 * timm's. path: for messages. */
ESP_MUST_CHECK esp_status esp_config_parse(const char *text, const char *path, json_t **config,
                                           esp_error *error);
/* The family of config.json and the architecture's name; "config.unsupported_architecture". */
ESP_MUST_CHECK esp_status esp_family_find(const esp_config_file *config, const esp_family **family,
                                          const char **architecture, esp_error *error);

/* ---- weights (weights.c) ---- */

/* Checks presence, shape and type of all tensors, then reads and packs one after the other; counts
 * them in info. "model.*" */
ESP_MUST_CHECK esp_status esp_weights_load(esp_model *model, const esp_checkpoint *checkpoint,
                                           const esp_model_options *options, esp_error *error);
/* Numbers that belong to the weights: to f32 memory of the device. */
ESP_MUST_CHECK esp_status esp_vector_take(esp_taken *taken, const float *numbers, int64_t count,
                                          const char *what, float **vector, esp_error *error);
void esp_vector_free(const esp_model *model, float *vector);

/* Linear layers that read one norm, in host memory on their way to the device (held.c). */
#define ESP_MOST_READERS 3
typedef struct esp_readers {
    const esp_want *wants[ESP_MOST_READERS];
    esp_sparse *sparse[ESP_MOST_READERS];
    int count;
} esp_readers;
/* Whether norms go into the layers that read them, where numbers allow it: the device has kernels
 * that finish a norm (esp_kernel.norms). */
bool esp_model_holds_norms(const esp_model *model, bool centered);
/* The norm's weight goes into the layers' weights, its bias into their biases. What is left in its
 * place has weight 1 and bias 0. *held false: it did not fit, and the weights must be read anew. */
ESP_MUST_CHECK esp_status esp_norm_hold(esp_model *model, const esp_readers *readers, bool *held,
                                        esp_error *error);
/* And back. */
ESP_MUST_CHECK esp_status esp_vector_read(const esp_model *model, const float *vector,
                                          int64_t count, float *numbers, esp_error *error);
/* The same in steps: checks and the type of computing; one part's tensors; and without them again.
 */
ESP_MUST_CHECK esp_status esp_weights_prepare(esp_model *model, const esp_checkpoint *checkpoint,
                                              esp_error *error);
ESP_MUST_CHECK esp_status esp_weights_load_part(esp_model *model, const esp_checkpoint *checkpoint,
                                                int64_t part, esp_error *error);
void esp_weights_drop_part(esp_model *model, int64_t part);
/* All that a model is but its weights: config.json, options, names and shapes. */
ESP_MUST_CHECK esp_status esp_model_prepare(esp_device *device, const esp_checkpoint *checkpoint,
                                            const esp_model_options *options, esp_model **model,
                                            esp_error *error);
/* A part's list, as the loader sees it; *index: its tensors' numbers in the checkpoint. */
void esp_weights_list(esp_model *model, int64_t part, esp_want_list *list);
int64_t esp_want_find(const esp_checkpoint *checkpoint, const esp_want *want);

/* The checks alone. */
ESP_MUST_CHECK esp_status esp_weights_check(esp_model *model, const esp_checkpoint *checkpoint,
                                            esp_error *error);

/* A model of nothing yet, but of this device; NULL: no memory. */
esp_model *esp_model_blank(esp_device *device);
/* A model without its weights: configured by config.json and prepared; tensors are checked, none is
 * read. Freed by esp_model_free (model.c). */
ESP_MUST_CHECK esp_status esp_model_outline(esp_device *device, const esp_checkpoint *checkpoint,
                                            esp_model **model, esp_error *error);

/* ---- for all who run a model ---- */

const esp_linear *esp_model_linear(const esp_model *model, int64_t number);
/* Columns of the products of `tokens` tokens that run together, as the device aligns them: of whole
 * images, each of them. */
int64_t esp_model_columns(const esp_model *model, int64_t tokens);
int64_t esp_model_linears(const esp_model *model);

/* The forms that a layer's weight is to be held in (forms.c). linear->weight is not there yet. */
ESP_MUST_CHECK esp_status esp_model_forms(const esp_model *model, const esp_linear *linear,
                                          const esp_sparse *sparse, unsigned *forms,
                                          esp_error *error);

/* Scratch for activations: areas of [features][columns] in one block of device memory, each
 * 64-byte aligned (scratch.c). */
typedef struct esp_area {
    void **memory;
    int64_t features;
} esp_area;
ESP_MUST_CHECK esp_status esp_scratch_take(const esp_model *model, esp_taken *taken,
                                           const esp_area *areas, int count, int64_t columns,
                                           void **block, esp_error *error);
/* The area of moments of a stream of `hidden` features, none where no norm is held; its room is
 * `columns` long. */
esp_area esp_moments_area(const esp_model *model, bool centered, int64_t hidden, int64_t columns,
                          esp_known_moments *moments);
/* For esp_nn: NULL where there is no room for any. */
esp_known_moments *esp_moments_of(esp_known_moments *moments);
/* Nothing yet, of one who is at work on a model. */
esp_taken esp_taken_of(const esp_model *model);
/* When all of it was given back to the device. */
void esp_taken_drop(esp_taken *taken);
/* Device memory, at least 64 bytes; `what` is for the message. */
ESP_MUST_CHECK esp_status esp_device_take(esp_taken *taken, size_t elements, size_t width,
                                          const char *what, void **memory, esp_error *error);
/* esp_mail_take. */
ESP_MUST_CHECK esp_status esp_taken_mail(esp_taken *taken, size_t bytes, const char *what,
                                         esp_mail *mail, esp_error *error);
size_t esp_model_width(const esp_model *model); /* bytes of an activation */

/* What a layer runs with; the plans and workspace are the caller's to fill. */
esp_nn esp_model_nn(const esp_model *model, const esp_lane *lane);

/* Shows an intermediate result: the columns that are tokens, in f32 and the host's memory. Groups
 * of tokens lie `pitch` columns apart or, with starts, as the lists say; starts and counts are host
 * memory. */
typedef struct esp_view {
    const char *name;
    const void *data; /* [features][columns], device memory */
    int64_t features, columns;
    int64_t groups, tokens, pitch;
    const int32_t *starts, *counts; /* NULL: by pitch, `tokens` each */
} esp_view;
ESP_MUST_CHECK esp_status esp_model_show(const esp_model *model, esp_lane *lane,
                                         const esp_view *view, esp_observe_fn observe, void *user,
                                         esp_error *error);
/* What the largest product needs at any token count up to max_tokens. */
ESP_MUST_CHECK esp_status esp_product_workspace(const esp_model *model, int64_t max_tokens,
                                                size_t *bytes, esp_error *error);
/* The same at these token counts only. */
ESP_MUST_CHECK esp_status esp_product_workspace_at(const esp_model *model, const int64_t *tokens,
                                                   int counts, size_t *bytes, esp_error *error);

#endif
