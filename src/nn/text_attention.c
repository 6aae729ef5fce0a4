/* Self-attention of encoders. The tokens of several texts are the columns of one matrix, so that
 * products run over all of them and no text is padded to the length of another; the attention of
 * each text then sees its own columns only. */
#include <math.h>

#include "nn/nn.h"

static esp_status project(const esp_nn *nn, const esp_attention_layer *layer,
                          const esp_text_attention_call *call, esp_error *error)
{
    const esp_linear_call products[] = {{.x = call->x, .y = call->q, .tokens = call->tokens},
                                        {.x = call->x, .y = call->k, .tokens = call->tokens},
                                        {.x = call->x, .y = call->v, .tokens = call->tokens}};
    ESP_TRY(esp_linear_run(nn, &layer->q, &products[0], error));
    ESP_TRY(esp_linear_run(nn, &layer->k, &products[1], error));
    return esp_linear_run(nn, &layer->v, &products[2], error);
}

/* Keys and values token by token, as attention reads them. */
static esp_status turn(const esp_nn *nn, const esp_attention_layer *layer,
                       const esp_text_attention_call *call, esp_error *error)
{
    esp_status status = nn->ops->cache_append(nn->device, call->k, layer->heads, layer->head_dim,
                                              call->tokens, 0, call->tokens, call->keys);
    if (status == ESP_OK) {
        status = nn->ops->cache_append(nn->device, call->v, layer->heads, layer->head_dim,
                                       call->tokens, 0, call->tokens, call->values);
    }
    return esp_nn_done(status, "cache_append", error);
}

esp_attention esp_text_attention_of(const esp_attention_layer *layer, int64_t tokens,
                                    int64_t stride)
{
    return (esp_attention){.heads = layer->heads,
                           .kv_heads = layer->heads,
                           .head_dim = layer->head_dim,
                           .tokens = tokens,
                           .capacity = stride,
                           .stride = stride,
                           .both_ways = true,
                           .scale = (float)(1 / sqrt((double)layer->head_dim))};
}

static esp_status attend(const esp_nn *nn, const esp_attention_layer *layer,
                         const esp_text_attention_call *call, esp_error *error)
{
    int64_t first = 0;
    for (int64_t i = 0; i < call->texts; i++) {
        esp_attention attention = esp_text_attention_of(layer, call->ends[i] - first, call->tokens);
        attention.q = call->q + first;
        attention.y = call->mixed + first;
        attention.keys = call->keys + first * layer->head_dim;
        attention.values = call->values + first * layer->head_dim;
        attention.workspace = call->workspace;
        ESP_TRY(esp_nn_done(nn->ops->attention(nn->device, &attention), "attention", error));
        first = call->ends[i];
    }
    return ESP_OK;
}

esp_status esp_text_attention_run(const esp_nn *nn, const esp_attention_layer *layer,
                                  const esp_text_attention_call *call, esp_error *error)
{
    ESP_TRY(project(nn, layer, call, error));
    ESP_TRY(turn(nn, layer, call, error));
    ESP_TRY(attend(nn, layer, call, error));
    esp_linear_call back = {
        .x = call->mixed, .y = call->x, .residual = call->x, .tokens = call->tokens};
    return esp_linear_run(nn, &layer->o, &back, error);
}
