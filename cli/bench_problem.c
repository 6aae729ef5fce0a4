/* Times one product: the kernel that is chosen for it and, as rivals, the dense kernels that could
 * run the same shape: ours at its best level and every library's. Where the weights are narrower
 * than f32 and computed in f32, libraries run the same values as f32 weights besides: context, not
 * rivals, since that weight takes more memory.
 *
 * All work on the same random weights, pruned by magnitude into the pattern; the dense ones hold
 * the zeros. Before anything is timed, two tokens of each result are compared with the reference
 * back end. Rounds are interleaved, so that a change of the machine's mood hits all alike; each
 * begins with some untimed runs, while spinning threads of the contestant before come to rest and
 * those of this one spread over the cores. With few tokens a product is bound by reading the
 * weight: then several copies are used in turn, more than the last cache holds, because a model
 * reads its weights once per token. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench_job.h"

#define LEAST_ROUND_S 5e-3
#define SETTLE_S 40e-3 /* OpenBLAS' threads spin for 2^26 cycles after a call */

/* ---- contestants ---- */

static esp_status add_contestant(problem_job *job, const esp_matmul_problem *problem,
                                 const char *kernel, weight_copies *weight, kernel_times *times,
                                 esp_error *error)
{
    contestant *added = &job->contestants[job->contestant_count];
    TRY(esp_plan_create(job->cli->device, problem, kernel, &added->plan, error));
    job->contestant_count++;
    snprintf(times->name, sizeof times->name, "%s", esp_plan_kernel(added->plan));
    added->weight = weight;
    added->times = times;
    added->workspace = bench_aligned_memory(esp_plan_workspace_bytes(added->plan));
    added->round_us = calloc((size_t)job->args->rounds, sizeof(double));
    return added->workspace != NULL && added->round_us != NULL
               ? ESP_OK
               : cli_fail_memory(error, "a kernel's workspace");
}

static bool is_library(const esp_kernel_info *info)
{
    return strcmp(info->level, "openblas") == 0 || strcmp(info->level, "onednn") == 0;
}

static bool can_run_dense(const problem_job *job, int kernel, const esp_matmul_problem *problem)
{
    return strcmp(esp_kernel_get(kernel).format, "dense") == 0 &&
           esp_kernel_why_not(kernel, job->cli->device, problem) == NULL;
}

/* Levels of ours come best first in the catalogue. */
static esp_status add_rivals(problem_job *job, esp_error *error)
{
    problem_result *result = job->result;
    bool has_ours = false;
    for (int i = 0; i < esp_kernel_count() && result->rival_count < BENCH_MAX_KERNELS; i++) {
        esp_kernel_info info = esp_kernel_get(i);
        if (!can_run_dense(job, i, &job->dense_problem) || (!is_library(&info) && has_ours)) {
            continue;
        }
        has_ours = has_ours || !is_library(&info);
        if (strcmp(info.name, result->chosen.name) != 0) {
            TRY(add_contestant(job, &job->dense_problem, info.name, &job->dense_weight,
                               &result->rivals[result->rival_count], error));
            result->rival_count++;
        }
    }
    return ESP_OK;
}

static esp_status add_widened(problem_job *job, esp_error *error)
{
    problem_result *result = job->result;
    job->wide_problem = job->dense_problem;
    job->wide_problem.weight_type = ESP_F32;
    if (job->problem.weight_type == ESP_F32 || job->problem.compute != ESP_COMPUTE_F32) {
        return ESP_OK;
    }
    for (int i = 0; i < esp_kernel_count() && result->wide_count < BENCH_MAX_KERNELS; i++) {
        esp_kernel_info info = esp_kernel_get(i);
        if (is_library(&info) && can_run_dense(job, i, &job->wide_problem)) {
            TRY(add_contestant(job, &job->wide_problem, info.name, &job->wide_weight,
                               &result->widened[result->wide_count], error));
            result->wide_count++;
        }
    }
    return ESP_OK;
}

static esp_status run_once(problem_job *job, contestant *runner, esp_error *error)
{
    weight_copies *weight = runner->weight;
    esp_matmul_args args = {.weight = weight->copies[weight->next],
                            .x = job->x,
                            .y = job->y,
                            .scale = job->scale,
                            .bias = job->bias,
                            .residual = job->residual,
                            .workspace = runner->workspace};
    weight->next = (weight->next + 1) % weight->count;
    return esp_matmul_run(runner->plan, &args, error);
}

/* ---- check ---- */

/* Where token t begins, in elements, and the stride between its features' rows. */
static int64_t token_offset(esp_layout layout, int64_t token, int64_t features)
{
    return layout == ESP_FEATURE_MAJOR ? token : token * features;
}

static float element(const void *data, esp_dtype dtype, int64_t index)
{
    float value;
    esp_widen(dtype, (const char *)data + (size_t)index * (esp_dtype_bits(dtype) / 8), 1, &value);
    return value;
}

static esp_status run_reference(problem_job *job, int64_t token, esp_error *error)
{
    esp_matmul_problem one = job->dense_problem;
    int64_t rows = bench_rows_of_y(&one);
    size_t x_width = esp_dtype_bits(one.act_type) / 8, y_width = esp_dtype_bits(one.out_type) / 8;
    size_t x_at = (size_t)token_offset(one.x_layout, token, one.in_features) * x_width;
    size_t y_at = (size_t)token_offset(one.y_layout, token, rows) * y_width;
    esp_matmul_args args = {.weight = job->ref_weight,
                            .x = (const char *)job->x + x_at,
                            .y = (char *)job->ref_y + y_at,
                            .scale = job->scale,
                            .bias = job->bias,
                            .residual = (const char *)job->residual + y_at};
    args.x_stride = one.x_layout == ESP_FEATURE_MAJOR ? one.tokens : 0;
    args.y_stride = one.y_layout == ESP_FEATURE_MAJOR ? one.tokens : 0;
    one.tokens = 1;
    esp_plan *plan;
    TRY(esp_plan_create(job->ref, &one, NULL, &plan, error));
    args.workspace = bench_aligned_memory(esp_plan_workspace_bytes(plan));
    esp_status status = args.workspace != NULL ? esp_matmul_run(plan, &args, error)
                                               : cli_fail_memory(error, "a workspace");
    free(args.workspace);
    esp_plan_free(plan);
    return status;
}

static double token_error(const problem_job *job, int64_t token)
{
    const esp_matmul_problem *problem = &job->problem;
    int64_t rows = bench_rows_of_y(problem);
    int64_t first = token_offset(problem->y_layout, token, rows);
    int64_t stride = problem->y_layout == ESP_FEATURE_MAJOR ? problem->tokens : 1;
    double largest = 0, worst = 0;
    for (int64_t i = 0; i < rows; i++) {
        double ref = (double)element(job->ref_y, problem->out_type, first + i * stride);
        double got = (double)element(job->y, problem->out_type, first + i * stride);
        largest = fmax(largest, fabs(ref));
        worst = isfinite(got) ? fmax(worst, fabs(got - ref)) : (double)INFINITY;
    }
    return largest > 0 ? worst / largest : worst;
}

static esp_status check_contestant(problem_job *job, contestant *runner, esp_error *error)
{
    double limit = job->problem.out_type == ESP_F32   ? 1e-4
                   : job->problem.out_type == ESP_F16 ? 2e-3
                                                      : 1e-2;
    memset(job->y, 0xff, job->y_bytes); /* NaN: what is not written shows */
    TRY(run_once(job, runner, error));
    runner->times->error = fmax(token_error(job, 0), token_error(job, job->problem.tokens - 1));
    if (runner->times->error > limit) {
        return cli_fail(error, ESP_CHECK_FAILED, "bench.wrong_result",
                        "%s: %s differs from the reference by %.3g of the largest value, more than "
                        "%.3g; it is not timed",
                        job->result->problem, runner->times->name, runner->times->error, limit);
    }
    return ESP_OK;
}

static esp_status check_all(problem_job *job, esp_error *error)
{
    TRY(run_reference(job, 0, error));
    TRY(run_reference(job, job->problem.tokens - 1, error));
    for (int i = 0; i < job->contestant_count; i++) {
        TRY(check_contestant(job, &job->contestants[i], error));
    }
    return ESP_OK;
}

/* ---- time ---- */

static esp_status time_round(problem_job *job, contestant *runner, int round, esp_error *error)
{
    double start = seconds_now();
    while (seconds_now() - start < SETTLE_S) {
        TRY(run_once(job, runner, error));
    }
    start = seconds_now();
    for (int i = 0; i < runner->repeats; i++) {
        TRY(run_once(job, runner, error));
    }
    if (round >= 0) {
        runner->round_us[round] = 1e6 * (seconds_now() - start) / runner->repeats;
    } else {
        double once = (seconds_now() - start) / runner->repeats;
        double wanted = LEAST_ROUND_S / fmax(once, 1e-7);
        runner->repeats = wanted < 1 ? 1 : wanted > 10000 ? 10000 : (int)wanted + 1;
    }
    return ESP_OK;
}

static esp_status time_all(problem_job *job, esp_error *error)
{
    int rounds = (int)job->args->rounds;
    for (int round = -2; round < rounds; round++) { /* two to warm up and to find repeats */
        if (!progress_step(&job->cli->progress, "measuring", round + 2, rounds + 2, "rounds")) {
            return cli_fail(error, ESP_CANCELLED, "cancelled", "the measurement was interrupted");
        }
        for (int i = 0; i < job->contestant_count; i++) {
            contestant *runner = &job->contestants[i];
            runner->repeats = runner->repeats > 0 ? runner->repeats : 1;
            TRY(time_round(job, runner, round, error));
        }
    }
    return ESP_OK;
}

static void summarise(problem_job *job)
{
    problem_result *result = job->result;
    const esp_matmul_problem *problem = &job->problem;
    int rounds = (int)job->args->rounds;
    for (int i = 0; i < job->contestant_count; i++) {
        contestant *runner = &job->contestants[i];
        runner->times->least_us = bench_least(runner->round_us, rounds);
        runner->times->median_us = bench_median(runner->round_us, rounds);
    }
    bool dense = problem->pattern.kind == ESP_PATTERN_DENSE;
    double best = dense ? result->chosen.median_us : (double)INFINITY;
    for (int i = 0; i < result->rival_count; i++) {
        best = fmin(best, result->rivals[i].median_us);
    }
    weight_copies *weight = dense ? &job->dense_weight : &job->sparse_weight;
    double seconds = 1e-6 * result->chosen.median_us;
    result->dense_us = best;
    result->ratio_to_dense = best / result->chosen.median_us;
    result->weight_bytes = weight->bytes;
    result->dense_bytes = job->dense_weight.bytes;
    result->copies = weight->count;
    result->rounds = rounds;
    result->load_average = (double)NAN;
    (void)!getloadavg(&result->load_average, 1);
    result->gb_per_s =
        1e-9 * ((double)weight->bytes + (double)job->x_bytes + (double)job->y_bytes) / seconds;
    result->gflops = 2e-9 * (double)problem->out_features * (double)problem->in_features *
                     (double)problem->tokens / seconds;
}

/* ---- the whole ---- */

static esp_status run_job(problem_job *job, const char *text, esp_error *error)
{
    cli_state *cli = job->cli;
    problem_result *result = job->result;
    TRY(esp_matmul_problem_parse(text, &job->problem, error));
    if (job->problem.compute == ESP_COMPUTE_AUTO) {
        job->problem.compute = (esp_compute)cli->common.compute;
    }
    TRY(cli_open_device(cli, error));
    TRY(esp_device_open(cli->context, "ref", &job->ref, error));
    bool dense = job->problem.pattern.kind == ESP_PATTERN_DENSE;
    TRY(add_contestant(job, &job->problem, cli->common.kernel,
                       dense ? &job->dense_weight : &job->sparse_weight, &result->chosen, error));
    result->compute = job->problem.compute = esp_plan_compute(job->contestants[0].plan);
    esp_matmul_problem_print(&job->problem, result->problem);
    job->dense_problem = job->problem;
    job->dense_problem.pattern = (esp_pattern){.kind = ESP_PATTERN_DENSE};
    TRY(add_rivals(job, error));
    TRY(add_widened(job, error));
    TRY(bench_make_operands(job, error));
    TRY(bench_make_weights(job, error));
    TRY(check_all(job, error));
    TRY(time_all(job, error));
    summarise(job);
    return ESP_OK;
}

static void free_job(problem_job *job)
{
    for (int i = 0; i < COUNT(job->contestants); i++) {
        esp_plan_free(job->contestants[i].plan);
        free(job->contestants[i].workspace);
        free(job->contestants[i].round_us);
    }
    bench_free_operands(job);
}

esp_status bench_problem(cli_state *cli, const char *text, problem_result *result, esp_error *error)
{
    problem_job *job = calloc(1, sizeof *job);
    if (job == NULL) {
        return cli_fail_memory(error, "a measurement");
    }
    *result = (problem_result){0};
    job->cli = cli;
    job->args = cli->args;
    job->result = result;
    esp_status status = run_job(job, text, error);
    progress_end(&cli->progress);
    free_job(job);
    free(job);
    return status;
}
