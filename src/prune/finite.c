/* Whether weights are numbers, which whole models must be to be pruned. */
#include "prune/prune.h"

esp_status esp_prune_check_finite(esp_context *context, const esp_tensor *weights, esp_error *error)
{
    int64_t odd = esp_count_values(context, weights).first_bad;
    int64_t columns = ESP_MAX(1, weights->shape[weights->rank - 1]);
    return odd < 0 ? ESP_OK
                   : esp_fail(error, ESP_CHECK_FAILED, "prune.not_finite",
                              "entry (%lld, %lld) is %g, and a model with such weights computes "
                              "nothing that pruning could keep; 'espalier verify --strict' names "
                              "the tensors that hold such",
                              (long long)(odd / columns), (long long)(odd % columns),
                              (double)esp_weight_at(weights->dtype, weights->data, odd));
}
