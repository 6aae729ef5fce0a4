/* Panels: two of each four listed columns per row, and, for panel:V@S, which columns a panel lists:
 * those of the largest score summed over its rows, dealt four by four in ascending order. */
#include "prune/select.h"

/* ---- rows ---- */

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

/* ---- free columns ---- */

typedef struct free_job {
    const esp_prune_job *prune;
    int64_t v, kept;
    uint32_t *columns;  /* [panels][kept] */
    double *scores;     /* [threads][2][in]: a row's, and their sums */
    esp_ranked *ranked; /* [threads][in] */
} free_job;

static void list_columns(const free_job *job, int64_t panel, int thread)
{
    const esp_prune_job *prune = job->prune;
    int64_t in = prune->in, row = panel * job->v;
    int64_t end = ESP_MIN(prune->out, row + job->v), real = ESP_MIN(in, job->kept);
    double *scores = job->scores + thread * 2 * in, *sums = scores + in;
    esp_ranked *ranked = job->ranked + thread * in;
    memset(sums, 0, (size_t)in * sizeof *sums);
    for (; row < end; row++) {
        esp_score_segment(prune, row, 0, in, scores);
        for (int64_t c = 0; c < in; c++) {
            sums[c] += scores[c];
        }
    }
    for (int64_t c = 0; c < in; c++) {
        ranked[c].index = (uint32_t)c;
        memcpy(&ranked[c].key, &sums[c], sizeof sums[c]); /* positive doubles order as integers */
    }
    esp_take_best(ranked, in, real);
    for (int64_t c = 0; c < in; c++) { /* the sums have served: their room marks the chosen */
        sums[c] = 0;
    }
    for (int64_t i = 0; i < real; i++) {
        sums[ranked[i].index] = 1;
    }
    uint32_t *to = job->columns + panel * job->kept;
    for (int64_t c = 0; c < in; c++) {
        if (sums[c] != 0) {
            *to++ = (uint32_t)c;
        }
    }
    for (int64_t i = real; i < job->kept; i++) {
        *to++ = UINT32_MAX;
    }
}

static void list_panels(void *user, int64_t begin, int64_t end, int thread)
{
    const free_job *job = user;
    for (int64_t panel = begin; panel < end; panel++) {
        list_columns(job, panel, thread);
    }
}

esp_status esp_select_free_panels(const esp_prune_job *prune, esp_error *error)
{
    esp_context *context = prune->context;
    size_t threads = (size_t)context->threads, in = (size_t)prune->in, count = 0;
    free_job job = {.prune = prune,
                    .v = esp_pattern_panel_rows(prune->pattern, prune->out),
                    .kept = esp_pattern_kept(prune->pattern, prune->in)};
    int64_t panels = esp_ceil_div(prune->out, job.v);
    bool fits = esp_mul_size((size_t)panels, (size_t)job.kept, &count);
    job.columns = fits ? esp_alloc_array(context, count, sizeof *job.columns) : NULL;
    job.scores = esp_alloc_array(context, threads * 2 * in, sizeof *job.scores);
    job.ranked = esp_alloc_array(context, threads * in, sizeof *job.ranked);
    esp_status status = ESP_OK;
    if (job.columns == NULL || job.scores == NULL || job.ranked == NULL) {
        status =
            esp_fail_memory(error, fits ? count * sizeof *job.columns : SIZE_MAX, "panel columns");
    } else {
        esp_parallel_for(context, panels, 1, list_panels, &job);
        status = esp_select_in_panels(prune, job.v, job.kept, job.columns, error);
    }
    if (status == ESP_OK) {
        status = esp_mask_set_columns(prune->mask, job.v, job.kept, job.columns, error);
    }
    esp_release(context, job.columns);
    esp_release(context, job.scores);
    esp_release(context, job.ranked);
    return status;
}
