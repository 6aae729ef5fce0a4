/* Measured times for the layers of a whole model, before it is loaded for good: which form a layer
 * is held in depends on them. */
#include <stdlib.h>
#include <string.h>

#include "bench_whole.h"
#include "problem_list.h"
#include "token_counts.h"

#define TUNE_ROUNDS 3
/* The reference computes every output of what is measured; a plan takes times of a quarter of its
 * tokens. */
#define TUNE_TOKENS 12608

/* A prefill asks its head, the last layer, for one token. */
static esp_status list_phase(const whole_model *model, int64_t tokens, bool prefill,
                             problem_list *list, esp_error *error)
{
    esp_model_layer layer, next;
    bool more = esp_model_get_layer(model->loaded.model, 0, tokens, &layer);
    for (int64_t i = 0; more; i++) {
        more = esp_model_get_layer(model->loaded.model, i + 1, tokens, &next);
        if (!more && prefill) {
            layer.problem.tokens = 1;
        }
        TRY(problem_list_add(list, &layer.problem, error));
        layer = next;
    }
    return ESP_OK;
}

static esp_status list_layers(const whole_model *model, problem_list *list, esp_error *error)
{
    for (int i = 0; i < model->phase_count; i++) {
        int64_t tokens = model->phases[i].product_tokens;
        bool prefill = model->sessions != NULL && i == 0;
        TRY(list_phase(model, tokens < TUNE_TOKENS ? tokens : TUNE_TOKENS, prefill, list, error));
    }
    return ESP_OK;
}

static esp_status measure(cli_state *cli, problem_list *list, esp_error *error)
{
    const bench_args *args = cli->args;
    const esp_tune_options options = {.rounds = TUNE_ROUNDS, .seed = (uint64_t)args->seed};
    for (int i = 0; i < list->count;) {
        int64_t tokens[MAX_TOKEN_COUNTS];
        if (!progress_step(&cli->progress, "tuning", i, list->count, "products")) {
            return cli_fail(error, ESP_CANCELLED, "cancelled", "the measurement was interrupted");
        }
        int together = problem_list_gather(list, i, tokens);
        TRY(esp_tune_tokens(cli->device, &list->problems[i], tokens, together, &options, error));
        i += together;
    }
    return ESP_OK;
}

esp_status whole_tune(cli_state *cli, whole_model *model, esp_error *error)
{
    problem_list list = {0};
    esp_status status = whole_open(cli, model, error);
    status = status == ESP_OK ? list_layers(model, &list, error) : status;
    whole_release(model);
    for (int i = 0; i < model->phase_count; i++) {
        free(model->phases[i].ms);
    }
    memset(model->phases, 0, sizeof model->phases);
    model->phase_count = 0;
    status = status == ESP_OK ? measure(cli, &list, error) : status;
    problem_list_free(&list);
    return status;
}
