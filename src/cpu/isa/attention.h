/* Attention of one head, causal or both ways. A block of tokens: everything is a vector over
 * tokens, because q and y are feature-major: scores [seen][W], softmax down the columns, then y
 * from broadcast values. A few tokens: vectors over the head's features instead. Scores of all seen
 * keys are kept (two passes). */
#ifndef ESP_CPU_ISA_ATTENTION_H
#define ESP_CPU_ISA_ATTENTION_H

#include "cpu/isa/elementwise.h"

#define TOKENS_WIDE (2 * LANES) /* tokens of a block */
#define ROWS_WIDE 4             /* keys, or features of y, side by side */

/* The head's operands for tokens token .. token + tokens - 1. */
typedef struct attend_job {
    const esp_attention *a;
    const float *keys, *values; /* of this head: [seen][head_dim] */
    int64_t head, token, tokens, seen;
    int64_t stride; /* of q and y */
    float *q;       /* scaled: [head_dim][TOKENS_WIDE], or [head_dim] padded with zeros */
    float *scores;  /* [seen][TOKENS_WIDE], or [seen] */
} attend_job;

static void load_queries(const attend_job *job)
{
    const esp_attention *a = job->a;
    for (int64_t d = 0; d < a->head_dim; d++) {
        const float *from = a->q + (job->head * a->head_dim + d) * job->stride + job->token;
        float *to = job->q + d * TOKENS_WIDE;
        for (int64_t t = 0; t < TOKENS_WIDE; t++) {
            to[t] = t < job->tokens ? from[t] * a->scale : 0.0f;
        }
    }
}

ALWAYS_INLINE void score_keys(const attend_job *job, int rows, int64_t s)
{
    vec sum[ROWS_WIDE][2] = {0};
    int64_t dim = job->a->head_dim;
    for (int64_t d = 0; d < dim; d++) {
        vec q0 = vec_load(job->q + d * TOKENS_WIDE),
            q1 = vec_load(job->q + d * TOKENS_WIDE + LANES);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            vec key = vec_set(job->keys[(s + r) * dim + d]);
            sum[r][0] = vec_fma(key, q0, sum[r][0]);
            sum[r][1] = vec_fma(key, q1, sum[r][1]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        vec_store(job->scores + (s + r) * TOKENS_WIDE, sum[r][0]);
        vec_store(job->scores + (s + r) * TOKENS_WIDE + LANES, sum[r][1]);
    }
}

/* What a grid adds to the block's scores. */
static void add_grid_bias(const attend_job *job)
{
    const esp_attention *a = job->a;
    int64_t width = a->grid_width, height = a->tokens / width;
    const float *rows = a->row_bias + job->head * height * job->stride + job->token;
    const float *columns = a->column_bias + job->head * width * job->stride + job->token;
    for (int64_t s = 0; s < job->seen; s++) {
        const float *row = rows + s / width * job->stride;
        const float *column = columns + s % width * job->stride;
        float *scores = job->scores + s * TOKENS_WIDE;
        for (int64_t t = 0; t < job->tokens; t++) {
            scores[t] += row[t] + column[t];
        }
    }
}

/* Token t of the block sees keys up to seen - tokens + t. */
static void mask_future(const attend_job *job)
{
    for (int64_t s = job->seen - job->tokens + 1; s < job->seen; s++) {
        int64_t first = s - (job->seen - job->tokens);
        for (int64_t t = 0; t < first; t++) {
            job->scores[s * TOKENS_WIDE + t] = -INFINITY;
        }
    }
}

/* Column `at` of the scores becomes exp(score - largest); returns its sum. */
static vec softmax_columns(const attend_job *job, int64_t at)
{
    vec most = vec_set(-INFINITY), total = {0};
    for (int64_t s = 0; s < job->seen; s++) {
        vec score = vec_load(job->scores + s * TOKENS_WIDE + at);
        ivec larger = score > most;
        most = (vec)(((ivec)score & larger) | ((ivec)most & ~larger));
    }
    for (int64_t s = 0; s < job->seen; s++) {
        float *row = job->scores + s * TOKENS_WIDE + at;
        vec weight = vec_exp(vec_load(row) - most);
        vec_store(row, weight);
        total += weight;
    }
    return total;
}

ALWAYS_INLINE void mix_values(const attend_job *job, int rows, int64_t d, const vec total[2])
{
    const esp_attention *a = job->a;
    vec sum[ROWS_WIDE][2] = {0};
    for (int64_t s = 0; s < job->seen; s++) {
        const float *weights = job->scores + s * TOKENS_WIDE;
        vec w0 = vec_load(weights), w1 = vec_load(weights + LANES);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            vec value = vec_set(job->values[s * a->head_dim + d + r]);
            sum[r][0] = vec_fma(value, w0, sum[r][0]);
            sum[r][1] = vec_fma(value, w1, sum[r][1]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        float *y = a->y + (job->head * a->head_dim + d + r) * job->stride + job->token;
        store_upto(y, sum[r][0] / total[0], job->tokens);
        if (job->tokens > LANES) {
            store_upto(y + LANES, sum[r][1] / total[1], job->tokens - LANES);
        }
    }
}

static void attend_block(const attend_job *job)
{
    int64_t s = 0, d = 0;
    load_queries(job);
    for (; s + ROWS_WIDE <= job->seen; s += ROWS_WIDE) {
        score_keys(job, ROWS_WIDE, s);
    }
    for (; s < job->seen; s++) {
        score_keys(job, 1, s);
    }
    if (!job->a->both_ways) {
        mask_future(job);
    }
    if (job->a->row_bias != NULL) {
        add_grid_bias(job);
    }
    vec total[2] = {softmax_columns(job, 0), softmax_columns(job, LANES)};
    for (; d + ROWS_WIDE <= job->a->head_dim; d += ROWS_WIDE) {
        mix_values(job, ROWS_WIDE, d, total);
    }
    for (; d < job->a->head_dim; d++) {
        mix_values(job, 1, d, total);
    }
}

/* ---- one token ---- */

static void score_one(const attend_job *job)
{
    int64_t dim = job->a->head_dim;
    for (int64_t s = 0; s < job->seen; s++) {
        vec sum = {0};
        for (int64_t d = 0; d < dim; d += LANES) {
            vec key = load_upto(job->keys + s * dim + d, dim - d);
            sum = vec_fma(key, vec_load(job->q + d), sum);
        }
        job->scores[s] = vec_sum(sum);
    }
    const esp_attention *a = job->a;
    for (int64_t s = 0; a->row_bias != NULL && s < job->seen; s++) {
        int64_t width = a->grid_width, height = a->tokens / width;
        job->scores[s] +=
            a->row_bias[(job->head * height + s / width) * job->stride + job->token] +
            a->column_bias[(job->head * width + s % width) * job->stride + job->token];
    }
}

static float softmax_one(const attend_job *job)
{
    float most = -INFINITY;
    vec total = {0};
    for (int64_t s = 0; s < job->seen; s++) {
        most = job->scores[s] > most ? job->scores[s] : most;
    }
    for (int64_t s = 0; s < job->seen; s += LANES) {
        int64_t count = job->seen - s;
        vec shifted = vec_set(-INFINITY);
        vec scores = load_upto(job->scores + s, count) - vec_set(most);
        memcpy(&shifted, &scores, (size_t)ESP_MIN(LANES, count) * sizeof(float));
        vec weight = vec_exp(shifted);
        store_upto(job->scores + s, weight, count);
        total += weight;
    }
    return vec_sum(total);
}

static void attend_one(const attend_job *job)
{
    const esp_attention *a = job->a;
    int64_t padded = (a->head_dim + LANES - 1) / LANES * LANES;
    for (int64_t d = 0; d < padded; d++) {
        job->q[d] = d < a->head_dim
                        ? a->q[(job->head * a->head_dim + d) * job->stride + job->token] * a->scale
                        : 0.0f;
    }
    score_one(job);
    float total = softmax_one(job);
    for (int64_t d = 0; d < a->head_dim; d += LANES) {
        vec sum = {0};
        float lanes[LANES];
        for (int64_t s = 0; s < job->seen; s++) {
            vec value = load_upto(job->values + s * a->head_dim + d, a->head_dim - d);
            sum = vec_fma(vec_set(job->scores[s]), value, sum);
        }
        vec_store(lanes, sum);
        for (int64_t i = 0; i < LANES && d + i < a->head_dim; i++) {
            a->y[(job->head * a->head_dim + d + i) * job->stride + job->token] = lanes[i] / total;
        }
    }
}

/* scratch: head_dim padded to whole vectors times TOKENS_WIDE, then the scores. */
static void attend(const esp_attention *a, int64_t head, int64_t token, int64_t tokens,
                   float *scratch)
{
    int64_t kv_offset = head / (a->heads / a->kv_heads) * a->capacity * a->head_dim;
    attend_job job = {.a = a,
                      .keys = a->keys + kv_offset,
                      .values = a->values + kv_offset,
                      .head = head,
                      .token = token,
                      .tokens = tokens,
                      .seen = a->past + (a->both_ways ? a->tokens : token + tokens),
                      .stride = a->stride != 0 ? a->stride : a->tokens,
                      .q = scratch};
    job.scores = scratch + (a->head_dim + LANES) * TOKENS_WIDE;
    if (a->tokens < CPU_FEW_TOKENS) {
        attend_one(&job);
    } else {
        attend_block(&job);
    }
}

#endif
