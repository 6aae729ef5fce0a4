/* Measuring on a GPU: what differs from a processor. Products are recorded and replayed, so that
 * the device's clock times them and nothing of the host lies between them; and the clock of the
 * multiprocessors is read beside each turn, since the chip lowers it at its power limit. Who is met
 * there that no catalogue lists, gpu_group.c knows. */
#include <math.h>
#include <string.h>
#include <time.h>

#include "bench_job.h"
#ifdef ESP_HAVE_CUDA
#include "gpu.h"
#endif

#define LEAST_RUNS 24 /* of a recording; of large products fewer */
#define LEAST_RUNS_LARGE 6
#define LARGE_FLOPS 1e11
#define HOST_CALLS 20 /* fewer than a stream holds, else the host waits for the device */
#define HOST_ROUNDS 25
#define HOST_SECONDS 0.25  /* of long products fewer rounds */
#define CLOCK_SECONDS 5e-3 /* between two readings */

static double now_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

esp_status bench_gpu_open(esp_device *device, bench_gpu **gpu, esp_error *error)
{
#ifdef ESP_HAVE_CUDA
    return gpu_group_open(device, gpu, error);
#else
    (void)gpu;
    return cli_fail(error, ESP_UNSUPPORTED, "device.unusable",
                    "this program measures on device '%s' only where it was built with CUDA",
                    esp_device_name(device));
#endif
}

int bench_gpu_runs(const problem_group *group, int weight_copies)
{
    const esp_matmul_problem *p = &group->dense;
    double flops = 2 * (double)p->out_features * (double)p->in_features * (double)p->tokens;
    int least = flops > LARGE_FLOPS ? LEAST_RUNS_LARGE : LEAST_RUNS;
    int copies = weight_copies > group->data.copies ? weight_copies : group->data.copies;
    return copies > least ? copies : least;
}

void bench_gpu_add_rivals(const problem_group *group, bench_row *row, const char *globs)
{
    const bench_gpu *gpu = group->gpu;
    for (int i = 0; gpu != NULL && i < gpu->count; i++) {
        const contestant *rival = &group->contestants[gpu->first + i];
        if (globs == NULL || bench_is_named(globs, rival->name)) {
            bench_note(row->rivals, &row->rival_count, gpu->first + i);
        }
    }
}

/* ---- times ---- */

esp_status bench_gpu_probe(void *user, double *us, esp_error *error)
{
    bench_gpu *gpu = ((problem_group *)user)->gpu;
    return gpu->probe(gpu, us, error);
}

static void read_clock(contestant *runner)
{
    const bench_gpu *gpu = runner->group->gpu;
    double now = now_seconds();
    if (now - runner->clock_seconds < CLOCK_SECONDS) {
        return;
    }
    int mhz = gpu->clock_mhz(gpu);
    runner->clock_seconds = now;
    runner->clock_sum += mhz;
    runner->clock_readings += mhz > 0;
}

/* An esp_work_fn. */
static esp_status run_all(void *user, void *stream, esp_error *error)
{
    contestant *runner = user;
    for (int i = 0; i < runner->runs.runs; i++) {
        TRY(bench_run_in(runner, stream, error));
    }
    return ESP_OK;
}

esp_status bench_gpu_time(void *user, double *us, esp_error *error)
{
    contestant *runner = user;
    if (runner->plan == NULL) {
        return runner->time_rival(runner->rival, us, error);
    }
    if (runner->runs.recording == NULL) {
        runner->runs.runs = bench_gpu_runs(runner->group, runner->weight->used);
        TRY(esp_record(runner->group->cli->device, run_all, runner, &runner->runs.recording,
                       error));
    }
    TRY(recorded_time(&runner->runs, us, error));
    read_clock(runner);
    return ESP_OK;
}

/* What a call keeps the host, the device being busy anyway: the median of single calls. A mean of
 * so few would count the first ones after each wait, which find nothing in the processor's caches,
 * and those that another process interrupts. */
static esp_status host_time(contestant *runner, double *us, esp_error *error)
{
    esp_device *device = runner->group->cli->device;
    double calls[HOST_ROUNDS * HOST_CALLS], begin = now_seconds();
    int count = 0;
    while (count < HOST_ROUNDS * HOST_CALLS && now_seconds() - begin < HOST_SECONDS) {
        TRY(esp_device_wait(device, error));
        for (int i = 0; i < HOST_CALLS; i++) {
            double start = now_seconds();
            TRY(bench_run_once(runner, error));
            calls[count++] = 1e6 * (now_seconds() - start);
        }
    }
    *us = timing_spread_of(calls, count).median;
    return esp_device_wait(device, error);
}

/* ---- results ---- */

static void add_missing(problem_result *result, const char *name, const char *reason)
{
    if (result->missing_count < BENCH_MAX_MISSING) {
        int at = result->missing_count++;
        snprintf(result->missing[at].name, sizeof result->missing[at].name, "%s", name);
        snprintf(result->missing[at].reason, sizeof result->missing[at].reason, "%s", reason);
    }
}

static void fill_missing(const problem_group *group, problem_result *result)
{
    const bench_gpu *gpu = group->gpu;
    const char *name, *reason;
    for (int i = 0; gpu->missing(gpu, i, &name, &reason); i++) {
        add_missing(result, name, reason);
    }
    for (int i = 0; i < gpu->count; i++) {
        const char *lost = gpu->lost(gpu, i);
        if (lost != NULL) {
            add_missing(result, group->contestants[gpu->first + i].name, lost);
        }
    }
}

/* Of the dense product, what is not zero. */
static double computed_share(const esp_matmul_problem *problem)
{
    const esp_pattern *pattern = &problem->pattern;
    double in = (double)problem->in_features;
    switch (pattern->kind) {
    case ESP_PATTERN_PANEL:
        return (double)esp_pattern_kept(pattern, problem->in_features) / (2 * in); /* 2 of 4 */
    case ESP_PATTERN_BLOCK:
        return 1 - pattern->sparsity;
    default:
        return 1;
    }
}

esp_status bench_gpu_fill(const problem_group *group, contestant *mine, problem_result *result,
                          esp_error *error)
{
    const esp_matmul_problem *p = &mine->problem;
    if (group->gpu == NULL) {
        return ESP_OK;
    }
    result->on_gpu = true;
    result->tflops = 1e-3 * result->gflops * computed_share(p);
    result->clock_mhz =
        mine->clock_readings > 0 ? mine->clock_sum / mine->clock_readings : (double)NAN;
    fill_missing(group, result);
    return host_time(mine, &result->host_us, error);
}
