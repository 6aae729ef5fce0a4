/* Self-attention of one layer with a KV cache: project, rotate, remember, attend, project back onto
 * the residual stream. Several query heads share one head of keys and values (Ainslie et al., GQA,
 * arXiv 2305.13245). */
#include <math.h>

#include "nn/nn.h"

/* Where rows begin that follow `rows` others. */
static void *behind(const esp_nn *nn, void *x, int64_t rows, int64_t columns)
{
    return (char *)x + (size_t)(rows * columns) * esp_dtype_bytes(nn->ops->type);
}

static esp_status project(const esp_nn *nn, const esp_attention_layer *layer,
                          const esp_attention_call *call, void *const parts[3], esp_error *error)
{
    for (int i = 0; i < layer->projections; i++) {
        esp_linear_call product = {
            .x = call->x, .y = parts[i], .tokens = call->columns, .prepare = call->prepare};
        ESP_TRY(esp_linear_run(nn, &layer->qkv[i], &product, error));
    }
    return ESP_OK;
}

static esp_status remember(const esp_nn *nn, const esp_attention_layer *layer,
                           const esp_attention_call *call, void *const parts[3], esp_error *error)
{
    esp_rope_append append = {.q = parts[0],
                              .k = parts[1],
                              .v = parts[2],
                              .cosines = call->cosines,
                              .sines = call->sines,
                              .heads = layer->heads,
                              .kv_heads = layer->kv_heads,
                              .head_dim = layer->head_dim,
                              .tokens = call->tokens,
                              .columns = call->columns,
                              .one = call->one,
                              .places = call->places};
    return esp_nn_done(nn->ops->rope_append(nn->device, nn->stream, &append), "rope_append", error);
}

/* The step of one token each; parts NULL: rotated and remembered before. */
static esp_status attend_step(const esp_nn *nn, const esp_attention_layer *layer,
                              const esp_attention_call *call, void *const *parts, esp_error *error)
{
    esp_step_attention step = {.q = call->qkv,
                               .y = call->mixed,
                               .places = call->places,
                               .heads = layer->heads,
                               .kv_heads = layer->kv_heads,
                               .head_dim = layer->head_dim,
                               .sequences = call->tokens,
                               .columns = call->columns,
                               .longest = call->longest,
                               .scale = (float)(1 / sqrt((double)layer->head_dim)),
                               .workspaces = call->workspaces};
    if (parts != NULL) {
        step.k = parts[1], step.v = parts[2];
        step.cosines = call->cosines, step.sines = call->sines;
    }
    return esp_nn_done(nn->ops->attend_step(nn->device, nn->stream, &step), "attend_step", error);
}

static esp_status attend(const esp_nn *nn, const esp_attention_layer *layer,
                         const esp_attention_call *call, void *const parts[3], esp_error *error)
{
    if (call->places != NULL && nn->ops->step_appends) {
        return attend_step(nn, layer, call, parts, error);
    }
    ESP_TRY(remember(nn, layer, call, parts, error));
    if (call->places != NULL) {
        return attend_step(nn, layer, call, NULL, error);
    }
    esp_past_attention past = {.q = call->qkv,
                               .y = call->mixed,
                               .one = call->one,
                               .heads = layer->heads,
                               .kv_heads = layer->kv_heads,
                               .head_dim = layer->head_dim,
                               .tokens = call->tokens,
                               .columns = call->columns,
                               .scale = (float)(1 / sqrt((double)layer->head_dim)),
                               .workspace = call->workspaces[0]};
    return esp_nn_done(nn->ops->attend_past(nn->device, nn->stream, &past), "attend_past", error);
}

esp_status esp_attention_run(const esp_nn *nn, const esp_attention_layer *layer,
                             const esp_attention_call *call, esp_error *error)
{
    int64_t q = layer->heads * layer->head_dim, kv = layer->kv_heads * layer->head_dim;
    void *const parts[3] = {call->qkv, behind(nn, call->qkv, q, call->columns),
                            behind(nn, call->qkv, q + kv, call->columns)};
    ESP_TRY(project(nn, layer, call, parts, error));
    ESP_TRY(attend(nn, layer, call, parts, error));
    if (call->kept != NULL) {
        return esp_kept_project(nn, &layer->o, call->kept, call->mixed, call->x, call->columns,
                                call->next, error);
    }
    esp_linear_call back = {.x = call->mixed,
                            .y = call->x,
                            .residual = call->x,
                            .tokens = call->columns,
                            .next = call->next,
                            .reader = call->next};
    return esp_linear_run(nn, &layer->o, &back, error);
}
