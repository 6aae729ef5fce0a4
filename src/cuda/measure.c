/* Measurements on a GPU: recorded work, and operands and results that stay in its memory. */
#include "cuda/room.h"

/* ---- recorded work ---- */

static esp_status capture(esp_device *device, gpu_recording *recording, void *stream,
                          esp_work_fn work, void *user, esp_error *error)
{
    bool captured = false;
    ESP_TRY(work(user, stream, error)); /* what is set up at a first call is not part of it */
    ESP_TRY(cuda_check(gpu_wait(), device, "the work to record", error));
    ESP_TRY(cuda_check(gpu_recording_begin(recording), device, "beginning a recording", error));
    esp_status status = work(user, stream, error);
    int failed = gpu_recording_end(recording, &captured);
    if (status == ESP_OK && !captured) {
        return esp_fail(error, ESP_UNSUPPORTED, "cuda.not_capturable",
                        "device '%s': the work cannot be captured in a graph: %s", device->name,
                        gpu_error_text(failed));
    }
    return status;
}

esp_status cuda_record(esp_device *device, esp_work_fn work, void *user, void **state,
                       esp_error *error)
{
    const cuda_state *mine = device->state;
    gpu_recording *recording = NULL;
    void *stream;
    int before;
    ESP_TRY(cuda_check(gpu_enter(mine->index, &before), device, "entering it", error));
    esp_status status = cuda_check(gpu_recording_create(&recording, &stream), device,
                                   "making a stream to record", error);
    if (status == ESP_OK) {
        status = capture(device, recording, stream, work, user, error);
        if (status != ESP_OK) {
            gpu_recording_free(recording);
        }
    }
    gpu_leave(before);
    if (status == ESP_OK) {
        *state = recording;
    }
    return status;
}

esp_status cuda_replay(esp_device *device, void *state, int repeats, double *us, esp_error *error)
{
    const cuda_state *mine = device->state;
    int before, failed = gpu_enter(mine->index, &before);
    if (failed == 0) {
        failed = gpu_recording_replay(state, repeats, us);
        gpu_leave(before);
    }
    return cuda_check(failed, device, "recorded work", error);
}

void cuda_recording_free(esp_device *device, void *state)
{
    const cuda_state *mine = device->state;
    int before;
    if (gpu_enter(mine->index, &before) == 0) {
        gpu_recording_free(state);
        gpu_leave(before);
    }
}

/* ---- operands and results ---- */

esp_status cuda_spread(esp_device *device, const esp_spread *spread, esp_error *error)
{
    const cuda_state *mine = device->state;
    gpu_spread where = {.by_token = spread->layout == ESP_TOKEN_MAJOR,
                        .features = spread->features,
                        .tokens = spread->tokens,
                        .vectors = spread->vectors,
                        .width = (int)spread->width,
                        .map = spread->map,
                        .few = spread->few,
                        .all = spread->all};
    int before, failed = gpu_enter(mine->index, &before);
    if (failed == 0) {
        failed = gpu_spread_vectors(&where);
        gpu_leave(before);
    }
    return cuda_check(failed, device, "spreading activations", error);
}

esp_status cuda_differ(esp_device *device, const esp_difference *difference, double *worst,
                       esp_error *error)
{
    const cuda_state *mine = device->state;
    gpu_difference where = {.by_token = difference->layout == ESP_TOKEN_MAJOR,
                            .rows = difference->rows,
                            .tokens = difference->tokens,
                            .vectors = difference->vectors,
                            .type = cuda_type(difference->dtype),
                            .map = difference->map,
                            .few = difference->few,
                            .bounds = difference->bounds,
                            .all = difference->all};
    int before, failed = gpu_enter(mine->index, &before);
    if (failed == 0) {
        failed = gpu_differ(&where, worst);
        gpu_leave(before);
    }
    return cuda_check(failed, device, "comparing results", error);
}
