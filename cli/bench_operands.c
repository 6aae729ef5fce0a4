/* What a measured product works on: random activations, and one random weight, pruned by magnitude
 * into the pattern, as sparse and as dense weight alike; several copies of each, where reading the
 * weight is what takes the time. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench_job.h"

#define FEW_TOKENS 16
#define MAX_COPIES 256

/* ---- operands ---- */

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

/* [rows][columns] of uniform numbers in [-scale, scale). */
static esp_status random_matrix(int64_t rows, int64_t columns, esp_dtype dtype, float scale,
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

esp_status bench_make_operands(problem_job *job, esp_error *error)
{
    const esp_matmul_problem *problem = &job->problem;
    uint64_t seed = (uint64_t)job->args->seed * 16;
    int64_t rows = bench_rows_of_y(problem);
    void *scale, *bias;
    size_t bytes;
    TRY(random_matrix(problem->in_features, problem->tokens, problem->act_type, 1, seed + 1,
                      &job->x, &job->x_bytes, error));
    TRY(random_matrix(rows, problem->tokens, problem->out_type, 1, seed + 2, &job->y, &job->y_bytes,
                      error));
    TRY(random_matrix(rows, problem->tokens, problem->out_type, 1, seed + 2, &job->ref_y, &bytes,
                      error));
    TRY(random_matrix(rows, problem->tokens, problem->out_type, 1, seed + 3, &job->residual, &bytes,
                      error));
    TRY(random_matrix(problem->out_features, 1, ESP_F32, 1, seed + 4, &scale, &bytes, error));
    job->scale = scale;
    TRY(random_matrix(problem->out_features, 1, ESP_F32, 1, seed + 5, &bias, &bytes, error));
    job->bias = bias;
    return ESP_OK;
}

/* ---- weights ---- */

static size_t rotate_bytes(const problem_job *job)
{
    if (job->args->rotate >= 0) {
        return (size_t)job->args->rotate;
    }
    if (job->problem.tokens > FEW_TOKENS) {
        return 0;
    }
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    size_t wanted = cache > 0 ? 2 * (size_t)cache : (size_t)64 << 20;
    size_t least = (size_t)64 << 20, most = (size_t)512 << 20;
    return wanted < least ? least : wanted > most ? most : wanted;
}

static esp_status pack_copies(problem_job *job, const esp_sparse *sparse, weight_copies *weight,
                              esp_error *error)
{
    size_t bytes = esp_sparse_bytes(sparse);
    size_t wanted = bytes > 0 ? rotate_bytes(job) / bytes + 1 : 1;
    int copies = wanted < MAX_COPIES ? (int)wanted : MAX_COPIES;
    weight->copies = calloc((size_t)copies, sizeof(esp_packed *));
    if (weight->copies == NULL) {
        return cli_fail_memory(error, "copies of the weight");
    }
    for (; weight->count < copies; weight->count++) {
        TRY(esp_pack(job->cli->device, sparse, &weight->copies[weight->count], error));
    }
    weight->bytes = esp_packed_bytes(weight->copies[0]);
    return ESP_OK;
}

static esp_status pack_pattern(problem_job *job, const esp_tensor *dense, esp_error *error)
{
    esp_context *context = job->cli->context;
    esp_sparse *sparse;
    TRY(esp_sparse_encode(context, &job->dense_problem.pattern, dense, NULL, &sparse, error));
    esp_status status = pack_copies(job, sparse, &job->dense_weight, error);
    if (status == ESP_OK) {
        status = esp_pack(job->ref, sparse, &job->ref_weight, error);
    }
    esp_sparse_free(sparse);
    return status;
}

/* The same values as an f32 weight, for the libraries that take no other. */
static esp_status pack_widened(problem_job *job, const esp_tensor *dense, esp_error *error)
{
    int64_t elems;
    size_t bytes;
    esp_tensor wide = *dense;
    wide.dtype = ESP_F32;
    TRY(esp_tensor_size(&wide, &elems, &bytes, error));
    wide.data = bench_aligned_memory(bytes);
    if (wide.data == NULL) {
        return cli_fail_memory(error, "the weight in f32");
    }
    esp_widen(dense->dtype, dense->data, elems, wide.data);
    esp_sparse *sparse = NULL;
    esp_status status = esp_sparse_encode(job->cli->context, &job->wide_problem.pattern, &wide,
                                          NULL, &sparse, error);
    if (status == ESP_OK) {
        status = pack_copies(job, sparse, &job->wide_weight, error);
    }
    esp_sparse_free(sparse);
    free(wide.data);
    return status;
}

/* Packs dense under its mask as the problem's pattern, and with zeros as a dense weight. */
static esp_status prune_and_pack(problem_job *job, esp_tensor *dense, esp_error *error)
{
    esp_context *context = job->cli->context;
    const esp_pattern *pattern = &job->problem.pattern;
    if (pattern->kind != ESP_PATTERN_DENSE) {
        esp_mask *mask;
        esp_sparse *sparse = NULL;
        TRY(esp_prune_mask(context, dense, pattern, NULL, &mask, NULL, error));
        esp_status status = esp_sparse_encode(context, pattern, dense, mask, &sparse, error);
        if (status == ESP_OK) {
            status = pack_copies(job, sparse, &job->sparse_weight, error);
        }
        if (status == ESP_OK) {
            status = esp_mask_apply(mask, dense, error);
        }
        esp_sparse_free(sparse);
        esp_mask_free(mask);
        TRY(status);
    }
    TRY(pack_pattern(job, dense, error));
    return job->result->wide_count > 0 ? pack_widened(job, dense, error) : ESP_OK;
}

esp_status bench_make_weights(problem_job *job, esp_error *error)
{
    const esp_matmul_problem *problem = &job->problem;
    size_t bytes;
    esp_tensor dense = {.dtype = problem->weight_type,
                        .rank = 2,
                        .shape = {problem->out_features, problem->in_features}};
    float scale = 1.0f / sqrtf((float)problem->in_features);
    TRY(random_matrix(problem->out_features, problem->in_features, problem->weight_type, scale,
                      (uint64_t)job->args->seed * 16, &dense.data, &bytes, error));
    esp_status status = prune_and_pack(job, &dense, error);
    free(dense.data);
    return status;
}

static void free_copies(weight_copies *weight)
{
    for (int i = 0; i < weight->count; i++) {
        esp_packed_free(weight->copies[i]);
    }
    free(weight->copies);
}

void bench_free_operands(problem_job *job)
{
    free_copies(&job->sparse_weight);
    free_copies(&job->dense_weight);
    free_copies(&job->wide_weight);
    esp_packed_free(job->ref_weight);
    esp_device_close(job->ref);
    free(job->x);
    free(job->y);
    free(job->ref_y);
    free(job->residual);
    free(job->scale);
    free(job->bias);
}
