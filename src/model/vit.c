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
 * Behind the last layer's attention only the tokens that heads read go on, unless somebody looks at
 * all of them.
 * For another resolution than the trained one, positions of the patches are resized bicubically.
 * A batch is one list of tokens, image after image; only attention tells them apart. */
#include "model/vit.h"

static esp_vit *vit_of(const esp_vision *vision)
{
    return vision->model->parts;
}

static void measure(esp_vision *vision)
{
    vision->tokens = vit_of(vision)->specials + vision->patches;
    vision->pitch = vision->windowed = esp_ops_pitch(vision->model->ops, vision->tokens);
    vision->kept = vit_of(vision)->two_heads ? 2 : 1;
}

/* ---- what is made once ---- */

/* The learned numbers, in the host's memory. */
typedef struct learned {
    float *tokens[2], *positions, *placed;
} learned;

static esp_status read_learned(const esp_vision *vision, learned *numbers, esp_error *error)
{
    const esp_vit *vit = vit_of(vision);
    esp_context *context = vision->model->context;
    int64_t hidden = vit->config.hidden, side = vit->config.side / vit->config.patch;
    int64_t positions = (vit->specials + side * side) * hidden;
    numbers->positions = esp_alloc_array(context, (size_t)positions, sizeof(float));
    numbers->placed = esp_alloc_array(context, (size_t)(hidden * vision->pitch), sizeof(float));
    if (numbers->positions == NULL || numbers->placed == NULL) {
        return esp_fail_memory(error, (size_t)positions * sizeof(float), "positions");
    }
    for (int64_t i = 0; i < vit->specials; i++) {
        numbers->tokens[i] = esp_alloc_array(context, (size_t)hidden, sizeof(float));
        if (numbers->tokens[i] == NULL) {
            return esp_fail_memory(error, (size_t)hidden * sizeof(float), "tokens");
        }
        ESP_TRY(esp_vector_read(vision->model, vit->tokens[i], hidden, numbers->tokens[i], error));
    }
    return esp_vector_read(vision->model, vit->positions, positions, numbers->positions, error);
}

/* placed[f][t]: what is added to token t, for the special ones with the tokens themselves. */
static void place(const esp_vision *vision, const learned *numbers)
{
    const esp_vit *vit = vit_of(vision);
    int64_t hidden = vit->config.hidden, side = vit->config.side / vit->config.patch;
    for (int64_t t = 0; t < vit->specials; t++) {
        for (int64_t f = 0; f < hidden; f++) {
            numbers->placed[f * vision->pitch + t] =
                numbers->tokens[t][f] + numbers->positions[t * hidden + f];
        }
    }
    const float *trained = numbers->positions + vit->specials * hidden;
    float *to = numbers->placed + vit->specials;
    if (vision->patches != side * side || vision->height != vision->width) {
        esp_positions_resize(trained, side, hidden, vision->rows, vision->columns, to,
                             vision->pitch);
        return;
    }
    for (int64_t f = 0; f < hidden; f++) {
        for (int64_t p = 0; p < vision->patches; p++) {
            to[f * vision->pitch + p] = trained[p * hidden + f];
        }
    }
}

static esp_status take_positions(esp_vision *vision, esp_error *error)
{
    esp_context *context = vision->model->context;
    learned numbers = {.positions = NULL};
    esp_status status = read_learned(vision, &numbers, error);
    if (status == ESP_OK) {
        place(vision, &numbers);
        status =
            esp_vision_take_positions(vision, numbers.placed, vit_of(vision)->config.hidden, error);
    }
    esp_release(context, numbers.tokens[0]);
    esp_release(context, numbers.tokens[1]);
    esp_release(context, numbers.positions);
    esp_release(context, numbers.placed);
    return status;
}

static esp_status create(esp_vision *vision, esp_error *error)
{
    const esp_vit *vit = vit_of(vision);
    const esp_image_config *config = &vit->config;
    int64_t hidden = config->hidden, columns = esp_vision_columns(vision, vision->max_images);
    const esp_area areas[] = {
        {&vision->x, hidden},
        {&vision->normed, hidden},
        {&vision->mixed, hidden},
        {&vision->qkv, 3 * hidden},
        {&vision->picked, 2 * hidden},
        {&vision->inner, config->intermediate},
        esp_moments_area(vision->model, true, hidden, columns, &vision->moments),
        {&vision->pixels, ESP_IMAGE_CHANNELS * config->patch * config->patch}};
    ESP_TRY(esp_scratch_take(vision->model, &vision->taken, areas, ESP_COUNT(areas), columns,
                             &vision->block, error));
    ESP_TRY(take_positions(vision, error));
    return esp_vision_take_attention(vision,
                                     esp_vision_attention_bytes(vision, &vit->layers[0], columns,
                                                                vision->tokens, vision->pitch, 0),
                                     error);
}

/* ---- one batch ---- */

/* Scores of a head, one row for each column of what it reads. */
static int64_t head_floats(const esp_vision *vision, int64_t images)
{
    return esp_ops_columns(vision->model->ops, images) * vit_of(vision)->labels;
}

static int64_t output_floats(const esp_vision *vision, int64_t images)
{
    return vision->kept * head_floats(vision, images);
}

/* Columns of the tokens that heads read: those of the first head, then those of the second. */
static int64_t kept_columns(const esp_vision *vision, int64_t images)
{
    return vision->kept * esp_ops_columns(vision->model->ops, images);
}

static esp_status lay_out(esp_vision *vision, int64_t images, esp_error *error)
{
    int32_t *table = vision->index.host;
    int64_t columns = esp_ops_columns(vision->model->ops, images);
    for (int64_t i = 0; i < kept_columns(vision, images); i++) {
        int64_t which = i / columns, image = i % columns;
        table[i] = image < images ? (int32_t)(image * vision->pitch + which) : -1;
    }
    return esp_mail_send(&vision->lane, &vision->index,
                         (size_t)kept_columns(vision, images) * sizeof *table, error);
}

static esp_status embed(const esp_vision_pass *pass, esp_error *error)
{
    const esp_vision *vision = pass->vision;
    const esp_vit *vit = vit_of(vision);
    ESP_TRY(esp_vision_embed(pass, &vit->patches, vit->specials, error));
    return esp_vision_show(pass, "embed", vision->x, vit->config.hidden, error);
}

/* kept: NULL, or the tokens that go on behind attention, to kept->x. */
static esp_status attend(const esp_vision_pass *pass, const esp_image_layer *layer,
                         const esp_kept_tokens *kept, esp_error *error)
{
    const esp_vision *vision = pass->vision;
    const esp_vit *vit = vit_of(vision);
    esp_prepare norm = esp_prepare_layer_norm(layer->norm1_weight, layer->norm1_bias,
                                              vit->config.eps, vision->normed);
    const esp_group_call attention = {.x = vision->x,
                                      .prepare = &norm,
                                      .y = vision->x,
                                      .residual = vision->x,
                                      .columns = pass->columns,
                                      .groups = pass->images,
                                      .tokens = vision->tokens,
                                      .pitch = vision->pitch,
                                      .kept = kept,
                                      .read = kept != NULL ? vision->kept : 0};
    return esp_vision_attend(pass, layer, &attention, error);
}

static esp_status run_layer(const esp_vision_pass *pass, int64_t index, esp_error *error)
{
    const esp_vision *vision = pass->vision;
    const esp_vit *vit = vit_of(vision);
    const esp_image_layer *layer = &vit->layers[index];
    const esp_linear *reader = esp_image_layer_reader(vit->layers, vit->config.layers, index);
    ESP_TRY(attend(pass, layer, NULL, error));
    ESP_TRY(esp_vision_feed_forward(pass, layer, vit->config.eps, vision->x, reader, error));
    return esp_vision_show_layer(pass, index, vit->config.hidden, error);
}

/* The heads, each on its columns of normed tokens, side by side in x: y [columns][labels]. */
static esp_status run_heads(const esp_vision_pass *pass, const void *x, esp_error *error)
{
    const esp_vision *vision = pass->vision;
    int64_t columns = esp_ops_columns(pass->nn.ops, pass->images);
    size_t step = (size_t)columns * esp_model_width(vision->model);
    for (int64_t which = 0; which < vision->kept; which++) {
        esp_linear_call call = {.x = (const char *)x + (size_t)which * step,
                                .x_stride = kept_columns(vision, pass->images),
                                .y = pass->output + which * head_floats(vision, pass->images),
                                .tokens = columns};
        ESP_TRY(esp_linear_run(&pass->nn, &vit_of(vision)->heads[which], &call, error));
    }
    return ESP_OK;
}

/* The last layer and what follows, of the tokens that heads read. */
static esp_status run_kept(const esp_vision_pass *pass, const esp_image_layer *layer,
                           esp_error *error)
{
    const esp_vision *vision = pass->vision;
    const esp_vit *vit = vit_of(vision);
    const esp_kept_tokens kept = {.index = vision->index.device,
                                  .count = kept_columns(vision, pass->images),
                                  .mixed = vision->qkv,
                                  .x = vision->picked};
    ESP_TRY(attend(pass, layer, &kept, error));
    esp_plan_options room;
    esp_vision_pass few = *pass;
    few.nn = esp_kept_nn(&pass->nn, &room);
    few.columns = kept.count;
    ESP_TRY(esp_vision_feed_forward(&few, layer, vit->config.eps, kept.x, NULL, error));
    ESP_TRY(esp_vision_norm(&few, kept.x, vit->norm_weight, vit->norm_bias, vit->config.eps,
                            vit->config.hidden, vision->normed, error));
    return run_heads(pass, vision->normed, error);
}

/* The same of all tokens, for somebody who looks at them. */
static esp_status run_whole(const esp_vision_pass *pass, int64_t last, esp_error *error)
{
    const esp_vision *vision = pass->vision;
    const esp_vit *vit = vit_of(vision);
    int64_t hidden = vit->config.hidden;
    ESP_TRY(run_layer(pass, last, error));
    ESP_TRY(esp_vision_norm(pass, vision->x, vit->norm_weight, vit->norm_bias, vit->config.eps,
                            hidden, vision->normed, error));
    ESP_TRY(esp_vision_show(pass, "norm", vision->normed, hidden, error));
    ESP_TRY(esp_vision_gather(pass, vision->normed, hidden, pass->columns, vision->index.device,
                              kept_columns(vision, pass->images), false, vision->picked, error));
    return run_heads(pass, vision->picked, error);
}

static esp_status run(const esp_vision_pass *pass, esp_error *error)
{
    const esp_vision *vision = pass->vision;
    const esp_vit *vit = vit_of(vision);
    int64_t last = vit->config.layers - 1;
    ESP_TRY(embed(pass, error));
    for (int64_t index = 0; index < last; index++) {
        ESP_TRY(run_layer(pass, index, error));
    }
    return vision->observe != NULL ? run_whole(pass, last, error)
                                   : run_kept(pass, &vit->layers[last], error);
}

/* The mean of two heads. */
static void deliver(const esp_vision *vision, int64_t images, const float *from, float *output)
{
    const esp_vit *vit = vit_of(vision);
    const float *second = from + head_floats(vision, images);
    for (int64_t i = 0; i < images * vit->labels; i++) {
        output[i] = vit->two_heads ? (from[i] + second[i]) / 2 : from[i];
    }
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
                                   .lay_out = lay_out,
                                   .run = run,
                                   .output_floats = output_floats,
                                   .deliver = deliver,
                                   .output_shape = output_shape,
                                   .label = label,
                                   .embed = embed,
                                   .layer = run_layer};
