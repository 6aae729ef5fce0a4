/* Panels of a weight's scores: which columns they list, and what they keep. */
#include "prune/permute_inside.h"

esp_status esp_panels_make(esp_context *context, esp_permute_weight *weight, esp_panels *panels,
                           esp_error *error)
{
    const esp_pattern *pattern = &weight->pattern;
    bool all = esp_pattern_is_2_4(pattern);
    int64_t v = all ? ESP_MAX(1, weight->out) : esp_pattern_panel_rows(pattern, weight->out);
    *panels = (esp_panels){.weight = weight,
                           .v = v,
                           .panels = esp_ceil_div(weight->out, v),
                           .m = all ? 4 : pattern->m,
                           .all = all,
                           .kept = esp_pattern_kept(pattern, weight->in)};
    size_t count = 0;
    bool fits = esp_mul_size((size_t)panels->panels, (size_t)panels->kept, &count);
    panels->columns = fits ? esp_alloc_array(context, count, sizeof *panels->columns) : NULL;
    if (panels->columns == NULL) {
        return esp_fail_memory(error, fits ? count * sizeof *panels->columns : SIZE_MAX,
                               "panel columns");
    }
    for (int64_t i = 0; all && i < panels->kept; i++) {
        panels->columns[i] = i < weight->in ? (uint32_t)i : UINT32_MAX;
    }
    return ESP_OK;
}

static inline double score_at(const float *row, uint32_t column)
{
    return column != UINT32_MAX ? (double)row[column] : 0;
}

/* The two largest of each four listed columns. */
static double row_score(const esp_panels *panels, const float *row, int64_t panel)
{
    const uint32_t *columns = panels->columns + (panels->all ? 0 : panel * panels->kept);
    double sum = 0;
    for (int64_t i = 0; i < panels->kept; i += 4) {
        double a = score_at(row, columns[i]), b = score_at(row, columns[i + 1]);
        double c = score_at(row, columns[i + 2]), d = score_at(row, columns[i + 3]);
        double high1 = a > b ? a : b, low1 = a > b ? b : a;
        double high2 = c > d ? c : d, low2 = c > d ? d : c;
        double low = low1 > low2 ? low1 : low2, least = high1 > high2 ? high2 : high1;
        sum += (high1 > high2 ? high1 : high2) + (least > low ? least : low);
    }
    return sum;
}

/* ---- the sum over all rows ---- */

#define ROWS_AT_ONCE 64

typedef struct sum_job {
    const esp_panels *panels;
    double *sums; /* [ceil(out / ROWS_AT_ONCE)] */
} sum_job;

static void add_rows(void *user, int64_t begin, int64_t end, int thread)
{
    const sum_job *job = user;
    const esp_permute_weight *weight = job->panels->weight;
    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        int64_t last = ESP_MIN(weight->out, (i + 1) * ROWS_AT_ONCE);
        for (int64_t row = i * ROWS_AT_ONCE; row < last; row++) {
            job->sums[i] +=
                row_score(job->panels, weight->scores + row * weight->in, row / job->panels->v);
        }
    }
}

static esp_status add_up(esp_context *context, esp_panels *panels, esp_error *error)
{
    int64_t pieces = esp_ceil_div(panels->weight->out, ROWS_AT_ONCE);
    sum_job job = {panels, esp_alloc_array(context, (size_t)pieces, sizeof *job.sums)};
    if (job.sums == NULL) {
        return esp_fail_memory(error, (size_t)pieces * sizeof *job.sums, "scores");
    }
    esp_parallel_for(context, pieces, 1, add_rows, &job);
    panels->score = 0;
    for (int64_t i = 0; i < pieces; i++) {
        panels->score += job.sums[i];
    }
    esp_release(context, job.sums);
    return ESP_OK;
}

esp_status esp_panels_choose(esp_context *context, esp_panels *panels, esp_error *error)
{
    esp_permute_weight *weight = panels->weight;
    esp_tensor scores = {
        .dtype = ESP_F32, .rank = 2, .shape = {weight->out, weight->in}, .data = weight->scores};
    esp_prune_job job = {.context = context,
                         .dense = &scores,
                         .pattern = &weight->pattern,
                         .score = ESP_SCORE_ABS,
                         .search = weight->search,
                         .out = weight->out,
                         .in = weight->in};
    if (!panels->all) {
        ESP_TRY(panels->m > 0 ? esp_vnm_columns(&job, panels->columns, error)
                              : esp_free_panel_columns(&job, panels->columns, error));
    }
    return add_up(context, panels, error);
}
