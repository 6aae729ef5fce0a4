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

static esp_status add_runners(tune_job *job, tune_point *point,
                              const esp_plan_candidate *candidates, int count, esp_error *error)
{
    point->runners = esp_alloc_array(job->context, (size_t)count, sizeof *point->runners);
    if (point->runners == NULL) {
        return esp_fail_memory(error, (size_t)count * sizeof *point->runners, "a measurement");
    }
    for (int i = 0; i < count; i++) {
        if (candidates[i].why_not == NULL) {
            point->runners[point->count++] = (tune_runner){.job = job, .candidate = candidates[i]};
        }
    }
    job->steps += (double)point->count * (job->options.rounds + 4);
    return ESP_OK;
}

/* A plan that is thrown away says why when nothing can run. */
static esp_status find_runners(tune_job *job, tune_point *point, esp_error *error)
{
    const esp_plan_options options = {.forms = PLAN_ALL_FORMS, .ignore_tuning = true};
    esp_plan plan;
    int count = 0;
    ESP_TRY(esp_plan_fill(job->device, &point->problem, &options, &plan, error));
    esp_plan_candidate *candidates =
        esp_alloc_array(job->context, MAX_CANDIDATES, sizeof *candidates);
    if (candidates == NULL) {
        return esp_fail_memory(error, MAX_CANDIDATES * sizeof *candidates, "a measurement");
    }
    esp_status status = esp_plan_explain(job->device, &point->problem, &options, candidates,
                                         MAX_CANDIDATES, &count, error);
    if (status == ESP_OK) {
        status = add_runners(job, point, candidates, ESP_MIN(count, MAX_CANDIDATES), error);
    }
    esp_release(job->context, candidates);
    return status;
}

static esp_status enter_times(tune_job *job, tune_point *point, esp_error *error)
{
    int entered = 0;
    for (int i = 0; i < point->count; i++) {
        tune_runner *runner = &point->runners[i];
        runner->candidate.tuned_us = runner->refused == NULL ? runner->median_us : 0;
        entered += runner->refused == NULL;
    }
    if (entered == 0) {
        char name[ESP_PROBLEM_TEXT_MAX];
        esp_matmul_problem_print(&point->problem, name);
        return esp_fail(error, ESP_CHECK_FAILED, "tune.no_candidate",
                        "%s: none of %d kernels agrees with the reference; nothing was timed", name,
                        point->count);
    }
    esp_plan_candidate *times = esp_alloc_array(job->context, (size_t)point->count, sizeof *times);
    if (times == NULL) {
        return esp_fail_memory(error, (size_t)point->count * sizeof *times, "a measurement");
    }
    for (int i = 0; i < point->count; i++) {
        times[i] = point->runners[i].candidate;
    }
    esp_status status = esp_tuning_put(job->device, &point->problem, times, point->count, error);
    esp_release(job->context, times);
    return status;
}

static void report(const tune_job *job, const tune_point *point)
{
    for (int i = 0; job->options.on_result != NULL && i < point->count; i++) {
        const tune_runner *runner = &point->runners[i];
        bool timed = runner->refused == NULL;
        esp_tune_result result = {.kernel = runner->candidate.kernel,
                                  .runs_dense = runner->candidate.runs_dense,
                                  .refused = runner->refused,
                                  .median_us = timed ? runner->median_us : 0,
                                  .least_us = timed ? runner->least_us : 0,
                                  .predicted_us = runner->candidate.predicted_us,
                                  .error = runner->error,
                                  .rounds = timed ? runner->rounds : 0};
        job->options.on_result(job->options.user, &point->problem, &result);
    }
}

static esp_status finish_point(tune_job *job, tune_point *point, esp_error *error)
{
    bool left = false;
    ESP_TRY(tune_verify(job, point, TUNE_REALS, error));
    for (int i = 0; i < point->count; i++) {
        left = left || point->runners[i].refused == NULL;
    }
    if (left) {
        ESP_TRY(tune_measure(job, point, error));
    }
    report(job, point);
    return enter_times(job, point, error);
}

/* Weights and the reference's results serve all points. */
static esp_status tune(tune_job *job, esp_error *error)
{
    ESP_TRY(esp_device_open(job->context, "ref", &job->ref, error));
    for (int i = 0; i < job->point_count; i++) {
        ESP_TRY(find_runners(job, &job->points[i], error));
    }
    ESP_TRY(tune_operands_make(job, error));
    ESP_TRY(tune_operands_fill(job, TUNE_INTEGERS, error));
    ESP_TRY(tune_expect(job, TUNE_INTEGERS, error));
    for (int i = 0; i < job->point_count; i++) {
        ESP_TRY(tune_verify(job, &job->points[i], TUNE_INTEGERS, error));
    }
    ESP_TRY(tune_operands_fill(job, TUNE_REALS, error));
    ESP_TRY(tune_expect(job, TUNE_REALS, error));
    for (int i = 0; i < job->point_count; i++) {
        ESP_TRY(finish_point(job, &job->points[i], error));
    }
    return ESP_OK;
}

static esp_status make_points(tune_job *job, const esp_matmul_problem *problem,
                              const int64_t *tokens, int count, esp_error *error)
{
    job->points = esp_alloc_array(job->context, (size_t)count, sizeof *job->points);
    if (job->points == NULL) {
        return esp_fail_memory(error, (size_t)count * sizeof *job->points, "a measurement");
    }
    for (int i = 0; i < count; i++) {
        esp_matmul_problem one = *problem;
        one.tokens = tokens[i];
        ESP_TRY(esp_plan_resolve(job->device, &one, &job->points[i].problem, error));
        job->point_count++;
        if (i == 0 || tokens[i] > job->problem.tokens) {
            job->problem = job->points[i].problem;
        }
    }
    return ESP_OK;
}

static void free_points(tune_job *job)
{
    for (int i = 0; i < job->point_count; i++) {
        esp_release(job->context, job->points[i].runners);
    }
    esp_release(job->context, job->points);
}

esp_status esp_tune_tokens(esp_device *device, const esp_matmul_problem *problem,
                           const int64_t *tokens, int count, const esp_tune_options *options,
                           esp_error *error)
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
    if (count < 1) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "tune.no_tokens",
                        "tune: %d token counts: one at least was expected", count);
    }
    job.options.rounds = job.options.rounds > 0 ? job.options.rounds : DEFAULT_ROUNDS;
    esp_status status = make_points(&job, problem, tokens, count, error);
    if (status == ESP_OK) {
        status = tune(&job, error);
    }
    tune_copies_free(&job);
    tune_operands_free(&job);
    free_points(&job);
    esp_device_close(job.ref);
    return status;
}

esp_status esp_tune(esp_device *device, const esp_matmul_problem *problem,
                    const esp_tune_options *options, esp_error *error)
{
    return esp_tune_tokens(device, problem, &problem->tokens, 1, options, error);
}
