/* Memory that is taken once and used by every call: scratch for activations, and the workspace of
 * the largest product. */
#include "model/family.h"

#define MAX_SHAPES 64

static bool runs_alike(const esp_model *model, const esp_linear *first, const esp_linear *second)
{
    esp_matmul_problem a = esp_linear_problem(first, model->compute, 1);
    esp_matmul_problem b = esp_linear_problem(second, model->compute, 1);
    return a.out_features == b.out_features && a.in_features == b.in_features &&
           a.weight_type == b.weight_type && a.epilogue == b.epilogue && a.y_layout == b.y_layout &&
           esp_pattern_equal(&a.pattern, &b.pattern) &&
           esp_packed_forms(first->weight) == esp_packed_forms(second->weight);
}

/* Adds what one product needs at a token count, by measured times and by predictions. */
static esp_status widen_at(const esp_model *model, const esp_linear *linear, int64_t tokens,
                           size_t *bytes, esp_error *error)
{
    esp_matmul_problem problem = esp_linear_problem(linear, model->compute, tokens);
    esp_plan_options options = model->plan_options;
    options.require_sparse = false; /* that is for the counts that are fed */
    esp_plan plan;
    ESP_TRY(esp_linear_plan(model->device, linear, &problem, &options, &plan, error));
    *bytes = ESP_MAX(*bytes, plan.workspace_bytes);
    if (plan.reason.tuned_tokens > 0) {
        options.ignore_tuning = true;
        ESP_TRY(esp_linear_plan(model->device, linear, &problem, &options, &plan, error));
        *bytes = ESP_MAX(*bytes, plan.workspace_bytes);
    }
    return ESP_OK;
}

/* Layers of one shape are asked once. */
esp_status esp_product_workspace_at(const esp_model *model, const int64_t *tokens, int counts,
                                    size_t *bytes, esp_error *error)
{
    const esp_linear *seen[MAX_SHAPES], *linear;
    int count = 0;
    *bytes = 0;
    for (int64_t i = 0; (linear = esp_model_linear(model, i)) != NULL; i++) {
        bool known = linear->weight == NULL; /* not held now: it is like another layer's */
        for (int k = 0; k < count && !known; k++) {
            known = runs_alike(model, seen[k], linear);
        }
        for (int k = 0; k < counts && !known; k++) {
            ESP_TRY(widen_at(model, linear, tokens[k], bytes, error));
        }
        if (!known && count < MAX_SHAPES) {
            seen[count++] = linear;
        }
    }
    return ESP_OK;
}

esp_status esp_product_workspace(const esp_model *model, int64_t max_tokens, size_t *bytes,
                                 esp_error *error)
{
    enum { CHUNK = 64 };
    size_t most = 0;
    for (int64_t first = 1; first <= max_tokens; first += CHUNK) {
        int64_t tokens[CHUNK];
        int counts = (int)ESP_MIN(CHUNK, max_tokens - first + 1);
        for (int i = 0; i < counts; i++) {
            tokens[i] = first + i;
        }
        ESP_TRY(esp_product_workspace_at(model, tokens, counts, bytes, error));
        most = ESP_MAX(most, *bytes);
    }
    *bytes = most;
    return ESP_OK;
}

esp_status esp_device_take(const esp_model *model, size_t floats, const char *what, float **memory,
                           esp_error *error)
{
    size_t bytes;
    if (esp_mul_size(floats, sizeof(float), &bytes)) {
        *memory = model->device->backend->alloc(model->device, ESP_MAX(bytes, 64));
    }
    return *memory != NULL ? ESP_OK : esp_fail_memory(error, floats, what);
}

esp_status esp_scratch_take(const esp_model *model, const esp_area *areas, int count,
                            int64_t tokens, float **block, esp_error *error)
{
    size_t total = 0, at = 0;
    for (int i = 0; i < count; i++) {
        size_t floats;
        if (!esp_mul_size((size_t)areas[i].features, (size_t)tokens, &floats) ||
            !esp_add_size(floats, 15, &floats) || !esp_add_size(total, floats / 16 * 16, &total)) {
            return esp_fail_memory(error, SIZE_MAX, "scratch memory");
        }
    }
    ESP_TRY(esp_device_take(model, total, "scratch memory", block, error));
    for (int i = 0; i < count; i++) {
        *areas[i].memory = *block + at;
        at += ((size_t)areas[i].features * (size_t)tokens + 15) / 16 * 16;
    }
    return ESP_OK;
}
