/* The whole model in advice: a run of the dense one is timed at every token count. What of it the
 * layers that could be pruned do not take (attention, norms, embedding and head, launches) stays as
 * it is when they are; a mix is predicted from there. Layers were timed one by one, so together
 * they may come to more than the run that holds them: their times then count in proportion. */
#include <stdlib.h>
#include <string.h>

#include "assess/advise.h"
#include "assess/assess.h"
#include "model/model.h"
#include "op/op.h"

#define WARM_UPS 2
#define USUAL_ROUNDS 9
#define TOKENS_BEFORE 128 /* of a sequence before the one token of a decode */
#define TEXT_TOKENS 128   /* of an encoder's texts */
#define TUNE_ROUNDS 3

typedef struct whole_run {
    esp_advice *advice;
    esp_model *model;
    esp_model_info info;
    int64_t tokens;
    /* one of them: */
    esp_session *session;
    esp_embedder *embedder;
    esp_vision *vision;
    int64_t before; /* tokens of the session that stay */
    int64_t batch;  /* texts or images */
    float *pixels;  /* NULL: the device has them */
    int32_t *ids;
    int64_t *lengths;
    float *outputs;
} whole_run;

/* ---- what runs ---- */

static esp_status take_inputs(whole_run *run, int64_t ids, int64_t outputs, esp_error *error)
{
    esp_context *context = run->advice->context;
    esp_random random;
    run->ids = esp_alloc_array(context, (size_t)ids + 1, sizeof *run->ids);
    run->lengths = esp_alloc_array(context, (size_t)run->batch + 1, sizeof *run->lengths);
    run->outputs = esp_alloc_array(context, (size_t)outputs + 1, sizeof *run->outputs);
    if (run->ids == NULL || run->lengths == NULL || run->outputs == NULL) {
        return esp_fail_memory(error, (size_t)(ids + outputs) * sizeof(float), "a run");
    }
    esp_random_seed(&random, 1);
    for (int64_t i = 0; i < ids; i++) {
        run->ids[i] = (int32_t)esp_random_below(&random, (uint64_t)run->info.vocabulary);
    }
    return ESP_OK;
}

/* One token behind a few is a decode's step, more are a prompt. */
static esp_status open_session(whole_run *run, esp_error *error)
{
    bool step = run->tokens == 1;
    run->before = step ? ESP_MIN(TOKENS_BEFORE, run->info.context - 1) : 0;
    int64_t all = run->before + run->tokens;
    if (all > run->info.context) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "advise.no_whole",
                        "%lld tokens are more than the model's context of %lld",
                        (long long)run->tokens, (long long)run->info.context);
    }
    ESP_TRY(take_inputs(run, all, 0, error));
    ESP_TRY(esp_session_create(run->model, all, all, &run->session, error));
    return run->before > 0
               ? esp_session_feed(run->session, run->ids, run->before, NULL, false, error)
               : ESP_OK;
}

static esp_status open_embedder(whole_run *run, esp_error *error)
{
    int64_t each = ESP_MIN(run->tokens, ESP_MIN(TEXT_TOKENS, run->info.context));
    run->batch = esp_ceil_div(run->tokens, each);
    ESP_TRY(take_inputs(run, run->tokens, run->batch * run->info.embedding_size, error));
    for (int64_t i = 0; i < run->batch; i++) {
        run->lengths[i] = ESP_MIN(each, run->tokens - i * each);
    }
    return esp_embedder_create(run->model, run->tokens, &run->embedder, error);
}

static esp_status open_vision(whole_run *run, esp_error *error)
{
    int64_t each = run->info.context, shape[3] = {1, 1, 1}, size = 1;
    if (run->tokens % each != 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "advise.no_whole",
                        "%lld tokens are no whole number of images, which have %lld each",
                        (long long)run->tokens, (long long)each);
    }
    run->batch = run->tokens / each;
    for (int i = 0, rank = esp_vision_output_shape(run->model, shape); i < rank; i++) {
        size *= shape[i];
    }
    ESP_TRY(take_inputs(run, 0, run->batch * size, error));
    ESP_TRY(esp_vision_create(run->model, 0, 0, run->batch, &run->vision, error));
    ESP_TRY(esp_vision_pixels(run->vision, &run->pixels, error));
    esp_random random;
    esp_random_seed(&random, 1);
    for (int64_t i = 0; i < run->batch * 3 * run->info.image_size * run->info.image_size; i++) {
        run->pixels[i] = (float)esp_random_below(&random, 4096) / 2048 - 1;
    }
    return ESP_OK;
}

static esp_status open_runner(whole_run *run, esp_error *error)
{
    return run->info.image_size > 0              ? open_vision(run, error)
           : run->info.kind == ESP_MODEL_ENCODER ? open_embedder(run, error)
                                                 : open_session(run, error);
}

static void close_runner(whole_run *run)
{
    esp_context *context = run->advice->context;
    esp_session_free(run->session);
    esp_embedder_free(run->embedder);
    esp_vision_free(run->vision);
    esp_release(context, run->ids);
    esp_release(context, run->lengths);
    esp_release(context, run->outputs);
    run->session = NULL;
    run->embedder = NULL;
    run->vision = NULL;
    run->pixels = NULL;
    run->ids = NULL;
    run->lengths = NULL;
    run->outputs = NULL;
}

static esp_status go(whole_run *run, esp_error *error)
{
    if (run->vision != NULL) {
        const float *pixels = run->pixels;
        run->pixels = NULL;
        return esp_vision_run(run->vision, pixels, run->batch, run->outputs, error);
    }
    if (run->embedder != NULL) {
        return esp_embed_ids(run->embedder, run->ids, run->lengths, run->batch, run->outputs,
                             error);
    }
    int32_t next;
    esp_session_truncate(run->session, run->before);
    return esp_session_feed_greedy(run->session, run->ids + run->before, run->tokens, &next, error);
}

/* ---- how long ---- */

static int compare(const void *a, const void *b)
{
    double first = *(const double *)a, second = *(const double *)b;
    return (first > second) - (first < second);
}

static esp_status time_runs(whole_run *run, int rounds, double *seconds, double *median,
                            esp_error *error)
{
    for (int round = -WARM_UPS; round < rounds; round++) {
        double start = esp_seconds();
        ESP_TRY(go(run, error));
        if (round >= 0) {
            seconds[round] = esp_seconds() - start;
        }
    }
    qsort(seconds, (size_t)rounds, sizeof *seconds, compare);
    *median = (seconds[(rounds - 1) / 2] + seconds[rounds / 2]) / 2;
    return ESP_OK;
}

static esp_status time_tokens(whole_run *run, double *seconds, esp_error *error)
{
    esp_context *context = run->advice->context;
    int rounds = run->advice->options->rounds;
    rounds = rounds > 0 ? rounds : USUAL_ROUNDS;
    double *each = esp_alloc_array(context, (size_t)rounds, sizeof *each);
    if (each == NULL) {
        return esp_fail_memory(error, (size_t)rounds * sizeof *each, "times");
    }
    esp_status status = open_runner(run, error);
    status = status == ESP_OK ? time_runs(run, rounds, each, seconds, error) : status;
    close_runner(run);
    esp_release(context, each);
    return status;
}

/* ---- the model ---- */

static bool same_product(const esp_matmul_problem *a, const esp_matmul_problem *b)
{
    char first[ESP_PROBLEM_TEXT_MAX], second[ESP_PROBLEM_TEXT_MAX];
    esp_matmul_problem_print(a, first);
    esp_matmul_problem_print(b, second);
    return strcmp(first, second) == 0;
}

static bool is_first_product(const esp_model *model, int64_t index, esp_model_call call)
{
    esp_model_layer own, other;
    if (!esp_model_get_layer(model, index, call, &own)) {
        return false;
    }
    for (int64_t i = 0; i < index; i++) {
        if (esp_model_get_layer(model, i, call, &other) &&
            same_product(&own.problem, &other.problem)) {
            return false;
        }
    }
    return true;
}

/* A model on a GPU stacks layers of one input, whose shapes advice did not measure: they are, so
 * that the dense model runs its fastest kernels, too. What cannot be measured is left to predicted
 * times. */
static void tune(whole_run *run)
{
    const esp_advise_options *options = run->advice->options;
    esp_tune_options how = {.rounds = TUNE_ROUNDS};
    const esp_model_call call = {.tokens = options->tokens[0]};
    esp_model_layer layer;
    bool far = esp_device_is_far(run->advice->device);
    for (int64_t i = 0; far && esp_model_get_layer(run->model, i, call, &layer); i++) {
        if (is_first_product(run->model, i, call)) {
            esp_error ignored;
            (void)!esp_tune_tokens(run->advice->device, &layer.problem, options->tokens,
                                   options->token_count, &how, &ignored);
        }
    }
}

static esp_status load(whole_run *run, esp_error *error)
{
    const esp_advise_options *options = run->advice->options;
    const esp_model_options how = {.compute = options->compute, .tokens = options->tokens[0]};
    ESP_TRY(esp_model_load(run->advice->device, run->advice->checkpoint, &how, &run->model, error));
    esp_model_get_info(run->model, &run->info);
    return ESP_OK;
}

/* A model or a token count that does not run is no failure of the advice, which says why. */
static esp_status explain(esp_status status, const esp_error *why, esp_advised_whole *whole,
                          esp_error *error)
{
    if (status == ESP_CANCELLED) {
        return esp_fail(error, status, why->code, "%s", why->message);
    }
    snprintf(whole->why_not, sizeof whole->why_not, "%s", why->message);
    return ESP_OK;
}

static double linear_us(const esp_advice *advice, int token)
{
    double us = 0;
    for (int64_t i = 0; i < advice->count; i++) {
        us += advice->table[i * advice->ways].us[token];
    }
    return us;
}

static esp_status time_all(whole_run *run, esp_error *error)
{
    esp_advice *advice = run->advice;
    for (int t = 0; t < advice->token_count; t++) {
        esp_advised_whole *whole = &advice->whole[t];
        esp_error why = {0};
        double seconds = 0;
        run->tokens = whole->tokens;
        esp_status status = time_tokens(run, &seconds, &why);
        if (status != ESP_OK) {
            ESP_TRY(explain(status, &why, whole, error));
        } else {
            whole->dense_us = 1e6 * seconds;
            whole->linear_us = ESP_MIN(linear_us(advice, t), whole->dense_us);
            whole->other_us = whole->dense_us - whole->linear_us;
        }
        ESP_TRY(esp_advice_step(advice, "timing the whole model", error));
    }
    return ESP_OK;
}

esp_status esp_advice_time_whole(esp_advice *advice, esp_error *error)
{
    whole_run run = {.advice = advice};
    esp_error why = {0};
    esp_status status = load(&run, &why);
    for (int t = 0; t < advice->token_count && status != ESP_OK; t++) {
        ESP_TRY(explain(status, &why, &advice->whole[t], error));
    }
    if (status == ESP_OK) {
        tune(&run);
        status = time_all(&run, error);
    } else {
        status = ESP_OK;
    }
    esp_model_free(run.model);
    return status;
}
