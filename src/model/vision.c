/* A batch of images on its way through a model: all memory is taken once, for the largest batch;
 * running allocates nothing. And the steps that image networks have in common. */
#include <stdio.h>

#include "model/vision.h"

/* ---- memory ---- */

static esp_status check_create(const esp_model *model, int64_t *height, int64_t *width,
                               int64_t max_images, esp_error *error)
{
    const esp_image_net *net = model->family->images;
    if (net == NULL) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "vision.no_images",
                        "%s takes no images; give it text", model->info.architecture);
    }
    int64_t side = model->info.image_size, patch = model->info.patch_size;
    *height = *height == 0 ? side : *height;
    *width = *width == 0 ? side : *width;
    if (!net->any_size && (*height != side || *width != side)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "vision.bad_size",
                        "images of %lldx%lld: this architecture takes %lldx%lld only",
                        (long long)*width, (long long)*height, (long long)side, (long long)side);
    }
    if (*height < patch || *width < patch || *height > ESP_MAX_IMAGE_SIDE ||
        *width > ESP_MAX_IMAGE_SIDE) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "vision.bad_size",
                        "images of %lldx%lld: from %lld (a patch) to %d each way is possible",
                        (long long)*width, (long long)*height, (long long)patch,
                        ESP_MAX_IMAGE_SIDE);
    }
    if (max_images < 1 || max_images > 1 << 16) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "vision.bad_batch",
                        "%lld images at once: 1 to %d is possible", (long long)max_images, 1 << 16);
    }
    return ESP_OK;
}

/* Every token count that a product of `images` images can have. */
static esp_status product_workspace(esp_vision *vision, esp_error *error)
{
    size_t most = 64;
    for (int64_t images = 1; images <= vision->max_images; images++) {
        const int64_t counts[] = {images, images * vision->patches, images * vision->tokens,
                                  images * vision->windowed};
        size_t bytes = 0;
        ESP_TRY(esp_product_workspace_at(vision->model, counts, ESP_COUNT(counts), &bytes, error));
        most = ESP_MAX(most, bytes);
    }
    vision->workspace_bytes = most;
    vision->workspace = vision->model->device->backend->alloc(vision->model->device, most);
    return vision->workspace != NULL ? ESP_OK : esp_fail_memory(error, most, "a workspace");
}

static esp_status take_tables(esp_vision *vision, int64_t longest, esp_error *error)
{
    esp_context *context = vision->model->context;
    size_t count = (size_t)longest, linears = (size_t)esp_model_linears(vision->model);
    vision->index = esp_alloc_array(context, count, sizeof *vision->index);
    vision->back = esp_alloc_array(context, count, sizeof *vision->back);
    vision->plans = esp_alloc_array(context, 2 * linears, sizeof *vision->plans);
    if (vision->index == NULL || vision->back == NULL || vision->plans == NULL) {
        return esp_fail_memory(error, 2 * count * sizeof *vision->index, "tables of tokens");
    }
    return ESP_OK;
}

static esp_status take_memory(esp_vision *vision, esp_error *error)
{
    int64_t most = ESP_MAX(vision->tokens, vision->windowed), batch;
    if (!esp_mul_i64(most, vision->max_images, &batch) || batch > INT32_MAX) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "vision.bad_batch",
                        "%lld images of %lld tokens at once are too many",
                        (long long)vision->max_images, (long long)most);
    }
    ESP_TRY(take_tables(vision, batch, error));
    ESP_TRY(vision->model->family->images->create(vision, error));
    return product_workspace(vision, error);
}

esp_status esp_vision_create(const esp_model *model, int64_t height, int64_t width,
                             int64_t max_images, esp_vision **vision, esp_error *error)
{
    ESP_TRY(check_create(model, &height, &width, max_images, error));
    esp_vision *made = esp_alloc_zero(model->context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "a batch of images");
    }
    int64_t patch = model->info.patch_size;
    made->model = model;
    made->height = height;
    made->width = width;
    made->max_images = max_images;
    made->rows = height / patch;
    made->columns = width / patch;
    made->patches = made->rows * made->columns;
    model->family->images->measure(made);
    esp_status status = take_memory(made, error);
    if (status != ESP_OK) {
        esp_vision_free(made);
        return status;
    }
    *vision = made;
    return ESP_OK;
}

void esp_vision_free(esp_vision *vision)
{
    if (vision == NULL) {
        return;
    }
    esp_device *device = vision->model->device;
    esp_context *context = vision->model->context;
    void *const areas[] = {vision->block, vision->positions, vision->workspace,
                           vision->attention_workspace};
    for (int i = 0; i < ESP_COUNT(areas); i++) {
        if (areas[i] != NULL) {
            device->backend->release(device, areas[i]);
        }
    }
    esp_release(context, vision->index);
    esp_release(context, vision->back);
    esp_release(context, vision->plans);
    esp_release(context, vision->scores);
    esp_release(context, vision);
}

/* ---- running ---- */

static esp_nn nn_of(const esp_vision *vision)
{
    const esp_model *model = vision->model;
    return (esp_nn){.device = model->device,
                    .ops = model->device->backend->ops,
                    .compute = model->compute,
                    .options = &model->plan_options,
                    .workspace = vision->workspace,
                    .workspace_bytes = vision->workspace_bytes,
                    .plans = vision->plans};
}

esp_status esp_vision_run(esp_vision *vision, const float *pixels, int64_t images, float *output,
                          esp_error *error)
{
    const esp_model *model = vision->model;
    if (images < 1 || images > vision->max_images) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "vision.bad_batch",
                        "%lld images at once, but memory was taken for %lld", (long long)images,
                        (long long)vision->max_images);
    }
    esp_nn nn = nn_of(vision);
    return model->family->images->run(vision, &nn, pixels, images, output, error);
}

void esp_vision_observe(esp_vision *vision, esp_observe_fn observe, void *user)
{
    vision->observe = observe;
    vision->observe_user = user;
}

int esp_vision_output_shape(const esp_model *model, int64_t shape[3])
{
    int rank = 0;
    if (model->family->images != NULL) {
        model->family->images->output_shape(model, &rank, shape);
    }
    return rank;
}

const char *esp_model_label(const esp_model *model, int64_t index)
{
    const esp_image_net *net = model->family->images;
    return net != NULL && net->label != NULL ? net->label(model, index) : NULL;
}

/* ---- layer by layer ---- */

static esp_status create_runner(const esp_model *model, const esp_walk_size *size, void **runner,
                                esp_error *error)
{
    esp_vision *vision = NULL;
    ESP_TRY(esp_vision_create(model, size->height, size->width, size->images, &vision, error));
    *runner = vision;
    return ESP_OK;
}

static void release_runner(void *runner)
{
    esp_vision_free(runner);
}

static int64_t tokens_of(const void *runner, const esp_walk_batch *batch)
{
    return batch->images * ((const esp_vision *)runner)->tokens;
}

static float *stream(void *runner)
{
    return ((esp_vision *)runner)->x;
}

static esp_status embed_batch(void *runner, const esp_walk_batch *batch, esp_error *error)
{
    esp_vision *vision = runner;
    esp_nn nn = nn_of(vision);
    return vision->model->family->images->embed(vision, &nn, batch->pixels, batch->images, error);
}

static esp_status layer_of_batch(void *runner, int64_t index, const esp_walk_batch *batch,
                                 const esp_tap *tap, esp_error *error)
{
    esp_vision *vision = runner;
    esp_nn nn = nn_of(vision);
    nn.tap = tap;
    return vision->model->family->images->layer(vision, &nn, index, batch->images, error);
}

const esp_layer_net esp_vision_layers = {.first_part = 1,
                                         .embedding_part = 0,
                                         .create = create_runner,
                                         .release = release_runner,
                                         .tokens = tokens_of,
                                         .stream = stream,
                                         .embed = embed_batch,
                                         .layer = layer_of_batch};

/* ---- steps ---- */

void esp_vision_show(const esp_vision *vision, const char *name, const float *data,
                     int64_t features, int64_t tokens)
{
    if (vision->observe != NULL) {
        vision->observe(vision->observe_user, name, data, features, tokens);
    }
}

void esp_vision_show_layer(const esp_vision *vision, int64_t index, int64_t features,
                           int64_t tokens)
{
    char name[32];
    snprintf(name, sizeof name, "layer.%lld", (long long)index);
    esp_vision_show(vision, name, vision->x, features, tokens);
}

esp_status esp_vision_embed(esp_vision *vision, const esp_nn *nn, const esp_linear *projection,
                            const float *pixels, int64_t images, float *y, esp_error *error)
{
    esp_patches cut = {.pixels = pixels,
                       .y = vision->pixels,
                       .images = images,
                       .channels = ESP_IMAGE_CHANNELS,
                       .height = vision->height,
                       .width = vision->width,
                       .patch = vision->model->info.patch_size};
    esp_patches_cut(vision->model->context, &cut);
    esp_linear_call call = {.x = vision->pixels, .y = y, .tokens = images * vision->patches};
    return esp_linear_run(nn, projection, &call, error);
}

esp_status esp_vision_norm(const esp_nn *nn, const float *x, const float *weight, const float *bias,
                           float eps, int64_t features, int64_t tokens, float *y, esp_error *error)
{
    return esp_nn_done(nn->ops->layer_norm(nn->device, x, weight, bias, eps, features, tokens, y),
                       "layer_norm", error);
}

esp_status esp_vision_gather(const esp_nn *nn, const float *x, int64_t features, int64_t tokens,
                             const int32_t *index, int64_t count, float *y, esp_error *error)
{
    return esp_nn_done(nn->ops->gather_tokens(nn->device, x, features, tokens, index, count, y),
                       "gather_tokens", error);
}

esp_status esp_vision_add(const esp_nn *nn, float *x, const float *y, int64_t count,
                          esp_error *error)
{
    return esp_nn_done(nn->ops->add(nn->device, x, y, count), "add", error);
}

esp_status esp_vision_feed_forward(const esp_vision *vision, const esp_nn *nn,
                                   const esp_image_layer *layer, float eps, int64_t features,
                                   int64_t tokens, esp_error *error)
{
    ESP_TRY(esp_vision_norm(nn, vision->x, layer->norm2_weight, layer->norm2_bias, eps, features,
                            tokens, vision->normed, error));
    esp_linear_call up = {.x = vision->normed, .y = vision->inner, .tokens = tokens};
    esp_linear_call down = {
        .x = vision->inner, .y = vision->x, .residual = vision->x, .tokens = tokens};
    ESP_TRY(esp_linear_run(nn, &layer->up, &up, error));
    return esp_linear_run(nn, &layer->down, &down, error);
}

esp_status esp_vision_attend(const esp_vision *vision, const esp_nn *nn,
                             const esp_image_layer *layer, const esp_group_attention_call *what,
                             esp_error *error)
{
    esp_group_attention_call call = *what;
    call.qkv = vision->qkv;
    call.keys = vision->keys;
    call.values = vision->values;
    call.mixed = vision->mixed;
    call.row_bias = vision->row_bias;
    call.column_bias = vision->column_bias;
    call.workspace = vision->attention_workspace;
    return esp_group_attention_run(nn, &layer->attention, &call, error);
}

void esp_vision_tile(esp_vision *vision, int64_t features, int64_t images)
{
    size_t bytes = (size_t)vision->tokens * sizeof(float);
    for (int64_t f = 0; f < features; f++) {
        for (int64_t image = 0; image < images; image++) {
            memcpy(vision->base + (f * images + image) * vision->tokens,
                   vision->positions + f * vision->tokens, bytes);
        }
    }
}
