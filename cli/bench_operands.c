/* Random operands of a group of measured products, besides the weights. */
#include <stdlib.h>

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

esp_status bench_make_operands(problem_group *group, esp_error *error)
{
    const esp_matmul_problem *problem = &group->dense;
    uint64_t seed = (uint64_t)group->args->seed * 16;
    int64_t rows = bench_rows_of_y(problem), tokens = problem->tokens;
    void *scale, *bias;
    size_t bytes;
    TRY(bench_random_matrix(problem->in_features, tokens, problem->act_type, 1, seed + 1, &group->x,
                            &group->x_bytes, error));
    TRY(bench_random_matrix(rows, tokens, problem->out_type, 1, seed + 2, &group->y,
                            &group->y_bytes, error));
    TRY(bench_random_matrix(rows, tokens, problem->out_type, 1, seed + 2, &group->ref_y, &bytes,
                            error));
    TRY(bench_random_matrix(rows, tokens, problem->out_type, 1, seed + 3, &group->residual, &bytes,
                            error));
    TRY(bench_random_matrix(problem->out_features, 1, ESP_F32, 1, seed + 4, &scale, &bytes, error));
    group->scale = scale;
    TRY(bench_random_matrix(problem->out_features, 1, ESP_F32, 1, seed + 5, &bias, &bytes, error));
    group->bias = bias;
    return ESP_OK;
}

void bench_free_operands(problem_group *group)
{
    free(group->x);
    free(group->y);
    free(group->ref_y);
    free(group->residual);
    free(group->scale);
    free(group->bias);
}
