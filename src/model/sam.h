/* The image encoder of Segment Anything inside. */
#ifndef ESP_MODEL_SAM_H
#define ESP_MODEL_SAM_H

#include "model/vision.h"

typedef struct esp_sam {
    esp_image_config config;
    int64_t window;     /* tokens of a window's side */
    int64_t channels;   /* of the embedding */
    bool absolute;      /* positions are added */
    bool relative;      /* attention has tables of relative positions */
    bool original;      /* how the checkpoint names its tensors */
    bool *global;       /* [layers]: sees the whole image, not windows */
    float *positions;   /* [side * side][hidden] */
    esp_linear patches; /* [hidden][3 * patch * patch] */
    esp_image_layer *layers;
    esp_linear neck[2]; /* 1x1 and 3x3 convolutions, without bias */
    float *neck_weight[2], *neck_bias[2];
} esp_sam;

/* Columns of an image of such a grid cut into windows. */
int64_t esp_sam_windowed(const esp_model *model, int64_t rows, int64_t columns);

extern const esp_image_net esp_sam_net; /* sam.c; the rest is in sam_load.c */

#endif
