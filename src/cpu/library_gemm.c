#include "cpu/library_gemm.h"

#include <limits.h>

#include "cpu/kernels.h"
#include "cpu/level.h"

#define PIECE 16384 /* outputs that are worth handing to another thread */

const char *cpu_library_why_not(const esp_matmul_problem *problem)
{
    if (problem->pattern.kind != ESP_PATTERN_DENSE) {
        return "it multiplies dense weights only";
    }
    if (problem->out_type != ESP_F32) {
        return "it writes f32 only";
    }
    if ((problem->epilogue & (ESP_EP_SWIGLU | ESP_EP_RESIDUAL)) != 0) {
        return "it has no swiglu and no residual";
    }
    if (problem->out_features > INT_MAX || problem->in_features > INT_MAX ||
        problem->tokens > INT_MAX) {
        return "a size is above 2147483647";
    }
    return NULL;
}

double cpu_library_score_us(const esp_device *device, const esp_matmul_problem *problem,
                            const cpu_library_speed *speed)
{
    double weights = (double)problem->out_features * (double)problem->in_features;
    double threads = (double)device->context->threads;
    double memory = cpu_memory_us(device, weights * speed->weight_bytes);
    if (problem->tokens == 1) {
        return 10 + memory;
    }
    double least = 1e-3 * weights * speed->least_ns / threads;
    double compute = 1e-3 * weights * speed->pass_ns / threads +
                     cpu_compute_us(device, weights * (double)problem->tokens, speed->rate);
    return 10 + ESP_MAX(memory, ESP_MAX(least, compute));
}

esp_status cpu_library_gemm(const esp_matmul_call *call, const void *x, int64_t x_stride,
                            cpu_gemm *gemm, esp_error *error)
{
    const esp_matmul_problem *problem = call->problem;
    const esp_matmul_args *args = call->args;
    const esp_host_weight *weight = args->weight->state;
    if (x_stride > INT_MAX || args->y_stride > INT_MAX) {
        return esp_fail(error, ESP_UNSUPPORTED, "matmul.bad_stride",
                        "matmul: %s takes strides up to 2147483647", call->kernel->level);
    }
    bool x_by_token = problem->x_layout == ESP_TOKEN_MAJOR;
    cpu_gemm made = {.depth = problem->in_features, .c = args->y, .stride_c = args->y_stride};
    if (problem->y_layout == ESP_TOKEN_MAJOR) {
        made.rows = problem->tokens;
        made.columns = problem->out_features;
        made.a = x;
        made.stride_a = x_stride;
        made.transpose_a = !x_by_token;
        made.b = weight->values;
        made.stride_b = weight->in_features;
        made.transpose_b = true;
    } else {
        made.rows = problem->out_features;
        made.columns = problem->tokens;
        made.a = weight->values;
        made.stride_a = weight->in_features;
        made.b = x;
        made.stride_b = x_stride;
        made.transpose_b = x_by_token;
    }
    *gemm = made;
    return ESP_OK;
}

static void finish_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const esp_matmul_call *call = user;
    const esp_matmul_problem *problem = call->problem;
    const esp_matmul_args *args = call->args;
    unsigned epilogue = problem->epilogue;
    const cpu_level *level = cpu_level_of(call->device);
    bool y_by_token = problem->y_layout == ESP_TOKEN_MAJOR;
    int64_t columns = y_by_token ? problem->out_features : problem->tokens;
    for (int64_t row = begin; row < end; row++) {
        float *y = (float *)args->y + row * args->y_stride;
        for (int64_t i = 0; i < columns; i++) {
            int64_t o = y_by_token ? i : row;
            y[i] = (epilogue & ESP_EP_SCALE) != 0 ? y[i] * args->scale[o] : y[i];
            y[i] = (epilogue & ESP_EP_BIAS) != 0 ? y[i] + args->bias[o] : y[i];
        }
        level->activate(epilogue & ~(unsigned)(ESP_EP_SCALE | ESP_EP_BIAS), y, columns);
    }
}

void cpu_library_finish(const esp_matmul_call *call)
{
    const esp_matmul_problem *problem = call->problem;
    if (problem->epilogue == 0) {
        return;
    }
    esp_matmul_call copy = *call;
    bool y_by_token = problem->y_layout == ESP_TOKEN_MAJOR;
    int64_t rows = y_by_token ? problem->tokens : problem->out_features;
    int64_t columns = y_by_token ? problem->out_features : problem->tokens;
    esp_parallel_for(call->device->context, rows, 1 + PIECE / columns, finish_rows, &copy);
}
