/* Who takes part in a group: a row for each problem's kernel, and the rivals of each row. */
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include "bench_job.h"
#include "pinning.h"

/* ---- contestants ---- */

esp_status bench_run_in(contestant *runner, void *stream, esp_error *error)
{
    const bench_data *data = &runner->group->data;
    weight_set *weight = runner->weight;
    int copy = runner->next;
    esp_matmul_args args = {.weight = weight->copies[weight->next],
                            .x = data->device_x[copy],
                            .y = data->device_y[copy],
                            .scale = data->device_scale,
                            .bias = data->device_bias,
                            .residual = data->device_residual,
                            .workspace = runner->workspace,
                            .stream = stream};
    weight->next = (weight->next + 1) % weight->used;
    runner->next = (copy + 1) % data->copies;
    return esp_matmul_run(runner->plan, &args, error);
}

esp_status bench_run_once(void *user, esp_error *error)
{
    return bench_run_in(user, NULL, error);
}

/* The contestant of that kernel on that weight; each exists once. */
static esp_status add_contestant(problem_group *group, const esp_matmul_problem *problem,
                                 const char *kernel, bool widened, int *place, esp_error *error)
{
    const esp_plan_options options = {.kernel_glob = kernel, .forms = BENCH_FORMS};
    weight_set *weight = NULL;
    esp_plan *plan;
    TRY(esp_plan_create_with(group->cli->device, problem, &options, &plan, error));
    unsigned form = esp_plan_form(plan) & BENCH_FORMS; /* 0 of dense weights, which have one */
    esp_status status =
        bench_weight(group->store, problem, widened, form, group->rotate_bytes, &weight, error);
    if (status != ESP_OK) {
        esp_plan_free(plan);
        return status;
    }
    for (int i = 0; i < group->contestant_count; i++) {
        if (group->contestants[i].weight == weight &&
            strcmp(group->contestants[i].name, esp_plan_kernel(plan)) == 0) {
            esp_plan_free(plan);
            *place = i;
            return ESP_OK;
        }
    }
    if (group->contestant_count == BENCH_MAX_CONTESTANTS) {
        esp_plan_free(plan);
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.bad_value",
                        "more than %d kernels to time at once; give fewer problems or --kernel",
                        BENCH_MAX_CONTESTANTS);
    }
    contestant *added = &group->contestants[group->contestant_count];
    *added = (contestant){.group = group, .problem = *problem, .plan = plan, .weight = weight};
    *place = group->contestant_count++;
    snprintf(added->name, sizeof added->name, "%s", esp_plan_kernel(plan));
    added->workspace = esp_device_alloc(group->cli->device, esp_plan_workspace_bytes(plan));
    added->round_us = calloc((size_t)group->args->rounds, sizeof(double));
    pinning_new_threads(); /* a library may have been loaded */
    return added->workspace != NULL && added->round_us != NULL
               ? ESP_OK
               : cli_fail_memory(error, "a kernel's workspace");
}

static bool is_library(const esp_kernel_info *info)
{
    return strcmp(info->level, "openblas") == 0 || strcmp(info->level, "onednn") == 0;
}

static bool can_run(const problem_group *group, int kernel, const esp_matmul_problem *problem)
{
    return esp_kernel_why_not(kernel, group->cli->device, problem) == NULL;
}

static bool is_dense(const esp_kernel_info *info)
{
    return strcmp(info->format, "dense") == 0;
}

void bench_note(int *list, int *count, int place)
{
    for (int i = 0; i < *count; i++) {
        if (list[i] == place) {
            return;
        }
    }
    if (*count < BENCH_MAX_KERNELS) {
        list[(*count)++] = place;
    }
}

/* ---- rivals ---- */

/* Is the kernel named by one of the comma-separated globs? */
bool bench_is_named(const char *globs, const char *name)
{
    char glob[128];
    for (const char *at = globs; *at != '\0';) {
        size_t length = strcspn(at, ",");
        if (length < sizeof glob) {
            memcpy(glob, at, length);
            glob[length] = '\0';
            if (fnmatch(glob, name, 0) == 0) {
                return true;
            }
        }
        at += length + (at[length] == ',');
    }
    return false;
}

/* The levels of the vector kernels: the best of them serves all token counts, those below it never
 * better. Kernels of special instructions (tiles) serve some token counts. */
static bool is_vector_level(const esp_kernel_info *info)
{
    static const char *const levels[] = {"avx512", "avx2", "portable"};
    for (int i = 0; i < COUNT(levels); i++) {
        if (strcmp(info->level, levels[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* Every library and, of ours, all special ones and the best vector level, which comes first. */
static esp_status add_dense_rivals(problem_group *group, bench_row *row, esp_error *error)
{
    bool has_vectors = false;
    for (int i = 0; i < esp_kernel_count(); i++) {
        esp_kernel_info info = esp_kernel_get(i);
        if (!is_dense(&info) || !can_run(group, i, &group->dense) ||
            (is_vector_level(&info) && has_vectors)) {
            continue;
        }
        int place;
        has_vectors = has_vectors || is_vector_level(&info);
        TRY(add_contestant(group, &group->dense, info.name, false, &place, error));
        bench_note(row->rivals, &row->rival_count, place);
    }
    return ESP_OK;
}

/* Kernels named by --against, dense ones on the dense weight, others on the row's. */
static esp_status add_named_rivals(problem_group *group, bench_row *row, esp_error *error)
{
    for (int i = 0; i < esp_kernel_count(); i++) {
        esp_kernel_info info = esp_kernel_get(i);
        const esp_matmul_problem *problem =
            is_dense(&info) ? &group->dense : &group->problems[row->problem];
        if (bench_is_named(group->args->against, info.name) && can_run(group, i, problem)) {
            int place;
            TRY(add_contestant(group, problem, info.name, false, &place, error));
            bench_note(row->rivals, &row->rival_count, place);
        }
    }
    return ESP_OK;
}

static esp_status add_widened(problem_group *group, bench_row *row, esp_error *error)
{
    esp_matmul_problem wide = group->dense;
    wide.weight_type = ESP_F32;
    if (group->dense.weight_type == ESP_F32 || group->dense.compute != ESP_COMPUTE_F32) {
        return ESP_OK;
    }
    for (int i = 0; i < esp_kernel_count(); i++) {
        esp_kernel_info info = esp_kernel_get(i);
        if (is_library(&info) && can_run(group, i, &wide)) {
            int place;
            TRY(add_contestant(group, &wide, info.name, true, &place, error));
            bench_note(row->widened, &row->wide_count, place);
        }
    }
    return ESP_OK;
}

static esp_status add_rivals(problem_group *group, bench_row *row, esp_error *error)
{
    const char *against = group->args->against;
    if (strcmp(against, "none") == 0) {
        return ESP_OK;
    }
    if (strcmp(against, "dense") != 0) {
        bench_gpu_add_rivals(group, row, against);
        return add_named_rivals(group, row, error);
    }
    bench_gpu_add_rivals(group, row, NULL);
    TRY(add_dense_rivals(group, row, error));
    return add_widened(group, row, error);
}

/* ---- rows ---- */

static esp_status add_row(problem_group *group, int problem, int runner, bool chosen,
                          esp_error *error)
{
    if (group->row_count == BENCH_MAX_CONTESTANTS) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.bad_value", "more than %d rows",
                        BENCH_MAX_CONTESTANTS);
    }
    group->rows[group->row_count++] =
        (bench_row){.problem = problem, .runner = runner, .chosen = chosen};
    return ESP_OK;
}

/* The plan's choice first, then, with --all-kernels, whoever else can. */
static esp_status add_problem_rows(problem_group *group, int problem, esp_error *error)
{
    const char *glob = group->cli->common.kernel;
    const esp_matmul_problem *what = &group->problems[problem];
    int chosen, place;
    TRY(add_contestant(group, what, glob, false, &chosen, error));
    TRY(add_row(group, problem, chosen, true, error));
    for (int i = 0; group->args->all_kernels && i < esp_kernel_count(); i++) {
        esp_kernel_info info = esp_kernel_get(i);
        if (!can_run(group, i, what) || (glob != NULL && fnmatch(glob, info.name, 0) != 0)) {
            continue;
        }
        TRY(add_contestant(group, what, info.name, false, &place, error));
        if (place != chosen) {
            TRY(add_row(group, problem, place, false, error));
        }
    }
    return ESP_OK;
}

esp_status bench_add_rows(problem_group *group, esp_error *error)
{
    for (int i = 0; i < group->problem_count; i++) {
        TRY(add_problem_rows(group, i, error));
    }
    if (group->gpu != NULL && strcmp(group->args->against, "none") != 0) {
        TRY(group->gpu->meet(group->gpu, group, error));
    }
    for (int i = 0; i < group->row_count; i++) {
        TRY(add_rivals(group, &group->rows[i], error));
    }
    return ESP_OK;
}
