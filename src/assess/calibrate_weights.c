/* What calibration asks of weights before it looks at them: that they are numbers, since least
 * squares spread one that is none over its row, and how many are zeros already. */
#include <math.h>

#include "assess/calibrate.h"

#define ROWS_AT_ONCE 64

typedef struct weight_count {
    int64_t zeros, odd; /* odd: place of the first that is no number */
} weight_count;

typedef struct count_job {
    const esp_tensor *values;
    weight_count *of_threads;
} count_job;

static void count_rows(void *user, int64_t begin, int64_t end, int thread)
{
    const count_job *job = user;
    const esp_tensor *values = job->values;
    int64_t in = values->shape[1], zeros = 0, odd = INT64_MAX;
    for (int64_t i = begin * in; i < end * in; i++) {
        float weight = esp_weight_at(values->dtype, values->data, i);
        zeros += weight == 0;
        odd = !isfinite(weight) && i < odd ? i : odd;
    }
    job->of_threads[thread].zeros += zeros;
    job->of_threads[thread].odd = ESP_MIN(job->of_threads[thread].odd, odd);
}

static esp_status count_weights(esp_context *context, const esp_tensor *values, weight_count *all,
                                esp_error *error)
{
    size_t threads = (size_t)context->threads;
    weight_count *counts = esp_alloc_array(context, threads, sizeof *counts);
    if (counts == NULL) {
        return esp_fail_memory(error, threads * sizeof *counts, "counts of weights");
    }
    for (size_t i = 0; i < threads; i++) {
        counts[i] = (weight_count){0, INT64_MAX};
    }
    count_job job = {values, counts};
    esp_parallel_for(context, values->shape[0], ROWS_AT_ONCE, count_rows, &job);
    *all = (weight_count){0, INT64_MAX};
    for (size_t i = 0; i < threads; i++) {
        all->zeros += counts[i].zeros;
        all->odd = ESP_MIN(all->odd, counts[i].odd);
    }
    esp_release(context, counts);
    return ESP_OK;
}

esp_status esp_calibration_check_weights(const esp_calibration *calibration,
                                         const esp_tensor *values, double *zeros, esp_error *error)
{
    weight_count all = {0, INT64_MAX};
    ESP_TRY(count_weights(calibration->context, values, &all, error));
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
