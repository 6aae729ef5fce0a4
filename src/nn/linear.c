/* A linear layer is a packed weight; which kernel runs it is decided anew for each token count,
 * which costs less than a microsecond and no memory. */
#include "nn/nn.h"

void esp_linear_free(esp_linear *linear, esp_device *device)
{
    esp_packed_free(linear->weight);
    if (linear->bias != NULL) {
        device->backend->release(device, linear->bias);
    }
    *linear = (esp_linear){0};
}

esp_matmul_problem esp_linear_problem(const esp_linear *linear, esp_compute compute,
                                      const esp_linear_call *call)
{
    const esp_packed *weight = linear->weight;
    return (esp_matmul_problem){
        .pattern = weight->pattern,
        .weight_type = weight->dtype,
        .act_type = ESP_F32,
        .out_type = ESP_F32,
        .compute = compute,
        .out_features = weight->out_features,
        .in_features = weight->in_features,
        .tokens = call->tokens,
        .y_layout = call->token_major ? ESP_TOKEN_MAJOR : ESP_FEATURE_MAJOR,
        .epilogue = (linear->bias != NULL ? (unsigned)ESP_EP_BIAS : 0u) |
                    (call->residual != NULL ? (unsigned)ESP_EP_RESIDUAL : 0u),
    };
}

esp_status esp_linear_run(const esp_nn *nn, const esp_linear *linear, const esp_linear_call *call,
                          esp_error *error)
{
    esp_matmul_problem problem = esp_linear_problem(linear, nn->compute, call);
    esp_plan plan;
    ESP_TRY(esp_plan_fill(nn->device, &problem, nn->kernel_glob, &plan, error));
    esp_matmul_args args = {.weight = linear->weight,
                            .x = call->x,
                            .x_stride = call->x_stride,
                            .y = call->y,
                            .bias = linear->bias,
                            .residual = call->residual,
                            .workspace = nn->workspace};
    return esp_matmul_run(&plan, &args, error);
}
