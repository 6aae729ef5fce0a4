/* Self-attention within groups of tokens, each token seeing its whole group, no cache:
 *
 *   q, k, v = W x;   y = W_o softmax(q k' / sqrt(head_dim) + b) v + residual
 *
 * b is absent, or the sum of a row and a column term (Li et al., MViTv2, arXiv 2112.01526): q, not
 * scaled, times the table's entry for the distance. Products run over the tokens of all groups at
 * once, so that no text is padded to the length of another. */
#include <math.h>

#include "nn/nn.h"

static char *part_of(const esp_ops *ops, const esp_group_layer *layer, const esp_group_call *call,
                     int part)
{
    int64_t rows = part * layer->heads * layer->head_dim;
    return (char *)call->qkv + (size_t)(rows * call->columns) * esp_dtype_bytes(ops->type);
}

static esp_status project(const esp_nn *nn, const esp_group_layer *layer,
                          const esp_group_call *call, esp_error *error)
{
    for (int i = 0; i < layer->projections; i++) {
        esp_linear_call product = {.x = call->x,
                                   .y = part_of(nn->ops, layer, call, i),
                                   .tokens = call->columns,
                                   .prepare = call->prepare};
        ESP_TRY(esp_linear_run(nn, &layer->qkv[i], &product, error));
    }
    return ESP_OK;
}

esp_group_attention esp_group_attention_of(const esp_ops *ops, const esp_group_layer *layer,
                                           const esp_group_call *call)
{
    return (esp_group_attention){.q = part_of(ops, layer, call, 0),
                                 .k = part_of(ops, layer, call, 1),
                                 .v = part_of(ops, layer, call, 2),
                                 .y = call->mixed,
                                 .heads = layer->heads,
                                 .head_dim = layer->head_dim,
                                 .columns = call->columns,
                                 .groups = call->groups,
                                 .tokens = call->tokens,
                                 .pitch = call->pitch,
                                 .varied = call->varied,
                                 .starts = call->starts,
                                 .counts = call->counts,
                                 .read = call->read,
                                 .scale = (float)(1 / sqrt((double)layer->head_dim)),
                                 .row_table = layer->row_table,
                                 .column_table = layer->column_table,
                                 .grid_width = layer->row_table != NULL ? call->grid_width : 0,
                                 .workspace = call->workspace};
}

/* What q, k or v is of zeros; NULL: zeros. */
static const float *bias_of(const esp_group_layer *layer, int part)
{
    bool apart = layer->projections == 3;
    const esp_linear *linear = &layer->qkv[apart ? part : 0];
    const float *bias = linear->holds_norm ? linear->own_bias : linear->bias;
    return apart || bias == NULL ? bias : bias + part * layer->heads * layer->head_dim;
}

static esp_window_attention windows_of(const esp_ops *ops, const esp_group_layer *layer,
                                       const esp_group_call *call)
{
    return (esp_window_attention){.q = part_of(ops, layer, call, 0),
                                  .k = part_of(ops, layer, call, 1),
                                  .v = part_of(ops, layer, call, 2),
                                  .y = call->mixed,
                                  .heads = layer->heads,
                                  .head_dim = layer->head_dim,
                                  .columns = call->columns,
                                  .images = call->groups,
                                  .pitch = call->pitch,
                                  .height = call->tokens / call->grid_width,
                                  .width = call->grid_width,
                                  .window = call->window,
                                  .key_bias = bias_of(layer, 1),
                                  .value_bias = bias_of(layer, 2),
                                  .scale = (float)(1 / sqrt((double)layer->head_dim)),
                                  .row_table = layer->row_table,
                                  .column_table = layer->column_table};
}

bool esp_group_takes_windows(const esp_device *device, const esp_ops *ops,
                             const esp_group_layer *layer, const esp_group_call *call)
{
    const esp_window_attention windows = windows_of(ops, layer, call);
    return ops->can_attend_windows != NULL && ops->can_attend_windows(device, &windows);
}

static esp_status attend(const esp_nn *nn, const esp_group_layer *layer, const esp_group_call *call,
                         esp_error *error)
{
    if (call->window != 0) {
        esp_window_attention windows = windows_of(nn->ops, layer, call);
        return esp_nn_done(nn->ops->attend_windows(nn->device, nn->stream, &windows),
                           "attend_windows", error);
    }
    esp_group_attention attention = esp_group_attention_of(nn->ops, layer, call);
    return esp_nn_done(nn->ops->attend_groups(nn->device, nn->stream, &attention), "attend_groups",
                       error);
}

esp_status esp_group_run(const esp_nn *nn, const esp_group_layer *layer, const esp_group_call *call,
                         esp_error *error)
{
    ESP_TRY(project(nn, layer, call, error));
    ESP_TRY(attend(nn, layer, call, error));
    if (call->kept != NULL) {
        return esp_kept_project(nn, &layer->o, call->kept, call->mixed, call->residual,
                                call->columns, call->reader, error);
    }
    esp_linear_call back = {.x = call->mixed,
                            .y = call->y,
                            .residual = call->residual,
                            .tokens = call->columns,
                            .reader = call->reader};
    return esp_linear_run(nn, &layer->o, &back, error);
}
