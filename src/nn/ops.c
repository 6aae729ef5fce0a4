#include "nn/nn.h"

static esp_status missing(const esp_device *device, const char *operation, esp_error *error)
{
    return esp_fail(error, ESP_UNSUPPORTED, "model.missing_operation",
                    "device '%s' has no operation \"%s\", which this model needs; use --device cpu",
                    device->name, operation);
}

const esp_ops *esp_nn_ops(const esp_device *device, esp_dtype type)
{
    const esp_backend *backend = device->backend;
    return backend->ops_of != NULL ? backend->ops_of(device, type) : backend->ops;
}

const esp_ops *esp_nn_any_ops(const esp_device *device)
{
    return esp_nn_ops(device, ESP_F16);
}

esp_status esp_nn_check_ops(const esp_device *device, bool decoder, esp_error *error)
{
    enum { BOTH, DECODER, ENCODER };
    const esp_ops *ops = esp_nn_any_ops(device);
    const struct {
        const char *name;
        bool there;
        int who;
    } needed[] = {
        {"embed", ops->embed != NULL, BOTH},
        {"rms_norm", ops->rms_norm != NULL, DECODER},
        {"rope_angles", ops->rope_angles != NULL, DECODER},
        {"rope_append", ops->rope_append != NULL, DECODER},
        {"attend_past", ops->attend_past != NULL && ops->past_workspace_bytes != NULL, DECODER},
        {"attend_step", ops->attend_step != NULL, DECODER},
        {"gather_tokens", ops->gather_tokens != NULL, DECODER},
        {"layer_norm", ops->layer_norm != NULL, ENCODER},
        {"attend_groups", ops->attend_groups != NULL && ops->group_workspace_bytes != NULL,
         ENCODER},
        {"pool", ops->pool != NULL, ENCODER},
        {"swiglu", ops->swiglu != NULL, DECODER},
        {"argmax", ops->argmax != NULL, DECODER},
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
    const esp_ops *ops = esp_nn_any_ops(device);
    const struct {
        const char *name;
        bool there;
    } needed[] = {
        {"layer_norm", ops->layer_norm != NULL},
        {"place_tokens", ops->place_tokens != NULL},
        {"attend_groups", ops->attend_groups != NULL && ops->group_workspace_bytes != NULL},
        {"patches", ops->patches != NULL},
        {"gather_tokens", ops->gather_tokens != NULL},
        {"unfold", ops->unfold != NULL},
        {"widen", ops->widen != NULL},
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
