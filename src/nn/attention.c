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

static esp_status remember(const esp_nn *nn, const esp_attention_layer *layer, const float *x,
                           float *cache, const esp_attention_call *call, esp_error *error)
{
    esp_status status = nn->ops->cache_append(nn->device, x, layer->kv_heads, layer->head_dim,
                                              call->tokens, call->past, call->capacity, cache);
    return esp_nn_done(status, "cache_append", error);
}

esp_status esp_attention_run(const esp_nn *nn, const esp_attention_layer *layer,
                             const esp_attention_call *call, esp_error *error)
{
    ESP_TRY(project(nn, layer, call, error));
    ESP_TRY(rotate(nn, layer, call, error));
    ESP_TRY(remember(nn, layer, call->k, call->key_cache, call, error));
    ESP_TRY(remember(nn, layer, call->v, call->value_cache, call, error));
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
                               .workspace = call->workspace};
    ESP_TRY(esp_nn_done(nn->ops->attention(nn->device, &attention), "attention", error));
    esp_linear_call back = {
        .x = call->mixed, .y = call->x, .residual = call->x, .tokens = call->tokens};
    return esp_linear_run(nn, &layer->o, &back, error);
}
