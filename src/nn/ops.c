#include "nn/nn.h"

esp_status esp_nn_check_ops(const esp_device *device, esp_error *error)
{
    const esp_ops *ops = device->backend->ops;
    const struct {
        const char *name;
        bool there;
    } needed[] = {
        {"embed", ops->embed != NULL},
        {"rms_norm", ops->rms_norm != NULL},
        {"rope", ops->rope != NULL},
        {"cache_append", ops->cache_append != NULL},
        {"attention", ops->attention != NULL && ops->attention_workspace_bytes != NULL},
        {"swiglu", ops->swiglu != NULL},
    };
    for (int i = 0; i < ESP_COUNT(needed); i++) {
        if (!needed[i].there) {
            return esp_fail(error, ESP_UNSUPPORTED, "model.missing_operation",
                            "device '%s' has no operation \"%s\", which this model needs; use "
                            "--device cpu",
                            device->name, needed[i].name);
        }
    }
    return ESP_OK;
}

esp_status esp_nn_done(esp_status status, const char *operation, esp_error *error)
{
    if (status == ESP_OK) {
        return ESP_OK;
    }
    return esp_fail(error, status, "model.operation_failed", "operation \"%s\" failed: %s",
                    operation, esp_status_name(status));
}
