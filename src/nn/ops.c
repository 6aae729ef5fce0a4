#include "nn/nn.h"

static esp_status missing(const esp_device *device, const char *operation, esp_error *error)
{
    return esp_fail(error, ESP_UNSUPPORTED, "model.missing_operation",
                    "device '%s' has no operation \"%s\", which this model needs; use --device cpu",
                    device->name, operation);
}

esp_status esp_nn_check_ops(const esp_device *device, bool decoder, esp_error *error)
{
    enum { BOTH, DECODER, ENCODER };
    const esp_ops *ops = device->backend->ops;
    const struct {
        const char *name;
        bool there;
        int who;
    } needed[] = {
        {"embed", ops->embed != NULL, BOTH},
        {"rms_norm", ops->rms_norm != NULL, DECODER},
        {"rope", ops->rope != NULL, DECODER},
        {"layer_norm", ops->layer_norm != NULL, ENCODER},
        {"add", ops->add != NULL, ENCODER},
        {"cache_append", ops->cache_append != NULL, BOTH},
        {"attention", ops->attention != NULL && ops->attention_workspace_bytes != NULL, BOTH},
        {"swiglu", ops->swiglu != NULL, DECODER},
    };
    for (int i = 0; i < ESP_COUNT(needed); i++) {
        if (needed[i].who == (decoder ? ENCODER : DECODER)) {
            continue;
        }
        if (!needed[i].there) {
            return missing(device, needed[i].name, error);
        }
    }
    return ESP_OK;
}

esp_status esp_nn_check_image_ops(const esp_device *device, esp_error *error)
{
    const esp_ops *ops = device->backend->ops;
    const struct {
        const char *name;
        bool there;
    } needed[] = {
        {"layer_norm", ops->layer_norm != NULL},
        {"add", ops->add != NULL},
        {"cache_append", ops->cache_append != NULL},
        {"attention", ops->attention != NULL && ops->attention_workspace_bytes != NULL},
        {"gather_tokens", ops->gather_tokens != NULL},
        {"relative_bias", ops->relative_bias != NULL},
        {"unfold", ops->unfold != NULL},
    };
    for (int i = 0; i < ESP_COUNT(needed); i++) {
        if (!needed[i].there) {
            return missing(device, needed[i].name, error);
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
