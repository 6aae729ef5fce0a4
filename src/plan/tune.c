/* Measures the candidates of one problem: first all are compared with the reference, on integers
 * and on reals, then those that agree are timed side by side, and their times enter the table. */
#include "plan/tune.h"

#define DEFAULT_ROUNDS 9
#define MAX_ROUNDS 10000
#define MAX_CANDIDATES 512

esp_status tune_step(tune_job *job, const char *what, esp_error *error)
{
    const esp_tune_options *options = &job->options;
    job->steps_done++;
    if (options->progress != NULL &&
        !options->progress(options->user, what, job->steps_done, job->steps, "runs")) {
        return esp_fail(error, ESP_CANCELLED, "cancelled", "the measurement was interrupted");
    }
    return ESP_OK;
}

static esp_status add_runners(tune_job *job, const esp_plan_candidate *candidates, int count,
                              esp_error *error)
{
    job->runners = esp_alloc_array(job->context, (size_t)count, sizeof *job->runners);
    if (job->runners == NULL) {
        return esp_fail_memory(error, (size_t)count * sizeof *job->runners, "a measurement");
    }
    for (int i = 0; i < count; i++) {
        if (candidates[i].why_not == NULL) {
            job->runners[job->count++] = (tune_runner){.candidate = candidates[i]};
        }
    }
    job->steps = (double)job->count * (job->options.rounds + 4);
    return ESP_OK;
}

/* A plan that is thrown away says why when nothing can run. */
static esp_status find_runners(tune_job *job, esp_error *error)
{
    const esp_plan_options options = {.forms = ESP_FORM_SPARSE | ESP_FORM_DENSE,
                                      .ignore_tuning = true};
    esp_plan plan;
    int count = 0;
    ESP_TRY(esp_plan_fill(job->device, &job->problem, &options, &plan, error));
    esp_plan_candidate *candidates =
        esp_alloc_array(job->context, MAX_CANDIDATES, sizeof *candidates);
    if (candidates == NULL) {
        return esp_fail_memory(error, MAX_CANDIDATES * sizeof *candidates, "a measurement");
    }
    esp_status status = esp_plan_explain(job->device, &job->problem, &options, candidates,
                                         MAX_CANDIDATES, &count, error);
    if (status == ESP_OK) {
        status = add_runners(job, candidates, ESP_MIN(count, MAX_CANDIDATES), error);
    }
    esp_release(job->context, candidates);
    return status;
}

static esp_status enter_times(tune_job *job, esp_error *error)
{
    int entered = 0;
    for (int i = 0; i < job->count; i++) {
        tune_runner *runner = &job->runners[i];
        job->runners[i].candidate.tuned_us = runner->refused == NULL ? runner->median_us : 0;
        entered += runner->refused == NULL;
    }
    if (entered == 0) {
        char name[ESP_PROBLEM_TEXT_MAX];
        esp_matmul_problem_print(&job->problem, name);
        return esp_fail(error, ESP_CHECK_FAILED, "tune.no_candidate",
                        "%s: none of %d kernels agrees with the reference; nothing was timed", name,
                        job->count);
    }
    esp_plan_candidate *times = esp_alloc_array(job->context, (size_t)job->count, sizeof *times);
    if (times == NULL) {
        return esp_fail_memory(error, (size_t)job->count * sizeof *times, "a measurement");
    }
    for (int i = 0; i < job->count; i++) {
        times[i] = job->runners[i].candidate;
    }
    esp_status status = esp_tuning_put(job->device, &job->problem, times, job->count, error);
    esp_release(job->context, times);
    return status;
}

static void report(const tune_job *job)
{
    for (int i = 0; job->options.on_result != NULL && i < job->count; i++) {
        const tune_runner *runner = &job->runners[i];
        bool timed = runner->refused == NULL;
        esp_tune_result result = {.kernel = runner->candidate.kernel,
                                  .runs_dense = runner->candidate.runs_dense,
                                  .refused = runner->refused,
                                  .median_us = timed ? runner->median_us : 0,
                                  .least_us = timed ? runner->least_us : 0,
                                  .predicted_us = runner->candidate.predicted_us,
                                  .error = runner->error,
                                  .rounds = timed ? runner->rounds : 0};
        job->options.on_result(job->options.user, &job->problem, &result);
    }
}

static esp_status tune(tune_job *job, esp_error *error)
{
    bool left = false;
    ESP_TRY(esp_device_open(job->context, "ref", &job->ref, error));
    ESP_TRY(find_runners(job, error));
    ESP_TRY(tune_operands_make(job, error));
    ESP_TRY(tune_operands_fill(job, TUNE_INTEGERS, error));
    ESP_TRY(tune_verify(job, TUNE_INTEGERS, error));
    ESP_TRY(tune_operands_fill(job, TUNE_REALS, error));
    ESP_TRY(tune_verify(job, TUNE_REALS, error));
    for (int i = 0; i < job->count; i++) {
        left = left || job->runners[i].refused == NULL;
    }
    if (left) {
        ESP_TRY(tune_measure(job, error));
    }
    report(job);
    return enter_times(job, error);
}

esp_status esp_tune(esp_device *device, const esp_matmul_problem *problem,
                    const esp_tune_options *options, esp_error *error)
{
    tune_job job = {.device = device, .context = device->context};
    if (options != NULL) {
        job.options = *options;
    }
    if (job.options.rounds < 0 || job.options.rounds > MAX_ROUNDS) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "tune.bad_rounds",
                        "tune: %d rounds: 1 to %d were expected, or 0 for %d", job.options.rounds,
                        MAX_ROUNDS, DEFAULT_ROUNDS);
    }
    if (strcmp(device->backend->name, "ref") != 0 && strcmp(device->backend->name, "cpu") != 0) {
        return esp_fail(error, ESP_UNSUPPORTED, "tune.device_memory",
                        "tune: operands are made in host memory, which device '%s' does not read",
                        device->name);
    }
    job.options.rounds = job.options.rounds > 0 ? job.options.rounds : DEFAULT_ROUNDS;
    ESP_TRY(esp_plan_resolve(device, problem, &job.problem, error));
    esp_status status = tune(&job, error);
    tune_operands_free(&job);
    esp_release(job.context, job.runners);
    esp_device_close(job.ref);
    return status;
}
