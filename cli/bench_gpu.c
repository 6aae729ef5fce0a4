/* Measuring on a GPU: what differs from a processor. Products are recorded and replayed, so that
 * the device's clock times them and nothing of the host lies between them; rivals are libraries
 * that no catalogue lists (gpu.h); memory is probed by copies from device to device; and the clock
 * of the multiprocessors is read beside each turn, since the chip lowers it at its power limit. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench_job.h"
#ifdef ESP_HAVE_CUDA
#include "gpu.h"
#endif

#define LEAST_RUNS 24 /* of a recording; of large products fewer */
#define LEAST_RUNS_LARGE 6
#define LARGE_FLOPS 1e11
#define HOST_CALLS 50
#define CLOCK_SECONDS 5e-3 /* between two readings */

static double now_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

bool bench_is_gpu(const esp_device *device)
{
    return strncmp(esp_device_name(device), "cuda:", 5) == 0;
}

/* Every copy of weight, X and Y as often as the others. */
static int runs_of(const problem_group *group, int weight_copies)
{
    const esp_matmul_problem *p = &group->dense;
    double flops = 2 * (double)p->out_features * (double)p->in_features * (double)p->tokens;
    int least = flops > LARGE_FLOPS ? LEAST_RUNS_LARGE : LEAST_RUNS;
    int copies = weight_copies > group->data.copies ? weight_copies : group->data.copies;
    return copies > least ? copies : least;
}

#ifdef ESP_HAVE_CUDA

struct bench_gpu {
    esp_device *device;
    gpu_peers *peers;
    gpu_rivals rivals; /* of the group that is measured */
    int first;         /* their first contestant */
};

esp_status bench_gpu_open(esp_device *device, bench_gpu **gpu, esp_error *error)
{
    bench_gpu *made = calloc(1, sizeof *made);
    if (made == NULL) {
        return cli_fail_memory(error, "rivals");
    }
    made->device = device;
    esp_status status = gpu_peers_open(device, &made->peers, error);
    if (status != ESP_OK) {
        free(made);
        return status;
    }
    *gpu = made;
    return ESP_OK;
}

void bench_gpu_close(bench_gpu *gpu)
{
    if (gpu != NULL) {
        bench_gpu_part(gpu);
        gpu_peers_close(gpu->peers);
        free(gpu);
    }
}

void bench_gpu_part(bench_gpu *gpu)
{
    if (gpu != NULL) {
        gpu_rivals_free(&gpu->rivals);
    }
}

/* ---- rivals ---- */

static esp_status add_contestant(problem_group *group, gpu_rival *rival, esp_error *error)
{
    if (group->contestant_count == BENCH_MAX_CONTESTANTS) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.bad_value",
                        "more than %d kernels to time at once", BENCH_MAX_CONTESTANTS);
    }
    contestant *added = &group->contestants[group->contestant_count++];
    *added = (contestant){
        .group = group, .problem = group->dense, .rival = rival->self, .time_rival = rival->time};
    if (!rival->dense) {
        TRY(esp_pattern_parse("2:4", &added->problem.pattern, error));
    }
    snprintf(added->name, sizeof added->name, "%s", rival->name);
    added->round_us = calloc((size_t)group->args->rounds, sizeof(double));
    return added->round_us != NULL ? ESP_OK : cli_fail_memory(error, "a measurement");
}

esp_status bench_gpu_meet(problem_group *group, esp_error *error)
{
    bench_gpu *gpu = group->gpu;
    const bench_data *data = &group->data;
    gpu_shape shape = {.device = group->cli->device,
                       .dense = group->dense,
                       .w = group->store->dense.data,
                       .x = data->x,
                       .device_x = data->device_x,
                       .device_y = data->device_y,
                       .copies = data->copies,
                       .rotate_bytes = group->rotate_bytes,
                       .runs = runs_of(group, 1)};
    shape.dense.epilogue = 0;
    bench_gpu_part(gpu);
    gpu->first = group->contestant_count;
    TRY(gpu_peers_rivals(gpu->peers, &shape, &gpu->rivals, error));
    for (int i = 0; i < gpu->rivals.count; i++) {
        TRY(add_contestant(group, &gpu->rivals.list[i], error));
    }
    return ESP_OK;
}

void bench_gpu_add_rivals(const problem_group *group, bench_row *row, const char *globs)
{
    const bench_gpu *gpu = group->gpu;
    for (int i = 0; gpu != NULL && i < gpu->rivals.count; i++) {
        if (globs == NULL || bench_is_named(globs, gpu->rivals.list[i].name)) {
            bench_note(row->rivals, &row->rival_count, gpu->first + i);
        }
    }
}

/* ---- beside the times ---- */

esp_status bench_gpu_probe(void *group, double *us, esp_error *error)
{
    return gpu_peers_copy_us(((problem_group *)group)->gpu->peers, us, error);
}

double bench_gpu_probe_bytes(void)
{
    return (double)GPU_COPY_BYTES;
}

static void read_clock(contestant *runner)
{
    double now = now_seconds();
    if (now - runner->clock_seconds < CLOCK_SECONDS) {
        return;
    }
    int mhz = gpu_clock_mhz(runner->group->cli->device);
    runner->clock_seconds = now;
    runner->clock_sum += mhz;
    runner->clock_readings += mhz > 0;
}

static void add_missing(problem_result *result, const char *name, const char *reason)
{
    if (result->missing_count < BENCH_MAX_MISSING) {
        int at = result->missing_count++;
        snprintf(result->missing[at].name, sizeof result->missing[at].name, "%s", name);
        snprintf(result->missing[at].reason, sizeof result->missing[at].reason, "%s", reason);
    }
}

static void fill_missing(const bench_gpu *gpu, problem_result *result)
{
    for (int i = 0; i < gpu->rivals.missing_count; i++) {
        add_missing(result, gpu->rivals.missing[i].name, gpu->rivals.missing[i].reason);
    }
    for (int i = 0; i < gpu->rivals.count; i++) {
        const gpu_rival *rival = &gpu->rivals.list[i];
        const char *lost = rival->lost(rival->self);
        if (lost != NULL) {
            add_missing(result, rival->name, lost);
        }
    }
}

#else /* a build without CUDA opens no GPU */

struct bench_gpu {
    int none;
};

esp_status bench_gpu_open(esp_device *device, bench_gpu **gpu, esp_error *error)
{
    (void)gpu;
    return cli_fail(error, ESP_UNSUPPORTED, "device.unusable",
                    "device '%s' needs a build with CUDA", esp_device_name(device));
}

void bench_gpu_close(bench_gpu *gpu)
{
    (void)gpu;
}

void bench_gpu_part(bench_gpu *gpu)
{
    (void)gpu;
}

esp_status bench_gpu_meet(problem_group *group, esp_error *error)
{
    (void)group, (void)error;
    return ESP_OK;
}

void bench_gpu_add_rivals(const problem_group *group, bench_row *row, const char *globs)
{
    (void)group, (void)row, (void)globs;
}

esp_status bench_gpu_probe(void *group, double *us, esp_error *error)
{
    (void)group, (void)error;
    *us = (double)NAN;
    return ESP_OK;
}

double bench_gpu_probe_bytes(void)
{
    return 0;
}

static void read_clock(contestant *runner)
{
    (void)runner;
}

static void fill_missing(const bench_gpu *gpu, problem_result *result)
{
    (void)gpu, (void)result;
}

#endif

/* ---- products ---- */

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
        runner->runs.runs = runs_of(runner->group, runner->weight->used);
        TRY(esp_record(runner->group->cli->device, run_all, runner, &runner->runs.recording,
                       error));
    }
    TRY(recorded_time(&runner->runs, us, error));
    read_clock(runner);
    return ESP_OK;
}

/* What a call keeps the host, the device being busy anyway. */
static esp_status host_time(contestant *runner, double *us, esp_error *error)
{
    esp_device *device = runner->group->cli->device;
    TRY(esp_device_wait(device, error));
    double start = now_seconds();
    for (int i = 0; i < HOST_CALLS; i++) {
        TRY(bench_run_once(runner, error));
    }
    *us = 1e6 * (now_seconds() - start) / HOST_CALLS;
    return esp_device_wait(device, error);
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
    if (!group->on_gpu) {
        return ESP_OK;
    }
    result->on_gpu = true;
    result->tflops = 1e-3 * result->gflops * computed_share(p);
    result->clock_mhz =
        mine->clock_readings > 0 ? mine->clock_sum / mine->clock_readings : (double)NAN;
    fill_missing(group->gpu, result);
    return host_time(mine, &result->host_us, error);
}
