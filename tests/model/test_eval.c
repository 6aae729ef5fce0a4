/* eval: perplexity and KL against a plain recount that feeds each window anew and scores one token
 * at a time; windows, prefixes, cuts of the text; refusals. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "assess/assess.h"
#include "cli/tiny_model.h"
#include "pipeline/pipeline.h"
#include "test.h"

typedef struct test_subject {
    esp_context *context;
    esp_device *device;
    esp_checkpoint *checkpoint;
    esp_tokenizer *tokenizer;
    esp_model *model;
} test_subject;

static bool open_subject(test_run *run, const char *name, const char *kind, int threads,
                         const char *pattern, test_subject *made)
{
    char path[1024], pruned[1024];
    snprintf(path, sizeof path, "%s/%s", test_folder(run), name);
    *made = (test_subject){.context = test_context(run, threads)};
    if (!esp_path_exists(path) && !tiny_model_write(path, kind)) {
        test_fail(run, __FILE__, __LINE__, "%s could not be made", path);
        return false;
    }
    if (pattern != NULL) {
        esp_prune_options options = {.force = true};
        snprintf(pruned, sizeof pruned, "%s-pruned", path);
        CHECK_OK(esp_pattern_parse(pattern, &options.pattern, error));
        CHECK_OK(esp_prune_checkpoint(made->context, path, pruned, &options, NULL, error));
        snprintf(path, sizeof path, "%s", pruned);
    }
    /* Our kernels of one level: the choice among levels and libraries may depend on the threads. */
    char kernels[32];
    esp_cpu_level level = ESP_MIN(made->context->cpu.level, ESP_CPU_AVX512);
    snprintf(kernels, sizeof kernels, "*_cpu_%s", esp_cpu_level_name(level));
    esp_model_options options = {.compute = ESP_COMPUTE_F32, .kernel_glob = kernels};
    CHECK_OK(esp_device_open(made->context, "cpu", &made->device, error));
    CHECK_OK(esp_checkpoint_open(made->context, path, &made->checkpoint, error));
    CHECK_OK(esp_tokenizer_open(made->context, path, &made->tokenizer, error));
    CHECK_OK(esp_model_load(made->device, made->checkpoint, &options, &made->model, error));
    return made->model != NULL && made->tokenizer != NULL;
}

/* Keeps the context when it belongs to another subject. */
static void close_subject(test_run *run, test_subject *subject)
{
    esp_model_free(subject->model);
    esp_tokenizer_close(subject->tokenizer);
    esp_checkpoint_close(subject->checkpoint);
    esp_device_close(subject->device);
    test_context_free(run, subject->context);
}

/* 256 different bytes would be cut by the tokenizer's U+FFFD rule; ASCII stays as it is. */
static void fill_text(char *text, size_t length, uint64_t seed)
{
    esp_random random;
    esp_random_seed(&random, seed);
    for (size_t i = 0; i < length; i++) {
        uint64_t kind = esp_random_below(&random, 8);
        text[i] = kind == 0 ? ' ' : kind == 1 ? '\n' : (char)('a' + esp_random_below(&random, 26));
    }
}

/* -ln p(target) and, against other, KL(other || p); plain sums. */
static double nats_of(const float *logits, int64_t vocabulary, int32_t target)
{
    double sum = 0;
    for (int64_t i = 0; i < vocabulary; i++) {
        sum += exp((double)logits[i]);
    }
    return log(sum) - (double)logits[target];
}

typedef struct score_count {
    double nats, kl;
    int64_t tokens, agreeing;
} score_count;

/* Logits that predict the token after window[0..length): a session that has forgotten everything.
 */
static void predict(test_run *run, esp_session *session, const int32_t *window, int64_t length,
                    float *logits)
{
    esp_session_truncate(session, 0);
    CHECK_OK(esp_session_feed(session, window, length, logits, false, error));
}

static int64_t argmax(const float *values, int64_t count)
{
    int64_t best = 0;
    for (int64_t i = 1; i < count; i++) {
        best = values[i] > values[best] ? i : best;
    }
    return best;
}

static score_count count_again(test_run *run, const test_subject *subject,
                               const test_subject *baseline, const char *text, int64_t count,
                               int64_t context, int64_t stride, int64_t prefix)
{
    score_count result = {0};
    int32_t window[128];
    float logits[258], other[258];
    esp_session *session = NULL, *other_session = NULL;
    CHECK_OK(esp_session_create(subject->model, 128, 128, &session, error));
    if (baseline != NULL) {
        CHECK_OK(esp_session_create(baseline->model, 128, 128, &other_session, error));
    }
    for (int64_t first = prefix > 0 ? 0 : 1; first < count; first += stride) {
        int64_t end = ESP_MIN(count, first + stride);
        int64_t start = ESP_MAX(0, first - (context - prefix - stride));
        for (int64_t token = first; token < end; token++) {
            int64_t length = 0;
            for (int64_t i = 0; i < prefix; i++) {
                window[length++] = 256;
            }
            for (int64_t i = start; i < token; i++) {
                window[length++] = (unsigned char)text[i];
            }
            predict(run, session, window, length, logits);
            result.nats += nats_of(logits, 258, (unsigned char)text[token]);
            result.tokens++;
            if (baseline != NULL) {
                predict(run, other_session, window, length, other);
                for (int i = 0; i < 258; i++) {
                    double p = -nats_of(other, 258, i), q = -nats_of(logits, 258, i);
                    result.kl += exp(p) * (p - q);
                }
                result.agreeing += argmax(logits, 258) == argmax(other, 258);
            }
        }
    }
    esp_session_free(session);
    esp_session_free(other_session);
    return result;
}

static bool near(double a, double b, double tolerance)
{
    return fabs(a - b) <= tolerance * (1 + fabs(b));
}

static const struct {
    const char *kind;
    int64_t length, context, stride, max_tokens;
} windows[] = {
    {"plain", 140, 0, 0, 0},     {"plain", 140, 128, 127, 0}, {"plain", 140, 128, 64, 0},
    {"plain", 70, 32, 1, 0},     {"plain", 90, 32, 31, 0},    {"plain", 100, 3, 2, 0},
    {"plain", 100, 3, 1, 0},     {"plain", 1, 128, 0, 0},     {"plain", 127, 128, 0, 0},
    {"plain", 128, 128, 0, 0},   {"plain", 200, 17, 5, 101},  {"plain", 300, 64, 0, 1},
    {"plain", 50, 64, 0, 1000},  {"no-bos", 140, 0, 0, 0},    {"no-bos", 90, 32, 31, 0},
    {"no-bos", 90, 32, 7, 0},    {"no-bos", 2, 128, 0, 0},    {"no-bos", 100, 2, 1, 0},
    {"no-bos", 300, 64, 13, 40},
};

static void windows_score_each_token_once(test_run *run)
{
    char text[300];
    fill_text(text, sizeof text, test_seed(run));
    for (int i = 0; i < ESP_COUNT(windows); i++) {
        test_sub(run, "%s, %lld bytes, context %lld, stride %lld, at most %lld", windows[i].kind,
                 (long long)windows[i].length, (long long)windows[i].context,
                 (long long)windows[i].stride, (long long)windows[i].max_tokens);
        test_subject subject;
        if (!open_subject(run, windows[i].kind, windows[i].kind, 1, NULL, &subject)) {
            return;
        }
        esp_eval_options options = {.context = windows[i].context,
                                    .stride = windows[i].stride,
                                    .max_tokens = windows[i].max_tokens};
        esp_eval_result result = {0};
        CHECK_OK(esp_eval_text(subject.model, NULL, subject.tokenizer, text,
                               (size_t)windows[i].length, &options, &result, error));
        int64_t prefix = strcmp(windows[i].kind, "no-bos") != 0;
        CHECK_INT(result.prefix, prefix);
        CHECK_INT(result.context, windows[i].context != 0 ? windows[i].context : 128);
        int64_t first = prefix > 0 ? 0 : 1, count = windows[i].length;
        if (windows[i].max_tokens > 0) {
            count = ESP_MIN(count, first + windows[i].max_tokens);
        }
        score_count again =
            count_again(run, &subject, NULL, text, count, result.context, result.stride, prefix);
        CHECK_INT(result.tokens, again.tokens);
        CHECK_INT(result.tokens, count - first);
        CHECK_INT(result.text_bytes, count - first); /* a token is a byte */
        CHECK(near(result.nats, again.nats, 1e-5));
        CHECK(near(result.perplexity, exp(again.nats / (double)again.tokens), 1e-5));
        CHECK(near(result.bits_per_byte, again.nats / log(2) / (double)again.tokens, 1e-5));
        CHECK(!result.has_baseline);
        close_subject(run, &subject);
    }
}

static void baselines_are_compared(test_run *run)
{
    static const char *const pruned[] = {NULL, "2:4", "64:2:8"};
    char text[150];
    fill_text(text, sizeof text, test_seed(run) + 1);
    for (int i = 0; i < ESP_COUNT(pruned); i++) {
        test_sub(run, "%s against dense", pruned[i] != NULL ? pruned[i] : "dense");
        test_subject dense, subject;
        esp_eval_result result = {0}, alone = {0};
        if (!open_subject(run, "plain", "plain", 1, NULL, &dense) ||
            !open_subject(run, "plain", "plain", 1, pruned[i], &subject)) {
            return;
        }
        esp_eval_options options = {.context = 40, .stride = 20};
        CHECK_OK(esp_eval_text(subject.model, dense.model, subject.tokenizer, text, sizeof text,
                               &options, &result, error));
        CHECK_OK(esp_eval_text(dense.model, NULL, dense.tokenizer, text, sizeof text, &options,
                               &alone, error));
        score_count again = count_again(run, &subject, &dense, text, sizeof text, 40, 20, 1);
        CHECK(result.has_baseline);
        CHECK(near(result.baseline_perplexity, alone.perplexity, 1e-12));
        CHECK(near(result.mean_kl, again.kl / (double)again.tokens, 1e-5));
        CHECK(near(result.top1_agreement, (double)again.agreeing / (double)again.tokens, 0.01));
        if (pruned[i] == NULL) {
            CHECK(fabs(result.mean_kl) < 1e-12);
            CHECK(result.top1_agreement == 1);
            CHECK(result.perplexity == result.baseline_perplexity);
        } else {
            CHECK(result.mean_kl > 0.01);
        }
        esp_model_free(subject.model);
        esp_tokenizer_close(subject.tokenizer);
        esp_checkpoint_close(subject.checkpoint);
        esp_device_close(subject.device);
        esp_context_free(subject.context); /* leaks are counted when the last one goes */
        close_subject(run, &dense);
    }
}

/* ---- parts and intervals ---- */

enum { DOCUMENTS = 12, RESAMPLES = 400 };

typedef struct seen_parts {
    int64_t count;
    esp_eval_part parts[64];
} seen_parts;

static void see_part(void *user, const esp_eval_part *part)
{
    seen_parts *seen = user;
    if (seen->count < ESP_COUNT(seen->parts)) {
        seen->parts[seen->count++] = *part;
    }
}

static seen_parts evaluate_parts(test_run *run, const test_subject *subject,
                                 const test_subject *baseline, const char *text, size_t length,
                                 esp_eval_options options, esp_eval_result *result)
{
    seen_parts seen = {0};
    options.parts.on_part = see_part;
    options.parts.user = &seen;
    CHECK_OK(esp_eval_text(subject->model, baseline->model, subject->tokenizer, text, length,
                           &options, result, error));
    return seen;
}

/* How many of the resamples' means lie below a bound, by another walk over the same draws. */
static int64_t count_below(const seen_parts *seen, uint64_t seed, bool of_kl, double bound)
{
    int64_t below = 0;
    esp_random random;
    esp_random_seed(&random, seed);
    for (int i = 0; i < RESAMPLES; i++) {
        double sum = 0, tokens = 0;
        for (int64_t k = 0; k < seen->count; k++) {
            uint64_t drawn = esp_random_below(&random, (uint64_t)seen->count);
            sum += of_kl ? seen->parts[drawn].kl : seen->parts[drawn].nats;
            tokens += (double)seen->parts[drawn].tokens;
        }
        below += sum / tokens < bound;
    }
    return below;
}

static void check_sums(test_run *run, const seen_parts *seen, const esp_eval_result *result)
{
    double nats = 0, kl = 0;
    int64_t tokens = 0;
    for (int64_t i = 0; i < seen->count; i++) {
        nats += seen->parts[i].nats;
        kl += seen->parts[i].kl;
        tokens += seen->parts[i].tokens;
    }
    CHECK_INT(tokens, result->tokens);
    CHECK(near(nats, result->nats, 1e-12));
    CHECK(near(kl / (double)tokens, result->mean_kl, 1e-12));
}

static void parts_make_intervals(test_run *run)
{
    char text[300];
    size_t sizes[DOCUMENTS], left = sizeof text;
    test_subject dense, subject;
    fill_text(text, sizeof text, test_seed(run) + 3);
    for (int i = 0; i < DOCUMENTS; i++) { /* one of them is empty */
        sizes[i] = i + 1 == DOCUMENTS ? left : i == 4 ? 0 : (size_t)(7 + 3 * i);
        left -= sizes[i];
    }
    if (!open_subject(run, "plain", "plain", 1, NULL, &dense) ||
        !open_subject(run, "plain", "plain", 1, "2:4", &subject)) {
        return;
    }
    esp_eval_result result = {0}, again = {0};
    esp_eval_options options = {.context = 40};
    options.parts = (esp_eval_parts){
        .document_bytes = sizes, .document_count = DOCUMENTS, .resamples = RESAMPLES, .seed = 5};
    seen_parts seen = evaluate_parts(run, &subject, &dense, text, sizeof text, options, &result);
    test_sub(run, "documents");
    CHECK_INT(seen.count, DOCUMENTS - 1); /* a token is a byte, so that the empty one has none */
    for (int64_t i = 0; i < seen.count; i++) {
        CHECK_INT(seen.parts[i].index, i < 4 ? i : i + 1);
        CHECK_INT(seen.parts[i].tokens, (int64_t)sizes[seen.parts[i].index]);
    }
    check_sums(run, &seen, &result);
    test_sub(run, "intervals");
    const esp_eval_intervals *found = &result.intervals;
    CHECK_INT(found->parts, DOCUMENTS - 1);
    CHECK_INT(found->resamples, RESAMPLES);
    double mean = result.nats / (double)result.tokens;
    CHECK(found->nats.low < mean && mean < found->nats.high);
    CHECK(found->kl.low < result.mean_kl && result.mean_kl < found->kl.high);
    CHECK(found->excess.low < found->excess.high);
    CHECK_INT(count_below(&seen, 5, false, found->nats.low), 10); /* 2.5 % of 400 */
    CHECK_INT(count_below(&seen, 5, false, found->nats.high), 390);
    CHECK_INT(count_below(&seen, 5, true, found->kl.low), 10);
    CHECK_INT(count_below(&seen, 5, true, found->kl.high), 390);
    (void)evaluate_parts(run, &subject, &dense, text, sizeof text, options, &again);
    CHECK(memcmp(&again.intervals, found, sizeof *found) == 0);
    test_sub(run, "windows");
    options.parts.document_bytes = NULL;
    options.parts.resamples = 0;
    options.max_tokens = 100;
    again = (esp_eval_result){0};
    seen = evaluate_parts(run, &subject, &dense, text, sizeof text, options, &again);
    CHECK_INT(seen.count, 3); /* 39 + 39 + 22 tokens */
    CHECK_INT(seen.parts[2].tokens, 22);
    CHECK_INT(again.intervals.resamples, 0);
    check_sums(run, &seen, &again);
    test_sub(run, "refusals");
    options.parts = (esp_eval_parts){.resamples = -1};
    CHECK_FAILS(esp_eval_text(dense.model, NULL, dense.tokenizer, text, sizeof text, &options,
                              &again, error),
                ESP_BAD_ARGUMENT, "eval.bad_resamples");
    options.parts.resamples = 10;
    CHECK_FAILS(
        esp_eval_text(dense.model, NULL, dense.tokenizer, text, 20, &options, &again, error),
        ESP_BAD_ARGUMENT, "eval.one_part");
    options.parts.document_bytes = sizes;
    for (int wrong = 0; wrong < 3; wrong++) { /* too few, too many, more than fits a size_t */
        options.parts.document_count = wrong == 0 ? DOCUMENTS - 1 : DOCUMENTS;
        sizes[DOCUMENTS - 1] = wrong == 2 ? SIZE_MAX : sizes[DOCUMENTS - 1] + (size_t)wrong;
        CHECK_FAILS(esp_eval_text(dense.model, NULL, dense.tokenizer, text, sizeof text, &options,
                                  &again, error),
                    ESP_BAD_ARGUMENT, "eval.bad_documents");
    }
    esp_model_free(subject.model);
    esp_tokenizer_close(subject.tokenizer);
    esp_checkpoint_close(subject.checkpoint);
    esp_device_close(subject.device);
    esp_context_free(subject.context); /* leaks are counted when the last one goes */
    close_subject(run, &dense);
}

static void threads_do_not_matter(test_run *run)
{
    char text[300];
    double nats[3] = {0};
    fill_text(text, sizeof text, test_seed(run) + 2);
    for (int threads = 1; threads <= 3; threads++) {
        test_subject subject;
        esp_eval_result result = {0};
        if (!open_subject(run, "plain", "plain", threads, NULL, &subject)) {
            return;
        }
        CHECK_OK(esp_eval_text(subject.model, NULL, subject.tokenizer, text, sizeof text, NULL,
                               &result, error));
        nats[threads - 1] = result.nats;
        close_subject(run, &subject);
    }
    CHECK(nats[0] == nats[1] && nats[1] == nats[2]);
}

static void any_bytes_are_text(test_run *run)
{
    static const struct {
        const char *what, *text;
        size_t length, bytes;
    } rows[] = {
        {"no newline", "abc", 3, 3},
        {"newline at the end", "abc\n", 4, 4},
        {"CR LF", "a\r\nb\r\n", 6, 6},
        {"NUL inside", "a\0b", 3, 3},
        {"UTF-8", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x99\x82", 9, 9},
        {"an invalid byte becomes U+FFFD",
         "a\xff"
         "b",
         3, 5},
        {"cut UTF-8", "ab\xe2\x82", 4, 5},
        {"one byte", "x", 1, 1},
    };
    test_subject subject;
    if (!open_subject(run, "plain", "plain", 1, NULL, &subject)) {
        return;
    }
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s", rows[i].what);
        esp_eval_result result = {0};
        CHECK_OK(esp_eval_text(subject.model, NULL, subject.tokenizer, rows[i].text, rows[i].length,
                               NULL, &result, error));
        CHECK_INT(result.text_bytes, rows[i].bytes);
        CHECK_INT(result.tokens, rows[i].bytes);
        CHECK(isfinite(result.perplexity) && result.perplexity > 1);
    }
    close_subject(run, &subject);
}

static bool stop_soon(void *user, const char *what, double done, double total, const char *unit)
{
    int *left = user;
    (void)what, (void)unit;
    return done <= total && (*left)-- > 0;
}

static void refusals(test_run *run)
{
    test_subject plain, nan, other, no_bos;
    esp_eval_result result = {.tokens = -7};
    if (!open_subject(run, "plain", "plain", 1, NULL, &plain) ||
        !open_subject(run, "nan", "nan", 1, NULL, &nan) ||
        !open_subject(run, "no-bos", "no-bos", 1, NULL, &no_bos) ||
        !open_subject(run, "vocabulary", "vocabulary", 1, NULL, &other)) {
        return;
    }
    static const struct {
        const char *what;
        esp_eval_options options;
        const char *code;
    } rows[] = {
        {"context of 2 with a prefix", {.context = 2}, "eval.bad_context"},
        {"context above the model's", {.context = 129}, "eval.bad_context"},
        {"negative context", {.context = -1}, "eval.bad_context"},
        {"stride above the window", {.context = 64, .stride = 64}, "eval.bad_stride"},
        {"negative stride", {.stride = -1}, "eval.bad_stride"},
        {"negative limit", {.max_tokens = -1}, "eval.bad_max_tokens"},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s", rows[i].what);
        CHECK_FAILS(esp_eval_text(plain.model, NULL, plain.tokenizer, "abcd", 4, &rows[i].options,
                                  &result, error),
                    ESP_BAD_ARGUMENT, rows[i].code);
    }
    test_sub(run, "empty text");
    CHECK_FAILS(esp_eval_text(plain.model, NULL, plain.tokenizer, "", 0, NULL, &result, error),
                ESP_BAD_ARGUMENT, "eval.no_text");
    test_sub(run, "one token without BOS");
    CHECK_FAILS(esp_eval_text(no_bos.model, NULL, no_bos.tokenizer, "a", 1, NULL, &result, error),
                ESP_BAD_ARGUMENT, "eval.no_text");
    test_sub(run, "another vocabulary");
    CHECK_FAILS(
        esp_eval_text(plain.model, other.model, plain.tokenizer, "abc", 3, NULL, &result, error),
        ESP_BAD_ARGUMENT, "eval.vocabulary_differs");
    test_sub(run, "NaN in the model");
    CHECK_FAILS(esp_eval_text(nan.model, NULL, nan.tokenizer, "abc", 3, NULL, &result, error),
                ESP_CHECK_FAILED, "eval.not_finite");
    test_sub(run, "NaN in the baseline");
    CHECK_FAILS(
        esp_eval_text(plain.model, nan.model, nan.tokenizer, "abc", 3, NULL, &result, error),
        ESP_CHECK_FAILED, "eval.not_finite");
    test_sub(run, "interrupted");
    int left = 1;
    esp_eval_options options = {.progress = stop_soon, .user = &left};
    CHECK_FAILS(
        esp_eval_text(plain.model, NULL, plain.tokenizer, "abc", 3, &options, &result, error),
        ESP_CANCELLED, "cancelled");
    CHECK_INT(result.tokens, -7); /* untouched by failures */
    test_subject *all[] = {&plain, &nan, &no_bos, &other};
    for (int i = 0; i < ESP_COUNT(all); i++) {
        esp_model_free(all[i]->model);
        esp_tokenizer_close(all[i]->tokenizer);
        esp_checkpoint_close(all[i]->checkpoint);
        esp_device_close(all[i]->device);
    }
    for (int i = 1; i < ESP_COUNT(all); i++) {
        esp_context_free(all[i]->context);
    }
    test_context_free(run, plain.context); /* counts the blocks of all four */
}

static const test_case cases[] = {
    {"windows score each token once", windows_score_each_token_once},
    {"baselines are compared", baselines_are_compared},
    {"parts make intervals", parts_make_intervals},
    {"threads do not matter", threads_do_not_matter},
    {"any bytes are text", any_bytes_are_text},
    {"refusals", refusals},
};
TEST_MAIN(cases)
