/* A group of measured products on a GPU: its rivals as contestants, beside those of the catalogue.
 */
#include <stdlib.h>
#include <string.h>

#include "bench_job.h"
#include "gpu.h"

typedef struct gpu_group {
    bench_gpu base;
    esp_device *device;
    gpu_peers *peers;
    gpu_rivals rivals; /* of the group that is measured */
} gpu_group;

static void part(bench_gpu *gpu)
{
    gpu_group *me = (gpu_group *)gpu;
    gpu_rivals_free(&me->rivals);
    gpu->count = 0;
}

static void close_group(bench_gpu *gpu)
{
    gpu_group *me = (gpu_group *)gpu;
    part(gpu);
    gpu_peers_close(me->peers);
    free(me);
}

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

static esp_status meet(bench_gpu *gpu, problem_group *group, esp_error *error)
{
    gpu_group *me = (gpu_group *)gpu;
    const bench_data *data = &group->data;
    gpu_shape shape = {.device = me->device,
                       .dense = group->dense,
                       .w = group->store->dense.data,
                       .x = data->x,
                       .device_x = data->device_x,
                       .device_y = data->device_y,
                       .copies = data->copies,
                       .rotate_bytes = group->rotate_bytes,
                       .runs = bench_gpu_runs(group, 1)};
    shape.dense.epilogue = 0;
    part(gpu);
    gpu->first = group->contestant_count;
    TRY(gpu_peers_rivals(me->peers, &shape, &me->rivals, error));
    for (; gpu->count < me->rivals.count; gpu->count++) {
        TRY(add_contestant(group, &me->rivals.list[gpu->count], error));
    }
    return ESP_OK;
}

static const char *lost(const bench_gpu *gpu, int i)
{
    const gpu_rival *rival = &((const gpu_group *)gpu)->rivals.list[i];
    return rival->lost(rival->self);
}

static bool missing(const bench_gpu *gpu, int i, const char **name, const char **reason)
{
    const gpu_rivals *rivals = &((const gpu_group *)gpu)->rivals;
    if (i >= rivals->missing_count) {
        return false;
    }
    *name = rivals->missing[i].name;
    *reason = rivals->missing[i].reason;
    return true;
}

static esp_status probe(bench_gpu *gpu, double *us, esp_error *error)
{
    return gpu_peers_copy_us(((gpu_group *)gpu)->peers, us, error);
}

static int clock_mhz(const bench_gpu *gpu)
{
    return gpu_clock_mhz(((const gpu_group *)gpu)->device);
}

esp_status gpu_group_open(esp_device *device, bench_gpu **gpu, esp_error *error)
{
    gpu_group *made = calloc(1, sizeof *made);
    if (made == NULL) {
        return cli_fail_memory(error, "rivals");
    }
    made->device = device;
    made->base = (bench_gpu){.close = close_group,
                             .meet = meet,
                             .part = part,
                             .lost = lost,
                             .missing = missing,
                             .probe = probe,
                             .probe_bytes = (double)GPU_COPY_BYTES,
                             .clock_mhz = clock_mhz};
    esp_status status = gpu_peers_open(device, &made->peers, error);
    if (status != ESP_OK) {
        free(made);
        return status;
    }
    *gpu = &made->base;
    return ESP_OK;
}
