/* Times one product: the kernel that is chosen for it and, as rivals, every dense kernel that could
 * run the same shape.
 *
 * All work on the same random weights, pruned by magnitude into the pattern; the dense ones hold
 * the zeros. Before anything is timed, two tokens of each result are compared with the reference
 * back end. Rounds are interleaved, so that a change of the machine's mood hits all alike. With few
 * tokens a product is bound by reading the weight: then several copies are used in turn, more than
 * the last cache holds, because a model reads its weights once per token. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"

#define FEW_TOKENS 16
#define MAX_COPIES 256
#define LEAST_ROUND_S 5e-3

/* A weight on the device, several times. */
typedef struct weight_copies {
    esp_packed **copies;
    int count, next;
    size_t bytes; /* of one */
} weight_copies;

typedef struct contestant {
    esp_plan *plan;
    weight_copies *weight;
    void *workspace;
    int repeats; /* runs per round */
    double *round_us;
    kernel_times *times;
} contestant;

typedef struct problem_job {
    cli_state *cli;
    const bench_args *args;
    esp_matmul_problem problem, dense_problem;
    weight_copies sparse_weight, dense_weight;
    esp_device *ref;
    esp_packed *ref_weight;
    void *x, *y, *ref_y, *residual;
    float *scale, *bias;
    size_t x_bytes, y_bytes;
    contestant contestants[BENCH_MAX_KERNELS + 1];
    int contestant_count;
    problem_result *result;
} problem_job;

/* ---- operands ---- */

static void *aligned_memory(size_t bytes)
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
        tensor_bytes(rows, columns, dtype, &elems, bytes) ? aligned_memory(*bytes) : NULL;
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

static int64_t rows_of_y(const esp_matmul_problem *problem)
{
    return problem->epilogue & ESP_EP_SWIGLU ? problem->out_features / 2 : problem->out_features;
}

static esp_status make_operands(problem_job *job, esp_error *error)
{
    const esp_matmul_problem *problem = &job->problem;
    uint64_t seed = (uint64_t)job->args->seed * 16;
    int64_t rows = rows_of_y(problem);
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
    return pack_pattern(job, dense, error);
}

static esp_status make_weights(problem_job *job, esp_error *error)
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
    added->workspace = aligned_memory(esp_plan_workspace_bytes(added->plan));
    added->round_us = calloc((size_t)job->args->rounds, sizeof(double));
    return added->workspace != NULL && added->round_us != NULL
               ? ESP_OK
               : cli_fail_memory(error, "a kernel's workspace");
}

static esp_status add_rivals(problem_job *job, esp_error *error)
{
    problem_result *result = job->result;
    for (int i = 0; i < esp_kernel_count() && result->rival_count < BENCH_MAX_KERNELS; i++) {
        esp_kernel_info info = esp_kernel_get(i);
        if (strcmp(info.format, "dense") != 0 || strcmp(info.name, result->chosen.name) == 0 ||
            esp_kernel_why_not(i, job->cli->device, &job->dense_problem) != NULL) {
            continue;
        }
        TRY(add_contestant(job, &job->dense_problem, info.name, &job->dense_weight,
                           &result->rivals[result->rival_count], error));
        result->rival_count++;
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
    int64_t rows = rows_of_y(&one);
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
    args.workspace = aligned_memory(esp_plan_workspace_bytes(plan));
    esp_status status = args.workspace != NULL ? esp_matmul_run(plan, &args, error)
                                               : cli_fail_memory(error, "a workspace");
    free(args.workspace);
    esp_plan_free(plan);
    return status;
}

static double token_error(const problem_job *job, int64_t token)
{
    const esp_matmul_problem *problem = &job->problem;
    int64_t rows = rows_of_y(problem);
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
    TRY(make_operands(job, error));
    TRY(make_weights(job, error));
    TRY(check_all(job, error));
    TRY(time_all(job, error));
    summarise(job);
    return ESP_OK;
}

static void free_copies(weight_copies *weight)
{
    for (int i = 0; i < weight->count; i++) {
        esp_packed_free(weight->copies[i]);
    }
    free(weight->copies);
}

static void free_job(problem_job *job)
{
    for (int i = 0; i < COUNT(job->contestants); i++) {
        esp_plan_free(job->contestants[i].plan);
        free(job->contestants[i].workspace);
        free(job->contestants[i].round_us);
    }
    free_copies(&job->sparse_weight);
    free_copies(&job->dense_weight);
    esp_packed_free(job->ref_weight);
    esp_device_close(job->ref);
    free(job->x);
    free(job->y);
    free(job->ref_y);
    free(job->residual);
    free(job->scale);
    free(job->bias);
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
