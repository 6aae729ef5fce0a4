/* Before a contestant is timed, the first and the last token of its result are compared with the
 * reference back end, on the same weight. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench_job.h"
#include "pinning.h"

/* Where token t begins, in elements. */
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

/* Writes the token's place of ref_y. */
static esp_status run_reference(problem_group *group, const contestant *runner, int64_t token,
                                esp_error *error)
{
    esp_matmul_problem one = runner->problem;
    int64_t rows = bench_rows_of_y(&one);
    size_t x_width = esp_dtype_bits(one.act_type) / 8, y_width = esp_dtype_bits(one.out_type) / 8;
    size_t x_at = (size_t)token_offset(one.x_layout, token, one.in_features) * x_width;
    size_t y_at = (size_t)token_offset(one.y_layout, token, rows) * y_width;
    TRY(bench_weight_ref(group->store, runner->weight, error));
    esp_matmul_args args = {.weight = runner->weight->ref,
                            .x = (const char *)group->data.x + x_at,
                            .y = (char *)group->data.ref_y + y_at,
                            .scale = group->data.scale,
                            .bias = group->data.bias,
                            .residual = (const char *)group->data.residual + y_at};
    args.x_stride = one.x_layout == ESP_FEATURE_MAJOR ? one.tokens : 0;
    args.y_stride = one.y_layout == ESP_FEATURE_MAJOR ? one.tokens : 0;
    one.tokens = 1;
    esp_plan *plan;
    TRY(esp_plan_create(group->store->ref, &one, NULL, &plan, error));
    args.workspace = bench_aligned_memory(esp_plan_workspace_bytes(plan));
    esp_status status = args.workspace != NULL ? esp_matmul_run(plan, &args, error)
                                               : cli_fail_memory(error, "a workspace");
    free(args.workspace);
    esp_plan_free(plan);
    return status;
}

static double token_error(const problem_group *group, int64_t token)
{
    const esp_matmul_problem *problem = &group->dense;
    int64_t rows = bench_rows_of_y(problem);
    int64_t first = token_offset(problem->y_layout, token, rows);
    int64_t stride = problem->y_layout == ESP_FEATURE_MAJOR ? problem->tokens : 1;
    double largest = 0, worst = 0;
    for (int64_t i = 0; i < rows; i++) {
        double ref = (double)element(group->data.ref_y, problem->out_type, first + i * stride);
        double got = (double)element(group->data.y, problem->out_type, first + i * stride);
        largest = fmax(largest, fabs(ref));
        worst = isfinite(got) ? fmax(worst, fabs(got - ref)) : (double)INFINITY;
    }
    return largest > 0 ? worst / largest : worst;
}

static esp_status check_one(problem_group *group, contestant *runner, esp_error *error)
{
    esp_dtype type = group->dense.out_type;
    double limit = type == ESP_F32 ? 1e-4 : type == ESP_F16 ? 2e-3 : 1e-2;
    bench_data *data = &group->data;
    esp_device *device = group->cli->device;
    memset(data->y, 0xff, data->y_bytes); /* NaN: what is not written shows */
    TRY(esp_device_upload(device, data->device_y[0], data->y, data->y_bytes, error));
    runner->next = 0;
    TRY(bench_run_once(runner, error));
    TRY(esp_device_wait(device, error));
    TRY(esp_device_download(device, data->y, data->device_y[0], data->y_bytes, error));
    pinning_new_threads();
    runner->error = fmax(token_error(group, 0), token_error(group, group->dense.tokens - 1));
    if (runner->error > limit) {
        char text[ESP_PROBLEM_TEXT_MAX];
        esp_matmul_problem_print(&runner->problem, text);
        return cli_fail(error, ESP_CHECK_FAILED, "bench.wrong_result",
                        "%s: %s differs from the reference by %.3g of the largest value, more than "
                        "%.3g; it is not timed",
                        text, runner->name, runner->error, limit);
    }
    return ESP_OK;
}

esp_status bench_check_all(problem_group *group, esp_error *error)
{
    const weight_set *done = NULL;
    for (int i = 0; i < group->contestant_count; i++) {
        contestant *runner = &group->contestants[i];
        if (runner->plan == NULL) { /* checked where it was made */
            continue;
        }
        if (runner->weight != done) { /* contestants of one weight follow each other */
            TRY(run_reference(group, runner, 0, error));
            TRY(run_reference(group, runner, group->dense.tokens - 1, error));
            done = runner->weight;
        }
        TRY(check_one(group, runner, error));
    }
    return ESP_OK;
}
