/* Panels: two of each four listed columns, row by row. */
#include "prune/select.h"

typedef struct rows_job {
    const esp_prune_job *prune;
    int64_t v, kept;
    const uint32_t *columns;
    uint32_t *keys; /* [threads][in] */
} rows_job;

static void select_quad(const uint32_t *columns, const uint32_t *keys, uint64_t *words)
{
    uint32_t quad[4];
    int count = 0;
    while (count < 4 && columns[count] != UINT32_MAX) { /* padding comes last */
        quad[count] = keys[columns[count]];
        count++;
    }
    unsigned best = count == 4 ? esp_best_two(quad, 4) : esp_best_two(quad, count);
    for (; best != 0; best &= best - 1) {
        uint32_t column = columns[__builtin_ctz(best)];
        words[column / 64] |= (uint64_t)1 << column % 64;
    }
}

static void select_rows(void *user, int64_t begin, int64_t end, int thread)
{
    const rows_job *job = user;
    uint32_t *keys = job->keys + thread * job->prune->in;
    for (int64_t row = begin; row < end; row++) {
        const uint32_t *columns = job->columns + row / job->v * job->kept;
        uint64_t *words = esp_mask_row_mut(job->prune->mask, row);
        esp_score_keys(job->prune, row, keys);
        for (int64_t i = 0; i < job->kept; i += 4) {
            select_quad(columns + i, keys, words);
        }
    }
}

esp_status esp_select_in_panels(const esp_prune_job *prune, int64_t v, int64_t kept,
                                const uint32_t *columns, esp_error *error)
{
    esp_context *context = prune->context;
    size_t count = (size_t)context->threads * (size_t)prune->in;
    rows_job job = {.prune = prune, .v = v, .kept = kept, .columns = columns};
    job.keys = esp_alloc_array(context, count, sizeof *job.keys);
    if (job.keys == NULL) {
        return esp_fail_memory(error, count * sizeof *job.keys, "scores");
    }
    esp_parallel_for(context, prune->out, 1 + 65536 / ESP_MAX(1, prune->in), select_rows, &job);
    esp_release(context, job.keys);
    return ESP_OK;
}
