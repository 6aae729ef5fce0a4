/* Perplexity and its relatives.
 *
 * The text is tokenised once, without template. A window holds the template's prefix (BOS), then
 * tokens of the text, `context` in all; its last `stride` tokens are scored, the ones before them
 * are context only; the last window is shorter, not longer in context. The last token of a window
 * is never fed, only predicted. Without a prefix the first token of the text has nothing before it
 * and is context only. Softmax and sums are in double, and sums run in token order, so that a
 * result does not depend on the number of threads.
 */
#include <math.h>
#include <string.h>

#include "assess/parts.h"
#include "model/model.h"

#define MAX_PREFIX 16
#define MAX_LOGIT_BYTES ((int64_t)64 << 20)
#define MAX_BATCH 512

/* What one scored token gives. */
typedef struct token_score {
    double nats, baseline_nats, kl;
    bool agrees;
} token_score;

typedef struct contestant {
    esp_session *session;
    float *logits; /* [batch][vocabulary] */
} contestant;

typedef struct eval_run {
    esp_context *context;
    const esp_tokenizer *tokenizer;
    const esp_eval_options *options;
    int64_t vocabulary, batch;
    contestant model, baseline; /* baseline.session NULL: none */
    int32_t prefix[MAX_PREFIX];
    int32_t *ids; /* of the text */
    int64_t count;
    int64_t first; /* scored tokens are [first, count) */
    int32_t place; /* of esp_tokenizer_next: a space put before the text is no byte of it */
    int32_t *window;
    token_score *scores; /* [batch] */
    esp_eval_part *parts;
    int64_t part_count;
    int64_t part;             /* of the token that is next */
    size_t offset, part_ends; /* bytes of the text before that token, and where its document ends */
    esp_eval_result result;
} eval_run;

/* ---- scores of a batch ---- */

typedef struct score_job {
    const eval_run *run;
    const int32_t *targets;
} score_job;

static double log_sum_exp(const float *logits, int64_t count, int64_t *best)
{
    int64_t top = 0;
    for (int64_t i = 1; i < count; i++) {
        if (logits[i] > logits[top]) {
            top = i;
        }
    }
    double largest = (double)logits[top], sum = 0;
    for (int64_t i = 0; i < count; i++) {
        sum += exp((double)logits[i] - largest);
    }
    *best = top;
    return largest + log(sum);
}

static void score_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const score_job *job = user;
    const eval_run *run = job->run;
    int64_t vocabulary = run->vocabulary;
    for (int64_t row = begin; row < end; row++) {
        int64_t best, baseline_best;
        const float *logits = run->model.logits + row * vocabulary;
        token_score score = {0};
        double total = log_sum_exp(logits, vocabulary, &best);
        score.nats = total - (double)logits[job->targets[row]];
        if (run->baseline.session != NULL) {
            const float *other = run->baseline.logits + row * vocabulary;
            double other_total = log_sum_exp(other, vocabulary, &baseline_best);
            score.baseline_nats = other_total - (double)other[job->targets[row]];
            for (int64_t i = 0; i < vocabulary; i++) {
                double log_p = (double)other[i] - other_total;
                score.kl += exp(log_p) * (log_p - ((double)logits[i] - total));
            }
            score.agrees = best == baseline_best;
        }
        run->scores[row] = score;
    }
}

/* ---- windows ---- */

static esp_status feed_both(const eval_run *run, const int32_t *ids, int64_t count, bool scored,
                            esp_error *error)
{
    ESP_TRY(esp_session_feed(run->model.session, ids, count, scored ? run->model.logits : NULL,
                             scored, error));
    if (run->baseline.session == NULL) {
        return ESP_OK;
    }
    esp_status status = esp_session_feed(run->baseline.session, ids, count,
                                         scored ? run->baseline.logits : NULL, scored, error);
    return status == ESP_OK ? ESP_OK : esp_fail_within(error, status, "baseline");
}

static esp_status report(const eval_run *run, esp_error *error)
{
    const esp_eval_options *options = run->options;
    double done = (double)run->result.tokens, total = (double)(run->count - run->first);
    if (options->progress != NULL &&
        !options->progress(options->user, "evaluating", done, total, "tokens")) {
        return esp_fail(error, ESP_CANCELLED, "cancelled", "evaluation was interrupted");
    }
    return ESP_OK;
}

/* Goes on by one token, to be done for each token once, in order: its part of the text becomes
 * run->part. Returns the bytes that it stands for. */
static size_t next_token(eval_run *run, int64_t token)
{
    const esp_eval_parts *options = &run->options->parts;
    size_t length = 0;
    (void)esp_tokenizer_next(run->tokenizer, run->ids[token], true, &run->place, &length);
    if (options->document_bytes == NULL) {
        run->part = ESP_MAX(0, token - run->first) / run->result.stride;
    } else {
        while (run->offset >= run->part_ends && run->part + 1 < run->part_count) {
            run->part_ends += options->document_bytes[++run->part];
        }
    }
    run->offset += length;
    return length;
}

static void add_to_part(esp_eval_part *part, const token_score *score)
{
    part->tokens++;
    part->nats += score->nats;
    part->baseline_nats += score->baseline_nats;
    part->kl += score->kl;
}

/* Adds `rows` scores; the first one is of text token `token`. */
static esp_status add_scores(eval_run *run, int64_t token, int64_t rows, double *baseline_nats,
                             double *agreeing, esp_error *error)
{
    esp_eval_result *result = &run->result;
    for (int64_t row = 0; row < rows; row++) {
        const token_score *score = &run->scores[row];
        if (!isfinite(score->nats) || !isfinite(score->baseline_nats)) {
            return esp_fail(error, ESP_CHECK_FAILED, "eval.not_finite",
                            "the %s gives no finite probability to token %lld of the text; "
                            "'espalier verify --strict' looks for NaN and infinity in its weights",
                            isfinite(score->nats) ? "baseline" : "model", (long long)(token + row));
        }
        result->text_bytes += next_token(run, token + row);
        add_to_part(&run->parts[run->part], score);
        result->nats += score->nats;
        *baseline_nats += score->baseline_nats;
        result->mean_kl += score->kl;
        *agreeing += score->agrees;
    }
    result->tokens += rows;
    return ESP_OK;
}

/* Scores text tokens [begin, end) in one window. */
static esp_status score_window(eval_run *run, int64_t begin, int64_t end, double *baseline_nats,
                               double *agreeing, esp_error *error)
{
    int64_t prefix = run->result.prefix;
    int64_t overlap = run->result.context - prefix - run->result.stride;
    int64_t start = ESP_MAX(0, begin - overlap);
    int64_t length = prefix + (end - start) - 1;     /* fed */
    int64_t unscored = prefix + (begin - start) - 1; /* of those, only context */
    memcpy(run->window, run->prefix, (size_t)prefix * sizeof *run->window);
    memcpy(run->window + prefix, run->ids + start, (size_t)(length - prefix) * sizeof *run->window);
    esp_session_truncate(run->model.session, 0);
    if (run->baseline.session != NULL) {
        esp_session_truncate(run->baseline.session, 0);
    }
    for (int64_t at = 0; at < length;) {
        bool scored = at >= unscored;
        int64_t piece = ESP_MIN(run->batch, (scored ? length : unscored) - at);
        ESP_TRY(feed_both(run, run->window + at, piece, scored, error));
        if (scored) {
            int64_t token = begin + (at - unscored);
            score_job job = {run, run->ids + token};
            esp_parallel_for(run->context, piece, 1, score_rows, &job);
            ESP_TRY(add_scores(run, token, piece, baseline_nats, agreeing, error));
            ESP_TRY(report(run, error));
        }
        at += piece;
    }
    return ESP_OK;
}

static esp_status score_text(eval_run *run, esp_error *error)
{
    esp_eval_result *result = &run->result;
    double baseline_nats = 0, agreeing = 0;
    double start = esp_seconds();
    ESP_TRY(report(run, error));
    for (int64_t begin = run->first; begin < run->count; begin += result->stride) {
        int64_t end = ESP_MIN(run->count, begin + result->stride);
        ESP_TRY(score_window(run, begin, end, &baseline_nats, &agreeing, error));
    }
    double tokens = (double)result->tokens;
    result->seconds = esp_seconds() - start;
    result->perplexity = exp(result->nats / tokens);
    result->bits_per_byte =
        result->text_bytes > 0 ? result->nats / log(2) / (double)result->text_bytes : 0;
    result->has_baseline = run->baseline.session != NULL;
    if (result->has_baseline) {
        result->baseline_perplexity = exp(baseline_nats / tokens);
        result->mean_kl /= tokens;
        result->top1_agreement = agreeing / tokens;
    }
    return esp_parts_finish(run->context, &run->options->parts, run->parts, run->part_count,
                            &result->intervals, error);
}

/* ---- set-up ---- */

static esp_status choose_context(eval_run *run, const esp_model_info *info, esp_error *error)
{
    const esp_eval_options *options = run->options;
    esp_eval_result *result = &run->result;
    result->context = options->context != 0 ? options->context : ESP_MIN(info->context, 512);
    if (result->context < result->prefix + 2 || result->context > info->context) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "eval.bad_context",
                        "a context of %lld tokens; from %lld to the model's %lld is possible",
                        (long long)result->context, (long long)result->prefix + 2,
                        (long long)info->context);
    }
    /* Without a prefix each window needs one token that it does not score. */
    int64_t most = result->context - ESP_MAX(result->prefix, 1);
    result->stride = options->stride != 0 ? options->stride : most;
    if (result->stride < 1 || result->stride > most) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "eval.bad_stride",
                        "a stride of %lld tokens; from 1 to %lld is possible (context %lld)",
                        (long long)result->stride, (long long)most, (long long)result->context);
    }
    return ESP_OK;
}

static esp_status choose_tokens(eval_run *run, esp_error *error)
{
    int64_t most = run->options->max_tokens;
    if (most < 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "eval.bad_max_tokens",
                        "max_tokens must not be negative");
    }
    run->first = run->result.prefix > 0 ? 0 : 1;
    if (run->count <= run->first) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "eval.no_text",
                        "the text has %lld tokens, so none can be scored; give a longer text",
                        (long long)run->count);
    }
    if (most > 0 && run->count - run->first > most) {
        run->count = run->first + most;
    }
    return ESP_OK;
}

static esp_status choose_parts(eval_run *run, size_t length, esp_error *error)
{
    const esp_eval_parts *options = &run->options->parts;
    size_t sum = 0;
    int64_t documents = options->document_bytes != NULL ? options->document_count : 0;
    ESP_TRY(esp_parts_check(options, error));
    for (int64_t i = 0; i < documents; i++) {
        sum += options->document_bytes[i];
        if (options->document_bytes[i] > length || sum > length) {
            break;
        }
    }
    if (options->document_bytes != NULL && sum != length) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "eval.bad_documents",
                        "the %lld documents have %s bytes than the text, which has %zu; their "
                        "sizes must add up to it",
                        (long long)documents, sum < length ? "fewer" : "more", length);
    }
    run->part_count = options->document_bytes != NULL
                          ? documents
                          : esp_ceil_div(run->count - run->first, run->result.stride);
    run->part_ends = options->document_bytes != NULL ? options->document_bytes[0] : 0;
    size_t count = (size_t)run->part_count;
    run->parts = esp_alloc_array(run->context, count, sizeof *run->parts);
    if (run->parts == NULL) {
        return esp_fail_memory(error, count * sizeof *run->parts, "the text's parts");
    }
    for (int64_t i = 0; i < run->part_count; i++) {
        run->parts[i] = (esp_eval_part){.index = i};
    }
    for (int64_t token = 0; token < run->first; token++) {
        (void)next_token(run, token);
    }
    return ESP_OK;
}

static esp_status check_vocabulary(const eval_run *run, const esp_model_info *info,
                                   const esp_model *baseline, esp_error *error)
{
    if (baseline != NULL) {
        esp_model_info other;
        esp_model_get_info(baseline, &other);
        if (other.vocabulary != info->vocabulary) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "eval.vocabulary_differs",
                            "the model's vocabulary has %lld tokens, the baseline's %lld; give the "
                            "dense form of the same model",
                            (long long)info->vocabulary, (long long)other.vocabulary);
        }
        if (other.context < run->result.context) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "eval.bad_context",
                            "a context of %lld tokens is more than the baseline's %lld",
                            (long long)run->result.context, (long long)other.context);
        }
    }
    for (int64_t i = 0; i < run->count; i++) {
        if (run->ids[i] < 0 || run->ids[i] >= info->vocabulary) {
            return esp_fail(
                error, ESP_BAD_FILE, "eval.tokenizer_differs",
                "the tokenizer gives id %d, but the model's vocabulary has %lld tokens; "
                "tokenizer.json does not belong to this model",
                run->ids[i], (long long)info->vocabulary);
        }
    }
    return ESP_OK;
}

static esp_status open_contestant(const eval_run *run, const esp_model *model, contestant *side,
                                  esp_error *error)
{
    size_t floats = (size_t)run->batch * (size_t)run->vocabulary;
    ESP_TRY(esp_session_create(model, run->result.context, run->batch, &side->session, error));
    side->logits = esp_alloc_array(run->context, floats, sizeof *side->logits);
    return side->logits != NULL ? ESP_OK
                                : esp_fail_memory(error, floats * sizeof *side->logits, "logits");
}

static esp_status open_run(eval_run *run, const esp_model *model, const esp_model *baseline,
                           const esp_model_info *info, esp_error *error)
{
    int64_t row_bytes = info->vocabulary * (int64_t)sizeof(float);
    run->vocabulary = info->vocabulary;
    run->batch = ESP_MAX(1, ESP_MIN(MAX_LOGIT_BYTES / ESP_MAX(row_bytes, 1), MAX_BATCH));
    run->batch = ESP_MIN(run->batch, run->result.context);
    run->window = esp_alloc_array(run->context, (size_t)run->result.context, sizeof *run->window);
    run->scores = esp_alloc_array(run->context, (size_t)run->batch, sizeof *run->scores);
    if (run->window == NULL || run->scores == NULL) {
        return esp_fail_memory(error, (size_t)run->result.context * sizeof *run->window,
                               "an evaluation window");
    }
    ESP_TRY(open_contestant(run, model, &run->model, error));
    return baseline != NULL ? open_contestant(run, baseline, &run->baseline, error) : ESP_OK;
}

static void close_run(eval_run *run)
{
    esp_session_free(run->model.session);
    esp_session_free(run->baseline.session);
    esp_release(run->context, run->model.logits);
    esp_release(run->context, run->baseline.logits);
    esp_release(run->context, run->window);
    esp_release(run->context, run->scores);
    esp_release(run->context, run->parts);
    esp_ids_free(run->tokenizer, run->ids);
}

static esp_status eval_opened(eval_run *run, const esp_model *model, const esp_model *baseline,
                              size_t length, esp_error *error)
{
    esp_model_info info;
    esp_model_get_info(model, &info);
    ESP_TRY(choose_context(run, &info, error));
    ESP_TRY(choose_tokens(run, error));
    ESP_TRY(choose_parts(run, length, error));
    ESP_TRY(check_vocabulary(run, &info, baseline, error));
    ESP_TRY(open_run(run, model, baseline, &info, error));
    return score_text(run, error);
}

esp_status esp_eval_text(const esp_model *model, const esp_model *baseline,
                         const esp_tokenizer *tokenizer, const char *text, size_t length,
                         const esp_eval_options *options, esp_eval_result *result, esp_error *error)
{
    static const esp_eval_options defaults;
    eval_run run = {.context = esp_model_context(model),
                    .tokenizer = tokenizer,
                    .options = options != NULL ? options : &defaults};
    int prefix = esp_tokenizer_prefix(tokenizer, run.prefix, MAX_PREFIX);
    if (prefix > MAX_PREFIX) {
        return esp_fail(error, ESP_UNSUPPORTED, "eval.long_prefix",
                        "the tokenizer's template puts %d tokens before a text; at most %d are "
                        "supported",
                        prefix, MAX_PREFIX);
    }
    run.result.prefix = prefix;
    ESP_TRY(esp_tokenizer_encode(tokenizer, text, length, false, &run.ids, &run.count, error));
    esp_status status = eval_opened(&run, model, baseline, length, error);
    close_run(&run);
    if (status == ESP_OK) {
        *result = run.result;
    }
    return status;
}
