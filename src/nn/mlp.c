#include "nn/nn.h"

static esp_status open(const esp_nn *nn, const esp_mlp_layer *layer, esp_prepare *prepare,
                       const void *x, void *inner, void *second, bool gates, int64_t columns,
                       esp_error *error)
{
    esp_linear_call gate = {
        .x = x, .y = inner, .tokens = columns, .prepare = prepare, .gates = gates};
    esp_linear_call up = {.x = x, .y = second, .tokens = columns, .prepare = prepare};
    ESP_TRY(esp_linear_run(nn, &layer->gate, &gate, error));
    return layer->kind == ESP_MLP_APART ? esp_linear_run(nn, &layer->up, &up, error) : ESP_OK;
}

esp_status esp_mlp_run(const esp_nn *nn, const esp_mlp_layer *layer, esp_prepare *prepare,
                       void *inner, void *x, int64_t columns, const esp_linear *reader,
                       esp_error *error)
{
    int64_t count = layer->intermediate * columns;
    char *second = (char *)inner + (size_t)count * esp_dtype_bytes(nn->ops->type);
    esp_prepare gate = esp_prepare_gate(second, inner);
    esp_linear_call back = {.x = inner, .y = x, .residual = x, .tokens = columns, .reader = reader};
    bool joins = layer->kind == ESP_MLP_STACKED && nn->tap == NULL &&
                 esp_linear_gates(nn, &layer->gate, columns);
    back.prepare = layer->kind == ESP_MLP_PAIRED || joins ? NULL : &gate;
    ESP_TRY(open(nn, layer, prepare, x, inner, second, joins, columns, error));
    return esp_linear_run(nn, &layer->down, &back, error);
}
