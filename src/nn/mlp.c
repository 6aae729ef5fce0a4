#include "nn/nn.h"

esp_status esp_mlp_run(const esp_nn *nn, const esp_mlp_layer *layer, const float *normed,
                       float *gate, float *up, float *x, int64_t tokens, esp_error *error)
{
    esp_linear_call to_gate = {.x = normed, .y = gate, .tokens = tokens};
    esp_linear_call to_up = {.x = normed, .y = up, .tokens = tokens};
    ESP_TRY(esp_linear_run(nn, &layer->gate, &to_gate, error));
    ESP_TRY(esp_linear_run(nn, &layer->up, &to_up, error));
    esp_status status = nn->ops->swiglu(nn->device, gate, up, layer->intermediate * tokens, gate);
    ESP_TRY(esp_nn_done(status, "swiglu", error));
    esp_linear_call back = {.x = gate, .y = x, .residual = x, .tokens = tokens};
    return esp_linear_run(nn, &layer->down, &back, error);
}
