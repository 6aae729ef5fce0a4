/* The image encoder of Segment Anything: Kirillov et al. (arXiv 2304.02643), a ViT after Li et al.,
 * ViTDet (arXiv 2203.16527).
 *
 *   z = E p + positions
 *   for each layer:
 *       z = z + attention(norm(z)), within windows of `window` x `window` or, in global layers, the
 *           whole image; scores get row and column terms of relative positions
 *       z = z + down(gelu(up(norm(z))))
 *   y = norm(conv3x3(norm(conv1x1(z))))
 *
 * Where windows do not divide the image, zeros are added right and below; those tokens take part in
 * attention like others. A batch is one list of tokens, image after image, window after window. */
#include "model/sam.h"

#define NECK_EPS 1e-6f
#define NECK_SIDE 3

static esp_sam *sam_of(const esp_vision *vision)
{
    return vision->model->parts;
}

static void measure(esp_vision *vision)
{
    int64_t window = sam_of(vision)->window;
    int64_t down = esp_ceil_div(vision->rows, window),
            across = esp_ceil_div(vision->columns, window);
    vision->tokens = vision->patches;
    vision->windowed = down * across * window * window;
}

/* ---- what is made once ---- */

static void place(esp_vision *vision)
{
    const esp_sam *sam = sam_of(vision);
    int64_t hidden = sam->config.hidden;
    for (int64_t f = 0; f < hidden; f++) {
        for (int64_t t = 0; t < vision->tokens; t++) {
            vision->positions[f * vision->tokens + t] =
                sam->absolute ? sam->positions[t * hidden + f] : 0.0f;
        }
    }
}

/* The larger of what whole images and windows need. */
static esp_status take_attention(esp_vision *vision, esp_error *error)
{
    const esp_device *device = vision->model->device;
    const esp_sam *sam = sam_of(vision);
    const int64_t groups[] = {vision->tokens, sam->window * sam->window};
    size_t most = 64;
    for (int i = 0; i < ESP_COUNT(groups); i++) {
        esp_group_attention_call call = {.tokens = groups[i], .group = groups[i]};
        esp_attention attention = esp_group_attention_of(&sam->layers[0].attention, &call, 0);
        size_t bytes = device->backend->ops->attention_workspace_bytes(device, &attention);
        most = ESP_MAX(most, bytes);
    }
    vision->attention_workspace = device->backend->alloc(vision->model->device, most);
    return vision->attention_workspace != NULL ? ESP_OK
                                               : esp_fail_memory(error, most, "a workspace");
}

static esp_status create(esp_vision *vision, esp_error *error)
{
    const esp_sam *sam = sam_of(vision);
    const esp_image_config *config = &sam->config;
    int64_t hidden = config->hidden, neighbours = sam->channels * NECK_SIDE * NECK_SIDE;
    int64_t bias = config->heads * ESP_MAX(sam->window, ESP_MAX(vision->rows, vision->columns));
    const esp_area areas[] = {
        {&vision->x, hidden},
        {&vision->normed, hidden},
        {&vision->mixed, hidden},
        {&vision->qkv, 3 * hidden},
        {&vision->keys, hidden},
        {&vision->values, hidden},
        {&vision->base, hidden},
        {&vision->picked, sam->channels},
        {&vision->row_bias, bias},
        {&vision->column_bias, bias},
        {&vision->inner, ESP_MAX(config->intermediate, neighbours)},
        {&vision->pixels, ESP_IMAGE_CHANNELS * config->patch * config->patch}};
    ESP_TRY(esp_scratch_take(vision->model, areas, ESP_COUNT(areas),
                             vision->max_images * vision->windowed, &vision->block, error));
    ESP_TRY(esp_device_take(vision->model, (size_t)(hidden * vision->tokens), "positions",
                            &vision->positions, error));
    place(vision);
    return take_attention(vision, error);
}

/* ---- one batch ---- */

/* index: which token of the batch is at a place of a window, -1 for what is added; back: the place
 * of each token. */
static void lay_out(esp_vision *vision, int64_t images)
{
    int64_t window = sam_of(vision)->window, columns = vision->columns;
    int64_t across = esp_ceil_div(columns, window);
    if (vision->laid_out == images) {
        return;
    }
    esp_vision_tile(vision, sam_of(vision)->config.hidden, images);
    for (int64_t place = 0; place < images * vision->windowed; place++) {
        int64_t image = place / vision->windowed, in_image = place % vision->windowed;
        int64_t number = in_image / (window * window), in_window = in_image % (window * window);
        int64_t row = number / across * window + in_window / window;
        int64_t column = number % across * window + in_window % window;
        int64_t token = image * vision->tokens + row * columns + column;
        bool inside = row < vision->rows && column < columns;
        vision->index[place] = inside ? (int32_t)token : -1;
        if (inside) {
            vision->back[token] = (int32_t)place;
        }
    }
    vision->laid_out = images;
}

static esp_status embed(esp_vision *vision, const esp_nn *nn, const float *pixels, int64_t images,
                        esp_error *error)
{
    const esp_sam *sam = sam_of(vision);
    int64_t hidden = sam->config.hidden, tokens = images * vision->tokens;
    lay_out(vision, images);
    ESP_TRY(esp_vision_embed(vision, nn, &sam->patches, pixels, images, vision->x, error));
    ESP_TRY(esp_vision_add(nn, vision->x, vision->base, hidden * tokens, error));
    esp_vision_show(vision, "embed", vision->x, hidden, tokens);
    return ESP_OK;
}

static esp_status attend_globally(const esp_vision *vision, const esp_nn *nn,
                                  const esp_image_layer *layer, int64_t images, esp_error *error)
{
    const esp_group_attention_call attention = {.x = vision->normed,
                                                .y = vision->x,
                                                .residual = vision->x,
                                                .tokens = images * vision->tokens,
                                                .group = vision->tokens,
                                                .height = vision->rows,
                                                .width = vision->columns};
    return esp_vision_attend(vision, nn, layer, &attention, error);
}

/* Into windows, attention, and back onto x. q, k and v are no longer needed when the result is
 * written to their place. */
static esp_status attend_in_windows(const esp_vision *vision, const esp_nn *nn,
                                    const esp_image_layer *layer, int64_t images, esp_error *error)
{
    const esp_sam *sam = sam_of(vision);
    int64_t hidden = sam->config.hidden, tokens = images * vision->tokens;
    int64_t places = images * vision->windowed;
    const esp_group_attention_call attention = {.x = vision->mixed,
                                                .y = vision->qkv,
                                                .tokens = places,
                                                .group = sam->window * sam->window,
                                                .height = sam->window,
                                                .width = sam->window};
    ESP_TRY(esp_vision_gather(nn, vision->normed, hidden, tokens, vision->index, places,
                              vision->mixed, error));
    ESP_TRY(esp_vision_attend(vision, nn, layer, &attention, error));
    ESP_TRY(esp_vision_gather(nn, vision->qkv, hidden, places, vision->back, tokens, vision->normed,
                              error));
    return esp_vision_add(nn, vision->x, vision->normed, hidden * tokens, error);
}

static esp_status run_layer(esp_vision *vision, const esp_nn *nn, int64_t index, int64_t images,
                            esp_error *error)
{
    const esp_sam *sam = sam_of(vision);
    const esp_image_layer *layer = &sam->layers[index];
    int64_t hidden = sam->config.hidden, tokens = images * vision->tokens;
    lay_out(vision, images); /* for a layer that runs alone */
    ESP_TRY(esp_vision_norm(nn, vision->x, layer->norm1_weight, layer->norm1_bias, sam->config.eps,
                            hidden, tokens, vision->normed, error));
    ESP_TRY(sam->global[index] ? attend_globally(vision, nn, layer, images, error)
                               : attend_in_windows(vision, nn, layer, images, error));
    ESP_TRY(esp_vision_feed_forward(vision, nn, layer, sam->config.eps, hidden, tokens, error));
    esp_vision_show_layer(vision, index, hidden, tokens);
    return ESP_OK;
}

/* The result lies in `picked`. */
static esp_status run_neck(esp_vision *vision, const esp_nn *nn, int64_t images, esp_error *error)
{
    const esp_sam *sam = sam_of(vision);
    int64_t channels = sam->channels, tokens = images * vision->tokens;
    const esp_unfold neighbours = {.x = vision->picked,
                                   .y = vision->inner,
                                   .features = channels,
                                   .tokens = tokens,
                                   .height = vision->rows,
                                   .width = vision->columns,
                                   .side = NECK_SIDE};
    esp_linear_call one = {.x = vision->x, .y = vision->picked, .tokens = tokens};
    esp_linear_call three = {.x = vision->inner, .y = vision->picked, .tokens = tokens};
    ESP_TRY(esp_linear_run(nn, &sam->neck[0], &one, error));
    ESP_TRY(esp_vision_norm(nn, vision->picked, sam->neck_weight[0], sam->neck_bias[0], NECK_EPS,
                            channels, tokens, vision->picked, error));
    ESP_TRY(esp_nn_done(nn->ops->unfold(nn->device, &neighbours), "unfold", error));
    ESP_TRY(esp_linear_run(nn, &sam->neck[1], &three, error));
    ESP_TRY(esp_vision_norm(nn, vision->picked, sam->neck_weight[1], sam->neck_bias[1], NECK_EPS,
                            channels, tokens, vision->picked, error));
    esp_vision_show(vision, "neck", vision->picked, channels, tokens);
    return ESP_OK;
}

static esp_status run(esp_vision *vision, const esp_nn *nn, const float *pixels, int64_t images,
                      float *output, esp_error *error)
{
    const esp_sam *sam = sam_of(vision);
    size_t plane = (size_t)vision->tokens * sizeof(float);
    ESP_TRY(embed(vision, nn, pixels, images, error));
    for (int64_t index = 0; index < sam->config.layers; index++) {
        ESP_TRY(run_layer(vision, nn, index, images, error));
    }
    ESP_TRY(run_neck(vision, nn, images, error));
    for (int64_t image = 0; image < images; image++) { /* image before channel */
        for (int64_t c = 0; c < sam->channels; c++) {
            memcpy(output + (image * sam->channels + c) * vision->tokens,
                   vision->picked + (c * images + image) * vision->tokens, plane);
        }
    }
    return ESP_OK;
}

static void output_shape(const esp_model *model, int *rank, int64_t *shape)
{
    const esp_sam *sam = model->parts;
    *rank = 3;
    shape[0] = sam->channels;
    shape[1] = shape[2] = sam->config.side / sam->config.patch;
}

const esp_image_net esp_sam_net = {.measure = measure,
                                   .create = create,
                                   .run = run,
                                   .output_shape = output_shape,
                                   .embed = embed,
                                   .layer = run_layer};
