/* Which rows share a panel, as a row order that is stored with the weight: no other tensor follows
 * it, since a kernel writes each row's results where they belong. The order is searched as any
 * order of rows is (permute.c); then masks are chosen for the reordered weight and laid back. */
#include "prune/permute.h"
#include "prune/select.h"

bool esp_prune_stores_rows(const esp_mask_options *options, const esp_pattern *pattern, int64_t out)
{
    return options->regroup && pattern->kind == ESP_PATTERN_PANEL && pattern->v > 0 &&
           pattern->v < out;
}

/* ---- the order ---- */

typedef struct score_job {
    const esp_prune_job *prune;
    float *scores;   /* [out][in] */
    double *scratch; /* [threads][in] */
} score_job;

static void score_rows(void *user, int64_t begin, int64_t end, int thread)
{
    const score_job *job = user;
    int64_t in = job->prune->in;
    double *scores = job->scratch + thread * in;
    for (int64_t row = begin; row < end; row++) {
        esp_score_segment(job->prune, row, 0, in, scores);
        for (int64_t i = 0; i < in; i++) {
            bool small = scores[i] < (double)ESP_PERMUTE_MOST;
            job->scores[row * in + i] = small ? (float)scores[i] : ESP_PERMUTE_MOST;
        }
    }
}

static esp_status search_order(const esp_prune_job *prune, float *scores,
                               esp_permutation *permutation, esp_error *error)
{
    int axis = 0;
    ESP_TRY(esp_permutation_add_axis(permutation, "rows", prune->out, &axis, error));
    esp_search search = prune->search == ESP_SEARCH_JOINT ? ESP_SEARCH_AUTO : prune->search;
    esp_permute_weight weight = {.scores = scores,
                                 .out = prune->out,
                                 .in = prune->in,
                                 .pattern = *prune->pattern,
                                 .search = esp_prune_search_of(search, prune->pattern),
                                 .rows = axis,
                                 .columns = -1};
    const esp_space space = {.channels = prune->out,
                             .block = prune->out,
                             .unit = 1,
                             .parts = {{axis, 0, prune->out, 1}},
                             .part_count = 1};
    const esp_permute_job job = {.context = prune->context,
                                 .weights = &weight,
                                 .weight_count = 1,
                                 .spaces = &space,
                                 .space_count = 1,
                                 .rounds = 1,
                                 .permutation = permutation};
    return esp_permute(&job, error);
}

/* *permutation: one axis, to be freed after success. */
static esp_status find_order(const esp_prune_job *prune, esp_permutation **permutation,
                             esp_error *error)
{
    esp_context *context = prune->context;
    size_t in = (size_t)prune->in, count = (size_t)prune->out * in;
    score_job job = {prune, esp_alloc_array(context, count, sizeof *job.scores),
                     esp_alloc_array(context, (size_t)context->threads * in, sizeof *job.scratch)};
    esp_permutation *found = NULL;
    esp_status status = job.scores != NULL && job.scratch != NULL
                            ? esp_permutation_create(context, &found, error)
                            : esp_fail_memory(error, count * sizeof *job.scores, "scores");
    if (status == ESP_OK) {
        esp_parallel_for(context, prune->out, 1 + 65536 / ESP_MAX(1, prune->in), score_rows, &job);
        status = search_order(prune, job.scores, found, error);
    }
    esp_release(context, job.scores);
    esp_release(context, job.scratch);
    if (status != ESP_OK) {
        esp_permutation_free(found);
        return status;
    }
    *permutation = found;
    return ESP_OK;
}

/* ---- masks in that order ---- */

/* From the mask of stored rows to that of output rows. */
static esp_status lay_back(const esp_mask *stored, const uint32_t *rows, esp_mask *mask,
                           esp_error *error)
{
    int64_t v = 0, kept = 0;
    const uint32_t *columns = esp_mask_columns(stored, &v, &kept);
    size_t bytes = (size_t)esp_mask_row_words(stored) * sizeof(uint64_t);
    for (int64_t i = 0; i < esp_mask_out_features(stored); i++) {
        memcpy(esp_mask_row_mut(mask, rows[i]), esp_mask_row(stored, i), bytes);
    }
    if (columns != NULL) {
        ESP_TRY(esp_mask_set_columns(mask, v, kept, columns, error));
    }
    return esp_mask_set_rows(mask, rows, error);
}

esp_status esp_mask_of_stored(esp_context *context, const esp_mask *stored, const uint32_t *rows,
                              esp_mask **mask, esp_error *error)
{
    esp_mask *made = NULL;
    ESP_TRY(esp_mask_create(context, esp_mask_out_features(stored), esp_mask_in_features(stored),
                            &made, error));
    esp_status status = lay_back(stored, rows, made, error);
    if (status != ESP_OK) {
        esp_mask_free(made);
        return status;
    }
    *mask = made;
    return ESP_OK;
}

static esp_status select_in_order(const esp_prune_job *prune, const uint32_t *rows,
                                  esp_error *error)
{
    esp_context *context = prune->context;
    size_t bytes = (size_t)prune->in * esp_dtype_bytes(prune->dense->dtype);
    char *data = esp_alloc_array(context, (size_t)prune->out, bytes);
    if (data == NULL) {
        return esp_fail_memory(error, (size_t)prune->out * bytes, "a reordered weight");
    }
    for (int64_t i = 0; i < prune->out; i++) {
        memcpy(data + (size_t)i * bytes, (const char *)prune->dense->data + rows[i] * bytes, bytes);
    }
    esp_tensor dense = *prune->dense;
    esp_prune_job job = *prune;
    dense.data = data;
    job.dense = &dense;
    job.mask = NULL;
    esp_status status = esp_mask_create(context, prune->out, prune->in, &job.mask, error);
    if (status == ESP_OK) {
        status = prune->pattern->m != 0 ? esp_select_vnm(&job, error)
                                        : esp_select_free_panels(&job, error);
    }
    if (status == ESP_OK) {
        status = lay_back(job.mask, rows, prune->mask, error);
    }
    esp_mask_free(job.mask);
    esp_release(context, data);
    return status;
}

esp_status esp_select_regrouped(const esp_prune_job *prune, esp_error *error)
{
    esp_permutation *permutation = NULL;
    ESP_TRY(find_order(prune, &permutation, error));
    esp_status status = select_in_order(prune, permutation->axes[0].order, error);
    esp_permutation_free(permutation);
    return status;
}

esp_status esp_regroup_rows(esp_context *context, const esp_pattern *pattern,
                            const esp_mask_options *options, int64_t out, int64_t in, float *scores,
                            uint32_t *rows, esp_error *error)
{
    const esp_tensor dense = {.dtype = ESP_F32, .rank = 2, .shape = {out, in}, .data = scores};
    const esp_prune_job job = {.context = context,
                               .dense = &dense,
                               .pattern = pattern,
                               .search = esp_prune_search_of(options->search, pattern),
                               .out = out,
                               .in = in};
    esp_permutation *permutation = NULL;
    ESP_TRY(find_order(&job, &permutation, error));
    memcpy(rows, permutation->axes[0].order, (size_t)out * sizeof *rows);
    esp_permutation_free(permutation);
    return ESP_OK;
}
