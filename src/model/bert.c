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

static void show(const esp_embedder *embedder, const char *name, int64_t tokens)
{
    if (embedder->observe != NULL) {
        embedder->observe(embedder->observe_user, name, embedder->x, embedder->bert->config.hidden,
                          tokens);
    }
}

static esp_status norm(const esp_nn *nn, const esp_embedder *embedder, const esp_bert_norm *norm,
                       int64_t tokens, esp_error *error)
{
    const esp_bert_config *config = &embedder->bert->config;
    return esp_nn_done(nn->ops->layer_norm(nn->device, embedder->x, norm->weight, norm->bias,
                                           config->eps, config->hidden, tokens, embedder->x),
                       "layer_norm", error);
}

/* Texts one behind the other: each begins at position 0. */
static void place(esp_embedder *embedder, const esp_bert_batch *batch)
{
    int64_t token = 0;
    for (int64_t i = 0; i < batch->texts; i++) {
        for (int64_t position = 0; position < batch->lengths[i]; position++) {
            embedder->positions[token] = (int32_t)position;
            embedder->types[token++] = 0;
        }
        embedder->ends[i] = token;
    }
}

static esp_status embed(const esp_nn *nn, esp_embedder *embedder, const esp_bert_batch *batch,
                        esp_error *error)
{
    const esp_bert *bert = embedder->bert;
    int64_t tokens = batch->tokens, count = bert->config.hidden * tokens;
    const struct {
        const esp_tensor *table;
        const int32_t *rows;
    } added[] = {{&bert->types, embedder->types}, {&bert->positions, embedder->positions}};
    esp_status status = nn->ops->embed(nn->device, &bert->words, batch->ids, tokens, embedder->x);
    for (int i = 0; i < ESP_COUNT(added) && status == ESP_OK; i++) {
        status = nn->ops->embed(nn->device, added[i].table, added[i].rows, tokens, embedder->mixed);
        if (status == ESP_OK) {
            status = nn->ops->add(nn->device, embedder->x, embedder->mixed, count);
        }
    }
    ESP_TRY(esp_nn_done(status, "embed", error));
    ESP_TRY(norm(nn, embedder, &bert->norm, tokens, error));
    show(embedder, "embed", tokens);
    return ESP_OK;
}

static esp_status run_layer(const esp_nn *nn, const esp_embedder *embedder, int64_t index,
                            const esp_bert_batch *batch, esp_error *error)
{
    const esp_bert_layer *layer = &embedder->bert->layers[index];
    int64_t tokens = batch->tokens;
    esp_text_attention_call attention = {.x = embedder->x,
                                         .q = embedder->q,
                                         .k = embedder->k,
                                         .v = embedder->v,
                                         .mixed = embedder->mixed,
                                         .keys = embedder->keys,
                                         .values = embedder->values,
                                         .ends = embedder->ends,
                                         .texts = batch->texts,
                                         .tokens = tokens,
                                         .workspace = embedder->attention_workspace};
    ESP_TRY(esp_text_attention_run(nn, &layer->attention, &attention, error));
    ESP_TRY(norm(nn, embedder, &layer->attention_norm, tokens, error));
    esp_linear_call up = {.x = embedder->x, .y = embedder->inner, .tokens = tokens};
    esp_linear_call down = {
        .x = embedder->inner, .y = embedder->x, .residual = embedder->x, .tokens = tokens};
    ESP_TRY(esp_linear_run(nn, &layer->up, &up, error));
    ESP_TRY(esp_linear_run(nn, &layer->down, &down, error));
    ESP_TRY(norm(nn, embedder, &layer->output_norm, tokens, error));
    char name[32];
    snprintf(name, sizeof name, "layer.%lld", (long long)index);
    show(embedder, name, tokens);
    return ESP_OK;
}

static esp_nn nn_of(const esp_embedder *embedder)
{
    const esp_model *model = embedder->model;
    return (esp_nn){.device = model->device,
                    .ops = model->device->backend->ops,
                    .compute = model->compute,
                    .options = &model->plan_options,
                    .workspace = embedder->workspace,
                    .workspace_bytes = embedder->workspace_bytes,
                    .plans = embedder->plans};
}

esp_status esp_bert_forward(esp_embedder *embedder, const esp_bert_batch *batch, esp_error *error)
{
    esp_nn nn = nn_of(embedder);
    place(embedder, batch);
    ESP_TRY(embed(&nn, embedder, batch, error));
    for (int64_t index = 0; index < embedder->bert->config.layers; index++) {
        ESP_TRY(run_layer(&nn, embedder, index, batch, error));
    }
    return ESP_OK;
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

static int64_t tokens_of(const void *runner, const esp_walk_batch *batch)
{
    (void)runner;
    return batch->tokens;
}

static float *stream(void *runner)
{
    return ((esp_embedder *)runner)->x;
}

static esp_bert_batch text_of(const esp_walk_batch *batch)
{
    return (esp_bert_batch){
        .ids = batch->ids, .lengths = &batch->tokens, .texts = 1, .tokens = batch->tokens};
}

static esp_status embed_batch(void *runner, const esp_walk_batch *batch, esp_error *error)
{
    esp_embedder *embedder = runner;
    const esp_bert_batch text = text_of(batch);
    esp_nn nn = nn_of(embedder);
    place(embedder, &text);
    return embed(&nn, embedder, &text, error);
}

static esp_status layer_of_batch(void *runner, int64_t index, const esp_walk_batch *batch,
                                 const esp_tap *tap, esp_error *error)
{
    esp_embedder *embedder = runner;
    const esp_bert_batch text = text_of(batch);
    esp_nn nn = nn_of(embedder);
    nn.tap = tap;
    place(embedder, &text);
    return run_layer(&nn, embedder, index, &text, error);
}

const esp_layer_net esp_bert_layers = {.first_part = 1,
                                       .embedding_part = 0,
                                       .create = create_runner,
                                       .release = release_runner,
                                       .tokens = tokens_of,
                                       .stream = stream,
                                       .embed = embed_batch,
                                       .layer = layer_of_batch};
