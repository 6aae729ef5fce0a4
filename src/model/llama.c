/* The Llama decoder: Touvron et al., "LLaMA" (arXiv 2302.13971), with grouped queries of Llama 2.
 *
 *   x = embed(ids)
 *   for each layer:
 *       x = x + attention(rms_norm(x))
 *       x = x + down(silu(gate(n)) * up(n)),  n = rms_norm(x)
 *   logits = lm_head(rms_norm(x))
 *
 * The residual stream x has the type of the activations; layers add to it in place. Behind the last
 * layer's attention a prompt goes on as its last token alone, unless more is asked for. What
 * differs from one step of a sequence to the next (ids, positions, where its cache ends) lies in
 * device memory, so that a step can be given again as it is. */
#include "model/llama.h"

#include <stdio.h>

/* One batch on its way. */
typedef struct pass {
    esp_session *session;
    const esp_llama_batch *batch;
    esp_nn nn;
    int64_t columns;
    bool by_places;  /* each token goes on a sequence of its own */
    bool last_only;  /* the last token alone goes on behind the last layer's attention */
    int64_t longest; /* of them, for which room is planned */
    float *logits;   /* device memory for the head's result; NULL: the head comes later or never */
} pass;

static const void *mailed(const esp_session *session, size_t at)
{
    return (const char *)session->mail.mail.device + at;
}

/* ---- what the host says ---- */

static esp_cache_place place_of(const esp_session *session, int64_t layer)
{
    size_t step = (size_t)session->cache_step * esp_model_width(session->model);
    char *keys = (char *)session->cache + 2 * (size_t)(layer % session->cached) * step;
    return (esp_cache_place){keys, keys + step, (int32_t)session->length,
                             (int32_t)session->capacity};
}

static esp_session *sequence_of(const pass *p, int64_t token)
{
    return p->batch->sessions != NULL ? p->batch->sessions[token] : p->session;
}

static void write_places(const pass *p, esp_cache_place *places)
{
    int64_t tokens = p->batch->tokens;
    for (int64_t layer = 0; layer < p->session->llama->config.layers; layer++) {
        for (int64_t t = 0; t < tokens; t++) {
            places[layer * tokens + t] = place_of(sequence_of(p, t), layer);
        }
    }
    for (int64_t t = 0; t < tokens; t++) {
        p->session->workspaces[t] = sequence_of(p, t)->attention_workspace;
    }
}

/* Columns that are no token get token 0 at position 0. */
static esp_status send_mail(const pass *p, esp_error *error)
{
    esp_session *session = p->session;
    const esp_llama_mail *mail = &session->mail;
    const esp_llama_batch *batch = p->batch;
    char *host = mail->mail.host;
    int32_t *ids = (int32_t *)(void *)host;
    int32_t *positions = (int32_t *)(void *)(host + mail->positions_at);
    size_t bytes = mail->places_at;
    ESP_TRY(esp_lane_ready(&session->lane, error));
    for (int64_t t = 0; t < p->columns; t++) {
        bool there = t < batch->tokens;
        ids[t] = there ? batch->ids[t] : 0;
        positions[t] = !there         ? 0
                       : p->by_places ? (int32_t)sequence_of(p, t)->length
                                      : (int32_t)(session->length + t);
    }
    *(int32_t *)(void *)(host + mail->last_at) = (int32_t)batch->tokens - 1;
    if (p->by_places) {
        write_places(p, (esp_cache_place *)(void *)(host + mail->places_at));
        bytes += (size_t)(session->llama->config.layers * batch->tokens) * sizeof(esp_cache_place);
    }
    return esp_mail_send(&session->lane, &mail->mail, bytes, error);
}

/* ---- the network ---- */

static esp_status show(const pass *p, const char *name, const void *data, esp_error *error)
{
    esp_session *session = p->session;
    const esp_view view = {.name = name,
                           .data = data,
                           .features = session->llama->config.hidden,
                           .columns = p->columns,
                           .groups = 1,
                           .tokens = p->batch->tokens};
    return esp_model_show(session->model, &session->lane, &view, session->observe,
                          session->observe_user, error);
}

static esp_prepare norm_ahead(const pass *p, const float *weight)
{
    const esp_session *session = p->session;
    return esp_prepare_norm(weight, session->llama->config.rms_norm_eps, session->normed);
}

/* Columns behind the last layer. */
static int64_t kept_columns(const pass *p)
{
    return p->last_only ? 1 : p->columns;
}

/* What the head reads. */
static esp_status norm_end(const pass *p, esp_error *error)
{
    const esp_session *session = p->session;
    const esp_llama_config *config = &session->llama->config;
    const void *x = p->last_only ? session->last : session->x;
    return esp_nn_done(p->nn.ops->rms_norm(p->nn.device, p->nn.stream, x, session->llama->norm,
                                           config->rms_norm_eps, config->hidden, kept_columns(p),
                                           session->normed),
                       "rms_norm", error);
}

static esp_status embed(const pass *p, esp_error *error)
{
    const esp_session *session = p->session;
    const esp_llama *llama = session->llama;
    esp_moments_forget(&p->nn, session->x);
    const esp_embedding embedding = {.tables = {&llama->table},
                                     .rows = {mailed(session, 0)},
                                     .count = 1,
                                     .columns = p->columns,
                                     .x = session->x};
    ESP_TRY(esp_nn_done(p->nn.ops->embed(p->nn.device, p->nn.stream, &embedding), "embed", error));
    return show(p, "embed", session->x, error);
}

static esp_status find_angles(const pass *p, esp_error *error)
{
    const esp_session *session = p->session;
    const esp_llama *llama = session->llama;
    esp_status status = p->nn.ops->rope_angles(
        p->nn.device, p->nn.stream, llama->frequencies, mailed(session, session->mail.positions_at),
        llama->config.head_dim, p->columns, session->cosines, session->sines);
    return esp_nn_done(status, "rope_angles", error);
}

/* kept: NULL, or the tokens that go on behind attention, to kept->x. */
static esp_status attend(const pass *p, int64_t index, const esp_kept_tokens *kept,
                         esp_error *error)
{
    esp_session *session = p->session;
    const esp_llama_layer *layer = &session->llama->layers[index];
    const esp_cache_place *places = mailed(session, session->mail.places_at);
    esp_prepare before = norm_ahead(p, layer->input_norm);
    esp_attention_call attention = {
        .x = session->x,
        .prepare = &before,
        .next = &layer->mlp.gate,
        .cosines = session->cosines,
        .sines = session->sines,
        .qkv = session->qkv,
        .mixed = session->mixed,
        .tokens = p->batch->tokens,
        .columns = p->columns,
        .one = place_of(session, index),
        .places = p->by_places ? places + index * p->batch->tokens : NULL,
        .longest = p->longest,
        .workspaces = p->by_places ? session->workspaces : &session->attention_workspace,
        .kept = kept};
    return esp_attention_run(&p->nn, &layer->attention, &attention, error);
}

static esp_status run_layer(const pass *p, int64_t index, esp_error *error)
{
    esp_session *session = p->session;
    const esp_llama_layer *layer = &session->llama->layers[index];
    esp_prepare between = norm_ahead(p, layer->post_attention_norm);
    ESP_TRY(attend(p, index, NULL, error));
    const esp_linear *reader =
        index + 1 < session->llama->config.layers ? &layer[1].attention.qkv[0] : NULL;
    ESP_TRY(esp_mlp_run(&p->nn, &layer->mlp, &between, session->inner, session->x, p->columns,
                        reader, error));
    char name[32];
    snprintf(name, sizeof name, "layer.%lld", (long long)index);
    return show(p, name, session->x, error);
}

/* The last layer, where only the last token goes on. */
static esp_status run_last(const pass *p, int64_t index, esp_error *error)
{
    esp_session *session = p->session;
    const esp_llama_layer *layer = &session->llama->layers[index];
    const esp_kept_tokens kept = {.index = mailed(session, session->mail.last_at),
                                  .count = 1,
                                  .mixed = session->qkv,
                                  .x = session->last};
    esp_prepare between = norm_ahead(p, layer->post_attention_norm);
    esp_plan_options room;
    const esp_nn nn = esp_kept_nn(&p->nn, &room);
    ESP_TRY(attend(p, index, &kept, error));
    return esp_mlp_run(&nn, &layer->mlp, &between, session->inner, kept.x, 1, NULL, error);
}

/* Columns first.. of normed, `columns` of them, to rows of logits. */
static esp_status run_head(const pass *p, int64_t first, int64_t columns, float *logits,
                           esp_error *error)
{
    const esp_session *session = p->session;
    const char *normed = session->normed;
    esp_linear_call call = {.x = normed + (size_t)first * esp_model_width(session->model),
                            .x_stride = kept_columns(p),
                            .y = logits,
                            .tokens = columns};
    return esp_linear_run(&p->nn, &session->llama->head, &call, error);
}

/* Of the first `count` rows of logits of a far device. */
static esp_status find_best(const pass *p, int64_t count, esp_error *error)
{
    const esp_session *session = p->session;
    return esp_nn_done(p->nn.ops->argmax(p->nn.device, p->nn.stream, session->rows, count,
                                         session->llama->config.vocabulary, session->best.device),
                       "argmax", error);
}

/* The head of all columns, with the norm as part of it where its kernel takes that. */
static esp_status run_normed_head(const pass *p, esp_error *error)
{
    const esp_session *session = p->session;
    esp_prepare last = norm_ahead(p, session->llama->norm);
    esp_linear_call call = {
        .x = session->x, .y = p->logits, .tokens = p->columns, .prepare = &last};
    return esp_linear_run(&p->nn, &session->llama->head, &call, error);
}

/* The logits, where they belong to the step, or what the head reads. */
static esp_status run_end(const pass *p, esp_error *error)
{
    if (p->logits != NULL && p->session->observe == NULL) {
        return run_normed_head(p, error);
    }
    ESP_TRY(norm_end(p, error));
    ESP_TRY(show(p, "norm", p->session->normed, error));
    return p->logits != NULL ? run_head(p, 0, p->columns, p->logits, error) : ESP_OK;
}

static esp_status run_layers(void *user, esp_error *error)
{
    const pass *p = user;
    ESP_TRY(embed(p, error));
    ESP_TRY(find_angles(p, error));
    int64_t last = p->session->llama->config.layers - 1;
    for (int64_t index = 0; index < last; index++) {
        ESP_TRY(run_layer(p, index, error));
    }
    ESP_TRY(p->last_only ? run_last(p, last, error) : run_layer(p, last, error));
    ESP_TRY(run_end(p, error));
    return p->logits != NULL && p->batch->best != NULL ? find_best(p, p->batch->tokens, error)
                                                       : ESP_OK;
}

/* ---- logits of a far device ---- */

/* Rows first.. of what the batch wants, `count` of them, which lie in the session's. */
static esp_status fetch(const pass *p, int64_t first, int64_t count, esp_error *error)
{
    esp_session *session = p->session;
    const esp_llama_batch *batch = p->batch;
    size_t row = (size_t)session->llama->config.vocabulary, rows = (size_t)count;
    if (batch->best == NULL) {
        return esp_lane_receive(&session->lane, batch->logits + (size_t)first * row, session->rows,
                                rows * row * sizeof(float), error);
    }
    ESP_TRY(esp_lane_receive(&session->lane, session->best.host, session->best.device,
                             rows * sizeof(int32_t), error));
    memcpy(batch->best + first, session->best.host, rows * sizeof(int32_t));
    return ESP_OK;
}

static esp_status gather_last(const pass *p, esp_error *error)
{
    const esp_session *session = p->session;
    return esp_nn_done(p->nn.ops->gather_tokens(p->nn.device, p->nn.stream, session->normed,
                                                session->llama->config.hidden, p->columns,
                                                mailed(session, session->mail.last_at), 1, false,
                                                session->last),
                       "gather_tokens", error);
}

static esp_status last_logits(const pass *p, esp_error *error)
{
    esp_session *session = p->session;
    const void *x = p->last_only ? session->normed : session->last;
    ESP_TRY(p->last_only ? ESP_OK : gather_last(p, error));
    esp_linear_call call = {.x = x, .y = session->rows, .tokens = 1};
    ESP_TRY(esp_linear_run(&p->nn, &session->llama->head, &call, error));
    if (p->batch->best != NULL) {
        ESP_TRY(find_best(p, 1, error));
    }
    return fetch(p, 0, 1, error);
}

/* Piece by piece, as many rows as there is room for. */
static esp_status all_logits(const pass *p, esp_error *error)
{
    esp_session *session = p->session;
    for (int64_t first = 0; first < p->batch->tokens; first += session->row_count) {
        int64_t columns = ESP_MIN(session->row_count, p->columns - first);
        int64_t rows = ESP_MIN(session->row_count, p->batch->tokens - first);
        if (p->logits == NULL) {
            ESP_TRY(run_head(p, first, columns, session->rows, error));
            ESP_TRY(p->batch->best != NULL ? find_best(p, rows, error) : ESP_OK);
        }
        ESP_TRY(fetch(p, first, rows, error));
    }
    return ESP_OK;
}

/* ---- one batch ---- */

/* A step of few kinds is kept: so many tokens, room for so long a sequence. */
static esp_status run_step(pass *p, esp_error *error)
{
    const int64_t key[4] = {p->batch->tokens, p->longest, p->logits != NULL,
                            p->batch->best != NULL};
    return p->session->observe != NULL ? run_layers(p, error)
                                       : esp_lane_run(&p->session->lane, key, run_layers, p, error);
}

static int64_t room_for_longest(const pass *p)
{
    int64_t longest = 256;
    for (int64_t t = 0; t < p->batch->tokens; t++) {
        while (longest <= sequence_of(p, t)->length) {
            longest *= 2;
        }
    }
    return longest;
}

static esp_status run_far(pass *p, esp_error *error)
{
    const esp_llama_batch *batch = p->batch;
    bool wanted = batch->logits != NULL || batch->best != NULL;
    if (p->by_places && wanted && p->columns <= p->session->row_count) {
        p->logits = p->session->rows;
    }
    ESP_TRY(p->by_places ? run_step(p, error) : run_layers(p, error));
    if (!wanted) {
        return ESP_OK;
    }
    return batch->all_logits || p->by_places ? all_logits(p, error) : last_logits(p, error);
}

static esp_status run_near(pass *p, esp_error *error)
{
    const esp_llama_batch *batch = p->batch;
    ESP_TRY(run_layers(p, error));
    if (batch->logits == NULL) {
        return ESP_OK;
    }
    bool all = batch->all_logits;
    int64_t first = all || p->last_only ? 0 : batch->tokens - 1;
    return run_head(p, first, all ? batch->tokens : 1, batch->logits, error);
}

esp_status esp_llama_forward(esp_session *session, const esp_llama_batch *batch, esp_error *error)
{
    const esp_model *model = session->model;
    bool far = esp_device_is_far(model->device);
    pass p = {.session = session,
              .batch = batch,
              .nn = esp_model_nn(model, &session->lane),
              .columns = esp_ops_columns(model->ops, batch->tokens),
              .by_places = batch->sessions != NULL || (far && batch->tokens == 1)};
    p.nn.workspace = session->workspace;
    p.nn.workspace_bytes = session->workspace_bytes;
    p.nn.plans = session->plans;
    p.nn.moments = esp_moments_of(&session->moments);
    p.longest = p.by_places ? room_for_longest(&p) : 0;
    p.last_only =
        !p.by_places && batch->tokens > 1 && !batch->all_logits && session->observe == NULL;
    ESP_TRY(send_mail(&p, error));
    return far ? run_far(&p, error) : run_near(&p, error);
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

static esp_walk_places places_of(const void *runner, const esp_walk_batch *batch)
{
    const esp_session *session = runner;
    int64_t columns = esp_ops_columns(session->model->ops, batch->tokens);
    return (esp_walk_places){batch->tokens, columns, batch->tokens, columns};
}

static void *stream(void *runner)
{
    return ((esp_session *)runner)->x;
}

static pass pass_of(esp_session *session, const esp_llama_batch *batch, const esp_tap *tap)
{
    pass p = {.session = session,
              .batch = batch,
              .nn = esp_model_nn(session->model, &session->lane),
              .columns = esp_ops_columns(session->model->ops, batch->tokens)};
    p.nn.workspace = session->workspace;
    p.nn.workspace_bytes = session->workspace_bytes;
    p.nn.plans = session->plans;
    p.nn.tap = tap;
    return p;
}

static esp_status embed_batch(void *runner, const esp_walk_batch *batch, esp_error *error)
{
    const esp_llama_batch text = {.ids = batch->ids, .tokens = batch->tokens};
    pass p = pass_of(runner, &text, NULL);
    ESP_TRY(send_mail(&p, error));
    return embed(&p, error);
}

static esp_status layer_of_batch(void *runner, int64_t index, const esp_walk_batch *batch,
                                 const esp_tap *tap, esp_error *error)
{
    const esp_llama_batch text = {.ids = batch->ids, .tokens = batch->tokens};
    pass p = pass_of(runner, &text, tap);
    ESP_TRY(send_mail(&p, error));
    ESP_TRY(find_angles(&p, error));
    return run_layer(&p, index, error);
}

const esp_layer_net esp_llama_layers = {.first_part = 2,
                                        .embedding_part = 0,
                                        .create = create_runner,
                                        .release = release_runner,
                                        .places = places_of,
                                        .stream = stream,
                                        .embed = embed_batch,
                                        .layer = layer_of_batch};
