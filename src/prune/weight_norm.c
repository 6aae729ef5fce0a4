/* The masks of PyTorch's WeightNormSparsifier and its cubic schedule, on our ties and shapes. Both
 * of its masks are one pass each: block means for the whole tensor, then, block by block, the
 * lowest scores; they are joined in the first one's mask. Scores of what a mask before dropped are
 * 0. */
#include <math.h>

#include "prune/select.h"

typedef struct norm_job {
    esp_prune_job prune; /* dense is the masked weight */
    int64_t rows, columns, zeros;
    double *scores;     /* [threads][rows of a block][in] */
    esp_ranked *ranked; /* [threads][rows * columns of a block] */
} norm_job;

static void drop_all(esp_mask *mask, bool live)
{
    int64_t in = esp_mask_in_features(mask);
    for (int64_t row = 0; row < esp_mask_out_features(mask); row++) {
        uint64_t *words = esp_mask_row_mut(mask, row);
        for (int64_t first = 0; first < in; first += 64) {
            int64_t count = ESP_MIN(64, in - first);
            words[first / 64] = !live ? 0 : count == 64 ? UINT64_MAX : ((uint64_t)1 << count) - 1;
        }
    }
}

/* ---- the tensor mask ---- */

/* As Python rounds: halves to even. */
static int64_t round_half_even(double value)
{
    double low = floor(value), rest = value - low;
    bool up = rest > 0.5 || (rest == 0.5 && fmod(low, 2) != 0);
    return (int64_t)low + up;
}

static esp_status tensor_mask(const norm_job *job, double level, esp_error *error)
{
    int64_t blocks =
        esp_ceil_div(job->prune.out, job->rows) * esp_ceil_div(job->prune.in, job->columns);
    if (level >= 1) {
        return ESP_OK;
    }
    int64_t dropped = round_half_even(level * (double)blocks);
    dropped = ESP_MAX(0, ESP_MIN(blocks - 1, dropped));
    return esp_select_units(&job->prune, job->rows, job->columns, blocks - dropped, error);
}

/* ---- the block mask ---- */

/* Lets all live but the `zeros` lowest of the block; later ones of equals are dropped. */
static void keep_in_block(const norm_job *job, int64_t row, int64_t rows, int64_t column,
                          const double *scores, esp_ranked *ranked)
{
    int64_t in = job->prune.in, columns = ESP_MIN(job->columns, in - column);
    int64_t count = rows * columns, keep = ESP_MAX(0, count - job->zeros);
    for (int64_t i = 0; i < count; i++) {
        ranked[i].index = (uint32_t)i;
        memcpy(&ranked[i].key, &scores[i / columns * in + column + i % columns],
               sizeof ranked[i].key); /* positive doubles order as integers */
    }
    esp_take_best(ranked, count, keep);
    for (int64_t i = 0; i < keep; i++) {
        int64_t at = ranked[i].index;
        esp_mask_set(job->prune.mask, row + at / columns, column + at % columns, true);
    }
}

static void keep_in_blocks(void *user, int64_t begin, int64_t end, int thread)
{
    const norm_job *job = user;
    int64_t in = job->prune.in;
    double *scores = job->scores + thread * job->rows * in;
    esp_ranked *ranked = job->ranked + thread * job->rows * job->columns;
    for (int64_t line = begin; line < end; line++) {
        int64_t row = line * job->rows, rows = ESP_MIN(job->rows, job->prune.out - row);
        for (int64_t r = 0; r < rows; r++) {
            esp_score_segment(&job->prune, row + r, 0, in, scores + r * in);
        }
        for (int64_t column = 0; column < in; column += job->columns) {
            keep_in_block(job, row, rows, column, scores, ranked);
        }
    }
}

static esp_status block_mask(norm_job *job, esp_error *error)
{
    esp_context *context = job->prune.context;
    job->rows = ESP_MIN(job->rows, ESP_MAX(1, job->prune.out)); /* no room for what is not there */
    job->columns = ESP_MIN(job->columns, ESP_MAX(1, job->prune.in));
    size_t threads = (size_t)context->threads;
    size_t scores = threads * (size_t)job->rows, ranked = scores * (size_t)job->columns;
    bool fits = esp_mul_size(scores, (size_t)job->prune.in, &scores);
    job->scores = fits ? esp_alloc_array(context, scores, sizeof *job->scores) : NULL;
    job->ranked = esp_alloc_array(context, ranked, sizeof *job->ranked);
    esp_status status = ESP_OK;
    if (job->scores == NULL || job->ranked == NULL) {
        status = esp_fail_memory(error, ranked * sizeof *job->ranked, "scores");
    } else {
        esp_parallel_for(context, esp_ceil_div(job->prune.out, job->rows), 1, keep_in_blocks, job);
    }
    esp_release(context, job->scores);
    esp_release(context, job->ranked);
    return status;
}

/* ---- the door ---- */

static esp_status check_options(const esp_weight_norm_options *options, const esp_tensor *dense,
                                const esp_mask *previous, esp_error *error)
{
    ESP_TRY(esp_prune_check_tensor(dense, error));
    if (options->level != options->level) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "prune.bad_level",
                        "the level is not a number; give the share of sparse blocks, e.g. 0.5");
    }
    if (options->block_rows < 1 || options->block_cols < 1 || options->block_rows > 65536 ||
        options->block_cols > 65536 || options->zeros_per_block < -1 ||
        options->zeros_per_block > options->block_rows * options->block_cols) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "prune.bad_block",
                        "blocks of %lld x %lld with %lld zeros: a block has 1 to 65536 rows and "
                        "columns and at most as many zeros as weights (-1: all)",
                        (long long)options->block_rows, (long long)options->block_cols,
                        (long long)options->zeros_per_block);
    }
    if (options->norm != ESP_NORM_L1 && options->norm != ESP_NORM_L2) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "prune.bad_score", "norm %d is none of esp_norm",
                        (int)options->norm);
    }
    if (previous != NULL && (esp_mask_out_features(previous) != dense->shape[0] ||
                             esp_mask_in_features(previous) != dense->shape[1])) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "mask.shape_mismatch",
                        "the mask before does not have the shape of the weight, [%lld, %lld]",
                        (long long)dense->shape[0], (long long)dense->shape[1]);
    }
    return ESP_OK;
}

static esp_status fill_mask(norm_job *job, const esp_weight_norm_options *options, esp_error *error)
{
    int64_t weights = job->rows * job->columns;
    if (options->level <= 0 || job->zeros == 0) {
        drop_all(job->prune.mask, true);
        return ESP_OK;
    }
    ESP_TRY(tensor_mask(job, options->level, error));
    return job->zeros < weights ? block_mask(job, error) : ESP_OK;
}

/* A copy of the weight with what was dropped set to +0.0; none without a mask before. */
static esp_status mask_weight(esp_context *context, const esp_tensor *dense,
                              const esp_mask *previous, esp_tensor *masked, esp_error *error)
{
    size_t bytes;
    ESP_TRY(esp_tensor_size(dense, NULL, &bytes, error));
    ESP_TRY(esp_tensor_create(context, dense->dtype, 2, dense->shape, masked, error));
    if (bytes > 0) {
        memcpy(masked->data, dense->data, bytes);
    }
    return esp_mask_apply(previous, masked, error);
}

esp_status esp_weight_norm_mask(esp_context *context, const esp_tensor *dense,
                                const esp_weight_norm_options *options, const esp_mask *previous,
                                esp_mask **mask, esp_error *error)
{
    static const esp_weight_norm_options defaults = ESP_WEIGHT_NORM_DEFAULTS;
    options = options != NULL ? options : &defaults;
    ESP_TRY(check_options(options, dense, previous, error));
    bool whole = options->zeros_per_block < 0;
    norm_job job = {.rows = options->block_rows, .columns = options->block_cols};
    job.zeros = whole ? job.rows * job.columns : options->zeros_per_block;
    job.prune =
        (esp_prune_job){.context = context,
                        .dense = dense,
                        .score = options->norm == ESP_NORM_L1 ? ESP_SCORE_ABS : ESP_SCORE_SQUARE,
                        .out = dense->shape[0],
                        .in = dense->shape[1]};
    esp_tensor masked = {0};
    esp_status status = ESP_OK;
    if (previous != NULL) {
        status = mask_weight(context, dense, previous, &masked, error);
        job.prune.dense = &masked;
    }
    if (status == ESP_OK) {
        status = esp_mask_create(context, job.prune.out, job.prune.in, &job.prune.mask, error);
    }
    if (status == ESP_OK) {
        status = fill_mask(&job, options, error);
    }
    esp_tensor_free(context, &masked);
    if (status != ESP_OK) {
        esp_mask_free(job.prune.mask);
        return status;
    }
    *mask = job.prune.mask;
    return ESP_OK;
}

double esp_cubic_sparsity(double s0, double sf, int64_t t, int64_t t0, int64_t n, int64_t dt)
{
    double steps = (double)n * (double)dt;
    if (steps <= 0) {
        return sf;
    }
    double left = 1 - ((double)t - (double)t0) / steps;
    double value = sf + (s0 - sf) * (left * left * left);
    double low = s0 < sf ? s0 : sf, high = s0 < sf ? sf : s0;
    return value < low ? low : value > high ? high : value;
}
