/* Where few tokens are read behind a model's last layer (the class token of an image, the last
 * token of a prompt), only those go on behind its attention: keys and values are of all tokens,
 * what comes after is each token's own. Linear layers, norms and heads then work on as many
 * columns. */
#include "nn/nn.h"

static esp_status gather(const esp_nn *nn, const esp_kept_tokens *kept, const void *from,
                         int64_t features, int64_t columns, void *to, esp_error *error)
{
    esp_moments_forget(nn, to);
    return esp_nn_done(nn->ops->gather_tokens(nn->device, nn->stream, from, features, columns,
                                              kept->index, kept->count, false, to),
                       "gather_tokens", error);
}

esp_nn esp_kept_nn(const esp_nn *nn, esp_plan_options *options)
{
    esp_nn own = *nn;
    if (nn->options->require_sparse) { /* that is for the counts that are fed, as plans kept are */
        *options = *nn->options;
        options->require_sparse = false;
        own.options = options;
        own.plans = NULL;
    }
    return own;
}

esp_status esp_kept_project(const esp_nn *nn, const esp_linear *o, const esp_kept_tokens *kept,
                            const void *mixed, const void *x, int64_t columns,
                            const esp_linear *reader, esp_error *error)
{
    esp_linear_call back = {.x = kept->mixed,
                            .y = kept->x,
                            .residual = kept->x,
                            .tokens = kept->count,
                            .reader = reader};
    esp_plan_options room;
    const esp_nn own = esp_kept_nn(nn, &room);
    ESP_TRY(gather(nn, kept, mixed, o->weight->in_features, columns, kept->mixed, error));
    ESP_TRY(gather(nn, kept, x, o->weight->out_features, columns, kept->x, error));
    return esp_linear_run(&own, o, &back, error);
}
