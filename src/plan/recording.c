/* Work that is timed by its device: recorded by the back end where it can, else the calls
 * themselves by the host's clock. */
#include "plan/plan.h"

struct esp_recording {
    esp_device *device;
    esp_work_fn work;
    void *user;
    void *state; /* the back end's own */
};

static esp_status begin(esp_recording *made, esp_error *error)
{
    const esp_backend *backend = made->device->backend;
    return backend->record != NULL
               ? backend->record(made->device, made->work, made->user, &made->state, error)
               : made->work(made->user, NULL, error);
}

esp_status esp_record(esp_device *device, esp_work_fn work, void *user, esp_recording **recording,
                      esp_error *error)
{
    esp_recording *made = esp_alloc_zero(device->context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "a recording");
    }
    *made = (esp_recording){.device = device, .work = work, .user = user};
    esp_status status = begin(made, error);
    if (status != ESP_OK) {
        esp_release(device->context, made);
        return status;
    }
    *recording = made;
    return ESP_OK;
}

esp_status esp_recording_time(esp_recording *recording, int repeats, double *us, esp_error *error)
{
    esp_device *device = recording->device;
    if (device->backend->replay != NULL) {
        return device->backend->replay(device, recording->state, repeats, us, error);
    }
    double start = esp_seconds();
    for (int i = 0; i < repeats; i++) {
        ESP_TRY(recording->work(recording->user, NULL, error));
    }
    *us = 1e6 * (esp_seconds() - start);
    return ESP_OK;
}

void esp_recording_free(esp_recording *recording)
{
    if (recording == NULL) {
        return;
    }
    esp_device *device = recording->device;
    if (device->backend->recording_free != NULL) {
        device->backend->recording_free(device, recording->state);
    }
    esp_release(device->context, recording);
}
