/* Memory that is taken once and used by every call: scratch for activations, and the workspace of
 * the largest product. */
#include "model/family.h"

#define MAX_SHAPES 64

static bool runs_alike(const esp_model *model, const esp_linear *first, const esp_linear *second)
{
    esp_matmul_problem a = esp_linear_problem(first, model->compute, model->ops->type, 1);
    esp_matmul_problem b = esp_linear_problem(second, model->compute, model->ops->type, 1);
    return a.out_features == b.out_features && a.in_features == b.in_features &&
           a.weight_type == b.weight_type && a.epilogue == b.epilogue && a.y_layout == b.y_layout &&
           esp_pattern_equal(&a.pattern, &b.pattern) &&
           esp_packed_forms(first->weight) == esp_packed_forms(second->weight);
}

/* Adds what one product needs at a token count, by measured times and by predictions. */
static esp_status widen_at(const esp_model *model, const esp_linear *linear, int64_t tokens,
                           size_t *bytes, esp_error *error)
{
    esp_plan_options options = model->plan_options;
    options.require_sparse = false; /* that is for the counts that are fed */
    for (int predicted = 0; predicted < 2; predicted++) {
        esp_plan plan;
        unsigned later;
        options.ignore_tuning = predicted == 1 || model->plan_options.ignore_tuning;
        ESP_TRY(esp_linear_choose(model->device, linear, model->ops, model->compute, tokens,
                                  &options, &plan, &later, error));
        *bytes = ESP_MAX(*bytes, plan.workspace_bytes);
        if (plan.reason.tuned_tokens == 0) {
            break;
        }
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

/* Token counts are numbers of columns. */
esp_status esp_product_workspace(const esp_model *model, int64_t max_tokens, size_t *bytes,
                                 esp_error *error)
{
    enum { CHUNK = 64 };
    int64_t tokens[CHUNK];
    size_t most = 0;
    for (int64_t next = 1; next <= max_tokens;) {
        int counts = 0;
        for (; counts < CHUNK && next <= max_tokens; next = esp_ops_columns(model->ops, next + 1)) {
            tokens[counts++] = next;
        }
        ESP_TRY(esp_product_workspace_at(model, tokens, counts, bytes, error));
        most = ESP_MAX(most, *bytes);
    }
    *bytes = most;
    return ESP_OK;
}

size_t esp_model_width(const esp_model *model)
{
    return esp_dtype_bytes(model->ops->type);
}

/* ---- what is counted ---- */

/* A model does not change for who works on it, but for this count. */
esp_taken esp_taken_of(const esp_model *model)
{
    esp_model *counting = (esp_model *)(uintptr_t)model;
    return (esp_taken){.device = model->device, .use = &counting->use};
}

static void count_bytes(esp_taken *taken, size_t bytes)
{
    taken->bytes += bytes;
    if (taken->use == NULL) {
        return;
    }
    size_t now = atomic_fetch_add(&taken->use->now, bytes) + bytes;
    size_t most = atomic_load(&taken->use->most);
    while (now > most && !atomic_compare_exchange_weak(&taken->use->most, &most, now)) {
    }
}

void esp_taken_drop(esp_taken *taken)
{
    if (taken->use != NULL) {
        atomic_fetch_sub(&taken->use->now, taken->bytes);
    }
    taken->bytes = 0;
}

esp_status esp_taken_mail(esp_taken *taken, size_t bytes, const char *what, esp_mail *mail,
                          esp_error *error)
{
    ESP_TRY(esp_mail_take(taken->device, bytes, what, mail, error));
    count_bytes(taken, mail->bytes);
    return ESP_OK;
}

/* ---- memory ---- */

esp_status esp_device_take(esp_taken *taken, size_t elements, size_t width, const char *what,
                           void **memory, esp_error *error)
{
    size_t bytes;
    if (!esp_mul_size(elements, width, &bytes)) {
        return esp_fail_memory(error, elements, what);
    }
    bytes = ESP_MAX(bytes, 64);
    *memory = taken->device->backend->alloc(taken->device, bytes);
    if (*memory == NULL) {
        return esp_device_fail_memory(taken->device, bytes, what, error);
    }
    count_bytes(taken, bytes);
    return ESP_OK;
}

esp_status esp_scratch_take(const esp_model *model, esp_taken *taken, const esp_area *areas,
                            int count, int64_t columns, void **block, esp_error *error)
{
    size_t width = esp_model_width(model), line = 64 / width, total = 0, at = 0;
    for (int i = 0; i < count; i++) {
        size_t elements;
        if (!esp_mul_size((size_t)areas[i].features, (size_t)columns, &elements) ||
            !esp_add_size(elements, line - 1, &elements) ||
            !esp_add_size(total, elements / line * line, &total)) {
            return esp_fail_memory(error, SIZE_MAX, "scratch memory");
        }
    }
    ESP_TRY(esp_device_take(taken, total, width, "scratch memory", block, error));
    for (int i = 0; i < count; i++) {
        *areas[i].memory = (char *)*block + at * width;
        at += ((size_t)areas[i].features * (size_t)columns + line - 1) / line * line;
    }
    return ESP_OK;
}

/* No kernel leaves them in parts of fewer rows. */
#define ROWS_OF_PART 32

esp_area esp_moments_area(const esp_model *model, bool centered, int64_t hidden, int64_t columns,
                          esp_known_moments *moments)
{
    int64_t most = esp_model_holds_norms(model, centered) ? esp_ceil_div(hidden, ROWS_OF_PART) : 0;
    int64_t width = (int64_t)esp_model_width(model), each = 2 * (int64_t)sizeof(float);
    *moments = (esp_known_moments){.most = most, .columns = columns};
    return (esp_area){&moments->memory, most * each / width};
}

esp_known_moments *esp_moments_of(esp_known_moments *moments)
{
    return moments->most > 0 ? moments : NULL;
}

esp_nn esp_model_nn(const esp_model *model, const esp_lane *lane)
{
    return (esp_nn){.device = model->device,
                    .ops = model->ops,
                    .stream = lane->stream,
                    .compute = model->compute,
                    .options = &model->plan_options};
}
