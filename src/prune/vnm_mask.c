/* V:2:M masks in two parallel passes: every (panel, group of M) chooses its four columns, then
 * every row keeps two of each four. A remainder group of at most four columns keeps them all. */
#include "prune/select.h"

typedef struct columns_job {
    const esp_prune_job *prune;
    int64_t v, groups;
    uint32_t *columns; /* [panels][groups][4] */
    double *scratch;   /* [threads][6 * m] */
} columns_job;

static void choose_columns(const columns_job *job, int64_t panel, int64_t group, int thread)
{
    const esp_prune_job *prune = job->prune;
    int64_t m = prune->pattern->m, column = group * m, row = panel * job->v;
    int64_t rows = ESP_MIN(job->v, prune->out - row);
    int width = (int)ESP_MIN(m, prune->in - column);
    uint32_t kept[4] = {0, 1, 2, 3};
    if (width > 4 && prune->search == ESP_SEARCH_EXACT) {
        esp_exact_columns(prune, row, rows, column, width, kept);
    } else if (width > 4) {
        esp_greedy_columns(prune, row, rows, column, width, prune->search == ESP_SEARCH_SWAPS,
                           job->scratch + thread * 6 * m, kept);
    }
    uint32_t *to = job->columns + (panel * job->groups + group) * 4;
    for (int i = 0; i < 4; i++) {
        to[i] = i < width ? (uint32_t)column + kept[i] : UINT32_MAX;
    }
}

static void choose_pieces(void *user, int64_t begin, int64_t end, int thread)
{
    const columns_job *job = user;
    for (int64_t i = begin; i < end; i++) {
        choose_columns(job, i / job->groups, i % job->groups, thread);
    }
}

/* [panels][groups][4] of a V:2:M pattern. */
esp_status esp_vnm_columns(const esp_prune_job *prune, uint32_t *columns, esp_error *error)
{
    esp_context *context = prune->context;
    int64_t m = prune->pattern->m;
    columns_job job = {.prune = prune,
                       .v = esp_pattern_panel_rows(prune->pattern, prune->out),
                       .groups = esp_ceil_div(prune->in, m),
                       .columns = columns};
    size_t threads = (size_t)context->threads;
    job.scratch = esp_alloc_array(context, threads * 6 * (size_t)m, sizeof *job.scratch);
    if (job.scratch == NULL) {
        return esp_fail_memory(error, threads * 6 * (size_t)m * sizeof *job.scratch, "scores");
    }
    esp_parallel_for(context, esp_ceil_div(prune->out, job.v) * job.groups, 1 + 65536 / (job.v * m),
                     choose_pieces, &job);
    esp_release(context, job.scratch);
    return ESP_OK;
}

esp_status esp_select_vnm(const esp_prune_job *prune, esp_error *error)
{
    esp_context *context = prune->context;
    int64_t v = esp_pattern_panel_rows(prune->pattern, prune->out);
    int64_t kept = esp_pattern_kept(prune->pattern, prune->in);
    size_t count = 0;
    bool fits = esp_mul_size((size_t)esp_ceil_div(prune->out, v), (size_t)kept, &count);
    uint32_t *columns = fits ? esp_alloc_array(context, count, sizeof *columns) : NULL;
    if (columns == NULL) {
        return esp_fail_memory(error, fits ? count * sizeof *columns : SIZE_MAX, "panel columns");
    }
    esp_status status = esp_vnm_columns(prune, columns, error);
    if (status == ESP_OK) {
        status = esp_select_in_panels(prune, v, kept, columns, error);
    }
    esp_release(context, columns);
    return status;
}
