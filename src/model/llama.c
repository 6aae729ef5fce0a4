/* The Llama decoder: Touvron et al., "LLaMA" (arXiv 2302.13971), with grouped queries of Llama 2.
 *
 *   x = embed(ids)
 *   for each layer:
 *       x = x + attention(rms_norm(x))
 *       x = x + down(silu(gate(n)) * up(n)),  n = rms_norm(x)
 *   logits = lm_head(rms_norm(x))
 *
 * The residual stream x is f32 whatever the weights are; layers add to it in place. */
#include "model/llama.h"

#include <stdio.h>

static void show(const esp_session *session, const char *name, const float *data, int64_t tokens)
{
    if (session->observe != NULL) {
        session->observe(session->observe_user, name, data, session->llama->config.hidden, tokens);
    }
}

static esp_status norm(const esp_nn *nn, const esp_session *session, const float *weight,
                       int64_t tokens, esp_error *error)
{
    const esp_llama_config *config = &session->llama->config;
    return esp_nn_done(nn->ops->rms_norm(nn->device, session->x, weight, config->rms_norm_eps,
                                         config->hidden, tokens, session->normed),
                       "rms_norm", error);
}

/* Where each token's keys and values of a layer go, and at which position it is. */
static void place_tokens(const esp_session *session, const esp_llama_batch *batch, int64_t index)
{
    for (int64_t t = 0; batch->sessions != NULL && t < batch->tokens; t++) {
        const esp_session *own = batch->sessions[t];
        float *keys = own->cache + 2 * index * own->cache_step;
        session->places[t] =
            (esp_cache_place){keys, keys + own->cache_step, own->length, own->capacity};
        session->workspaces[t] = own->attention_workspace;
        session->positions[t] = own->length;
    }
}

static void find_angles(const esp_session *session, const esp_llama_batch *batch)
{
    const esp_llama *llama = session->llama;
    place_tokens(session, batch, 0);
    if (batch->sessions != NULL) {
        esp_rope_angles_at(llama->frequencies, llama->config.head_dim, session->positions,
                           batch->tokens, session->cosines, session->sines);
    } else {
        esp_rope_angles(llama->frequencies, llama->config.head_dim, session->length, batch->tokens,
                        session->cosines, session->sines);
    }
}

static esp_status run_layer(const esp_nn *nn, const esp_session *session, int64_t index,
                            const esp_llama_batch *batch, esp_error *error)
{
    int64_t tokens = batch->tokens;
    const esp_llama_layer *layer = &session->llama->layers[index];
    float *keys = session->cache + 2 * (index % session->cached) * session->cache_step;
    esp_attention_call attention = {.x = session->x,
                                    .normed = session->normed,
                                    .cosines = session->cosines,
                                    .sines = session->sines,
                                    .q = session->q,
                                    .k = session->k,
                                    .v = session->v,
                                    .mixed = session->mixed,
                                    .key_cache = keys,
                                    .value_cache = keys + session->cache_step,
                                    .tokens = tokens,
                                    .past = session->length,
                                    .capacity = session->capacity,
                                    .places = batch->sessions != NULL ? session->places : NULL,
                                    .workspaces = batch->sessions != NULL
                                                      ? session->workspaces
                                                      : &session->attention_workspace};
    place_tokens(session, batch, index);
    ESP_TRY(norm(nn, session, layer->input_norm, tokens, error));
    ESP_TRY(esp_attention_run(nn, &layer->attention, &attention, error));
    ESP_TRY(norm(nn, session, layer->post_attention_norm, tokens, error));
    ESP_TRY(esp_mlp_run(nn, &layer->mlp, session->normed, session->gate, session->up, session->x,
                        tokens, error));
    char name[32];
    snprintf(name, sizeof name, "layer.%lld", (long long)index);
    show(session, name, session->x, tokens);
    return ESP_OK;
}

static esp_status run_head(const esp_nn *nn, const esp_session *session,
                           const esp_llama_batch *batch, esp_error *error)
{
    ESP_TRY(norm(nn, session, session->llama->norm, batch->tokens, error));
    show(session, "norm", session->normed, batch->tokens);
    if (batch->logits == NULL) {
        return ESP_OK;
    }
    bool all = batch->all_logits;
    esp_linear_call call = {.x = session->normed + (all ? 0 : batch->tokens - 1),
                            .x_stride = batch->tokens,
                            .y = batch->logits,
                            .tokens = all ? batch->tokens : 1};
    return esp_linear_run(nn, &session->llama->head, &call, error);
}

static esp_nn nn_of(const esp_session *session)
{
    const esp_model *model = session->model;
    return (esp_nn){.device = model->device,
                    .ops = model->device->backend->ops,
                    .compute = model->compute,
                    .options = &model->plan_options,
                    .workspace = session->workspace,
                    .workspace_bytes = session->workspace_bytes,
                    .plans = session->plans};
}

static esp_status embed(const esp_nn *nn, const esp_session *session, const esp_llama_batch *batch,
                        esp_error *error)
{
    return esp_nn_done(
        nn->ops->embed(nn->device, &session->llama->table, batch->ids, batch->tokens, session->x),
        "embed", error);
}

esp_status esp_llama_forward(esp_session *session, const esp_llama_batch *batch, esp_error *error)
{
    esp_nn nn = nn_of(session);
    ESP_TRY(embed(&nn, session, batch, error));
    show(session, "embed", session->x, batch->tokens);
    find_angles(session, batch);
    for (int64_t index = 0; index < session->llama->config.layers; index++) {
        ESP_TRY(run_layer(&nn, session, index, batch, error));
    }
    return run_head(&nn, session, batch, error);
}

/* ---- layer by layer ---- */

static esp_status create_runner(const esp_model *model, const esp_walk_size *size, void **runner,
                                esp_error *error)
{
    esp_session *session = NULL;
    ESP_TRY(esp_session_create(model, size->tokens, size->tokens, &session, error));
    *runner = session;
    return ESP_OK;
}

static void release_runner(void *runner)
{
    esp_session_free(runner);
}

static int64_t tokens_of(const void *runner, const esp_walk_batch *batch)
{
    (void)runner;
    return batch->tokens;
}

static float *stream(void *runner)
{
    return ((esp_session *)runner)->x;
}

static esp_status embed_batch(void *runner, const esp_walk_batch *batch, esp_error *error)
{
    const esp_session *session = runner;
    const esp_llama_batch text = {.ids = batch->ids, .tokens = batch->tokens};
    esp_nn nn = nn_of(session);
    return embed(&nn, session, &text, error);
}

static esp_status layer_of_batch(void *runner, int64_t index, const esp_walk_batch *batch,
                                 const esp_tap *tap, esp_error *error)
{
    const esp_session *session = runner;
    const esp_llama_batch text = {.ids = batch->ids, .tokens = batch->tokens};
    esp_nn nn = nn_of(session);
    nn.tap = tap;
    find_angles(session, &text);
    return run_layer(&nn, session, index, &text, error);
}

const esp_layer_net esp_llama_layers = {.first_part = 2,
                                        .embedding_part = 0,
                                        .create = create_runner,
                                        .release = release_runner,
                                        .tokens = tokens_of,
                                        .stream = stream,
                                        .embed = embed_batch,
                                        .layer = layer_of_batch};
