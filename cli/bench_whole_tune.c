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
#define TUNE_TOKENS 12800

static esp_status list_layers(const whole_model *model, problem_list *list, esp_error *error)
{
    for (int phase = 0; phase < model->phase_count; phase++) {
        const esp_model_call call = whole_call(model, phase);
        esp_model_layer layer;
        for (int64_t i = 0; esp_model_get_layer(model->loaded.model, i, call, &layer); i++) {
            int64_t tokens = layer.problem.tokens;
            layer.problem.tokens = tokens < TUNE_TOKENS ? tokens : TUNE_TOKENS;
            TRY(problem_list_add(list, &layer.problem, error));
        }
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
