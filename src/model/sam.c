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

static int64_t window_pitch(const esp_vision *vision)
{
    int64_t window = sam_of(vision)->window;
    return esp_ops_pitch(vision->model->ops, window * window);
}

int64_t esp_sam_windowed(const esp_model *model, int64_t rows, int64_t columns)
{
    const esp_sam *sam = model->parts;
    int64_t down = esp_ceil_div(rows, sam->window), across = esp_ceil_div(columns, sam->window);
    return down * across * esp_ops_pitch(model->ops, sam->window * sam->window);
}

static void measure(esp_vision *vision)
{
    vision->tokens = vision->patches;
    vision->pitch = esp_ops_pitch(vision->model->ops, vision->tokens);
    vision->windowed = esp_sam_windowed(vision->model, vision->rows, vision->columns);
}

/* ---- what is made once ---- */

static esp_status take_positions(esp_vision *vision, esp_error *error)
{
    const esp_sam *sam = sam_of(vision);
    esp_context *context = vision->model->context;
    int64_t hidden = sam->config.hidden, count = vision->tokens * hidden;
    float *learned = esp_alloc_array(context, (size_t)count, sizeof *learned);
    float *placed = esp_alloc_array(context, (size_t)(hidden * vision->pitch), sizeof *placed);
    esp_status status = learned != NULL && placed != NULL
                            ? ESP_OK
                            : esp_fail_memory(error, (size_t)count * sizeof(float), "positions");
    if (status == ESP_OK && sam->absolute) {
        status = esp_vector_read(vision->model, sam->positions, count, learned, error);
    }
    if (status == ESP_OK) {
        for (int64_t f = 0; f < hidden; f++) {
            for (int64_t t = 0; t < vision->tokens; t++) {
                placed[f * vision->pitch + t] = sam->absolute ? learned[t * hidden + f] : 0.0f;
            }
        }
        status = esp_vision_take_positions(vision, placed, hidden, error);
    }
    esp_release(context, learned);
    esp_release(context, placed);
    return status;
}

/* The most that whole images and windows need. */
static esp_status take_attention(esp_vision *vision, esp_error *error)
{
    const esp_sam *sam = sam_of(vision);
    size_t most = 0;
    for (int64_t i = 0; i < sam->config.layers; i++) {
        bool global = sam->global[i];
        int64_t held = vision->model->by_layer ? 0 : i; /* its tables say that all have some */
        size_t bytes = esp_vision_attention_bytes(
            vision, &sam->layers[held],
            vision->max_images * (global ? vision->pitch : vision->windowed),
            global ? vision->tokens : sam->window * sam->window,
            global ? vision->pitch : window_pitch(vision), global ? vision->columns : sam->window);
        most = ESP_MAX(most, bytes);
    }
    return esp_vision_take_attention(vision, most, error);
}

static esp_status create(esp_vision *vision, esp_error *error)
{
    const esp_sam *sam = sam_of(vision);
    const esp_image_config *config = &sam->config;
    int64_t hidden = config->hidden, neighbours = sam->channels * NECK_SIDE * NECK_SIDE;
    int64_t columns = esp_ops_columns(
        vision->model->ops, vision->max_images * ESP_MAX(vision->pitch, vision->windowed));
    const esp_area areas[] = {
        {&vision->x, hidden},
        {&vision->normed, hidden},
        {&vision->mixed, hidden},
        {&vision->qkv, 3 * hidden},
        {&vision->picked, sam->channels},
        {&vision->inner, ESP_MAX(config->intermediate, neighbours)},
        esp_moments_area(vision->model, true, hidden, columns, &vision->moments),
        {&vision->pixels, ESP_IMAGE_CHANNELS * config->patch * config->patch}};
    ESP_TRY(esp_scratch_take(vision->model, &vision->taken, areas, ESP_COUNT(areas), columns,
                             &vision->block, error));
    ESP_TRY(take_positions(vision, error));
    return take_attention(vision, error);
}

/* ---- one batch ---- */

static int64_t windowed_columns(const esp_vision *vision, int64_t images)
{
    return esp_ops_columns(vision->model->ops, images * vision->windowed);
}

/* index: which column of the batch is at a place of a window, -1 for what is added; back: the place
 * of each token, -1 for columns that are none. */
static esp_status lay_out(esp_vision *vision, int64_t images, esp_error *error)
{
    int64_t window = sam_of(vision)->window, columns = vision->columns;
    int64_t across = esp_ceil_div(columns, window), pitch = window_pitch(vision);
    int32_t *index = vision->index.host, *back = vision->back.host;
    int64_t all = esp_vision_columns(vision, images), places = windowed_columns(vision, images);
    for (int64_t column = 0; column < all; column++) {
        back[column] = -1;
    }
    for (int64_t place = images * vision->windowed; place < places; place++) {
        index[place] = -1;
    }
    for (int64_t place = 0; place < images * vision->windowed; place++) {
        int64_t image = place / vision->windowed, in_image = place % vision->windowed;
        int64_t number = in_image / pitch, in_window = in_image % pitch;
        int64_t row = number / across * window + in_window / window;
        int64_t column = number % across * window + in_window % window;
        int64_t token = image * vision->pitch + row * columns + column;
        bool inside = in_window < window * window && row < vision->rows && column < columns;
        index[place] = inside ? (int32_t)token : -1;
        if (inside) {
            back[token] = (int32_t)place;
        }
    }
    size_t bytes = (size_t)places * sizeof *index;
    ESP_TRY(esp_mail_send(&vision->lane, &vision->index, bytes, error));
    return esp_mail_send(&vision->lane, &vision->back, (size_t)all * sizeof *back, error);
}

/* Tokens as they lie, each seeing its image or, in one, its window. */
static esp_group_call in_place(const esp_vision_pass *pass, int64_t window)
{
    const esp_vision *vision = pass->vision;
    return (esp_group_call){.x = vision->x,
                            .y = vision->x,
                            .residual = vision->x,
                            .columns = pass->columns,
                            .groups = pass->images,
                            .tokens = vision->tokens,
                            .pitch = vision->pitch,
                            .grid_width = vision->columns,
                            .window = window};
}

/* Into windows, attention, and back onto x. q, k and v are no longer needed when the result is
 * written to their place. */
static esp_status attend_gathered(const esp_vision_pass *pass, const esp_image_layer *layer,
                                  esp_error *error)
{
    const esp_vision *vision = pass->vision;
    const esp_sam *sam = sam_of(vision);
    int64_t hidden = sam->config.hidden, places = windowed_columns(vision, pass->images);
    ESP_TRY(esp_vision_norm(pass, vision->x, layer->norm1_weight, layer->norm1_bias,
                            sam->config.eps, hidden, vision->normed, error));
    const esp_group_call attention = {.x = vision->mixed,
                                      .y = vision->qkv,
                                      .columns = places,
                                      .groups =
                                          pass->images * vision->windowed / window_pitch(vision),
                                      .tokens = sam->window * sam->window,
                                      .pitch = window_pitch(vision),
                                      .grid_width = sam->window};
    ESP_TRY(esp_vision_gather(pass, vision->normed, hidden, pass->columns, vision->index.device,
                              places, false, vision->mixed, error));
    ESP_TRY(esp_vision_attend(pass, layer, &attention, error));
    return esp_vision_gather(pass, vision->qkv, hidden, places, vision->back.device, pass->columns,
                             true, vision->x, error);
}

/* Where attention takes windows as they lie, o adds, and products have no columns of tokens
 * outside. */
static esp_status attend(const esp_vision_pass *pass, const esp_image_layer *layer, bool global,
                         esp_error *error)
{
    const esp_vision *vision = pass->vision;
    const esp_sam *sam = sam_of(vision);
    esp_group_call call = in_place(pass, global ? 0 : sam->window);
    esp_prepare norm = esp_prepare_layer_norm(layer->norm1_weight, layer->norm1_bias,
                                              sam->config.eps, vision->normed);
    call.prepare = &norm;
    return layer->attention.o.adds ? esp_vision_attend(pass, layer, &call, error)
                                   : attend_gathered(pass, layer, error);
}

static esp_status embed(const esp_vision_pass *pass, esp_error *error)
{
    const esp_vision *vision = pass->vision;
    const esp_sam *sam = sam_of(vision);
    ESP_TRY(esp_vision_embed(pass, &sam->patches, 0, error));
    return esp_vision_show(pass, "embed", vision->x, sam->config.hidden, error);
}

static esp_status run_layer(const esp_vision_pass *pass, int64_t index, esp_error *error)
{
    const esp_vision *vision = pass->vision;
    const esp_sam *sam = sam_of(vision);
    const esp_image_layer *layer = &sam->layers[index];
    const esp_linear *reader = esp_image_layer_reader(sam->layers, sam->config.layers, index);
    ESP_TRY(attend(pass, layer, sam->global[index], error));
    ESP_TRY(esp_vision_feed_forward(pass, layer, sam->config.eps, vision->x, reader, error));
    return esp_vision_show_layer(pass, index, sam->config.hidden, error);
}

/* The result lies in `picked`. */
static esp_status run_neck(const esp_vision_pass *pass, esp_error *error)
{
    const esp_vision *vision = pass->vision;
    const esp_sam *sam = sam_of(vision);
    const esp_nn *nn = &pass->nn;
    int64_t channels = sam->channels;
    const esp_unfold neighbours = {.x = vision->picked,
                                   .y = vision->inner,
                                   .features = channels,
                                   .columns = pass->columns,
                                   .height = vision->rows,
                                   .width = vision->columns,
                                   .pitch = vision->pitch,
                                   .side = NECK_SIDE};
    esp_linear_call one = {.x = vision->x, .y = vision->picked, .tokens = pass->columns};
    esp_linear_call three = {.x = vision->inner, .y = vision->picked, .tokens = pass->columns};
    ESP_TRY(esp_linear_run(nn, &sam->neck[0], &one, error));
    ESP_TRY(esp_vision_norm(pass, vision->picked, sam->neck_weight[0], sam->neck_bias[0], NECK_EPS,
                            channels, vision->picked, error));
    ESP_TRY(esp_nn_done(nn->ops->unfold(nn->device, nn->stream, &neighbours), "unfold", error));
    ESP_TRY(esp_linear_run(nn, &sam->neck[1], &three, error));
    ESP_TRY(esp_vision_norm(pass, vision->picked, sam->neck_weight[1], sam->neck_bias[1], NECK_EPS,
                            channels, vision->picked, error));
    return esp_vision_show(pass, "neck", vision->picked, channels, error);
}

static esp_status run(const esp_vision_pass *pass, esp_error *error)
{
    const esp_vision *vision = pass->vision;
    const esp_sam *sam = sam_of(vision);
    const esp_nn *nn = &pass->nn;
    int64_t count = sam->channels * pass->columns;
    ESP_TRY(embed(pass, error));
    for (int64_t index = 0; index < sam->config.layers; index++) {
        ESP_TRY(run_layer(pass, index, error));
    }
    ESP_TRY(run_neck(pass, error));
    return esp_nn_done(nn->ops->widen(nn->device, nn->stream, vision->picked, count, pass->output),
                       "widen", error);
}

static int64_t output_floats(const esp_vision *vision, int64_t images)
{
    return sam_of(vision)->channels * esp_vision_columns(vision, images);
}

/* Image before channel. */
static void deliver(const esp_vision *vision, int64_t images, const float *from, float *output)
{
    int64_t channels = sam_of(vision)->channels, columns = esp_vision_columns(vision, images);
    size_t plane = (size_t)vision->tokens * sizeof(float);
    for (int64_t image = 0; image < images; image++) {
        for (int64_t c = 0; c < channels; c++) {
            memcpy(output + (image * channels + c) * vision->tokens,
                   from + c * columns + image * vision->pitch, plane);
        }
    }
}

static void output_shape(const esp_model *model, int *rank, int64_t *shape)
{
    const esp_sam *sam = model->parts;
    *rank = 3;
    shape[0] = sam->channels;
    shape[1] = shape[2] = sam->config.side / sam->config.patch;
}

/* Else attention has windows put together first, padded with tokens that only it sees. */
static bool stays(const esp_model *model)
{
    const esp_sam *sam = model->parts;
    for (int64_t i = 0; i < sam->config.layers; i++) {
        if (!sam->layers[i].attention.o.adds) {
            return false;
        }
    }
    return true;
}

const esp_image_net esp_sam_net = {.measure = measure,
                                   .create = create,
                                   .lay_out = lay_out,
                                   .run = run,
                                   .output_floats = output_floats,
                                   .deliver = deliver,
                                   .output_shape = output_shape,
                                   .embed = embed,
                                   .layer = run_layer,
                                   .stays = stays};
