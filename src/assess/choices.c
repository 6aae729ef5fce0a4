/* Multiple choice: which of several endings a decoder finds the likeliest.
 *
 * A question is a context and endings. Context and ending are tokenised as one text, since an
 * ending's first token may depend on the space before it; an ending's tokens are those from the
 * first one on that the context alone does not have. Its score is the sum of ln p of its tokens,
 * plain or divided by its bytes, so that long endings are not punished (Gao et al., "A framework
 * for few-shot language model evaluation", call the second acc_norm). Of equal scores the earlier
 * ending wins. */
#include <math.h>
#include <string.h>

#include "assess/assess.h"
#include "model/model.h"

#define MAX_PREFIX 16
#define MAX_BATCH 512

typedef struct tokens {
    int32_t *ids;
    int64_t count;
} tokens;

typedef struct choice_run {
    esp_context *context;
    const esp_tokenizer *tokenizer;
    const esp_choice_options *options;
    int64_t vocabulary, capacity, batch;
    int64_t held; /* tokens of the session that the question's endings share */
    esp_session *session;
    float *logits; /* [batch][vocabulary] */
} choice_run;

/* What a model says of one question. */
typedef struct verdict {
    int plain, normalized;
} verdict;

/* ---- one ending ---- */

static double log_p(const float *logits, int64_t vocabulary, int32_t id)
{
    double largest = (double)logits[0], sum = 0;
    for (int64_t i = 1; i < vocabulary; i++) {
        largest = fmax(largest, (double)logits[i]);
    }
    for (int64_t i = 0; i < vocabulary; i++) {
        sum += exp((double)logits[i] - largest);
    }
    return (double)logits[id] - largest - log(sum);
}

/* Sum of ln p of ids[first, count), each predicted by what comes before it. */
static esp_status score_tokens(choice_run *run, const tokens *text, int64_t first, double *score,
                               esp_error *error)
{
    *score = 0;
    for (int64_t at = run->held; at < text->count - 1;) {
        bool scored = at >= first - 1;
        int64_t piece = ESP_MIN(run->batch, (scored ? text->count : first) - 1 - at);
        ESP_TRY(esp_session_feed(run->session, text->ids + at, piece, scored ? run->logits : NULL,
                                 scored, error));
        for (int64_t i = 0; scored && i < piece; i++) {
            *score +=
                log_p(run->logits + i * run->vocabulary, run->vocabulary, text->ids[at + i + 1]);
        }
        at += piece;
    }
    return ESP_OK;
}

/* prefix (BOS), context and ending; tokens are cut from the left where they are too many. */
static esp_status make_tokens(const choice_run *run, const esp_text *text, tokens *made,
                              esp_error *error)
{
    int32_t prefix[MAX_PREFIX], *ids;
    int64_t count, more = esp_tokenizer_prefix(run->tokenizer, prefix, MAX_PREFIX);
    ESP_TRY(
        esp_tokenizer_encode(run->tokenizer, text->data, text->length, false, &ids, &count, error));
    made->ids = esp_alloc_array(run->context, (size_t)(count + more), sizeof *made->ids);
    if (made->ids != NULL) {
        memcpy(made->ids, prefix, (size_t)more * sizeof *prefix);
        memcpy(made->ids + more, ids, (size_t)count * sizeof *ids);
        made->count = count + more;
    }
    esp_ids_free(run->tokenizer, ids);
    return made->ids != NULL ? ESP_OK
                             : esp_fail_memory(error, (size_t)count, "tokens of a question");
}

static int64_t common(const tokens *a, const tokens *b)
{
    int64_t most = ESP_MIN(a->count, b->count), same = 0;
    while (same < most && a->ids[same] == b->ids[same]) {
        same++;
    }
    return same;
}

/* Keeps the end of a text that the session cannot hold; *first moves along. */
static bool cut(const choice_run *run, tokens *text, int64_t *first)
{
    int64_t over = text->count - 1 - run->capacity;
    if (over <= 0) {
        return false;
    }
    memmove(text->ids, text->ids + over, (size_t)(text->count - over) * sizeof *text->ids);
    text->count -= over;
    *first = ESP_MAX(*first - over, 1);
    return true;
}

static esp_status score_ending(choice_run *run, const tokens *context, const esp_text *text,
                               double *score, bool *was_cut, esp_error *error)
{
    tokens whole = {0};
    ESP_TRY(make_tokens(run, text, &whole, error));
    int64_t first = ESP_MAX(common(context, &whole), 1);
    esp_status status = ESP_OK;
    if (first >= whole.count) { /* the ending has vanished into the context's last token */
        first = ESP_MAX(whole.count - 1, 1);
    }
    if (cut(run, &whole, &first)) {
        *was_cut = true;
        run->held = 0;
    }
    run->held = ESP_MIN(run->held, first - 1);
    esp_session_truncate(run->session, run->held);
    status = score_tokens(run, &whole, first, score, error);
    run->held = *was_cut ? 0 : first - 1;
    esp_release(run->context, whole.ids);
    return status;
}

/* ---- one question ---- */

/* context and ending side by side, which the caller releases. */
static esp_status join(esp_context *memory, const esp_text *context, const esp_text *ending,
                       char **joined, esp_error *error)
{
    *joined = esp_alloc_array(memory, context->length + ending->length + 1, 1);
    if (*joined == NULL) {
        return esp_fail_memory(error, context->length + ending->length, "a question's text");
    }
    if (context->length > 0) {
        memcpy(*joined, context->data, context->length);
    }
    if (ending->length > 0) {
        memcpy(*joined + context->length, ending->data, ending->length);
    }
    return ESP_OK;
}

static esp_status judge(choice_run *run, const esp_question *question, int64_t number,
                        verdict *found, bool *was_cut, esp_error *error)
{
    double best = -INFINITY, best_normalized = -INFINITY;
    tokens context = {0};
    ESP_TRY(make_tokens(run, &question->context, &context, error));
    run->held = 0;
    *found = (verdict){-1, -1};
    esp_status status = ESP_OK;
    for (int i = 0; i < question->count && status == ESP_OK; i++) {
        const esp_text *ending = &question->endings[i];
        char *joined = NULL;
        double score = 0;
        status = join(run->context, &question->context, ending, &joined, error);
        esp_text text = {joined, question->context.length + ending->length};
        status =
            status == ESP_OK ? score_ending(run, &context, &text, &score, was_cut, error) : status;
        esp_release(run->context, joined);
        if (status == ESP_OK && !isfinite(score)) {
            status = esp_fail(error, ESP_CHECK_FAILED, "eval.not_finite",
                              "ending %d of question %lld gets no finite probability; 'espalier "
                              "verify --strict' looks for NaN and infinity in the weights",
                              i + 1, (long long)number + 1);
        }
        double normalized = score / (double)ESP_MAX(ending->length, (size_t)1);
        if (score > best) {
            best = score;
            found->plain = i;
        }
        if (normalized > best_normalized) {
            best_normalized = normalized;
            found->normalized = i;
        }
    }
    esp_release(run->context, context.ids);
    return status;
}

/* ---- all questions ---- */

static esp_status check_question(const esp_question *question, int64_t number, esp_error *error)
{
    if (question->count < 2 || question->answer < 0 || question->answer >= question->count) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "eval.bad_question",
                        "question %lld has %d endings and answer %d: at least two endings and the "
                        "number of one of them, from 0, were expected",
                        (long long)number + 1, question->count, question->answer);
    }
    for (int i = 0; i < question->count; i++) {
        if (question->endings[i].length == 0) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "eval.bad_question",
                            "ending %d of question %lld is empty", i + 1, (long long)number + 1);
        }
    }
    return ESP_OK;
}

static esp_status begin(choice_run *run, const esp_model *model, esp_error *error)
{
    esp_model_info info;
    esp_model_get_info(model, &info);
    if (info.kind != ESP_MODEL_DECODER) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "session.no_decoder",
                        "%s gives no text: a decoder is needed", info.architecture);
    }
    run->vocabulary = info.vocabulary;
    run->capacity = info.context;
    run->batch = ESP_MIN(MAX_BATCH, info.context);
    run->logits =
        esp_alloc_array(run->context, (size_t)(run->batch * info.vocabulary), sizeof *run->logits);
    if (run->logits == NULL) {
        return esp_fail_memory(error, (size_t)(run->batch * info.vocabulary), "logits");
    }
    return esp_session_create(model, run->capacity, run->batch, &run->session, error);
}

/* verdicts: [count]. */
static esp_status ask(choice_run *run, const esp_model *model, const esp_question *questions,
                      int64_t count, verdict *verdicts, int64_t *cut_questions, esp_error *error)
{
    const esp_choice_options *options = run->options;
    esp_status status = begin(run, model, error);
    *cut_questions = 0;
    for (int64_t i = 0; i < count && status == ESP_OK; i++) {
        bool was_cut = false;
        status = judge(run, &questions[i], i, &verdicts[i], &was_cut, error);
        *cut_questions += was_cut;
        if (status == ESP_OK && options->progress != NULL &&
            !options->progress(options->user, "asking", (double)(i + 1), (double)count,
                               "questions")) {
            status = esp_fail(error, ESP_CANCELLED, "cancelled", "evaluation was interrupted");
        }
    }
    esp_session_free(run->session);
    esp_release(run->context, run->logits);
    run->session = NULL;
    run->logits = NULL;
    return status;
}

static void sum_up(const esp_question *questions, int64_t count, const verdict *verdicts,
                   esp_choice_scores *scores)
{
    *scores = (esp_choice_scores){0};
    for (int64_t i = 0; i < count; i++) {
        scores->right += verdicts[i].plain == questions[i].answer;
        scores->right_normalized += verdicts[i].normalized == questions[i].answer;
    }
    scores->accuracy = (double)scores->right / (double)count;
    scores->accuracy_normalized = (double)scores->right_normalized / (double)count;
}

static esp_status evaluate(choice_run *run, const esp_model *model, const esp_model *baseline,
                           const esp_question *questions, int64_t count, verdict *verdicts,
                           esp_choice_result *result, esp_error *error)
{
    double start = esp_seconds();
    int64_t ignored;
    ESP_TRY(ask(run, model, questions, count, verdicts, &result->cut_questions, error));
    result->seconds = esp_seconds() - start;
    result->questions = count;
    for (int64_t i = 0; i < count; i++) {
        result->endings += questions[i].count;
    }
    sum_up(questions, count, verdicts, &result->scores);
    if (baseline == NULL) {
        return ESP_OK;
    }
    verdict *other = verdicts + count;
    esp_status status = ask(run, baseline, questions, count, other, &ignored, error);
    if (status != ESP_OK) {
        return esp_fail_within(error, status, "baseline");
    }
    sum_up(questions, count, other, &result->baseline);
    result->has_baseline = true;
    int64_t same = 0;
    for (int64_t i = 0; i < count; i++) {
        same += verdicts[i].normalized == other[i].normalized;
    }
    result->agreement = (double)same / (double)count;
    return ESP_OK;
}

esp_status esp_eval_choices(const esp_model *model, const esp_model *baseline,
                            const esp_tokenizer *tokenizer, const esp_question *questions,
                            int64_t count, const esp_choice_options *options,
                            esp_choice_result *result, esp_error *error)
{
    static const esp_choice_options defaults;
    choice_run run = {.context = esp_model_context(model),
                      .tokenizer = tokenizer,
                      .options = options != NULL ? options : &defaults};
    if (count < 1) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "eval.no_text", "there is no question");
    }
    for (int64_t i = 0; i < count; i++) {
        ESP_TRY(check_question(&questions[i], i, error));
    }
    verdict *verdicts = esp_alloc_array(run.context, 2 * (size_t)count, sizeof *verdicts);
    if (verdicts == NULL) {
        return esp_fail_memory(error, 2 * (size_t)count * sizeof *verdicts, "answers");
    }
    esp_choice_result done = {0};
    esp_status status = evaluate(&run, model, baseline, questions, count, verdicts, &done, error);
    esp_release(run.context, verdicts);
    if (status == ESP_OK) {
        *result = done;
    }
    return status;
}
