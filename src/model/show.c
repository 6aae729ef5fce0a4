/* Intermediate results for who looks at a model from outside, wherever and in whatever type they
 * lie. */
#include "model/family.h"

/* [features][columns] in f32 and the host's memory; *memory is what to release, NULL: nothing. */
static esp_status fetch(const esp_model *model, esp_lane *lane, const esp_view *view,
                        const float **data, float **memory, esp_error *error)
{
    esp_device *device = model->device;
    size_t count = (size_t)view->features * (size_t)view->columns, bytes = count * sizeof(float);
    *data = view->data;
    *memory = NULL;
    if (!esp_device_is_far(device)) {
        return ESP_OK;
    }
    *data = *memory = esp_alloc_array(model->context, count, sizeof(float));
    if (*memory == NULL) {
        return esp_fail_memory(error, bytes, "what is shown");
    }
    if (model->ops->type == ESP_F32) {
        return esp_lane_receive(lane, *memory, view->data, bytes, error);
    }
    void *wide = NULL;
    esp_taken taken = esp_taken_of(model);
    ESP_TRY(esp_device_take(&taken, count, sizeof(float), "what is shown", &wide, error));
    esp_status status = esp_nn_done(
        model->ops->widen(device, lane->stream, view->data, (int64_t)count, wide), "widen", error);
    if (status == ESP_OK) {
        status = esp_lane_receive(lane, *memory, wide, bytes, error);
    }
    device->backend->release(device, wide);
    esp_taken_drop(&taken);
    return status;
}

static int64_t tokens_of(const esp_view *view)
{
    int64_t tokens = view->groups * view->tokens;
    if (view->starts != NULL) {
        tokens = 0;
        for (int64_t i = 0; i < view->groups; i++) {
            tokens += view->counts[i];
        }
    }
    return tokens;
}

static void gather(const esp_view *view, const float *data, int64_t tokens, float *to)
{
    for (int64_t f = 0; f < view->features; f++) {
        int64_t at = 0;
        for (int64_t i = 0; i < view->groups; i++) {
            int64_t first = view->starts != NULL ? view->starts[i] : i * view->pitch;
            int64_t count = view->starts != NULL ? view->counts[i] : view->tokens;
            memcpy(to + f * tokens + at, data + f * view->columns + first,
                   (size_t)count * sizeof *to);
            at += count;
        }
    }
}

static esp_status show_gathered(const esp_model *model, const esp_view *view, const float *data,
                                esp_observe_fn observe, void *user, esp_error *error)
{
    int64_t tokens = tokens_of(view);
    if (tokens == view->columns) {
        observe(user, view->name, data, view->features, tokens);
        return ESP_OK;
    }
    size_t count = (size_t)view->features * (size_t)tokens;
    float *dense = esp_alloc_array(model->context, count, sizeof *dense);
    if (dense == NULL) {
        return esp_fail_memory(error, count * sizeof *dense, "what is shown");
    }
    gather(view, data, tokens, dense);
    observe(user, view->name, dense, view->features, tokens);
    esp_release(model->context, dense);
    return ESP_OK;
}

esp_status esp_model_show(const esp_model *model, esp_lane *lane, const esp_view *view,
                          esp_observe_fn observe, void *user, esp_error *error)
{
    if (observe == NULL) {
        return ESP_OK;
    }
    const float *data;
    float *memory;
    esp_status status = fetch(model, lane, view, &data, &memory, error);
    if (status == ESP_OK) {
        status = show_gathered(model, view, data, observe, user, error);
    }
    esp_release(model->context, memory);
    return status;
}
