/* In which forms a sparse layer is held. One resident form is the rule: the one whose fastest
 * kernel wins at the token count that matters most. With memory for more, a layer holds each that
 * wins somewhere among the token counts that a model meets: sparse for decode and dense or, of
 * V:2:5 on a GPU, spread for prefill as a rule. */
#include "model/family.h"

#define MOST_TOKENS 512 /* of the counts that are looked at: a batch */

/* The form that would run at a token count, if all were held. */
static esp_status winner(const esp_model *model, const esp_linear *linear, int64_t tokens,
                         unsigned *form, esp_error *error)
{
    esp_matmul_problem problem =
        esp_linear_problem(linear, model->compute, model->ops->type, tokens);
    esp_plan_options options = model->plan_options;
    esp_plan plan;
    options.forms = PLAN_ALL_FORMS;
    esp_status status = esp_plan_fill(model->device, &problem, &options, &plan, error);
    if (status != ESP_OK) {
        return esp_fail_within(error, status, "%s", linear->name);
    }
    *form = plan.form;
    return ESP_OK;
}

esp_status esp_model_forms(const esp_model *model, const esp_linear *linear,
                           const esp_sparse *sparse, unsigned *forms, esp_error *error)
{
    /* Enough of a weight to say what the product will be. */
    esp_packed outline = {.device = model->device,
                          .pattern = esp_sparse_pattern(sparse),
                          .dtype = esp_sparse_dtype(sparse),
                          .out_features = esp_sparse_out_features(sparse),
                          .in_features = esp_sparse_in_features(sparse)};
    esp_linear with_outline = *linear;
    with_outline.weight = &outline;
    unsigned found = ESP_FORM_SPARSE;
    if (outline.pattern.kind != ESP_PATTERN_DENSE &&
        (model->memory != ESP_MEMORY_SPARSE || model->plan_options.require_sparse)) {
        ESP_TRY(
            winner(model, &with_outline, esp_model_columns(model, model->tokens), &found, error));
        for (int64_t tokens = 1; model->memory == ESP_MEMORY_TWO && tokens <= MOST_TOKENS;
             tokens *= 2) {
            unsigned form = 0;
            ESP_TRY(winner(model, &with_outline, tokens, &form, error));
            found |= form;
        }
    }
    *forms = found;
    return ESP_OK;
}
