/* Self-attention within groups of tokens, each token seeing its whole group, no cache:
 *
 *   q, k, v = W x;   y = W_o softmax(q k' / sqrt(head_dim) + b) v + residual
 *
 * b is absent, or the sum of a row and a column term (Li et al., MViTv2, arXiv 2112.01526): q, not
 * scaled, times the table's entry for the distance. Products run over the tokens of all groups at
 * once. */
#include <math.h>

#include "nn/nn.h"

static esp_status project(const esp_nn *nn, const esp_group_attention_layer *layer,
                          const esp_group_attention_call *call, esp_error *error)
{
    int64_t step = layer->heads * layer->head_dim * call->tokens;
    for (int i = 0; i < layer->projections; i++) {
        esp_linear_call product = {.x = call->x, .y = call->qkv + i * step, .tokens = call->tokens};
        ESP_TRY(esp_linear_run(nn, &layer->qkv[i], &product, error));
    }
    return ESP_OK;
}

static esp_status remember(const esp_nn *nn, const esp_group_attention_layer *layer,
                           const esp_group_attention_call *call, int part, float *cache,
                           esp_error *error)
{
    const float *x = call->qkv + part * layer->heads * layer->head_dim * call->tokens;
    esp_status status = nn->ops->cache_append(nn->device, x, layer->heads, layer->head_dim,
                                              call->tokens, 0, call->tokens, cache);
    return esp_nn_done(status, "cache_append", error);
}

static esp_status relate(const esp_nn *nn, const esp_group_attention_layer *layer,
                         const esp_group_attention_call *call, esp_error *error)
{
    if (layer->row_table == NULL) {
        return ESP_OK;
    }
    esp_relative relative = {.q = call->qkv,
                             .table = layer->row_table,
                             .y = call->row_bias,
                             .heads = layer->heads,
                             .head_dim = layer->head_dim,
                             .tokens = call->tokens,
                             .height = call->height,
                             .width = call->width,
                             .by_row = true};
    esp_status status = nn->ops->relative_bias(nn->device, &relative);
    if (status == ESP_OK) {
        relative.table = layer->column_table;
        relative.y = call->column_bias;
        relative.by_row = false;
        status = nn->ops->relative_bias(nn->device, &relative);
    }
    return esp_nn_done(status, "relative_bias", error);
}

esp_attention esp_group_attention_of(const esp_group_attention_layer *layer,
                                     const esp_group_attention_call *call, int64_t first)
{
    bool grid = layer->row_table != NULL;
    return (esp_attention){.q = call->qkv + first,
                           .keys = call->keys + first * layer->head_dim,
                           .values = call->values + first * layer->head_dim,
                           .y = call->mixed + first,
                           .heads = layer->heads,
                           .kv_heads = layer->heads,
                           .head_dim = layer->head_dim,
                           .tokens = call->group,
                           .capacity = call->tokens,
                           .stride = call->tokens,
                           .both_ways = true,
                           .scale = (float)(1 / sqrt((double)layer->head_dim)),
                           .row_bias = grid ? call->row_bias + first : NULL,
                           .column_bias = grid ? call->column_bias + first : NULL,
                           .grid_width = grid ? call->width : 0,
                           .workspace = call->workspace};
}

esp_status esp_group_attention_run(const esp_nn *nn, const esp_group_attention_layer *layer,
                                   const esp_group_attention_call *call, esp_error *error)
{
    ESP_TRY(project(nn, layer, call, error));
    ESP_TRY(remember(nn, layer, call, 1, call->keys, error));
    ESP_TRY(remember(nn, layer, call, 2, call->values, error));
    ESP_TRY(relate(nn, layer, call, error));
    for (int64_t first = 0; first < call->tokens; first += call->group) {
        esp_attention attention = esp_group_attention_of(layer, call, first);
        ESP_TRY(esp_nn_done(nn->ops->attention(nn->device, &attention), "attention", error));
    }
    esp_linear_call back = {
        .x = call->mixed, .y = call->y, .residual = call->residual, .tokens = call->tokens};
    return esp_linear_run(nn, &layer->o, &back, error);
}
