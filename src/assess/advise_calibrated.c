/* What each way loses of what layers put out, on a user's own samples: the dense model is walked
 * once, and every layer pruned in every way on the inputs that it has there, each as if it were the
 * only one. */
#include "assess/advise.h"
#include "assess/calibrate.h"

static esp_status lose_one(esp_calibration *calibration, const esp_calibrated_linear *linear,
                           const esp_tensor *dense, esp_advised_way *way, esp_error *error)
{
    esp_tensor values;
    esp_mask *mask = NULL;
    esp_calibrated_layer report = {0};
    size_t bytes = 0;
    ESP_TRY(esp_tensor_size(dense, NULL, &bytes, error));
    ESP_TRY(esp_tensor_create(calibration->context, dense->dtype, dense->rank, dense->shape,
                              &values, error));
    memcpy(values.data, dense->data, bytes);
    esp_status status =
        esp_calibration_prune(calibration, linear, &way->pattern, &values, &mask, &report, error);
    esp_mask_free(mask);
    esp_tensor_free(calibration->context, &values);
    way->error = status == ESP_OK ? report.error : way->error;
    way->calibrated = status == ESP_OK;
    return status;
}

static esp_status lose_all(esp_advice *advice, esp_calibration *calibration,
                           const esp_calibrated_linear *linear, esp_advised_way *ways,
                           esp_error *error)
{
    esp_weight_info weight = esp_checkpoint_get(calibration->checkpoint, linear->index);
    esp_tensor dense;
    ESP_TRY(esp_calibration_advance(calibration, linear->layer, error));
    ESP_TRY(esp_calibration_collect(calibration, linear, error));
    ESP_TRY(
        esp_tensor_create(advice->context, weight.dtype, weight.rank, weight.shape, &dense, error));
    esp_status status =
        esp_checkpoint_read_dense(calibration->checkpoint, linear->index, &dense, error);
    status = status == ESP_OK ? esp_calibration_check_dense(calibration, &dense, error) : status;
    for (int k = 1; k < advice->ways && status == ESP_OK; k++) {
        status = ways[k].possible ? lose_one(calibration, linear, &dense, &ways[k], error) : status;
        status = status == ESP_OK ? esp_advice_step(advice, "calibrating", error) : status;
    }
    esp_tensor_free(advice->context, &dense);
    return status == ESP_OK
               ? ESP_OK
               : esp_fail_within(error, status, "%s: %s",
                                 esp_checkpoint_path(calibration->checkpoint), linear->name);
}

static esp_advised_way *ways_of(const esp_advice *advice, const char *name)
{
    for (int64_t i = 0; i < advice->count; i++) {
        if (strcmp(advice->layers[i].name, name) == 0) {
            return advice->table + i * advice->ways;
        }
    }
    return NULL;
}

static esp_status walk(esp_advice *advice, esp_calibration *calibration, esp_error *error)
{
    ESP_TRY(esp_calibration_open(calibration, esp_checkpoint_path(advice->checkpoint), error));
    for (int64_t i = 0; i < calibration->linear_count; i++) {
        const esp_calibrated_linear *linear = &calibration->linears[i];
        esp_advised_way *ways = ways_of(advice, linear->name);
        if (ways != NULL) {
            ESP_TRY(lose_all(advice, calibration, linear, ways, error));
        }
    }
    return ESP_OK;
}

esp_status esp_advice_calibrate(esp_advice *advice, esp_error *error)
{
    esp_calibration_options options = *advice->options->calibration;
    const esp_prune_options prune = {.mask = advice->options->mask};
    options.targets = ESP_TARGETS_LAYER; /* the inputs are the dense model's */
    options.state_dir = NULL;
    options.turn_values = false;
    esp_calibration calibration = {.context = advice->context,
                                   .device = advice->device,
                                   .prune = &prune,
                                   .options = &options,
                                   .looks_only = true,
                                   .host_will_do = true};
    esp_status status = walk(advice, &calibration, error);
    esp_calibration_close(&calibration);
    return status;
}
