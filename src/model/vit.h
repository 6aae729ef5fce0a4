/* The Vision Transformer inside: weights of a loaded classifier. */
#ifndef ESP_MODEL_VIT_H
#define ESP_MODEL_VIT_H

#include "model/vision.h"

typedef struct esp_vit {
    esp_image_config config;
    int64_t labels;
    char **names;       /* [labels] */
    int64_t specials;   /* tokens before the patches: class, and distillation */
    bool two_heads;     /* the mean of a head on each of them */
    bool timm;          /* how the checkpoint names its tensors */
    bool timm_config;   /* config.json is timm's, whose sizes lie in a name */
    float *tokens[2];   /* [hidden] each */
    float *positions;   /* [specials + patches of the trained size][hidden] */
    esp_linear patches; /* [hidden][3 * patch * patch] */
    esp_image_layer *layers;
    float *norm_weight, *norm_bias;
    esp_linear heads[2];
} esp_vit;

extern const esp_image_net esp_vit_net; /* vit.c; the rest is in vit_load.c */

#endif
