/* Random operands of a group of measured products, besides the weights. */
#include <stdlib.h>
#include <string.h>

#include "bench_job.h"

void *bench_aligned_memory(size_t bytes)
{
    return bytes > SIZE_MAX - 64 ? NULL : aligned_alloc(64, (bytes + 64) / 64 * 64);
}

static bool tensor_bytes(int64_t rows, int64_t columns, esp_dtype dtype, int64_t *elems,
                         size_t *bytes)
{
    esp_tensor tensor = {.dtype = dtype, .rank = 2, .shape = {rows, columns}};
    return esp_tensor_size(&tensor, elems, bytes, NULL) == ESP_OK;
}

esp_status bench_random_matrix(int64_t rows, int64_t columns, esp_dtype dtype, float scale,
                               uint64_t seed, void **data, size_t *bytes, esp_error *error)
{
    enum { PIECE = 4096 };
    float piece[PIECE];
    int64_t elems;
    char *memory =
        tensor_bytes(rows, columns, dtype, &elems, bytes) ? bench_aligned_memory(*bytes) : NULL;
    if (memory == NULL) {
        return cli_fail(error, ESP_OUT_OF_MEMORY, "memory.exhausted",
                        "out of memory for a matrix of %lld x %lld", (long long)rows,
                        (long long)columns);
    }
    for (int64_t first = 0; first < elems; first += PIECE) {
        int64_t count = elems - first < PIECE ? elems - first : PIECE;
        for (int64_t i = 0; i < count; i++) {
            piece[i] = scale * ((float)(bench_random(&seed) >> 40) * 0x1p-23f - 1.0f);
        }
        esp_narrow(dtype, piece, count, memory + (size_t)first * (esp_dtype_bits(dtype) / 8));
    }
    *data = memory;
    return ESP_OK;
}

int64_t bench_rows_of_y(const esp_matmul_problem *problem)
{
    return problem->epilogue & ESP_EP_SWIGLU ? problem->out_features / 2 : problem->out_features;
}

static esp_status to_device(esp_device *device, const void *values, size_t bytes, void *memory,
                            esp_error *error)
{
    void *taken = esp_device_alloc(device, bytes);
    if (taken == NULL) {
        return cli_fail(error, ESP_OUT_OF_MEMORY, "memory.exhausted",
                        "out of memory of %s for %zu bytes", esp_device_name(device), bytes);
    }
    memcpy(memory, &taken, sizeof taken);
    return esp_device_upload(device, taken, values, bytes, error);
}

/* Y has room for a product without swiglu, which is what rivals compute. */
static esp_status upload(problem_group *group, size_t residual_bytes, esp_error *error)
{
    const esp_matmul_problem *problem = &group->dense;
    esp_device *device = group->cli->device;
    bench_data *data = &group->data;
    size_t out_bytes = (size_t)problem->out_features * sizeof(float);
    size_t whole_bytes = (size_t)problem->out_features * (size_t)problem->tokens *
                         (esp_dtype_bits(problem->out_type) / 8);
    data->copies = group->gpu != NULL ? BENCH_MOST_COPIES : 1;
    for (int i = 0; i < data->copies; i++) {
        TRY(to_device(device, data->x, data->x_bytes, &data->device_x[i], error));
        data->device_y[i] = esp_device_alloc(device, whole_bytes);
        if (data->device_y[i] == NULL) {
            return cli_fail_memory(error, "results");
        }
        TRY(esp_device_upload(device, data->device_y[i], data->y, data->y_bytes, error));
    }
    TRY(to_device(device, data->residual, residual_bytes, &data->device_residual, error));
    TRY(to_device(device, data->scale, out_bytes, &data->device_scale, error));
    return to_device(device, data->bias, out_bytes, &data->device_bias, error);
}

esp_status bench_make_operands(problem_group *group, esp_error *error)
{
    const esp_matmul_problem *problem = &group->dense;
    bench_data *data = &group->data;
    uint64_t seed = (uint64_t)group->args->seed * 16;
    int64_t rows = bench_rows_of_y(problem), tokens = problem->tokens;
    void *scale, *bias;
    size_t bytes, residual_bytes;
    TRY(bench_random_matrix(problem->in_features, tokens, problem->act_type, 1, seed + 1, &data->x,
                            &data->x_bytes, error));
    TRY(bench_random_matrix(rows, tokens, problem->out_type, 1, seed + 2, &data->y, &data->y_bytes,
                            error));
    TRY(bench_random_matrix(rows, tokens, problem->out_type, 1, seed + 2, &data->ref_y, &bytes,
                            error));
    TRY(bench_random_matrix(rows, tokens, problem->out_type, 1, seed + 3, &data->residual,
                            &residual_bytes, error));
    TRY(bench_random_matrix(problem->out_features, 1, ESP_F32, 1, seed + 4, &scale, &bytes, error));
    data->scale = scale;
    TRY(bench_random_matrix(problem->out_features, 1, ESP_F32, 1, seed + 5, &bias, &bytes, error));
    data->bias = bias;
    return upload(group, residual_bytes, error);
}

void bench_free_operands(problem_group *group)
{
    bench_data *data = &group->data;
    void *const here[] = {data->x, data->y, data->ref_y, data->residual, data->scale, data->bias};
    void *const there[] = {data->device_residual, data->device_scale, data->device_bias};
    for (int i = 0; i < COUNT(here); i++) {
        free(here[i]);
    }
    for (int i = 0; i < COUNT(there); i++) {
        esp_device_release(group->cli->device, there[i]);
    }
    for (int i = 0; i < BENCH_MOST_COPIES; i++) {
        esp_device_release(group->cli->device, data->device_x[i]);
        esp_device_release(group->cli->device, data->device_y[i]);
    }
}
