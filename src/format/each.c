/* What the formats share: parallel loops whose bodies may fail, live rows, printing. */
#include <stdatomic.h>

#include "format/formats.h"
#include "format/nonzero.h"

typedef struct each_job {
    esp_index_fn body;
    void *user;
    atomic_llong first_failure;
} each_job;

static void run_indices(void *user, int64_t begin, int64_t end, int thread)
{
    each_job *job = user;
    for (int64_t i = begin; i < end && i < atomic_load(&job->first_failure); i++) {
        if (job->body(job->user, i, thread, NULL) != ESP_OK) {
            long long seen = atomic_load(&job->first_failure);
            while (i < seen && !atomic_compare_exchange_weak(&job->first_failure, &seen, i)) {
            }
        }
    }
}

esp_status esp_format_each(esp_context *context, int64_t count, int64_t grain, esp_index_fn body,
                           void *user, esp_error *error)
{
    each_job job = {.body = body, .user = user};
    atomic_init(&job.first_failure, INT64_MAX);
    esp_parallel_for(context, count, grain, run_indices, &job);
    long long failure = atomic_load(&job.first_failure);
    return failure == INT64_MAX ? ESP_OK : body(user, failure, 0, error);
}

void esp_format_live_row(const esp_tensor *dense, const esp_mask *mask, int64_t row, uint64_t *live)
{
    int64_t in = dense->shape[1], words = esp_mask_row_words(mask);
    const uint64_t *kept = esp_mask_row(mask, row);
    for (int64_t i = 0; i < words; i++) {
        live[i] = kept[i] & esp_nonzero_word(dense, row * in + i * 64, ESP_MIN(64, in - i * 64));
    }
}

void esp_format_show_columns(int64_t row, int64_t first, int64_t column, int64_t count,
                             esp_run_fn see, void *user)
{
    esp_run run = {.row = row, .first = first};
    for (int64_t i = 0; i < count; i++) {
        esp_run_add(&run, (uint32_t)(column + i), see, user);
    }
    esp_run_end(&run, see, user);
}

void esp_format_set_part(esp_sparse_part *part, const char *name, esp_dtype dtype, int64_t rows,
                         int64_t columns)
{
    *part = (esp_sparse_part){
        .name = name,
        .tensor = {.dtype = dtype, .rank = columns < 0 ? 1 : 2, .shape = {rows}},
    };
    if (columns >= 0) {
        part->tensor.shape[1] = columns;
    }
}

void esp_format_print_entry(const esp_sparse *sparse, const esp_tensor *values, int64_t index,
                            int64_t column, esp_buffer *text)
{
    esp_buffer_printf(text, " %lld:%.6g", (long long)column,
                      (double)esp_weight_at(sparse->dtype, values->data, index));
}
