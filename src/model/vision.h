/* What the models of images share inside: the numbers of config.json, the pre-norm layer, and a
 * runner, which holds the activations of a batch of images of one size. */
#ifndef ESP_MODEL_VISION_H
#define ESP_MODEL_VISION_H

#include <espalier/vision.h>

#include "model/family.h"

#define ESP_IMAGE_CHANNELS 3
#define ESP_MAX_IMAGE_SIDE 16384 /* of what a model takes */

typedef struct esp_image_config {
    int64_t hidden, layers, heads, head_dim, intermediate;
    int64_t side, patch; /* pixels: of an image as trained, of a patch */
    float eps;
    unsigned activation; /* an esp_epilogue bit */
    bool qkv_bias;
} esp_image_config;

/* hidden_size, num_hidden_layers, num_attention_heads, image_size, patch_size, num_channels,
 * layer_norm_eps, hidden_act, qkv_bias; intermediate is left alone. eps: 0, or what a missing
 * layer_norm_eps means. */
ESP_MUST_CHECK esp_status esp_image_config_read(const esp_config_file *file,
                                                esp_image_config *config, double eps,
                                                esp_error *error);

/* x += attention(norm1(x)); x += down(activation(up(norm2(x)))) */
typedef struct esp_image_layer {
    float *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias; /* [hidden] */
    esp_group_layer attention;
    esp_linear up, down;
} esp_image_layer;

/* What a layer's tensors are called behind its prefix; q, k, v or qkv. */
typedef struct esp_image_layer_names {
    const char *norm1, *norm2, *qkv[3], *o, *up, *down;
    int projections;
} esp_image_layer_names;

/* Whether q, k and v, where they are three, become one product; before tensors are listed. */
void esp_image_layer_stack(const esp_model *model, const esp_checkpoint *checkpoint,
                           const esp_image_config *config, const esp_image_layer_names *names,
                           const char *prefix, esp_image_layer *layer);
void esp_image_layer_list(const esp_image_config *config, const esp_image_layer_names *names,
                          esp_image_layer *layer, esp_want_list *list);
/* Linear layer 0, 1... of one layer; NULL behind the last. */
esp_linear *esp_image_layer_linear(esp_image_layer *layer, int64_t number);
/* What reads the stream behind a layer: the next one, by its norm; NULL: what comes behind all. */
const esp_linear *esp_image_layer_reader(const esp_image_layer *layers, int64_t count,
                                         int64_t index);
void esp_image_layer_free(const esp_model *model, esp_image_layer *layer);
/* Sizes and activation, before tensors are listed. */
void esp_image_layer_prepare(const esp_image_config *config, int projections,
                             esp_image_layer *layer);
/* norm, then norm.weight and norm.bias are wanted. */
void esp_want_norm(esp_want_list *list, const char *name, int64_t size, float **weight,
                   float **bias);

struct esp_vision {
    const esp_model *model;
    esp_lane lane;
    esp_taken taken;
    int64_t height, width, max_images;
    int64_t rows, columns, patches; /* of an image; patches = rows * columns */
    int64_t tokens;                 /* of an image */
    int64_t pitch;                  /* columns from one image to the next, >= tokens */
    int64_t windowed;               /* columns of an image cut into windows; pitch: none */
    int64_t kept;     /* tokens of an image that are read behind the last layer; 0: all */
    int64_t laid_out; /* images that the index tables are made for */
    void *block;      /* all of the following, [features][columns of a batch] */
    void *x, *normed, *mixed, *qkv, *inner, *pixels, *picked;
    esp_known_moments moments; /* of x, or of the kept tokens of it */
    esp_mail index, back;      /* int32 tables of gather_tokens */
    float *positions;          /* [hidden][pitch]: what an image's tokens are added to */
    esp_mail images;           /* f32 pixels of a batch; taken on a far device, or when asked for */
    int64_t sent;              /* images whose pixels are in `images` */
    esp_mail output;           /* f32, of a batch, as the family makes it */
    void *workspace, *attention_workspace;
    size_t workspace_bytes;
    esp_plan_slot *plans; /* [linear layers][2] */
    esp_observe_fn observe;
    void *observe_user;
};

/* Of so many images that run together: image i begins at column i * pitch. */
static inline int64_t esp_vision_columns(const esp_vision *vision, int64_t images)
{
    return esp_ops_columns(vision->model->ops, images * vision->pitch);
}

/* A batch on its way. */
typedef struct esp_vision_pass {
    esp_vision *vision;
    esp_nn nn;
    int64_t images;
    int64_t columns;     /* of all images: esp_vision_columns */
    const float *pixels; /* device memory, as output */
    float *output;       /* [output_floats] */
} esp_vision_pass;

/* How a family runs images. */
struct esp_image_net {
    bool any_size; /* else only what it was trained at */
    /* Geometry from height and width: tokens, windowed. */
    void (*measure)(esp_vision *vision);
    /* Memory beyond what every model takes, and positions. */
    esp_status (*create)(esp_vision *vision, esp_error *error);
    /* Before run: the tables that depend on the number of images. */
    esp_status (*lay_out)(esp_vision *vision, int64_t images, esp_error *error);
    /* Everything between pixels and output; must give the same work every time. */
    esp_status (*run)(const esp_vision_pass *pass, esp_error *error);
    /* Floats of pass->output for so many images. */
    int64_t (*output_floats)(const esp_vision *vision, int64_t images);
    /* pass->output, in host memory, to [images][output_size]. */
    void (*deliver)(const esp_vision *vision, int64_t images, const float *from, float *output);
    void (*output_shape)(const esp_model *model, int *rank, int64_t *shape);
    const char *(*label)(const esp_model *model, int64_t index);
    /* The two steps of run that end with x: its beginning, and one layer. */
    esp_status (*embed)(const esp_vision_pass *pass, esp_error *error);
    esp_status (*layer)(const esp_vision_pass *pass, int64_t index, esp_error *error);
    /* After the model was prepared: whether tokens lie where they lie in all layers, on the model's
     * device. NULL: they do. */
    bool (*stays)(const esp_model *model);
};

extern const esp_family esp_vit_family, esp_deit_family, esp_sam_family, esp_sam_vision_family;

extern const esp_layer_net esp_vision_layers; /* vision.c */

/* ---- steps that networks share ---- */

/* Tokens of an image or places of windows: groups that lie `pitch` apart. */
ESP_MUST_CHECK esp_status esp_vision_show(const esp_vision_pass *pass, const char *name,
                                          const void *data, int64_t features, esp_error *error);
ESP_MUST_CHECK esp_status esp_vision_show_layer(const esp_vision_pass *pass, int64_t index,
                                                int64_t features, esp_error *error);
/* Patches of all images through the projection, to tokens behind `specials` others, with their
 * positions: x [hidden][columns]. */
ESP_MUST_CHECK esp_status esp_vision_embed(const esp_vision_pass *pass,
                                           const esp_linear *projection, int64_t specials,
                                           esp_error *error);
ESP_MUST_CHECK esp_status esp_vision_norm(const esp_vision_pass *pass, const void *x,
                                          const float *weight, const float *bias, float eps,
                                          int64_t features, void *y, esp_error *error);
/* index: device memory. */
ESP_MUST_CHECK esp_status esp_vision_gather(const esp_vision_pass *pass, const void *x,
                                            int64_t features, int64_t columns, const int32_t *index,
                                            int64_t count, bool adds, void *y, esp_error *error);
/* x += down(activation(up(norm2(x)))); reader: as in esp_linear_call. */
ESP_MUST_CHECK esp_status esp_vision_feed_forward(const esp_vision_pass *pass,
                                                  const esp_image_layer *layer, float eps, void *x,
                                                  const esp_linear *reader, esp_error *error);
/* Attention of one layer over vision's scratch; the caller says what is read and written. */
ESP_MUST_CHECK esp_status esp_vision_attend(const esp_vision_pass *pass,
                                            const esp_image_layer *layer,
                                            const esp_group_call *what, esp_error *error);
/* Room for the attention of groups of so many tokens, if it is more than there was. */
size_t esp_vision_attention_bytes(const esp_vision *vision, const esp_image_layer *layer,
                                  int64_t columns, int64_t tokens, int64_t pitch,
                                  int64_t grid_width);
ESP_MUST_CHECK esp_status esp_vision_take_attention(esp_vision *vision, size_t bytes,
                                                    esp_error *error);
/* positions[hidden][pitch] of the host to the device. */
ESP_MUST_CHECK esp_status esp_vision_take_positions(esp_vision *vision, const float *positions,
                                                    int64_t hidden, esp_error *error);

#endif
