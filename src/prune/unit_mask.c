/* Masks of whole units: the weights, blocks, rows or columns of largest score in the whole tensor.
 * A block's score is the mean over its real weights (edge blocks have fewer), a row's or column's
 * the sum; sums go row by row, left to right, in double. Per-row scope gives every row the same
 * number of weights, the first rows one more where it does not divide. */
#include "prune/select.h"

typedef struct unit_job {
    const esp_prune_job *prune;
    int64_t rows, columns; /* of a block; a row is a block of 1 x in, a column one of out x 1 */
    int64_t down, across;  /* blocks */
    double *scores;        /* [down][across] */
    double *row_scores;    /* [threads][in] */
    uint32_t *row_keys;    /* [threads][in] */
    uint64_t *bits;        /* [down][ceil(across / 64)]: kept blocks */
} unit_job;

/* ---- single weights ---- */

static void keys_of_row(const void *user, int64_t row, int thread, uint64_t *keys)
{
    const unit_job *job = user;
    int64_t in = job->prune->in;
    uint32_t *narrow = job->row_keys + thread * in;
    esp_score_keys(job->prune, row, narrow);
    for (int64_t i = 0; i < in; i++) {
        keys[i] = narrow[i];
    }
}

static int64_t row_grain(const esp_prune_job *prune)
{
    return 1 + 65536 / ESP_MAX(1, prune->in);
}

static esp_status select_tensor(const unit_job *job, esp_error *error)
{
    const esp_prune_job *prune = job->prune;
    esp_contest contest = {.context = prune->context,
                           .user = job,
                           .keys = keys_of_row,
                           .lines = prune->out,
                           .width = prune->in,
                           .key_bits = prune->dense->dtype == ESP_F32 ? 32 : 16,
                           .grain = row_grain(prune)};
    contest.bits = prune->out > 0 ? esp_mask_row_mut(prune->mask, 0) : NULL;
    return esp_keep_best(&contest, esp_pattern_kept_of(prune->pattern, prune->out * prune->in),
                         error);
}

typedef struct rows_job {
    const esp_prune_job *prune;
    int64_t kept, more; /* weights of a row; the first `more` rows keep one more */
    uint32_t *keys;     /* [threads][in] */
    esp_ranked *ranked; /* [threads][in] */
} rows_job;

static void select_rows(void *user, int64_t begin, int64_t end, int thread)
{
    const rows_job *job = user;
    int64_t in = job->prune->in;
    uint32_t *keys = job->keys + thread * in;
    esp_ranked *ranked = job->ranked + thread * in;
    for (int64_t row = begin; row < end; row++) {
        esp_score_keys(job->prune, row, keys);
        for (int64_t i = 0; i < in; i++) {
            ranked[i] = (esp_ranked){.key = keys[i], .index = (uint32_t)i};
        }
        int64_t keep = job->kept + (row < job->more);
        esp_take_best(ranked, in, keep);
        uint64_t *words = esp_mask_row_mut(job->prune->mask, row);
        for (int64_t i = 0; i < keep; i++) {
            words[ranked[i].index / 64] |= (uint64_t)1 << ranked[i].index % 64;
        }
    }
}

static esp_status select_each_row(const esp_prune_job *prune, esp_error *error)
{
    esp_context *context = prune->context;
    size_t room = (size_t)context->threads * (size_t)prune->in;
    int64_t kept = esp_pattern_kept_of(prune->pattern, prune->out * prune->in);
    rows_job job = {.prune = prune,
                    .kept = kept / ESP_MAX(1, prune->out),
                    .more = kept % ESP_MAX(1, prune->out)};
    job.keys = esp_alloc_array(context, room, sizeof *job.keys);
    job.ranked = esp_alloc_array(context, room, sizeof *job.ranked);
    esp_status status = ESP_OK;
    if (job.keys == NULL || job.ranked == NULL) {
        status = esp_fail_memory(error, room * sizeof *job.ranked, "scores");
    } else {
        esp_parallel_for(context, prune->out, row_grain(prune), select_rows, &job);
    }
    esp_release(context, job.keys);
    esp_release(context, job.ranked);
    return status;
}

esp_status esp_select_unstructured(const esp_prune_job *prune, esp_error *error)
{
    if (prune->scope == ESP_SCOPE_ROW) {
        return select_each_row(prune, error);
    }
    size_t room = (size_t)prune->context->threads * (size_t)prune->in;
    unit_job job = {.prune = prune,
                    .row_keys = esp_alloc_array(prune->context, room, sizeof *job.row_keys)};
    if (job.row_keys == NULL) {
        return esp_fail_memory(error, room * sizeof *job.row_keys, "scores");
    }
    esp_status status = select_tensor(&job, error);
    esp_release(prune->context, job.row_keys);
    return status;
}

/* ---- blocks, rows, columns ---- */

static void score_lines(void *user, int64_t begin, int64_t end, int thread)
{
    const unit_job *job = user;
    const esp_prune_job *prune = job->prune;
    double *scores = job->row_scores + thread * prune->in;
    for (int64_t line = begin; line < end; line++) {
        double *sums = job->scores + line * job->across;
        int64_t row = line * job->rows, stop = ESP_MIN(prune->out, row + job->rows);
        for (int64_t r = row; r < stop; r++) {
            esp_score_segment(prune, r, 0, prune->in, scores);
            for (int64_t b = 0; b < job->across; b++) {
                int64_t last = ESP_MIN(prune->in, (b + 1) * job->columns);
                for (int64_t c = b * job->columns; c < last; c++) {
                    sums[b] += scores[c];
                }
            }
        }
        for (int64_t b = 0; b < job->across; b++) {
            int64_t columns = ESP_MIN(job->columns, prune->in - b * job->columns);
            sums[b] /= (double)((stop - row) * columns);
        }
    }
}

/* Positive doubles order as integers. */
static void keys_of_line(const void *user, int64_t line, int thread, uint64_t *keys)
{
    (void)thread;
    const unit_job *job = user;
    if (job->across > 0) {
        memcpy(keys, job->scores + line * job->across, (size_t)job->across * sizeof *keys);
    }
}

static void spread_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const unit_job *job = user;
    int64_t words = esp_ceil_div(job->across, 64);
    for (int64_t row = begin; row < end; row++) {
        const uint64_t *bits = job->bits + row / job->rows * words;
        uint64_t *to = esp_mask_row_mut(job->prune->mask, row);
        for (int64_t b = 0; b < job->across; b++) {
            int64_t last = ESP_MIN(job->prune->in, (b + 1) * job->columns);
            for (int64_t c = b * job->columns; bits[b / 64] >> b % 64 & 1 && c < last; c++) {
                to[c / 64] |= (uint64_t)1 << c % 64;
            }
        }
    }
}

static esp_status keep_units(unit_job *job, int64_t keep, esp_error *error)
{
    const esp_prune_job *prune = job->prune;
    int64_t grain = 1 + row_grain(prune) / job->rows;
    esp_parallel_for(prune->context, job->down, grain, score_lines, job);
    esp_contest contest = {.context = prune->context,
                           .user = job,
                           .keys = keys_of_line,
                           .lines = job->down,
                           .width = job->across,
                           .key_bits = 64,
                           .grain = grain,
                           .bits = job->bits};
    ESP_TRY(esp_keep_best(&contest, keep, error));
    esp_parallel_for(prune->context, prune->out, row_grain(prune), spread_rows, job);
    return ESP_OK;
}

esp_status esp_select_units(const esp_prune_job *prune, int64_t rows, int64_t columns, int64_t keep,
                            esp_error *error)
{
    esp_context *context = prune->context;
    unit_job job = {.prune = prune,
                    .rows = rows,
                    .columns = columns,
                    .down = esp_ceil_div(prune->out, rows),
                    .across = esp_ceil_div(prune->in, columns)};
    size_t blocks = 0, room = (size_t)context->threads * (size_t)prune->in;
    size_t words = (size_t)job.down * (size_t)esp_ceil_div(job.across, 64);
    bool fits = esp_mul_size((size_t)job.down, (size_t)job.across, &blocks);
    job.scores = fits ? esp_alloc_array(context, blocks, sizeof *job.scores) : NULL;
    job.row_scores = esp_alloc_array(context, room, sizeof *job.row_scores);
    job.bits = esp_alloc_array(context, words, sizeof *job.bits);
    esp_status status = ESP_OK;
    if (job.scores == NULL || job.row_scores == NULL || job.bits == NULL) {
        status = esp_fail_memory(error, fits ? blocks * sizeof *job.scores : SIZE_MAX, "scores");
    } else {
        status = keep_units(&job, ESP_MIN(keep, job.down * job.across), error); /* empty weights */
    }
    esp_release(context, job.scores);
    esp_release(context, job.row_scores);
    esp_release(context, job.bits);
    return status;
}
