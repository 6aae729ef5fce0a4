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

/* Every number of columns that a product of `images` images can have. */
static esp_status product_workspace(esp_vision *vision, esp_error *error)
{
    const esp_ops *ops = vision->model->ops;
    size_t most = 64;
    for (int64_t images = 1; images <= vision->max_images; images++) {
        const int64_t counts[] = {
            esp_ops_columns(ops, images), ESP_MAX(vision->kept, 1) * esp_ops_columns(ops, images),
            esp_ops_columns(ops, images * vision->patches), esp_vision_columns(vision, images),
            esp_ops_columns(ops, images * vision->windowed)};
        size_t bytes = 0;
        ESP_TRY(esp_product_workspace_at(vision->model, counts, ESP_COUNT(counts), &bytes, error));
        most = ESP_MAX(most, bytes);
    }
    vision->workspace_bytes = most;
    return esp_device_take(&vision->taken, most, 1, "a workspace", &vision->workspace, error);
}

static esp_status take_tables(esp_vision *vision, int64_t longest, esp_error *error)
{
    esp_context *context = vision->model->context;
    size_t linears = (size_t)esp_model_linears(vision->model);
    size_t bytes = (size_t)esp_ops_columns(vision->model->ops, longest + 1) * sizeof(int32_t);
    vision->plans = esp_alloc_array(context, 2 * linears, sizeof *vision->plans);
    if (vision->plans == NULL) {
        return esp_fail_memory(error, 2 * linears * sizeof *vision->plans, "plans");
    }
    ESP_TRY(esp_taken_mail(&vision->taken, bytes, "tables of tokens", &vision->index, error));
    return esp_taken_mail(&vision->taken, bytes, "tables of tokens", &vision->back, error);
}

static size_t pixel_bytes(const esp_vision *vision, int64_t images)
{
    return (size_t)(images * ESP_IMAGE_CHANNELS * vision->height) * (size_t)vision->width *
           sizeof(float);
}

static esp_status take_pixels(esp_vision *vision, esp_error *error)
{
    return esp_taken_mail(&vision->taken, pixel_bytes(vision, vision->max_images), "pixels",
                          &vision->images, error);
}

/* Results, and pixels of a far device. */
static esp_status take_border(esp_vision *vision, esp_error *error)
{
    const esp_model *model = vision->model;
    const esp_image_net *net = model->family->images;
    size_t floats = (size_t)net->output_floats(vision, vision->max_images);
    ESP_TRY(
        esp_taken_mail(&vision->taken, floats * sizeof(float), "results", &vision->output, error));
    return esp_device_is_far(model->device) ? take_pixels(vision, error) : ESP_OK;
}

static esp_status take_memory(esp_vision *vision, esp_error *error)
{
    int64_t most = ESP_MAX(vision->pitch, vision->windowed), batch;
    if (!esp_mul_i64(most, vision->max_images, &batch) || batch > INT32_MAX) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "vision.bad_batch",
                        "%lld images of %lld tokens at once are too many",
                        (long long)vision->max_images, (long long)most);
    }
    ESP_TRY(esp_lane_open(vision->model->device, &vision->lane, error));
    ESP_TRY(take_tables(vision, batch, error));
    ESP_TRY(vision->model->family->images->create(vision, error));
    ESP_TRY(take_border(vision, error));
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
    made->taken = esp_taken_of(model);
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
    esp_lane_close(&vision->lane);
    for (int i = 0; i < ESP_COUNT(areas); i++) {
        if (areas[i] != NULL) {
            device->backend->release(device, areas[i]);
        }
    }
    esp_mail_free(device, &vision->images);
    esp_mail_free(device, &vision->output);
    esp_mail_free(device, &vision->index);
    esp_mail_free(device, &vision->back);
    esp_taken_drop(&vision->taken);
    esp_release(context, vision->plans);
    esp_release(context, vision);
}

/* ---- running ---- */

static esp_status lay_out(esp_vision *vision, int64_t images, esp_error *error)
{
    if (vision->laid_out == images) {
        return ESP_OK;
    }
    vision->laid_out = 0; /* should it fail */
    ESP_TRY(esp_lane_ready(&vision->lane, error));
    ESP_TRY(vision->model->family->images->lay_out(vision, images, error));
    vision->laid_out = images;
    return ESP_OK;
}

/* Where a pass finds its pixels. NULL: those of the run before, which must have been as many. */
static esp_status send_pixels(esp_vision *vision, const float *pixels, int64_t images,
                              const float **at, esp_error *error)
{
    bool far = esp_device_is_far(vision->model->device);
    if (pixels == NULL && (vision->images.host == NULL || images > vision->sent)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "vision.no_pixels",
                        "no pixels for %lld images: a run before this one gave those of %lld; "
                        "give them, or ask esp_vision_pixels for memory and fill it",
                        (long long)images, (long long)vision->sent);
    }
    if (pixels == NULL || !far) {
        *at = pixels != NULL ? pixels : vision->images.device;
        return ESP_OK;
    }
    const esp_mail mail = {.host = (void *)(uintptr_t)pixels, .device = vision->images.device};
    *at = vision->images.device;
    vision->sent = 0; /* should it fail */
    ESP_TRY(esp_mail_send(&vision->lane, &mail, pixel_bytes(vision, images), error));
    vision->sent = images;
    return ESP_OK;
}

esp_status esp_vision_pixels(esp_vision *vision, float **pixels, esp_error *error)
{
    if (vision->images.host == NULL) {
        ESP_TRY(take_pixels(vision, error));
        vision->sent = vision->max_images; /* there is no way to go */
    }
    *pixels = vision->images.host;
    return esp_lane_ready(&vision->lane, error);
}

static esp_status run_pass(void *user, esp_error *error)
{
    const esp_vision_pass *pass = user;
    return pass->vision->model->family->images->run(pass, error);
}

/* From device memory, or memory of another layout, to the caller's. */
static esp_status deliver(const esp_vision_pass *pass, float *output, esp_error *error)
{
    esp_vision *vision = pass->vision;
    const esp_image_net *net = vision->model->family->images;
    const esp_mail *made = &vision->output;
    size_t floats = (size_t)net->output_floats(vision, pass->images);
    if (made->host != made->device) {
        ESP_TRY(esp_lane_receive(&vision->lane, made->host, made->device, floats * sizeof(float),
                                 error));
    }
    net->deliver(vision, pass->images, made->host, output);
    return ESP_OK;
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
    esp_vision_pass pass = {.vision = vision,
                            .nn = esp_model_nn(model, &vision->lane),
                            .images = images,
                            .columns = esp_vision_columns(vision, images),
                            .output = vision->output.device};
    pass.nn.workspace = vision->workspace;
    pass.nn.workspace_bytes = vision->workspace_bytes;
    pass.nn.plans = vision->plans;
    pass.nn.moments = esp_moments_of(&vision->moments);
    ESP_TRY(lay_out(vision, images, error));
    ESP_TRY(send_pixels(vision, pixels, images, &pass.pixels, error));
    const int64_t key[4] = {images};
    ESP_TRY(vision->observe != NULL ? run_pass(&pass, error)
                                    : esp_lane_run(&vision->lane, key, run_pass, &pass, error));
    return deliver(&pass, output, error);
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

static esp_walk_places places_of(const void *runner, const esp_walk_batch *batch)
{
    const esp_vision *vision = runner;
    return (esp_walk_places){.tokens = batch->images * vision->tokens,
                             .columns = esp_vision_columns(vision, batch->images),
                             .run = vision->tokens,
                             .pitch = vision->pitch};
}

static void *stream(void *runner)
{
    return ((esp_vision *)runner)->x;
}

static esp_vision_pass pass_of(esp_vision *vision, const esp_walk_batch *batch, const esp_tap *tap)
{
    esp_vision_pass pass = {.vision = vision,
                            .nn = esp_model_nn(vision->model, &vision->lane),
                            .images = batch->images,
                            .columns = esp_vision_columns(vision, batch->images)};
    pass.nn.workspace = vision->workspace;
    pass.nn.workspace_bytes = vision->workspace_bytes;
    pass.nn.plans = vision->plans;
    pass.nn.tap = tap;
    return pass;
}

static esp_status embed_batch(void *runner, const esp_walk_batch *batch, esp_error *error)
{
    esp_vision *vision = runner;
    esp_vision_pass pass = pass_of(vision, batch, NULL);
    ESP_TRY(lay_out(vision, batch->images, error));
    ESP_TRY(send_pixels(vision, batch->pixels, batch->images, &pass.pixels, error));
    return vision->model->family->images->embed(&pass, error);
}

static esp_status layer_of_batch(void *runner, int64_t index, const esp_walk_batch *batch,
                                 const esp_tap *tap, esp_error *error)
{
    esp_vision *vision = runner;
    const esp_vision_pass pass = pass_of(vision, batch, tap);
    ESP_TRY(lay_out(vision, batch->images, error));
    return vision->model->family->images->layer(&pass, index, error);
}

const esp_layer_net esp_vision_layers = {.first_part = 1,
                                         .embedding_part = 0,
                                         .create = create_runner,
                                         .release = release_runner,
                                         .places = places_of,
                                         .stream = stream,
                                         .embed = embed_batch,
                                         .layer = layer_of_batch};

/* ---- steps ---- */

esp_status esp_vision_show(const esp_vision_pass *pass, const char *name, const void *data,
                           int64_t features, esp_error *error)
{
    esp_vision *vision = pass->vision;
    const esp_view view = {.name = name,
                           .data = data,
                           .features = features,
                           .columns = pass->columns,
                           .groups = pass->images,
                           .tokens = vision->tokens,
                           .pitch = vision->pitch};
    return esp_model_show(vision->model, &vision->lane, &view, vision->observe,
                          vision->observe_user, error);
}

esp_status esp_vision_show_layer(const esp_vision_pass *pass, int64_t index, int64_t features,
                                 esp_error *error)
{
    char name[32];
    snprintf(name, sizeof name, "layer.%lld", (long long)index);
    return esp_vision_show(pass, name, pass->vision->x, features, error);
}

esp_status esp_vision_embed(const esp_vision_pass *pass, const esp_linear *projection,
                            int64_t specials, esp_error *error)
{
    const esp_vision *vision = pass->vision;
    const esp_nn *nn = &pass->nn;
    int64_t columns = esp_ops_columns(nn->ops, pass->images * vision->patches);
    bool in_place = specials == 0 && columns == pass->columns && vision->pitch == vision->patches;
    void *made = in_place ? vision->x : vision->qkv;
    const esp_patches cut = {.pixels = pass->pixels,
                             .y = vision->pixels,
                             .images = pass->images,
                             .channels = ESP_IMAGE_CHANNELS,
                             .height = vision->height,
                             .width = vision->width,
                             .patch = vision->model->info.patch_size,
                             .columns = columns};
    const esp_image_tokens tokens = {.from = made,
                                     .x = vision->x,
                                     .positions = vision->positions,
                                     .features = vision->model->info.hidden_size,
                                     .images = pass->images,
                                     .patches = vision->patches,
                                     .specials = specials,
                                     .pitch = vision->pitch,
                                     .from_columns = columns,
                                     .columns = pass->columns};
    const esp_linear_call call = {.x = vision->pixels, .y = made, .tokens = columns};
    esp_moments_forget(nn, vision->x);
    ESP_TRY(esp_nn_done(nn->ops->patches(nn->device, nn->stream, &cut), "patches", error));
    ESP_TRY(esp_linear_run(nn, projection, &call, error));
    return esp_nn_done(nn->ops->place_tokens(nn->device, nn->stream, &tokens), "place_tokens",
                       error);
}

esp_status esp_vision_norm(const esp_vision_pass *pass, const void *x, const float *weight,
                           const float *bias, float eps, int64_t features, void *y,
                           esp_error *error)
{
    const esp_nn *nn = &pass->nn;
    return esp_nn_done(nn->ops->layer_norm(nn->device, nn->stream, x, weight, bias, eps, features,
                                           pass->columns, y),
                       "layer_norm", error);
}

esp_status esp_vision_gather(const esp_vision_pass *pass, const void *x, int64_t features,
                             int64_t columns, const int32_t *index, int64_t count, bool adds,
                             void *y, esp_error *error)
{
    const esp_nn *nn = &pass->nn;
    esp_moments_forget(nn, y);
    return esp_nn_done(
        nn->ops->gather_tokens(nn->device, nn->stream, x, features, columns, index, count, adds, y),
        "gather_tokens", error);
}

esp_status esp_vision_feed_forward(const esp_vision_pass *pass, const esp_image_layer *layer,
                                   float eps, void *x, const esp_linear *reader, esp_error *error)
{
    const esp_vision *vision = pass->vision;
    esp_prepare norm =
        esp_prepare_layer_norm(layer->norm2_weight, layer->norm2_bias, eps, vision->normed);
    esp_linear_call up = {.x = x, .y = vision->inner, .tokens = pass->columns, .prepare = &norm};
    esp_linear_call down = {
        .x = vision->inner, .y = x, .residual = x, .tokens = pass->columns, .reader = reader};
    ESP_TRY(esp_linear_run(&pass->nn, &layer->up, &up, error));
    return esp_linear_run(&pass->nn, &layer->down, &down, error);
}

esp_status esp_vision_attend(const esp_vision_pass *pass, const esp_image_layer *layer,
                             const esp_group_call *what, esp_error *error)
{
    const esp_vision *vision = pass->vision;
    esp_group_call call = *what;
    call.qkv = vision->qkv;
    call.reader = what->residual != NULL ? &layer->up : NULL; /* else y is not the stream */
    call.mixed = vision->mixed;
    call.workspace = vision->attention_workspace;
    return esp_group_run(&pass->nn, &layer->attention, &call, error);
}

size_t esp_vision_attention_bytes(const esp_vision *vision, const esp_image_layer *layer,
                                  int64_t columns, int64_t tokens, int64_t pitch,
                                  int64_t grid_width)
{
    const esp_ops *ops = vision->model->ops;
    const esp_group_call call = {.columns = columns,
                                 .groups = columns / pitch,
                                 .tokens = tokens,
                                 .pitch = pitch,
                                 .grid_width = grid_width};
    esp_group_attention attention = esp_group_attention_of(ops, &layer->attention, &call);
    return ops->group_workspace_bytes(vision->model->device, &attention);
}

esp_status esp_vision_take_attention(esp_vision *vision, size_t bytes, esp_error *error)
{
    return esp_device_take(&vision->taken, bytes, 1, "a workspace", &vision->attention_workspace,
                           error);
}

esp_status esp_vision_take_positions(esp_vision *vision, const float *positions, int64_t hidden,
                                     esp_error *error)
{
    return esp_vector_take(&vision->taken, positions, hidden * vision->pitch, "positions",
                           &vision->positions, error);
}
