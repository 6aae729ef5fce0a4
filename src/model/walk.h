/* A model one layer at a time: the activations of many batches go through a layer before the next
 * one's weights are read. For those who look at what each linear layer reads, and change its
 * weights on the way: only one layer is held, whatever the size of the model. */
#ifndef ESP_MODEL_WALK_H
#define ESP_MODEL_WALK_H

#include <espalier/vision.h>

#include "nn/nn.h"

/* One text, or images of the walk's size. */
typedef struct esp_walk_batch {
    const int32_t *ids;
    int64_t tokens;
    const float *pixels; /* [images][3][height][width] */
    int64_t images;
} esp_walk_batch;

/* The largest batch. */
typedef struct esp_walk_size {
    int64_t tokens;                /* of a text */
    int64_t images, height, width; /* height, width 0: as trained */
} esp_walk_size;

/* Where the tokens of a batch lie among the columns of its activations: `run` of them side by side,
 * runs `pitch` apart. */
typedef struct esp_walk_places {
    int64_t tokens, columns, run, pitch;
} esp_walk_places;

typedef struct esp_walk esp_walk;

/* Whether a model of the checkpoint can be walked on a device with memory of its own: all but those
 * of images that are cut into windows which attention does not take there as they lie. */
ESP_MUST_CHECK esp_status esp_walk_fits(esp_device *device, const esp_checkpoint *checkpoint,
                                        bool *fits, esp_error *error);

/* The checkpoint and the device must outlive it. Computes in f32, or in 16 bits where the device's
 * models do. Holds the embedding and layer 0 until the first esp_walk_load. */
ESP_MUST_CHECK esp_status esp_walk_open(esp_device *device, const esp_checkpoint *checkpoint,
                                        const esp_walk_size *size, esp_walk **walk,
                                        esp_error *error);
void esp_walk_close(esp_walk *walk);
const esp_model_info *esp_walk_info(const esp_walk *walk);
esp_walk_places esp_walk_places_of(const esp_walk *walk, const esp_walk_batch *batch);

/* What esp_walk_info will say, without any weights. */
ESP_MUST_CHECK esp_status esp_model_info_read(esp_device *device, const esp_checkpoint *checkpoint,
                                              esp_model_info *info, esp_error *error);

/* The stream of a batch, [hidden_size][columns] in the walk's type and the device's memory; columns
 * beyond its tokens are anything. */
ESP_MUST_CHECK esp_status esp_walk_stream_take(const esp_walk *walk, const esp_walk_batch *batch,
                                               void **x, esp_error *error);
void esp_walk_stream_free(const esp_walk *walk, void *x);
ESP_MUST_CHECK esp_status esp_walk_stream_copy(const esp_walk *walk, const esp_walk_batch *batch,
                                               void *to, const void *from, esp_error *error);
esp_dtype esp_walk_type(const esp_walk *walk);

/* Before the first esp_walk_load: the stream of the batch, as layer 0 takes it. */
ESP_MUST_CHECK esp_status esp_walk_embed(esp_walk *walk, const esp_walk_batch *batch, void *x,
                                         esp_error *error);
/* Layers 0..info->layers - 1. */
ESP_MUST_CHECK esp_status esp_walk_load(esp_walk *walk, int64_t layer, esp_error *error);
/* The tensor in the checkpoint of linear layer `number` of a layer, loaded or not, in the order of
 * the checkpoint's names; -1 behind the last. Biases are not among them. */
int64_t esp_walk_linear(const esp_walk *walk, int64_t layer, int number);
/* Weights of a linear layer of the loaded layer, by the name without ".weight", from now on. */
ESP_MUST_CHECK esp_status esp_walk_replace(esp_walk *walk, const char *name,
                                           const esp_tensor *dense, esp_error *error);
/* x through the loaded layer, in place. tap may be NULL; where it ends the run, what the layer has
 * made by then stays where it is until the next run, and x as it was. */
ESP_MUST_CHECK esp_status esp_walk_run(esp_walk *walk, const esp_walk_batch *batch, void *x,
                                       const esp_tap *tap, esp_error *error);

#endif
