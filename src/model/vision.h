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
    esp_group_attention_layer attention;
    esp_linear up, down;
} esp_image_layer;

/* What a layer's tensors are called behind its prefix; q, k, v or qkv. */
typedef struct esp_image_layer_names {
    const char *norm1, *norm2, *qkv[3], *o, *up, *down;
    int projections;
} esp_image_layer_names;

void esp_image_layer_list(const esp_image_config *config, const esp_image_layer_names *names,
                          esp_image_layer *layer, esp_want_list *list);
/* Linear layer 0, 1... of one layer; NULL behind the last. */
esp_linear *esp_image_layer_linear(esp_image_layer *layer, int64_t number);
void esp_image_layer_free(const esp_model *model, esp_image_layer *layer);
/* Sizes and activation, before tensors are listed. */
void esp_image_layer_prepare(const esp_image_config *config, int projections,
                             esp_image_layer *layer);
/* norm, then norm.weight and norm.bias are wanted. */
void esp_want_norm(esp_want_list *list, const char *name, int64_t size, float **weight,
                   float **bias);

struct esp_vision {
    const esp_model *model;
    int64_t height, width, max_images;
    int64_t rows, columns, patches; /* of an image; patches = rows * columns */
    int64_t tokens;                 /* of an image */
    int64_t windowed;               /* tokens of an image cut into windows; tokens: none */
    int64_t laid_out;               /* images that base and the index tables are made for */
    float *block;                   /* all of the following, [features][tokens of a batch] */
    float *x, *normed, *mixed, *qkv, *keys, *values, *inner, *pixels, *base, *picked;
    float *row_bias, *column_bias;
    int32_t *index, *back; /* tables of gather_tokens */
    float *positions;      /* [hidden][tokens]: what an image's embedding is added to */
    void *workspace, *attention_workspace;
    size_t workspace_bytes;
    esp_plan_slot *plans; /* [linear layers][2] */
    float *scores;        /* [max_images][labels] of a second head */
    esp_observe_fn observe;
    void *observe_user;
};

/* How a family runs images. */
struct esp_image_net {
    bool any_size; /* else only what it was trained at */
    /* Geometry from height and width: tokens, windowed. */
    void (*measure)(esp_vision *vision);
    /* Memory beyond what every model takes, and positions. */
    esp_status (*create)(esp_vision *vision, esp_error *error);
    /* pixels [images][3][height][width] -> output [images][output_size]. */
    esp_status (*run)(esp_vision *vision, const esp_nn *nn, const float *pixels, int64_t images,
                      float *output, esp_error *error);
    void (*output_shape)(const esp_model *model, int *rank, int64_t *shape);
    const char *(*label)(const esp_model *model, int64_t index);
    /* The two steps of run that end with x: its beginning, and one layer. */
    esp_status (*embed)(esp_vision *vision, const esp_nn *nn, const float *pixels, int64_t images,
                        esp_error *error);
    esp_status (*layer)(esp_vision *vision, const esp_nn *nn, int64_t index, int64_t images,
                        esp_error *error);
};

extern const esp_family esp_vit_family, esp_deit_family, esp_sam_family, esp_sam_vision_family;

extern const esp_layer_net esp_vision_layers; /* vision.c */

/* ---- steps that networks share ---- */

void esp_vision_show(const esp_vision *vision, const char *name, const float *data,
                     int64_t features, int64_t tokens);
void esp_vision_show_layer(const esp_vision *vision, int64_t index, int64_t features,
                           int64_t tokens);
/* Patches of all images through the projection: y [hidden][images * patches]. */
ESP_MUST_CHECK esp_status esp_vision_embed(esp_vision *vision, const esp_nn *nn,
                                           const esp_linear *projection, const float *pixels,
                                           int64_t images, float *y, esp_error *error);
ESP_MUST_CHECK esp_status esp_vision_norm(const esp_nn *nn, const float *x, const float *weight,
                                          const float *bias, float eps, int64_t features,
                                          int64_t tokens, float *y, esp_error *error);
ESP_MUST_CHECK esp_status esp_vision_gather(const esp_nn *nn, const float *x, int64_t features,
                                            int64_t tokens, const int32_t *index, int64_t count,
                                            float *y, esp_error *error);
ESP_MUST_CHECK esp_status esp_vision_add(const esp_nn *nn, float *x, const float *y, int64_t count,
                                         esp_error *error);
/* x += down(activation(up(norm2(x)))) */
ESP_MUST_CHECK esp_status esp_vision_feed_forward(const esp_vision *vision, const esp_nn *nn,
                                                  const esp_image_layer *layer, float eps,
                                                  int64_t features, int64_t tokens,
                                                  esp_error *error);
/* Attention of one layer over vision's scratch; the caller says what is read and written. */
ESP_MUST_CHECK esp_status esp_vision_attend(const esp_vision *vision, const esp_nn *nn,
                                            const esp_image_layer *layer,
                                            const esp_group_attention_call *what, esp_error *error);
/* base[f][image * tokens + t] = positions[f][t] for `images` images. */
void esp_vision_tile(esp_vision *vision, int64_t features, int64_t images);

#endif
