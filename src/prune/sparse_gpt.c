/* Pruning column by column with updates of what is to come: Frantar and Alistarh, "SparseGPT"
 * (arXiv 2301.00774), with V:2:M as a further kind of mask.
 *
 * For column j with error e = (w_j - q_j) / U_jj, q_j being what stays, each row loses e U_j,j+1..
 * on its right. Within a block of columns this is done at once, to the right of the block by one
 * product of all the block's errors with U. Rows do not depend on each other but in the choice of a
 * panel's columns, which is made for all rows between two groups. */
#include <math.h>

#include "prune/group_obs.h"

#define BLOCK 128

typedef struct gpt_job {
    const esp_algebra *algebra;
    const esp_pattern *pattern;
    const esp_mask_options *options;
    int64_t out, in;
    const double *factor;
    const double *inverse; /* instead of the factor */
    double *weights;
    double *errors; /* [out][block] */
    float *scores;  /* [out][group] */
    esp_mask *mask;
    int64_t begin, end; /* columns of the block */
    bool by_groups;     /* choice and update of a whole group at once: group_obs.c */
} gpt_job;

bool esp_sparse_gpt_chooses(const esp_pattern *pattern)
{
    return pattern->kind == ESP_PATTERN_NM ||
           (pattern->kind == ESP_PATTERN_PANEL && (esp_pattern_is_2_4(pattern) || pattern->m != 0));
}

/* Columns whose masks are chosen together. */
static int64_t group_of(const esp_pattern *pattern)
{
    return pattern->kind == ESP_PATTERN_NM ? pattern->group
           : esp_pattern_is_2_4(pattern)   ? 4
                                           : pattern->m;
}

/* ---- the mask of one group, by the weights as they are by now ---- */

/* Marks the columns from begin on that scores [out][width] keep. */
static esp_status mark_group(const gpt_job *job, int64_t begin, int64_t width, float *scored,
                             esp_error *error)
{
    esp_tensor scores = {.dtype = ESP_F32, .rank = 2, .shape = {job->out, width}, .data = scored};
    esp_mask *chosen;
    ESP_TRY(esp_prune_mask(esp_algebra_context(job->algebra), &scores, job->pattern, job->options,
                           &chosen, NULL, error));
    for (int64_t r = 0; r < job->out; r++) {
        for (int64_t j = 0; j < width; j++) {
            esp_mask_set(job->mask, r, begin + j, esp_mask_get(chosen, r, j));
        }
    }
    esp_mask_free(chosen);
    return ESP_OK;
}

static void score_group(const gpt_job *job, int64_t begin, int64_t width)
{
    for (int64_t r = 0; r < job->out; r++) {
        for (int64_t j = 0; j < width; j++) {
            double u = job->factor[(begin + j) * job->in + begin + j];
            double w = job->weights[r * job->in + begin + j];
            job->scores[r * width + j] = (float)(w * w / (u * u));
        }
    }
}

static esp_status choose_group(const gpt_job *job, int64_t begin, int64_t width, esp_error *error)
{
    score_group(job, begin, width);
    return mark_group(job, begin, width, job->scores, error);
}

/* ---- updates ---- */

typedef struct sweep {
    const gpt_job *job;
    int64_t begin, end; /* columns that are decided now; updates reach to the block's end */
} sweep;

static void sweep_rows(void *user, int64_t first, int64_t stop, int thread)
{
    (void)thread;
    const sweep *s = user;
    const gpt_job *job = s->job;
    int64_t block = job->end - job->begin;
    for (int64_t r = first; r < stop; r++) {
        double *row = job->weights + r * job->in;
        const uint64_t *words = esp_mask_row(job->mask, r);
        for (int64_t j = s->begin; j < s->end; j++) {
            const double *factor = job->factor + j * job->in;
            double kept = words[j / 64] >> j % 64 & 1 ? row[j] : 0;
            double e = (row[j] - kept) / factor[j];
            row[j] = kept;
            job->errors[r * block + j - job->begin] = e;
            for (int64_t k = j + 1; k < job->end && e != 0; k++) {
                row[k] -= e * factor[k];
            }
        }
    }
}

static void sweep_columns(const gpt_job *job, int64_t begin, int64_t end)
{
    sweep s = {job, begin, end};
    esp_parallel_for(esp_algebra_context(job->algebra), job->out, 16, sweep_rows, &s);
}

static void update_right(const gpt_job *job)
{
    int64_t block = job->end - job->begin;
    const esp_algebra_product rest = {.rows = job->out,
                                      .columns = job->in - job->end,
                                      .depth = block,
                                      .alpha = -1,
                                      .beta = 1,
                                      .a = job->errors,
                                      .a_stride = block,
                                      .b = job->factor + job->begin * job->in + job->end,
                                      .b_stride = job->in,
                                      .c = job->weights + job->end,
                                      .c_stride = job->in};
    esp_algebra_multiply(job->algebra, &rest);
}

static esp_status prune_group(const gpt_job *job, int64_t at, int64_t width, esp_error *error)
{
    bool panels = !esp_pattern_is_2_4(job->pattern);
    esp_search search = esp_prune_search_of(job->options->search, job->pattern);
    const esp_obs_group group = {.context = esp_algebra_context(job->algebra),
                                 .out = job->out,
                                 .v = panels ? esp_pattern_panel_rows(job->pattern, job->out)
                                             : job->out,
                                 .column = at,
                                 .width = width,
                                 .search = search,
                                 .factor = job->factor + at * (job->in + 1),
                                 .factor_stride = job->in,
                                 .reach = job->end - at,
                                 .weights = job->weights + at,
                                 .weight_stride = job->in,
                                 .errors = job->errors + at - job->begin,
                                 .error_stride = job->end - job->begin,
                                 .mask = job->mask};
    return esp_prune_group(&group, error);
}

static esp_status prune_block(const gpt_job *job, esp_error *error)
{
    bool chooses = esp_sparse_gpt_chooses(job->pattern);
    int64_t group = chooses ? group_of(job->pattern) : job->end - job->begin;
    for (int64_t at = job->begin; at < job->end; at += group) {
        int64_t width = ESP_MIN(group, job->end - at);
        if (job->by_groups) {
            ESP_TRY(prune_group(job, at, width, error));
            continue;
        }
        if (chooses) {
            ESP_TRY(choose_group(job, at, width, error));
        }
        sweep_columns(job, at, at + width);
    }
    update_right(job);
    return ESP_OK;
}

/* Columns of a block: whole groups. */
static int64_t block_of(const gpt_job *job, int64_t *group)
{
    int64_t wanted = esp_sparse_gpt_chooses(job->pattern) ? group_of(job->pattern) : 1;
    *group = ESP_MIN(wanted, ESP_MAX(1, job->in));
    return *group * ESP_MAX(1, BLOCK / *group);
}

static esp_status prune_all(gpt_job *job, esp_error *error)
{
    int64_t group, block = block_of(job, &group);
    esp_context *context = esp_algebra_context(job->algebra);
    size_t out = (size_t)job->out, count = out * (size_t)ESP_MIN(block, job->in);
    job->errors = esp_alloc_array(context, count, sizeof *job->errors);
    job->scores = esp_alloc_array(context, out * (size_t)group, sizeof *job->scores);
    esp_status status = ESP_OK;
    if (job->errors == NULL || job->scores == NULL) {
        status = esp_fail_memory(error, count * sizeof *job->errors, "a block of errors");
    }
    for (job->begin = 0; job->begin < job->in && status == ESP_OK; job->begin = job->end) {
        job->end = ESP_MIN(job->in, job->begin + block);
        status = prune_block(job, error);
    }
    esp_release(context, job->errors);
    esp_release(context, job->scores);
    return status;
}

/* With the mask that is given, or one that is made and becomes *mask. */
static esp_status with_mask(gpt_job *job, esp_status (*run)(gpt_job *job, esp_error *error),
                            esp_mask **mask, esp_error *error)
{
    bool chooses = esp_sparse_gpt_chooses(job->pattern);
    job->mask = *mask;
    if (chooses) {
        ESP_TRY(esp_mask_create(esp_algebra_context(job->algebra), job->out, job->in, &job->mask,
                                error));
    }
    esp_status status = run(job, error);
    if (status == ESP_OK) {
        *mask = job->mask;
    } else if (chooses) {
        esp_mask_free(job->mask);
    }
    return status;
}

esp_status esp_sparse_gpt(const esp_algebra *algebra, const esp_pattern *pattern,
                          const esp_mask_options *options, int64_t out, int64_t in,
                          const double *factor, double *weights, esp_mask **mask, esp_error *error)
{
    gpt_job job = {.algebra = algebra,
                   .pattern = pattern,
                   .options = options,
                   .out = out,
                   .in = in,
                   .factor = factor,
                   .weights = weights};
    return with_mask(&job, prune_all, mask, error);
}

/* ---- from the inverse ---- */

static esp_status choose_for_device(void *user, int64_t begin, int64_t width, const float *scores,
                                    esp_error *error)
{
    const gpt_job *job = user;
    memcpy(job->scores, scores, (size_t)(job->out * width) * sizeof *scores);
    return mark_group(job, begin, width, job->scores, error);
}

static esp_status prune_on_device(gpt_job *job, esp_error *error)
{
    esp_device_algebra *device = esp_algebra_device(job->algebra);
    esp_context *context = esp_algebra_context(job->algebra);
    int64_t group, block = block_of(job, &group);
    bool chooses = esp_sparse_gpt_chooses(job->pattern);
    int64_t keep = job->pattern->kind == ESP_PATTERN_NM ? job->pattern->keep
                   : esp_pattern_is_2_4(job->pattern)   ? 2
                                                        : 0;
    size_t count = (size_t)(job->out * group);
    job->scores = esp_alloc_array(context, count, sizeof *job->scores);
    if (job->scores == NULL) {
        return esp_fail_memory(error, count * sizeof *job->scores, "scores");
    }
    const esp_device_sweep asked = {.out = job->out,
                                    .in = job->in,
                                    .block = ESP_MIN(block, job->in),
                                    .inverse = job->inverse,
                                    .weights = job->weights,
                                    .mask = job->out > 0 ? esp_mask_row_mut(job->mask, 0) : NULL,
                                    .mask_words = esp_mask_row_words(job->mask),
                                    .group = chooses ? group : 0,
                                    .keep = keep,
                                    .choose = choose_for_device,
                                    .user = job};
    esp_status status = device->ops->sweep(device, &asked, error);
    esp_release(context, job->scores);
    return status;
}

static esp_status factor_and_prune(gpt_job *job, esp_error *error)
{
    esp_context *context = esp_algebra_context(job->algebra);
    int64_t in = job->in;
    size_t count = (size_t)(in * in);
    double *factor = esp_alloc_array(context, count, sizeof *factor);
    if (factor == NULL) {
        return esp_fail_memory(error, count * sizeof *factor, "a factor");
    }
    memcpy(factor, job->inverse, count * sizeof *factor);
    bool definite = esp_algebra_factor(job->algebra, factor, in);
    for (int64_t i = 0; i < in; i++) { /* U = L^T */
        for (int64_t j = i + 1; j < in; j++) {
            factor[i * in + j] = factor[j * in + i];
        }
    }
    job->factor = factor;
    esp_status status = definite ? prune_all(job, error)
                                 : esp_fail(error, ESP_CHECK_FAILED, "calibrate.not_definite",
                                            "the inputs' second moments cannot be factored: give "
                                            "more samples or a larger damping");
    esp_release(context, factor);
    return status;
}

esp_status esp_sparse_gpt_of(const esp_algebra *algebra, const esp_pattern *pattern,
                             const esp_mask_options *options, int64_t out, int64_t in,
                             const double *inverse, double *weights, esp_mask **mask,
                             esp_error *error)
{
    const esp_device_algebra *device = esp_algebra_device(algebra);
    gpt_job job = {.algebra = algebra,
                   .pattern = pattern,
                   .options = options,
                   .out = out,
                   .in = in,
                   .inverse = inverse,
                   .weights = weights};
    bool goes = device != NULL && device->ops->sweep != NULL && in > 0 && out > 0;
    return with_mask(&job, goes ? prune_on_device : factor_and_prune, mask, error);
}

/* ---- group by group ---- */

bool esp_group_obs_takes(const esp_pattern *pattern)
{
    return pattern->kind == ESP_PATTERN_PANEL && (esp_pattern_is_2_4(pattern) || pattern->m != 0);
}

esp_status esp_group_obs(const esp_algebra *algebra, const esp_pattern *pattern,
                         const esp_mask_options *options, int64_t out, int64_t in,
                         const double *inverse, double *weights, esp_mask **mask, esp_error *error)
{
    gpt_job job = {.algebra = algebra,
                   .pattern = pattern,
                   .options = options,
                   .out = out,
                   .in = in,
                   .inverse = inverse,
                   .weights = weights,
                   .by_groups = true};
    ESP_TRY(esp_prune_check_search(options->search, pattern, error));
    return with_mask(&job, factor_and_prune, mask, error);
}
