/* What calibration asks of weights before it looks at them: that they are numbers, since least
 * squares spread one that is none over its row, and how many are zeros already. */
#include <math.h>

#include "assess/calibrate.h"

#define ALREADY_PRUNED 0.25 /* share of zeros that is no accident */

esp_status esp_calibration_check_weights(const esp_calibration *calibration,
                                         const esp_tensor *values, double *zeros, esp_error *error)
{
    esp_value_counts all = esp_count_values(calibration->context, values);
    if (all.first_bad >= 0) {
        return esp_fail(error, ESP_CHECK_FAILED, "calibrate.not_finite",
                        "entry (%lld, %lld) is %g, and least squares would spread it over its row; "
                        "'espalier verify --strict' names the tensors that hold such",
                        (long long)(all.first_bad / values->shape[1]),
                        (long long)(all.first_bad % values->shape[1]),
                        (double)esp_weight_at(values->dtype, values->data, all.first_bad));
    }
    if (zeros != NULL) {
        *zeros = (double)all.zeros / (double)ESP_MAX(1, values->shape[0] * values->shape[1]);
    }
    return ESP_OK;
}

esp_status esp_calibration_check_dense(const esp_calibration *calibration, const esp_tensor *values,
                                       esp_error *error)
{
    double zeros = 0;
    ESP_TRY(esp_calibration_check_weights(calibration, values, &zeros, error));
    if (zeros >= ALREADY_PRUNED && !calibration->options->respect) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "calibrate.already_pruned",
                        "%.0f%% of the weights are zeros already, so the model is no dense one to "
                        "aim at; start from the dense model, or keep these zeros (--respect)",
                        100 * zeros);
    }
    return ESP_OK;
}

esp_status esp_calibration_check_inputs(const esp_calibration *calibration, esp_error *error)
{
    return isfinite(calibration->inputs.damping)
               ? ESP_OK
               : esp_fail(
                     error, ESP_CHECK_FAILED, "calibrate.not_finite",
                     "what it reads of the samples are no numbers; 'espalier verify --strict' "
                     "finds weights that are none, and f16, in which a GPU may run the layers, "
                     "ends at 65504: --device cpu has f32");
}
