/* What calibration asks of weights before it looks at them: that they are numbers, since least
 * squares spread one that is none over its row, and how many are zeros already. */
#include <math.h>

#include "assess/calibrate.h"

esp_status esp_calibration_check_weights(const esp_calibration *calibration,
                                         const esp_tensor *values, double *zeros, esp_error *error)
{
    esp_weight_count all;
    ESP_TRY(esp_count_weights(calibration->context, values, &all, error));
    if (all.odd < INT64_MAX) {
        return esp_fail(error, ESP_CHECK_FAILED, "calibrate.not_finite",
                        "entry (%lld, %lld) is %g, and least squares would spread it over its row; "
                        "'espalier verify --strict' names the tensors that hold such",
                        (long long)(all.odd / values->shape[1]),
                        (long long)(all.odd % values->shape[1]),
                        (double)esp_weight_at(values->dtype, values->data, all.odd));
    }
    if (zeros != NULL) {
        *zeros = (double)all.zeros / (double)ESP_MAX(1, values->shape[0] * values->shape[1]);
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
