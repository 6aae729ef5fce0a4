/* Vectors of texts by a tokenizer, and retrieval by them: on a small random encoder, against ranks
 * that are found in another way. */
#include <math.h>

#include <espalier/assess.h>

#include "base/base.h"
#include "cli/tiny_bert.h"
#include "failing_allocator.h"
#include "test.h"

#define PAIRS 23
#define SIZE TINY_BERT_HIDDEN

/* An encoder with all that it stands on. */
typedef struct encoder {
    esp_device *device;
    esp_checkpoint *checkpoint;
    esp_tokenizer *tokenizer;
    esp_model *model;
} encoder;

static void encoder_close(encoder *opened)
{
    esp_model_free(opened->model);
    esp_tokenizer_close(opened->tokenizer);
    esp_checkpoint_close(opened->checkpoint);
    esp_device_close(opened->device);
    *opened = (encoder){0};
}

static esp_status encoder_open(esp_context *context, const char *folder, encoder *opened,
                               esp_error *error)
{
    esp_model_options options = {.compute = ESP_COMPUTE_F32};
    ESP_TRY(esp_device_open(context, "cpu", &opened->device, error));
    ESP_TRY(esp_checkpoint_open(context, folder, &opened->checkpoint, error));
    ESP_TRY(esp_tokenizer_open(context, folder, &opened->tokenizer, error));
    return esp_model_load(opened->device, opened->checkpoint, &options, &opened->model, error);
}

static const char *make_folder(test_run *run, const char *kind)
{
    static char folder[512];
    static int number;
    snprintf(folder, sizeof folder, "%s/encoder%d", test_folder(run), ++number);
    CHECK(tiny_bert_write(folder, kind));
    return folder;
}

static esp_text text_of(const char *text)
{
    return (esp_text){text, strlen(text)};
}

/* ---- vectors ---- */

/* A text's vector is that of [CLS], its tokens, [SEP]; of a long one, of the first 22 tokens. */
static void texts_and_ids(test_run *run)
{
    esp_context *context = test_context(run, 2);
    encoder opened = {0};
    esp_embedder *embedder = NULL;
    CHECK_OK(encoder_open(context, make_folder(run, "bert"), &opened, error));
    REQUIRE_OK(esp_embedder_create(opened.model, 0, &embedder, error));
    char longest[101];
    memset(longest, 'c', 100);
    longest[100] = '\0';
    esp_text texts[] = {text_of("a b"), text_of(""),
                        text_of("ab c d  e f g h i j k l m n o p q r s"), text_of(longest)};
    /* [CLS] 2, [SEP] 3, a 5, ##a 31 */
    int32_t ids[4][24] = {{2, 5, 6, 3}, {2, 3}, {2, 5, 32, 7, 8, 9}, {2, 7}};
    int64_t lengths[] = {4, 2, 21, 24};
    for (int32_t i = 6; i < 20; i++) {
        ids[2][i] = 4 + i;
    }
    ids[2][20] = 3;
    for (int i = 2; i < 23; i++) {
        ids[3][i] = 33;
    }
    ids[3][23] = 3;
    float vectors[4][SIZE], expected[SIZE];
    esp_embed_result result;
    CHECK_OK(esp_embed_texts(embedder, opened.tokenizer, texts, 4, NULL, NULL, vectors[0], &result,
                             error));
    CHECK_INT(result.cut_texts, 1);
    CHECK_INT(result.tokens, 4 + 2 + 21 + 24);
    for (int i = 0; i < 4; i++) {
        double worst = 0;
        test_sub(run, "text %d", i);
        CHECK_OK(esp_embed_ids(embedder, ids[i], &lengths[i], 1, expected, error));
        for (int k = 0; k < SIZE; k++) {
            test_note_largest(&worst, fabs((double)expected[k] - (double)vectors[i][k]));
        }
        CHECK(worst < 1e-5);
    }
    esp_embedder_free(embedder);
    encoder_close(&opened);
    test_context_free(run, context);
}

/* ---- retrieval ---- */

static void random_text(esp_random *random, char *text, int words)
{
    int at = 0;
    for (int i = 0; i < words; i++) {
        text[at++] = (char)('a' + esp_random_below(random, 26));
        text[at++] = ' ';
    }
    text[at] = '\0';
}

/* Ranks by sorting nothing: how many cosines are larger. */
static esp_retrieval_scores scores_by_hand(const float *vectors)
{
    esp_retrieval_scores scores = {0};
    for (int q = 0; q < PAIRS; q++) {
        double cosines[PAIRS];
        int better = 0;
        for (int d = 0; d < PAIRS; d++) {
            double sum = 0;
            for (int k = 0; k < SIZE; k++) {
                sum += (double)vectors[q * SIZE + k] * (double)vectors[(PAIRS + d) * SIZE + k];
            }
            cosines[d] = sum;
        }
        for (int d = 0; d < PAIRS; d++) {
            better += cosines[d] > cosines[q];
        }
        scores.recall_1 += better < 1 ? 1.0 / PAIRS : 0;
        scores.recall_10 += better < 10 ? 1.0 / PAIRS : 0;
        scores.reciprocal_rank += 1.0 / (better + 1) / PAIRS;
    }
    return scores;
}

static void retrieval(test_run *run)
{
    esp_context *context = test_context(run, 2);
    encoder opened = {0};
    esp_embedder *embedder = NULL;
    static char texts[2 * PAIRS][64];
    static float vectors[2 * PAIRS * SIZE];
    esp_text list[2 * PAIRS];
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < 2 * PAIRS; i++) {
        random_text(&random, texts[i], 1 + (int)esp_random_below(&random, 20));
        list[i] = text_of(texts[i]);
    }
    CHECK_OK(encoder_open(context, make_folder(run, "bert"), &opened, error));
    REQUIRE_OK(esp_embedder_create(opened.model, 0, &embedder, error));
    CHECK_OK(esp_embed_texts(embedder, opened.tokenizer, list, 2 * PAIRS, NULL, NULL, vectors, NULL,
                             error));
    esp_retrieval_result result;
    CHECK_OK(esp_eval_retrieval(opened.model, opened.model, opened.tokenizer, list, list + PAIRS,
                                PAIRS, NULL, &result, error));
    esp_retrieval_scores expected = scores_by_hand(vectors);
    CHECK(fabs(result.scores.recall_1 - expected.recall_1) < 1e-9);
    CHECK(fabs(result.scores.recall_10 - expected.recall_10) < 1e-9);
    CHECK(fabs(result.scores.reciprocal_rank - expected.reciprocal_rank) < 1e-9);
    CHECK(result.has_baseline && fabs(result.mean_cosine - 1) < 1e-6);
    CHECK(result.baseline.reciprocal_rank == result.scores.reciprocal_rank);
    CHECK(result.scores.recall_10 < 1); /* something is missed: the check can fail */
    test_sub(run, "queries that are their documents");
    CHECK_OK(esp_eval_retrieval(opened.model, NULL, opened.tokenizer, list, list, PAIRS, NULL,
                                &result, error));
    CHECK(result.scores.recall_1 > 0.9 && result.scores.recall_10 == 1 && !result.has_baseline);
    test_sub(run, "one document for all: the first query has it first");
    for (int i = 0; i < PAIRS; i++) {
        list[i] = list[0];
    }
    CHECK_OK(esp_eval_retrieval(opened.model, NULL, opened.tokenizer, list, list, PAIRS, NULL,
                                &result, error));
    CHECK(fabs(result.scores.recall_1 - 1.0 / PAIRS) < 1e-9);
    test_sub(run, "no pair");
    CHECK_FAILS(esp_eval_retrieval(opened.model, NULL, opened.tokenizer, list, list, 0, NULL,
                                   &result, error),
                ESP_BAD_ARGUMENT, "eval.no_text");
    esp_embedder_free(embedder);
    encoder_close(&opened);
    test_sub(run, "weights that are no numbers");
    CHECK_OK(encoder_open(context, make_folder(run, "bert-nan"), &opened, error));
    CHECK_FAILS(esp_eval_retrieval(opened.model, NULL, opened.tokenizer, list, list, 1, NULL,
                                   &result, error),
                ESP_CHECK_FAILED, "eval.not_finite");
    encoder_close(&opened);
    test_context_free(run, context);
}

/* ---- memory ---- */

static esp_status everything(esp_context *context, const char *folder, esp_error *error)
{
    encoder opened = {0};
    esp_text text = text_of("a b");
    esp_retrieval_result result;
    esp_status status = encoder_open(context, folder, &opened, error);
    if (status == ESP_OK) {
        status = esp_eval_retrieval(opened.model, opened.model, opened.tokenizer, &text, &text, 1,
                                    NULL, &result, error);
    }
    encoder_close(&opened);
    return status;
}

static void failing_memory(test_run *run)
{
    const char *folder = make_folder(run, "bert");
    esp_status status = ESP_FAILED;
    for (long n = 0; status != ESP_OK && n < 4000; n++) {
        failing state = {.left = 1000};
        esp_context_options options = {.threads = 1,
                                       .allocator = {failing_allocate, failing_release, &state}};
        esp_context *context = NULL;
        esp_error problem = {0};
        REQUIRE_OK(esp_context_create(&options, &context, error));
        state.left = n;
        test_sub(run, "allocation %ld", n);
        status = everything(context, folder, &problem);
        CHECK(status == ESP_OK || status == ESP_OUT_OF_MEMORY);
        esp_context_free(context);
        CHECK_INT(state.live, 0);
    }
    CHECK_INT(status, ESP_OK);
}

static const test_case cases[] = {
    {"texts and ids", texts_and_ids},
    {"retrieval", retrieval},
    {"failing memory", failing_memory},
};
TEST_MAIN(cases)
