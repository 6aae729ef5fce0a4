#include "nn/nn.h"

static esp_status open(const esp_nn *nn, const esp_mlp_layer *layer, const void *normed,
                       void *inner, int64_t columns, esp_error *error)
{
    esp_linear_call gate = {.x = normed, .y = inner, .tokens = columns};
    int64_t count = layer->intermediate * columns;
    char *second = (char *)inner + (size_t)count * esp_dtype_bytes(nn->ops->type);
    esp_linear_call up = {.x = normed, .y = second, .tokens = columns};
    ESP_TRY(esp_linear_run(nn, &layer->gate, &gate, error));
    if (layer->kind == ESP_MLP_PAIRED) {
        return ESP_OK;
    }
    if (layer->kind == ESP_MLP_APART) {
        ESP_TRY(esp_linear_run(nn, &layer->up, &up, error));
    }
    return esp_nn_done(nn->ops->swiglu(nn->device, nn->stream, inner, second, count, inner),
                       "swiglu", error);
}

esp_status esp_mlp_run(const esp_nn *nn, const esp_mlp_layer *layer, const void *normed,
                       void *inner, void *x, int64_t columns, esp_error *error)
{
    ESP_TRY(open(nn, layer, normed, inner, columns, error));
    esp_linear_call back = {.x = inner, .y = x, .residual = x, .tokens = columns};
    return esp_linear_run(nn, &layer->down, &back, error);
}
