/* The BERT encoder: Devlin et al., "BERT" (arXiv 1810.04805), with the layers of Vaswani et al.
 * (arXiv 1706.03762), whose norms stand behind the sums:
 *
 *   x = norm(word[id] + type[0] + position[0, 1, ...])
 *   for each layer:
 *       x = norm(x + attention(x))
 *       x = norm(x + down(act(up(x))))
 *
 * Every token sees all tokens of its text, and nothing of the texts beside it. */
#include "model/bert.h"

#include <stdio.h>

/* One batch on its way. */
typedef struct pass {
    esp_embedder *embedder;
    const esp_bert_batch *batch;
    esp_nn nn;
    int64_t longest;
    float *vectors; /* device memory */
} pass;

/* The lists of the mail. */
enum { IDS, POSITIONS, TYPES, STARTS, COUNTS };

static const int32_t *mailed(const esp_embedder *embedder, int list)
{
    const char *memory = embedder->mail.mail.device;
    return (const int32_t *)(const void *)(memory + (size_t)list * embedder->mail.step);
}

static int32_t *to_mail(const esp_embedder *embedder, int list)
{
    char *memory = embedder->mail.mail.host;
    return (int32_t *)(void *)(memory + (size_t)list * embedder->mail.step);
}

/* Texts one behind the other, each from a multiple of the step on and from position 0. Columns
 * between and behind them are token 0. */
static esp_status send_mail(pass *p, esp_error *error)
{
    esp_embedder *embedder = p->embedder;
    const esp_bert_batch *batch = p->batch;
    const esp_ops *ops = p->nn.ops;
    int32_t *ids = to_mail(embedder, IDS), *positions = to_mail(embedder, POSITIONS);
    const int32_t *next = batch->ids;
    int64_t column = 0;
    ESP_TRY(esp_lane_ready(&embedder->lane, error));
    for (int64_t i = 0; i < batch->texts; i++) {
        int64_t length = batch->lengths[i], end = column + esp_ops_pitch(ops, length);
        to_mail(embedder, STARTS)[i] = (int32_t)column;
        to_mail(embedder, COUNTS)[i] = (int32_t)length;
        p->longest = ESP_MAX(p->longest, length);
        for (int64_t t = 0; column < end; t++, column++) {
            ids[column] = t < length ? *next++ : 0;
            positions[column] = t < length ? (int32_t)t : 0;
            to_mail(embedder, TYPES)[column] = 0;
        }
    }
    for (; column < batch->columns; column++) {
        ids[column] = positions[column] = to_mail(embedder, TYPES)[column] = 0;
    }
    return esp_mail_send(&embedder->lane, &embedder->mail.mail, 5 * embedder->mail.step, error);
}

static esp_status show(const pass *p, const char *name, esp_error *error)
{
    esp_embedder *embedder = p->embedder;
    const esp_view view = {.name = name,
                           .data = embedder->x,
                           .features = embedder->bert->config.hidden,
                           .columns = p->batch->columns,
                           .groups = p->batch->texts,
                           .starts = to_mail(embedder, STARTS),
                           .counts = to_mail(embedder, COUNTS)};
    return esp_model_show(embedder->model, &embedder->lane, &view, embedder->observe,
                          embedder->observe_user, error);
}

static esp_status norm(const pass *p, const esp_bert_norm *norm, esp_error *error)
{
    const esp_embedder *embedder = p->embedder;
    const esp_bert_config *config = &embedder->bert->config;
    return esp_nn_done(p->nn.ops->layer_norm(p->nn.device, p->nn.stream, embedder->x, norm->weight,
                                             norm->bias, config->eps, config->hidden,
                                             p->batch->columns, embedder->x),
                       "layer_norm", error);
}

static esp_status embed(const pass *p, esp_error *error)
{
    const esp_embedder *embedder = p->embedder;
    const esp_bert *bert = embedder->bert;
    const esp_embedding embedding = {
        .tables = {&bert->words, &bert->types, &bert->positions},
        .rows = {mailed(embedder, IDS), mailed(embedder, TYPES), mailed(embedder, POSITIONS)},
        .count = 3,
        .columns = p->batch->columns,
        .x = embedder->x};
    ESP_TRY(esp_nn_done(p->nn.ops->embed(p->nn.device, p->nn.stream, &embedding), "embed", error));
    ESP_TRY(norm(p, &bert->norm, error));
    return show(p, "embed", error);
}

static esp_status run_layer(const pass *p, int64_t index, esp_error *error)
{
    const esp_embedder *embedder = p->embedder;
    const esp_bert_layer *layer = &embedder->bert->layers[index];
    int64_t columns = p->batch->columns;
    esp_group_call attention = {.x = embedder->x,
                                .y = embedder->x,
                                .residual = embedder->x,
                                .qkv = embedder->qkv,
                                .mixed = embedder->mixed,
                                .columns = columns,
                                .groups = p->batch->texts,
                                .tokens = p->longest,
                                .varied = true,
                                .starts = mailed(embedder, STARTS),
                                .counts = mailed(embedder, COUNTS),
                                .workspace = embedder->attention_workspace};
    ESP_TRY(esp_group_run(&p->nn, &layer->attention, &attention, error));
    ESP_TRY(norm(p, &layer->attention_norm, error));
    esp_linear_call up = {.x = embedder->x, .y = embedder->inner, .tokens = columns};
    esp_linear_call down = {
        .x = embedder->inner, .y = embedder->x, .residual = embedder->x, .tokens = columns};
    ESP_TRY(esp_linear_run(&p->nn, &layer->up, &up, error));
    ESP_TRY(esp_linear_run(&p->nn, &layer->down, &down, error));
    ESP_TRY(norm(p, &layer->output_norm, error));
    char name[32];
    snprintf(name, sizeof name, "layer.%lld", (long long)index);
    return show(p, name, error);
}

static esp_status pool(const pass *p, esp_error *error)
{
    const esp_model_info *info = &p->embedder->model->info;
    const esp_pool pool = {.x = p->embedder->x,
                           .features = info->embedding_size,
                           .columns = p->batch->columns,
                           .groups = p->batch->texts,
                           .starts = mailed(p->embedder, STARTS),
                           .counts = mailed(p->embedder, COUNTS),
                           .kind = info->pooling == ESP_POOLING_CLS   ? ESP_POOL_FIRST
                                   : info->pooling == ESP_POOLING_MAX ? ESP_POOL_MOST
                                                                      : ESP_POOL_MEAN,
                           .normalizes = info->normalizes,
                           .y = p->vectors};
    return esp_nn_done(p->nn.ops->pool(p->nn.device, p->nn.stream, &pool), "pool", error);
}

static esp_status run_layers(void *user, esp_error *error)
{
    const pass *p = user;
    ESP_TRY(embed(p, error));
    for (int64_t index = 0; index < p->embedder->bert->config.layers; index++) {
        ESP_TRY(run_layer(p, index, error));
    }
    return pool(p, error);
}

esp_status esp_bert_forward(esp_embedder *embedder, const esp_bert_batch *batch, esp_error *error)
{
    const esp_model *model = embedder->model;
    bool far = esp_device_is_far(model->device);
    pass p = {.embedder = embedder,
              .batch = batch,
              .nn = esp_model_nn(model, &embedder->lane),
              .vectors = far ? embedder->vectors : batch->vectors};
    p.nn.workspace = embedder->workspace;
    p.nn.workspace_bytes = embedder->workspace_bytes;
    p.nn.plans = embedder->plans;
    ESP_TRY(send_mail(&p, error));
    const int64_t key[4] = {batch->texts, batch->columns, p.longest, 0};
    ESP_TRY(embedder->observe != NULL ? run_layers(&p, error)
                                      : esp_lane_run(&embedder->lane, key, run_layers, &p, error));
    if (!far) {
        return ESP_OK;
    }
    size_t bytes = (size_t)(batch->texts * model->info.embedding_size) * sizeof(float);
    return esp_lane_receive(&embedder->lane, batch->vectors, embedder->vectors, bytes, error);
}

/* ---- layer by layer: a batch is one text ---- */

static esp_status create_runner(const esp_model *model, const esp_walk_size *size, void **runner,
                                esp_error *error)
{
    esp_embedder *embedder = NULL;
    ESP_TRY(esp_embedder_create(model, size->tokens, &embedder, error));
    *runner = embedder;
    return ESP_OK;
}

static void release_runner(void *runner)
{
    esp_embedder_free(runner);
}

static esp_walk_places places_of(const void *runner, const esp_walk_batch *batch)
{
    const esp_embedder *embedder = runner;
    int64_t columns = esp_ops_columns(embedder->model->ops, batch->tokens);
    return (esp_walk_places){batch->tokens, columns, batch->tokens, columns};
}

static void *stream(void *runner)
{
    return ((esp_embedder *)runner)->x;
}

static esp_bert_batch text_of(const void *runner, const esp_walk_batch *batch)
{
    return (esp_bert_batch){.ids = batch->ids,
                            .lengths = &batch->tokens,
                            .texts = 1,
                            .columns = places_of(runner, batch).columns};
}

static pass pass_of(esp_embedder *embedder, const esp_bert_batch *batch, const esp_tap *tap)
{
    pass p = {
        .embedder = embedder, .batch = batch, .nn = esp_model_nn(embedder->model, &embedder->lane)};
    p.nn.workspace = embedder->workspace;
    p.nn.workspace_bytes = embedder->workspace_bytes;
    p.nn.plans = embedder->plans;
    p.nn.tap = tap;
    return p;
}

static esp_status embed_batch(void *runner, const esp_walk_batch *batch, esp_error *error)
{
    const esp_bert_batch text = text_of(runner, batch);
    pass p = pass_of(runner, &text, NULL);
    ESP_TRY(send_mail(&p, error));
    return embed(&p, error);
}

static esp_status layer_of_batch(void *runner, int64_t index, const esp_walk_batch *batch,
                                 const esp_tap *tap, esp_error *error)
{
    const esp_bert_batch text = text_of(runner, batch);
    pass p = pass_of(runner, &text, tap);
    ESP_TRY(send_mail(&p, error));
    return run_layer(&p, index, error);
}

const esp_layer_net esp_bert_layers = {.first_part = 1,
                                       .embedding_part = 0,
                                       .create = create_runner,
                                       .release = release_runner,
                                       .places = places_of,
                                       .stream = stream,
                                       .embed = embed_batch,
                                       .layer = layer_of_batch};
