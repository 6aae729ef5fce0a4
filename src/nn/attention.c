/* Self-attention of one layer with a KV cache: project, rotate, remember, attend, project back onto
 * the residual stream. Several query heads share one head of keys and values (Ainslie et al., GQA,
 * arXiv 2305.13245). */
#include <math.h>

#include "nn/nn.h"

static esp_status project(const esp_nn *nn, const esp_attention_layer *layer,
                          const esp_attention_call *call, esp_error *error)
{
    const struct {
        const esp_linear *linear;
        float *y;
    } projections[] = {{&layer->q, call->q}, {&layer->k, call->k}, {&layer->v, call->v}};
    for (int i = 0; i < 3; i++) {
        esp_linear_call product = {
            .x = call->normed, .y = projections[i].y, .tokens = call->tokens};
        ESP_TRY(esp_linear_run(nn, projections[i].linear, &product, error));
    }
    return ESP_OK;
}

static esp_status rotate(const esp_nn *nn, const esp_attention_layer *layer,
                         const esp_attention_call *call, esp_error *error)
{
    esp_status status = nn->ops->rope(nn->device, call->q, call->cosines, call->sines, layer->heads,
                                      layer->head_dim, call->tokens);
    if (status == ESP_OK) {
        status = nn->ops->rope(nn->device, call->k, call->cosines, call->sines, layer->kv_heads,
                               layer->head_dim, call->tokens);
    }
    return esp_nn_done(status, "rope", error);
}

static esp_status remember(const esp_nn *nn, const esp_attention_layer *layer,
                           const esp_attention_call *call, esp_error *error)
{
    int64_t heads = layer->kv_heads, dim = layer->head_dim, tokens = call->tokens;
    const esp_ops *ops = nn->ops;
    if (call->places != NULL) {
        esp_status status =
            ops->cache_scatter(nn->device, call->k, heads, dim, tokens, call->places, false);
        status = status == ESP_OK ? ops->cache_scatter(nn->device, call->v, heads, dim, tokens,
                                                       call->places, true)
                                  : status;
        return esp_nn_done(status, "cache_scatter", error);
    }
    esp_status status = ops->cache_append(nn->device, call->k, heads, dim, tokens, call->past,
                                          call->capacity, call->key_cache);
    status = status == ESP_OK ? ops->cache_append(nn->device, call->v, heads, dim, tokens,
                                                  call->past, call->capacity, call->value_cache)
                              : status;
    return esp_nn_done(status, "cache_append", error);
}

static esp_status attend(const esp_nn *nn, const esp_attention_layer *layer,
                         const esp_attention_call *call, esp_error *error)
{
    esp_attention attention = {.q = call->q,
                               .keys = call->key_cache,
                               .values = call->value_cache,
                               .y = call->mixed,
                               .heads = layer->heads,
                               .kv_heads = layer->kv_heads,
                               .head_dim = layer->head_dim,
                               .tokens = call->tokens,
                               .past = call->past,
                               .capacity = call->capacity,
                               .scale = (float)(1 / sqrt((double)layer->head_dim)),
                               .workspace = call->workspaces[0]};
    if (call->places == NULL) {
        return esp_nn_done(nn->ops->attention(nn->device, &attention), "attention", error);
    }
    attention.stride = call->tokens;
    attention.tokens = 1;
    for (int64_t t = 0; t < call->tokens; t++) { /* a column each */
        const esp_cache_place *place = &call->places[t];
        attention.q = call->q + t;
        attention.y = call->mixed + t;
        attention.keys = place->keys;
        attention.values = place->values;
        attention.past = place->past;
        attention.capacity = place->capacity;
        attention.workspace = call->workspaces[t];
        ESP_TRY(esp_nn_done(nn->ops->attention(nn->device, &attention), "attention", error));
    }
    return ESP_OK;
}

esp_status esp_attention_run(const esp_nn *nn, const esp_attention_layer *layer,
                             const esp_attention_call *call, esp_error *error)
{
    ESP_TRY(project(nn, layer, call, error));
    ESP_TRY(rotate(nn, layer, call, error));
    ESP_TRY(remember(nn, layer, call, error));
    ESP_TRY(attend(nn, layer, call, error));
    esp_linear_call back = {
        .x = call->mixed, .y = call->x, .residual = call->x, .tokens = call->tokens};
    return esp_linear_run(nn, &layer->o, &back, error);
}
