/* Whether weights are numbers. Masks rank what is none above everything, so that none is hidden;
 * but whole models are refused that hold any. Infinity and NaN are the values whose exponent has
 * all its bits set, which is looked for without turning anything into a float. */
#include "prune/prune.h"

#define ROWS_AT_ONCE 64

typedef struct count_job {
    const esp_tensor *weights;
    esp_weight_count *of_threads;
} count_job;

static inline __attribute__((always_inline)) esp_weight_count
count_bits(const char *data, int64_t count, size_t width, uint32_t exponent, uint32_t magnitude)
{
    uint32_t zeros = 0, odd = 0; /* a piece of work is no 2^32 weights */
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = 0;
        memcpy(&bits, data + (size_t)i * width, width);
        zeros += (bits & magnitude) == 0;
        odd |= (bits & exponent) == exponent;
    }
    return (esp_weight_count){zeros, odd != 0 ? 0 : INT64_MAX};
}

/* odd: not where, but INT64_MAX where there is none. */
static esp_weight_count count_run(esp_dtype dtype, const char *data, int64_t count)
{
    return dtype == ESP_F32   ? count_bits(data, count, 4, 0x7f800000u, 0x7fffffffu)
           : dtype == ESP_F16 ? count_bits(data, count, 2, 0x7c00u, 0x7fffu)
                              : count_bits(data, count, 2, 0x7f80u, 0x7fffu);
}

static void count_rows(void *user, int64_t begin, int64_t end, int thread)
{
    const count_job *job = user;
    const esp_tensor *weights = job->weights;
    int64_t in = weights->shape[1];
    size_t width = esp_dtype_bytes(weights->dtype);
    esp_weight_count *all = &job->of_threads[thread];
    for (int64_t r = begin; r < end; r++) {
        const char *row = (const char *)weights->data + (size_t)(r * in) * width;
        esp_weight_count own = count_run(weights->dtype, row, in);
        all->zeros += own.zeros;
        for (int64_t i = 0; i < in && own.odd == 0 && r * in < all->odd; i++) {
            if (count_run(weights->dtype, row + (size_t)i * width, 1).odd == 0) {
                all->odd = r * in + i;
            }
        }
    }
}

esp_status esp_count_weights(esp_context *context, const esp_tensor *weights,
                             esp_weight_count *count, esp_error *error)
{
    size_t threads = (size_t)context->threads;
    esp_weight_count *counts = esp_alloc_array(context, threads, sizeof *counts);
    if (counts == NULL) {
        return esp_fail_memory(error, threads * sizeof *counts, "counts of weights");
    }
    for (size_t i = 0; i < threads; i++) {
        counts[i] = (esp_weight_count){0, INT64_MAX};
    }
    count_job job = {weights, counts};
    esp_parallel_for(context, weights->shape[0], ROWS_AT_ONCE, count_rows, &job);
    *count = (esp_weight_count){0, INT64_MAX};
    for (size_t i = 0; i < threads; i++) {
        count->zeros += counts[i].zeros;
        count->odd = ESP_MIN(count->odd, counts[i].odd);
    }
    esp_release(context, counts);
    return ESP_OK;
}

esp_status esp_prune_check_finite(esp_context *context, const esp_tensor *weights, esp_error *error)
{
    esp_weight_count all;
    ESP_TRY(esp_count_weights(context, weights, &all, error));
    return all.odd == INT64_MAX
               ? ESP_OK
               : esp_fail(error, ESP_CHECK_FAILED, "prune.not_finite",
                          "entry (%lld, %lld) is %g, and a model with such weights computes "
                          "nothing that pruning could keep; 'espalier verify --strict' names the "
                          "tensors that hold such",
                          (long long)(all.odd / weights->shape[1]),
                          (long long)(all.odd % weights->shape[1]),
                          (double)esp_weight_at(weights->dtype, weights->data, all.odd));
}
