/* The Vision Transformer: Dosovitskiy et al., "An Image is Worth 16x16 Words" (arXiv 2010.11929),
 * and DeiT: Touvron et al. (arXiv 2012.12877), with its distillation token.
 *
 *   z = [class; (distillation;) E p_1; ... E p_n] + positions,  p_i: the pixels of patch i
 *   for each layer:
 *       z = z + attention(norm(z))
 *       z = z + down(gelu(up(norm(z))))
 *   y = head(norm(z)_class),  with two heads (head(norm(z)_class) + head'(norm(z)_distillation)) /
 * 2
 *
 * For another resolution than the trained one, positions of the patches are resized bicubically.
 * A batch is one list of tokens, image after image; only attention tells them apart. */
#include "model/vit.h"

static esp_vit *vit_of(const esp_vision *vision)
{
    return vision->model->parts;
}

static void measure(esp_vision *vision)
{
    vision->tokens = vision->windowed = vit_of(vision)->specials + vision->patches;
}

/* ---- what is made once ---- */

/* positions[f][t]: what is added to token t, for the special ones with the tokens themselves. */
static void place(esp_vision *vision)
{
    const esp_vit *vit = vit_of(vision);
    int64_t hidden = vit->config.hidden, side = vit->config.side / vit->config.patch;
    for (int64_t t = 0; t < vit->specials; t++) {
        for (int64_t f = 0; f < hidden; f++) {
            vision->positions[f * vision->tokens + t] =
                vit->tokens[t][f] + vit->positions[t * hidden + f];
        }
    }
    const float *trained = vit->positions + vit->specials * hidden;
    float *to = vision->positions + vit->specials;
    if (vision->patches != side * side || vision->height != vision->width) {
        esp_positions_resize(trained, side, hidden, vision->rows, vision->columns, to,
                             vision->tokens);
        return;
    }
    for (int64_t f = 0; f < hidden; f++) {
        for (int64_t p = 0; p < vision->patches; p++) {
            to[f * vision->tokens + p] = trained[p * hidden + f];
        }
    }
}

static esp_status take_attention(esp_vision *vision, esp_error *error)
{
    const esp_device *device = vision->model->device;
    esp_group_attention_call call = {.tokens = vision->tokens, .group = vision->tokens};
    esp_attention attention =
        esp_group_attention_of(&vit_of(vision)->layers[0].attention, &call, 0);
    size_t bytes = device->backend->ops->attention_workspace_bytes(device, &attention);
    vision->attention_workspace = device->backend->alloc(vision->model->device, ESP_MAX(bytes, 64));
    return vision->attention_workspace != NULL ? ESP_OK
                                               : esp_fail_memory(error, bytes, "a workspace");
}

static esp_status create(esp_vision *vision, esp_error *error)
{
    const esp_vit *vit = vit_of(vision);
    const esp_image_config *config = &vit->config;
    int64_t hidden = config->hidden;
    const esp_area areas[] = {
        {&vision->x, hidden},
        {&vision->normed, hidden},
        {&vision->mixed, hidden},
        {&vision->qkv, 3 * hidden},
        {&vision->keys, hidden},
        {&vision->values, hidden},
        {&vision->base, hidden},
        {&vision->picked, hidden},
        {&vision->inner, config->intermediate},
        {&vision->pixels, ESP_IMAGE_CHANNELS * config->patch * config->patch}};
    ESP_TRY(esp_scratch_take(vision->model, areas, ESP_COUNT(areas),
                             vision->max_images * vision->tokens, &vision->block, error));
    ESP_TRY(esp_device_take(vision->model, (size_t)(hidden * vision->tokens), "positions",
                            &vision->positions, error));
    size_t scores = (size_t)(vision->max_images * vit->labels);
    vision->scores = esp_alloc_array(vision->model->context, scores, sizeof(float));
    if (vision->scores == NULL) {
        return esp_fail_memory(error, scores * sizeof(float), "scores");
    }
    place(vision);
    return take_attention(vision, error);
}

/* ---- one batch ---- */

/* Patches go behind each image's special tokens, which are in `base`. */
static void lay_out(esp_vision *vision, int64_t images)
{
    int64_t specials = vit_of(vision)->specials;
    if (vision->laid_out == images) {
        return;
    }
    esp_vision_tile(vision, vit_of(vision)->config.hidden, images);
    for (int64_t image = 0; image < images; image++) {
        for (int64_t t = 0; t < vision->tokens; t++) {
            vision->index[image * vision->tokens + t] =
                t < specials ? -1 : (int32_t)(image * vision->patches + t - specials);
        }
    }
    vision->laid_out = images;
}

static esp_status embed(esp_vision *vision, const esp_nn *nn, const float *pixels, int64_t images,
                        esp_error *error)
{
    const esp_vit *vit = vit_of(vision);
    int64_t hidden = vit->config.hidden, tokens = images * vision->tokens;
    lay_out(vision, images);
    ESP_TRY(esp_vision_embed(vision, nn, &vit->patches, pixels, images, vision->qkv, error));
    ESP_TRY(esp_vision_gather(nn, vision->qkv, hidden, images * vision->patches, vision->index,
                              tokens, vision->x, error));
    ESP_TRY(esp_vision_add(nn, vision->x, vision->base, hidden * tokens, error));
    esp_vision_show(vision, "embed", vision->x, hidden, tokens);
    return ESP_OK;
}

static esp_status run_layer(esp_vision *vision, const esp_nn *nn, int64_t index, int64_t images,
                            esp_error *error)
{
    const esp_vit *vit = vit_of(vision);
    const esp_image_layer *layer = &vit->layers[index];
    int64_t hidden = vit->config.hidden, tokens = images * vision->tokens;
    const esp_group_attention_call attention = {.x = vision->normed,
                                                .y = vision->x,
                                                .residual = vision->x,
                                                .tokens = tokens,
                                                .group = vision->tokens};
    ESP_TRY(esp_vision_norm(nn, vision->x, layer->norm1_weight, layer->norm1_bias, vit->config.eps,
                            hidden, tokens, vision->normed, error));
    ESP_TRY(esp_vision_attend(vision, nn, layer, &attention, error));
    ESP_TRY(esp_vision_feed_forward(vision, nn, layer, vit->config.eps, hidden, tokens, error));
    esp_vision_show_layer(vision, index, hidden, tokens);
    return ESP_OK;
}

/* Head `which` reads the image's special token of that number: y [images][labels]. */
static esp_status run_head(esp_vision *vision, const esp_nn *nn, int which, int64_t images,
                           float *y, esp_error *error)
{
    const esp_vit *vit = vit_of(vision);
    for (int64_t image = 0; image < images; image++) {
        vision->back[image] = (int32_t)(image * vision->tokens + which);
    }
    ESP_TRY(esp_vision_gather(nn, vision->normed, vit->config.hidden, images * vision->tokens,
                              vision->back, images, vision->picked, error));
    esp_linear_call call = {.x = vision->picked, .y = y, .tokens = images};
    return esp_linear_run(nn, &vit->heads[which], &call, error);
}

static esp_status run(esp_vision *vision, const esp_nn *nn, const float *pixels, int64_t images,
                      float *output, esp_error *error)
{
    const esp_vit *vit = vit_of(vision);
    int64_t hidden = vit->config.hidden, tokens = images * vision->tokens;
    ESP_TRY(embed(vision, nn, pixels, images, error));
    for (int64_t index = 0; index < vit->config.layers; index++) {
        ESP_TRY(run_layer(vision, nn, index, images, error));
    }
    ESP_TRY(esp_vision_norm(nn, vision->x, vit->norm_weight, vit->norm_bias, vit->config.eps,
                            hidden, tokens, vision->normed, error));
    esp_vision_show(vision, "norm", vision->normed, hidden, tokens);
    ESP_TRY(run_head(vision, nn, 0, images, output, error));
    if (vit->two_heads) {
        ESP_TRY(run_head(vision, nn, 1, images, vision->scores, error));
        for (int64_t i = 0; i < images * vit->labels; i++) {
            output[i] = (output[i] + vision->scores[i]) / 2;
        }
    }
    return ESP_OK;
}

static void output_shape(const esp_model *model, int *rank, int64_t *shape)
{
    *rank = 1;
    shape[0] = model->info.labels;
}

static const char *label(const esp_model *model, int64_t index)
{
    const esp_vit *vit = model->parts;
    return index >= 0 && index < vit->labels ? vit->names[index] : NULL;
}

const esp_image_net esp_vit_net = {.any_size = true,
                                   .measure = measure,
                                   .create = create,
                                   .run = run,
                                   .output_shape = output_shape,
                                   .label = label,
                                   .embed = embed,
                                   .layer = run_layer};
