/* Shrinking by what outputs lose: the dense model is walked layer by layer next to the one that is
 * being shrunk, in which removed channels are zeros of what reads them, as calibrated pruning does
 * it. The weights that read the rest become its least squares (src/prune/unit_obs.c). */
#include "assess/calibrate.h"

#include <espalier/shrink.h>

static esp_status remove_units(esp_calibration *calibration, const esp_calibrated_linear *linear,
                               const esp_unit_choice *units, esp_tensor *values,
                               esp_calibrated_layer *report, esp_error *error)
{
    ESP_TRY(esp_calibration_check_weights(calibration, values, NULL, error));
    ESP_TRY(esp_calibration_advance(calibration, linear->layer, error));
    ESP_TRY(esp_calibration_collect(calibration, linear, error));
    ESP_TRY(esp_calibration_remove(calibration, linear, units, values, report, error));
    return calibration->options->dense_inputs
               ? ESP_OK
               : esp_calibration_replace(calibration, linear->name, values, error);
}

/* An esp_shrink_choose_fn. */
static esp_status choose(void *user, const esp_shrink_part *part, esp_tensor *values,
                         uint32_t *kept, double *loss, esp_error *error)
{
    esp_calibration *calibration = user;
    const esp_calibrated_linear *linear = esp_calibration_linear(calibration, part->consumer);
    const esp_unit_choice units = {part->units, part->width, part->kept, kept};
    esp_calibrated_layer report = {0};
    if (linear == NULL) {
        return esp_fail(error, ESP_FAILED, "calibrate.not_reached",
                        "layer %lld: no sample reaches what reads the channels",
                        (long long)part->layer);
    }
    esp_status status = remove_units(calibration, linear, &units, values, &report, error);
    if (status != ESP_OK) {
        return esp_fail_within(error, status, "%s", linear->name);
    }
    *loss = report.error;
    return ESP_OK;
}

static esp_status shrink_calibrated(esp_device *device, const char *model_dir, const char *out_dir,
                                    const esp_shrink_options *options, esp_shrink_summary *summary,
                                    esp_error *error)
{
    esp_calibration_options how = *options->calibration;
    const esp_prune_options prune = {.progress = NULL};
    how.method = ESP_METHOD_OBS;
    how.refit = how.gradual = how.turn_values = how.respect = false;
    how.state_dir = NULL;
    how.on_layer = NULL;
    esp_calibration calibration = {
        .context = device->context, .device = device, .prune = &prune, .options = &how};
    esp_status status = esp_calibration_open(&calibration, model_dir, error);
    const esp_shrink_job job = {.device = device,
                                .checkpoint = calibration.checkpoint,
                                .options = options,
                                .choose = choose,
                                .user = &calibration};
    status = status == ESP_OK ? esp_shrink_run(&job, out_dir, summary, error) : status;
    esp_calibration_close(&calibration);
    return status;
}

esp_status esp_shrink_checkpoint(esp_device *device, const char *model_dir, const char *out_dir,
                                 const esp_shrink_options *options, esp_shrink_summary *summary,
                                 esp_error *error)
{
    esp_checkpoint *checkpoint;
    if (out_dir == NULL) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "prune.no_target",
                        "shrinking writes a new folder: give its name");
    }
    if (options->calibration != NULL) {
        return shrink_calibrated(device, model_dir, out_dir, options, summary, error);
    }
    ESP_TRY(esp_checkpoint_open(device->context, model_dir, &checkpoint, error));
    const esp_shrink_job job = {.device = device, .checkpoint = checkpoint, .options = options};
    esp_status status = esp_shrink_run(&job, out_dir, summary, error);
    esp_checkpoint_close(checkpoint);
    return status;
}
