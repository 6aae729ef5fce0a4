/* One part of the loader's list at a time. What runs is the family's own runner, so that a layer on
 * a walk does what it does in the whole model. */
#include "model/walk.h"

#include <stdio.h>

#include "model/family.h"
#include "model/vision.h"

struct esp_walk {
    esp_model *model;
    const esp_checkpoint *checkpoint;
    const esp_layer_net *net;
    void *runner;
    bool has_embedding;
    int64_t layer; /* held; -1: none */
};

static esp_status open_runner(esp_walk *walk, const esp_walk_size *size, esp_error *error)
{
    esp_model *model = walk->model;
    ESP_TRY(esp_weights_prepare(model, walk->checkpoint, error));
    ESP_TRY(esp_weights_load_part(model, walk->checkpoint, walk->net->embedding_part, error));
    walk->has_embedding = true;
    ESP_TRY(esp_weights_load_part(model, walk->checkpoint, walk->net->first_part, error));
    walk->layer = 0;
    return walk->net->create(model, size, &walk->runner, error);
}

esp_status esp_walk_open(esp_device *device, const esp_checkpoint *checkpoint,
                         const esp_walk_size *size, esp_walk **walk, esp_error *error)
{
    const esp_model_options options = {.compute = ESP_COMPUTE_F32, .tokens = 512};
    esp_walk *made = esp_alloc_zero(device->context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "a walk");
    }
    made->checkpoint = checkpoint;
    made->layer = -1;
    esp_status status = esp_model_prepare(device, checkpoint, &options, &made->model, error);
    if (status != ESP_OK) {
        esp_release(device->context, made);
        return status;
    }
    made->model->by_layer = true;
    made->net = made->model->family->layers;
    status = open_runner(made, size, error);
    if (status != ESP_OK) {
        esp_walk_close(made);
        return status;
    }
    *walk = made;
    return ESP_OK;
}

void esp_walk_close(esp_walk *walk)
{
    if (walk == NULL) {
        return;
    }
    esp_context *context = walk->model->context;
    if (walk->runner != NULL) {
        walk->net->release(walk->runner);
    }
    esp_model_free(walk->model);
    esp_release(context, walk);
}

const esp_model_info *esp_walk_info(const esp_walk *walk)
{
    return &walk->model->info;
}

esp_status esp_walk_fits(esp_device *device, const esp_checkpoint *checkpoint, bool *fits,
                         esp_error *error)
{
    const esp_model_options options = {.compute = ESP_COMPUTE_F32, .tokens = 512};
    esp_model *model = NULL;
    ESP_TRY(esp_model_prepare(device, checkpoint, &options, &model, error));
    const esp_image_net *images = model->family->images;
    *fits = images == NULL || images->stays == NULL || images->stays(model);
    esp_model_free(model);
    return ESP_OK;
}

esp_status esp_model_info_read(esp_device *device, const esp_checkpoint *checkpoint,
                               esp_model_info *info, esp_error *error)
{
    const esp_model_options options = {.compute = ESP_COMPUTE_F32};
    esp_model *model = NULL;
    ESP_TRY(esp_model_prepare(device, checkpoint, &options, &model, error));
    *info = model->info;
    esp_model_free(model);
    return ESP_OK;
}

esp_walk_places esp_walk_places_of(const esp_walk *walk, const esp_walk_batch *batch)
{
    return walk->net->places(walk->runner, batch);
}

/* ---- streams ---- */

static size_t stream_bytes(const esp_walk *walk, const esp_walk_batch *batch)
{
    int64_t columns = esp_walk_places_of(walk, batch).columns;
    return (size_t)(walk->model->info.hidden_size * columns) * esp_model_width(walk->model);
}

esp_dtype esp_walk_type(const esp_walk *walk)
{
    return walk->model->ops->type;
}

esp_status esp_walk_stream_take(const esp_walk *walk, const esp_walk_batch *batch, void **x,
                                esp_error *error)
{
    esp_taken callers = {.device = walk->model->device}; /* it is the caller that frees them */
    return esp_device_take(&callers, stream_bytes(walk, batch), 1, "activations", x, error);
}

void esp_walk_stream_free(const esp_walk *walk, void *x)
{
    if (x != NULL) {
        walk->model->device->backend->release(walk->model->device, x);
    }
}

esp_status esp_walk_stream_copy(const esp_walk *walk, const esp_walk_batch *batch, void *to,
                                const void *from, esp_error *error)
{
    esp_device *device = walk->model->device;
    size_t bytes = stream_bytes(walk, batch);
    if (device->backend->copy != NULL) {
        return device->backend->copy(device, to, from, bytes, error);
    }
    memcpy(to, from, bytes);
    return ESP_OK;
}

esp_status esp_walk_embed(esp_walk *walk, const esp_walk_batch *batch, void *x, esp_error *error)
{
    ESP_TRY(walk->net->embed(walk->runner, batch, error));
    return esp_walk_stream_copy(walk, batch, x, walk->net->stream(walk->runner), error);
}

/* ---- layers ---- */

esp_status esp_walk_load(esp_walk *walk, int64_t layer, esp_error *error)
{
    if (walk->has_embedding) {
        esp_weights_drop_part(walk->model, walk->net->embedding_part);
        walk->has_embedding = false;
    }
    if (walk->layer == layer) {
        return ESP_OK;
    }
    if (walk->layer >= 0) {
        esp_weights_drop_part(walk->model, walk->net->first_part + walk->layer);
        walk->layer = -1;
    }
    ESP_TRY(
        esp_weights_load_part(walk->model, walk->checkpoint, walk->net->first_part + layer, error));
    walk->layer = layer;
    return ESP_OK;
}

int64_t esp_walk_linear(const esp_walk *walk, int64_t layer, int number)
{
    esp_want_list list;
    if (layer >= walk->model->info.layers) {
        return -1;
    }
    esp_weights_list(walk->model, walk->net->first_part + layer, &list);
    for (int i = 0; i < list.count; i++) {
        if (list.wants[i].role == ESP_ROLE_LINEAR && number-- == 0) {
            return esp_want_find(walk->checkpoint, &list.wants[i]);
        }
    }
    return -1;
}

static esp_linear *linear_named(const esp_walk *walk, const char *name)
{
    esp_want_list list;
    esp_weights_list(walk->model, walk->net->first_part + walk->layer, &list);
    for (int i = 0; i < list.count; i++) {
        if (list.wants[i].role == ESP_ROLE_LINEAR &&
            strcmp(list.wants[i].linear->name, name) == 0) {
            return list.wants[i].linear;
        }
    }
    return NULL;
}

esp_status esp_walk_replace(esp_walk *walk, const char *name, const esp_tensor *dense,
                            esp_error *error)
{
    const esp_pattern pattern = {.kind = ESP_PATTERN_DENSE};
    const esp_pack_options options = {.forms = ESP_FORM_SPARSE};
    esp_linear *linear = linear_named(walk, name);
    esp_sparse *sparse = NULL;
    esp_packed *packed = NULL;
    if (linear == NULL) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "walk.no_such_layer",
                        "%s is no linear layer of layer %lld", name, (long long)walk->layer);
    }
    ESP_TRY(esp_sparse_encode(walk->model->context, &pattern, dense, NULL, &sparse, error));
    esp_dtype type = esp_walk_type(walk);
    bool other = type != ESP_F32 && dense->dtype != type;
    esp_status status = other ? esp_sparse_retype(sparse, type, error) : ESP_OK;
    status = status != ESP_OK
                 ? status
                 : esp_pack_with(walk->model->device, sparse, &options, &packed, error);
    esp_sparse_free(sparse);
    ESP_TRY(status);
    esp_packed_free(linear->weight);
    linear->weight = packed;
    return ESP_OK;
}

esp_status esp_walk_run(esp_walk *walk, const esp_walk_batch *batch, void *x, const esp_tap *tap,
                        esp_error *error)
{
    void *stream = walk->net->stream(walk->runner);
    ESP_TRY(esp_walk_stream_copy(walk, batch, stream, x, error));
    ESP_TRY(walk->net->layer(walk->runner, walk->layer, batch, tap, error));
    return esp_walk_stream_copy(walk, batch, x, stream, error);
}
