/* Multiple choice: choices by a decoder against sums of ln p that are found in another way, one
 * token at a time from the beginning. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <espalier/assess.h>

#include "base/base.h"
#include "test.h"

#define MOST_TOKENS 512

typedef struct decoder {
    esp_device *device;
    esp_checkpoint *checkpoint;
    esp_tokenizer *tokenizer;
    esp_model *model;
} decoder;

static void decoder_close(decoder *opened)
{
    esp_model_free(opened->model);
    esp_tokenizer_close(opened->tokenizer);
    esp_checkpoint_close(opened->checkpoint);
    esp_device_close(opened->device);
    *opened = (decoder){0};
}

static esp_status decoder_open(esp_context *context, decoder *opened, esp_error *error)
{
    const char *folder = test_path(test_source_dir(), "models/prose");
    esp_model_options options = {.compute = ESP_COMPUTE_F32};
    ESP_TRY(esp_device_open(context, "cpu", &opened->device, error));
    ESP_TRY(esp_checkpoint_open(context, folder, &opened->checkpoint, error));
    ESP_TRY(esp_tokenizer_open(context, folder, &opened->tokenizer, error));
    return esp_model_load(opened->device, opened->checkpoint, &options, &opened->model, error);
}

static esp_text text_of(const char *text)
{
    return (esp_text){text, strlen(text)};
}

static int64_t ids_of(test_run *run, const decoder *opened, const char *text, int32_t *ids)
{
    int32_t *made;
    int64_t count;
    int64_t all = esp_tokenizer_prefix(opened->tokenizer, ids, 16);
    CHECK_OK(
        esp_tokenizer_encode(opened->tokenizer, text, strlen(text), false, &made, &count, error));
    for (int64_t i = 0; i < count && all < MOST_TOKENS; i++) {
        ids[all++] = made[i];
    }
    esp_ids_free(opened->tokenizer, made);
    return all;
}

/* Sum of ln p of the tokens of context + ending that context does not begin with. */
static double score_by_hand(test_run *run, const decoder *opened, const char *context,
                            const char *ending)
{
    static int32_t before[MOST_TOKENS], ids[MOST_TOKENS];
    char text[2048];
    snprintf(text, sizeof text, "%s%s", context, ending);
    int64_t shared = 0, known = ids_of(run, opened, context, before);
    int64_t count = ids_of(run, opened, text, ids);
    while (shared < known && before[shared] == ids[shared]) {
        shared++;
    }
    esp_model_info info;
    esp_model_get_info(opened->model, &info);
    esp_session *session = NULL;
    float *logits = malloc((size_t)info.vocabulary * sizeof *logits);
    CHECK_OK(esp_session_create(opened->model, MOST_TOKENS, 0, &session, error));
    double score = 0;
    for (int64_t i = 0; i + 1 < count; i++) {
        CHECK_OK(esp_session_feed(session, &ids[i], 1, logits, false, error));
        double sum = 0;
        for (int64_t k = 0; k < info.vocabulary; k++) {
            sum += exp((double)logits[k]);
        }
        score += i + 1 >= shared ? (double)logits[ids[i + 1]] - log(sum) : 0;
    }
    free(logits);
    esp_session_free(session);
    return score;
}

#define ENDINGS 4
static const struct {
    const char *context, *endings[ENDINGS];
} questions[] = {
    {"The old man walked slowly to the", {" door", " of", " window and looked out", "qqq zzz"}},
    {"She opened the let", {"ter", "ting go of it", " the", "x"}}, /* a word goes on */
    {"", {"It was a dark night", "Zebra", "The", "and of the to a in"}},
    {"One two three four five six seven eight", {" nine", " nine ten eleven", " the", ", nine"}}};

static void choices(test_run *run)
{
    esp_context *context = test_context(run, 2);
    decoder opened = {0};
    REQUIRE_OK(decoder_open(context, &opened, error));
    esp_text endings[ESP_COUNT(questions)][ENDINGS];
    esp_question list[ESP_COUNT(questions)];
    for (int i = 0; i < ESP_COUNT(questions); i++) {
        int plain = 0, by_bytes = 0;
        double scores[ENDINGS];
        for (int k = 0; k < ENDINGS; k++) {
            const char *ending = questions[i].endings[k];
            endings[i][k] = text_of(ending);
            scores[k] = score_by_hand(run, &opened, questions[i].context, ending);
            plain = scores[k] > scores[plain] ? k : plain;
            double best = scores[by_bytes] / (double)endings[i][by_bytes].length;
            by_bytes = scores[k] / (double)endings[i][k].length > best ? k : by_bytes;
        }
        /* Each ending as the answer in turn: only the chosen ones are right. */
        for (int answer = 0; answer < ENDINGS; answer++) {
            test_sub(run, "question %d, answer %d", i, answer);
            esp_choice_result result;
            list[i] = (esp_question){text_of(questions[i].context), endings[i], ENDINGS, answer};
            CHECK_OK(esp_eval_choices(opened.model, NULL, opened.tokenizer, &list[i], 1, NULL,
                                      &result, error));
            CHECK_INT(result.scores.right, answer == plain);
            CHECK_INT(result.scores.right_normalized, answer == by_bytes);
            CHECK_INT(result.cut_questions, 0);
        }
    }
    test_sub(run, "all of them, with a baseline");
    esp_choice_result all;
    CHECK_OK(esp_eval_choices(opened.model, opened.model, opened.tokenizer, list,
                              ESP_COUNT(questions), NULL, &all, error));
    CHECK_INT(all.questions, ESP_COUNT(questions));
    CHECK_INT(all.endings, ENDINGS * ESP_COUNT(questions));
    CHECK(all.has_baseline && fabs(all.agreement - 1) < 1e-12);
    CHECK_INT(all.baseline.right, all.scores.right);
    decoder_close(&opened);
    test_context_free(run, context);
}

/* A context that is too long loses its beginning, and the answer does not change by what is cut. */
static void long_contexts(test_run *run)
{
    esp_context *context = test_context(run, 2);
    decoder opened = {0};
    REQUIRE_OK(decoder_open(context, &opened, error));
    esp_model_info info;
    esp_model_get_info(opened.model, &info);
    size_t words = (size_t)info.context + 50;
    char *text = malloc(words * 4 + 1);
    for (size_t i = 0; i < words; i++) {
        memcpy(text + i * 4, " the", 5);
    }
    esp_text endings[2] = {text_of(" the"), text_of(" xylophone")};
    esp_question question = {{text, strlen(text)}, endings, 2, 0};
    esp_choice_result result;
    CHECK_OK(
        esp_eval_choices(opened.model, NULL, opened.tokenizer, &question, 1, NULL, &result, error));
    CHECK_INT(result.cut_questions, 1);
    CHECK_INT(result.scores.right, 1);
    free(text);
    decoder_close(&opened);
    test_context_free(run, context);
}

static bool stop(void *user, const char *what, double done, double total, const char *unit)
{
    (void)user, (void)what, (void)done, (void)total, (void)unit;
    return false;
}

static void refusals(test_run *run)
{
    esp_context *context = test_context(run, 1);
    decoder opened = {0};
    REQUIRE_OK(decoder_open(context, &opened, error));
    esp_text endings[2] = {text_of("a"), text_of("b")}, empty[2] = {text_of("a"), text_of("")};
    const esp_question bad[] = {{text_of("x"), endings, 1, 0},
                                {text_of("x"), endings, 2, 2},
                                {text_of("x"), endings, 2, -1},
                                {text_of("x"), empty, 2, 0}};
    esp_choice_result result;
    for (int i = 0; i < ESP_COUNT(bad); i++) {
        test_sub(run, "question %d", i);
        CHECK_FAILS(esp_eval_choices(opened.model, NULL, opened.tokenizer, &bad[i], 1, NULL,
                                     &result, error),
                    ESP_BAD_ARGUMENT, "eval.bad_question");
    }
    test_sub(run, "none");
    CHECK_FAILS(
        esp_eval_choices(opened.model, NULL, opened.tokenizer, bad, 0, NULL, &result, error),
        ESP_BAD_ARGUMENT, "eval.no_text");
    test_sub(run, "interrupted");
    esp_question good = {text_of("x"), endings, 2, 0};
    esp_choice_options options = {.progress = stop};
    CHECK_FAILS(
        esp_eval_choices(opened.model, NULL, opened.tokenizer, &good, 1, &options, &result, error),
        ESP_CANCELLED, "cancelled");
    decoder_close(&opened);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"choices", choices}, {"long_contexts", long_contexts}, {"refusals", refusals}};
TEST_MAIN(cases)
