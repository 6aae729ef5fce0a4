/* `espalier bench` of whole models, dense and sparse side by side: which ones, and their rounds.
 *
 * The dense one comes first and is what the others are compared with. Rounds go over all models in
 * turn, so that a change of the machine's mood hits all alike; models that are too large to be held
 * together are timed one after the other. */
#include <stdlib.h>
#include <string.h>

#include "bench_whole.h"

#define TOGETHER_HOST ((uint64_t)2 << 30) /* weights of all models that are held at once */
#define TOGETHER_GPU ((uint64_t)40 << 30)

typedef struct whole_job {
    cli_state *cli;
    const bench_args *args;
    whole_model models[WHOLE_MAX_MODELS];
    int count;
} whole_job;

/* ---- which ---- */

static esp_status add_drawn(whole_job *job, const char *text, size_t length, esp_error *error)
{
    char name[ESP_PATTERN_TEXT_MAX];
    if (job->count == WHOLE_MAX_MODELS || length >= sizeof name) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.bad_value",
                        "--pattern: at most %d patterns, separated by commas, were expected",
                        WHOLE_MAX_MODELS - 1);
    }
    memcpy(name, text, length);
    name[length] = '\0';
    whole_model *model = &job->models[job->count];
    TRY(esp_pattern_parse(name, &model->pattern, error));
    model->path = job->args->random_weights;
    model->drawn = true;
    if (job->count == 0 || model->pattern.kind != ESP_PATTERN_DENSE) { /* dense is there anyway */
        job->count++;
    }
    return ESP_OK;
}

static esp_status list_models(whole_job *job, esp_error *error)
{
    const bench_args *args = job->args;
    if (args->random_weights == NULL) {
        job->models[0].path = args->baseline;
        job->models[1].path = job->cli->operands[0];
        job->count = 2;
        return ESP_OK;
    }
    TRY(add_drawn(job, "dense", strlen("dense"), error));
    for (const char *at = args->pattern; at != NULL;) {
        size_t length = strcspn(at, ",");
        TRY(add_drawn(job, at, length, error));
        at = at[length] == '\0' ? NULL : at + length + 1;
    }
    return ESP_OK;
}

/* ---- rounds ---- */

/* One run; of a decode, as many steps as are asked for, of which the time is that of one. */
static esp_status time_phase(whole_job *job, whole_model *model, int phase, int round,
                             esp_error *error)
{
    const bench_args *args = job->args;
    int64_t runs = phase == 0 ? 1 : args->new_tokens > 0 ? args->new_tokens : 16;
    TRY(whole_prepare(model, phase, error));
    double start = seconds_now();
    for (int64_t i = 0; i < runs; i++) {
        TRY(whole_run(model, phase, error));
    }
    if (round >= 0) {
        model->phases[phase].ms[round] = 1e3 * (seconds_now() - start) / (double)runs;
    }
    return ESP_OK;
}

static esp_status measure(whole_job *job, whole_model *models, int count, esp_error *error)
{
    int rounds = (int)job->args->rounds;
    for (int round = -2; round < rounds; round++) { /* two to warm up */
        for (int i = 0; i < count; i++) {
            if (!progress_step(&job->cli->progress, "measuring", (round + 2) * count + i,
                               (rounds + 2) * count, "runs")) {
                return cli_fail(error, ESP_CANCELLED, "cancelled",
                                "the measurement was interrupted");
            }
            for (int phase = 0; phase < models[i].phase_count; phase++) {
                TRY(time_phase(job, &models[i], phase, round, error));
            }
        }
    }
    for (int i = 0; i < count; i++) {
        TRY(whole_time_given(job->cli, &models[i], error));
        TRY(whole_trace(job->cli, &models[i], error));
        TRY(whole_look(job->cli, &models[i], error));
    }
    return ESP_OK;
}

static esp_status measure_all(whole_job *job, esp_error *error)
{
    uint64_t room = bench_on_gpu(job->cli) ? TOGETHER_GPU : TOGETHER_HOST;
    for (int i = 0; i < job->count && job->args->tunes; i++) {
        TRY(whole_tune(job->cli, &job->models[i], error));
    }
    TRY(whole_open(job->cli, &job->models[0], error));
    bool together = job->models[0].loaded.info.resident_bytes * (uint64_t)job->count <= room;
    if (!together) {
        TRY(measure(job, &job->models[0], 1, error));
        whole_release(&job->models[0]);
    }
    for (int i = 1; i < job->count; i++) {
        TRY(whole_open(job->cli, &job->models[i], error));
        if (!together) {
            TRY(measure(job, &job->models[i], 1, error));
            whole_release(&job->models[i]);
        }
    }
    return together ? measure(job, job->models, job->count, error) : ESP_OK;
}

static void close_all(whole_job *job)
{
    for (int i = 0; i < job->count; i++) {
        whole_model *model = &job->models[i];
        whole_release(model);
        record_free(&model->kernels);
        for (int k = 0; k < model->phase_count; k++) {
            free(model->phases[k].ms);
            free(model->phases[k].trace);
            record_free(&model->phases[k].explained);
        }
    }
}

esp_status bench_whole(cli_state *cli, esp_error *error)
{
    whole_job *job = calloc(1, sizeof *job);
    if (job == NULL) {
        return cli_fail_memory(error, "a measurement");
    }
    job->cli = cli;
    job->args = cli->args;
    esp_status status = list_models(job, error);
    status = status == ESP_OK ? measure_all(job, error) : status;
    progress_end(&cli->progress);
    if (status == ESP_OK) {
        status = cli->common.json ? whole_print_json(cli, job->models, job->count, error)
                                  : whole_print_table(cli, job->models, job->count, error);
    }
    close_all(job);
    free(job);
    return status;
}
