/* csr, bsr, rows and cols on threads: one kernel for all four, which reads a row as runs of stored
 * values (op/host_weight.h). X is packed in tiles of at most 16 tokens, whose sums stay in
 * registers while a row's values pass by; rows are shared out among threads. Portable C, no
 * blocking over columns: right before fast. */
#include "cpu/kernels.h"
#include "cpu/matmul.h"
#include "format/format.h"

#define TILE 16    /* tokens */
#define ROWS 16    /* of a piece */
#define PASS 256   /* tokens of one pass over the weight */
#define PER_NS 1.5 /* multiply-adds of one thread */

static const char *why_not(const esp_kernel *kernel, const esp_device *device,
                           const esp_matmul_problem *problem)
{
    (void)device;
    return esp_host_format_why_not(*(const esp_host_format *)kernel->variant, &problem->pattern);
}

static size_t round_up(size_t count)
{
    return (count + 15) / 16 * 16;
}

static cpu_workspace sizes_of(const esp_device *device, const esp_matmul_problem *problem)
{
    int64_t lanes = cpu_level_of(device)->lanes;
    cpu_workspace sizes = {.block = esp_ceil_div(ESP_MIN(problem->tokens, PASS), lanes) * lanes};
    sizes.x = round_up((size_t)(problem->in_features + 1) * (size_t)sizes.block);
    if ((problem->epilogue & ESP_EP_SWIGLU) != 0) {
        sizes.raw = round_up((size_t)problem->out_features * (size_t)sizes.block);
    }
    sizes.scratch = round_up(ROWS * (size_t)sizes.block);
    sizes.bytes =
        sizeof(float) * (sizes.x + sizes.raw + sizes.scratch * (size_t)device->context->threads);
    return sizes;
}

static size_t workspace_bytes(const esp_kernel *kernel, const esp_device *device,
                              const esp_matmul_problem *problem)
{
    (void)kernel;
    return sizes_of(device, problem).bytes;
}

static double stored_values(const esp_matmul_problem *problem)
{
    const esp_pattern *pattern = &problem->pattern;
    int64_t out = problem->out_features, in = problem->in_features;
    switch (pattern->kind) {
    case ESP_PATTERN_ROWS:
        return (double)esp_pattern_kept_of(pattern, out) * (double)in;
    case ESP_PATTERN_COLS:
        return (double)esp_pattern_kept_of(pattern, in) * (double)out;
    case ESP_PATTERN_BLOCK:
        return (double)esp_pattern_kept_of(pattern, esp_ceil_div(out, pattern->block_rows) *
                                                        esp_ceil_div(in, pattern->block_cols)) *
               (double)pattern->block_rows * (double)pattern->block_cols;
    default:
        return (double)esp_pattern_kept_of(pattern, out * in);
    }
}

static double score_us(const esp_kernel *kernel, const esp_device *device,
                       const esp_matmul_problem *problem)
{
    (void)kernel;
    double stored = stored_values(problem), tokens = (double)problem->tokens;
    double width = (double)esp_dtype_bytes(problem->weight_type) + 2;
    double memory = cpu_memory_us(device, stored * width);
    double compute = cpu_compute_us(device, stored * (tokens < 4 ? 4 : tokens), PER_NS);
    return 2 + ESP_MAX(memory, compute) +
           cpu_memory_us(device, (double)problem->in_features * tokens * 8);
}

/* ---- the product ---- */

typedef struct rows_job {
    const cpu_pass *pass;
    const esp_host_weight *weight;
    bool rounds; /* weights are rounded to bf16 */
} rows_job;

/* Inlined for constant widths. x: a tile [in + 1][width]. */
static inline __attribute__((always_inline)) void sum_row(const rows_job *job, int64_t row,
                                                          const float *x, int width, float *to)
{
    const esp_host_weight *weight = job->weight;
    float sums[TILE] = {0};
    int64_t first, runs = esp_host_runs(weight, row, &first);
    for (int64_t k = first; k < first + runs; k++) {
        esp_host_run run = esp_host_run_at(weight, row, k);
        for (int64_t j = 0; j < run.length; j++) {
            float w = esp_weight_at(weight->dtype, weight->values, run.value + j);
            w = job->rounds ? esp_float_of_bf16(esp_bf16_of_float(w)) : w;
            const float *column = x + (run.column + j) * width;
            for (int t = 0; t < width; t++) {
                sums[t] += w * column[t];
            }
        }
    }
    memcpy(to, sums, (size_t)width * sizeof *to);
}

static void sum_tile(const rows_job *job, int64_t row, const float *x, int64_t width, float *to)
{
    switch (width) {
    case 16:
        sum_row(job, row, x, 16, to);
        return;
    case 8:
        sum_row(job, row, x, 8, to);
        return;
    default:
        sum_row(job, row, x, 4, to);
        return;
    }
}

static void run_rows(void *user, int64_t begin, int64_t end, int thread)
{
    const rows_job *job = user;
    const cpu_pass *pass = job->pass;
    cpu_piece piece = {.weight = job->weight,
                       .tokens = pass->padded,
                       .sums = pass->scratch + (size_t)thread * pass->sizes.scratch,
                       .sums_stride = pass->padded};
    for (int64_t chunk = begin; chunk < end; chunk++) {
        piece.row = chunk * ROWS;
        piece.rows = ESP_MIN(ROWS, job->weight->out_features - piece.row);
        for (int64_t r = 0; r < piece.rows; r++) {
            for (int64_t first = 0; first < pass->padded;) { /* tiles as cpu_pack_x cuts them */
                int64_t width = TILE;
                while (width > pass->padded - first) {
                    width /= 2;
                }
                sum_tile(job, piece.row + r, pass->x + first * (job->weight->in_features + 1),
                         width, piece.sums + r * piece.sums_stride + first);
                first += width;
            }
        }
        cpu_finish_piece(pass, &piece);
    }
}

static esp_status launch(const esp_matmul_call *call, esp_error *error)
{
    (void)error;
    const esp_matmul_problem *problem = call->problem;
    cpu_pass pass = {.call = call,
                     .level = cpu_level_of(call->device),
                     .sizes = sizes_of(call->device, problem)};
    rows_job job = {.pass = &pass,
                    .weight = call->args->weight->state,
                    .rounds =
                        problem->compute == ESP_COMPUTE_BF16 && problem->weight_type != ESP_BF16};
    pass.most_vectors = TILE / pass.level->lanes;
    pass.x = call->args->workspace;
    pass.raw = pass.x + pass.sizes.x;
    pass.scratch = pass.raw + pass.sizes.raw;
    int64_t chunks = esp_ceil_div(problem->out_features, ROWS);
    for (pass.token = 0; pass.token < problem->tokens; pass.token += pass.sizes.block) {
        pass.tokens = ESP_MIN(pass.sizes.block, problem->tokens - pass.token);
        pass.padded = esp_ceil_div(pass.tokens, pass.level->lanes) * pass.level->lanes;
        cpu_pack_x(&pass);
        esp_parallel_for(call->device->context, chunks, 1, run_rows, &job);
        if ((problem->epilogue & ESP_EP_SWIGLU) != 0) {
            cpu_finish_swiglu(&pass);
        }
    }
    return ESP_OK;
}

#define RUN_KERNEL(word, host_format)                                                              \
    static const esp_host_format format_##word = host_format;                                      \
    const esp_kernel esp_cpu_##word##_kernel = {                                                   \
        .name = "matmul_" #word "_any_any__cpu_portable",                                          \
        .device = "cpu",                                                                           \
        .format = #word,                                                                           \
        .level = "portable",                                                                       \
        .idea = "runs of stored values over packed tiles of X, row by row",                        \
        .why_not = why_not,                                                                        \
        .workspace_bytes = workspace_bytes,                                                        \
        .score_us = score_us,                                                                      \
        .launch = launch,                                                                          \
        .variant = &format_##word,                                                                 \
    }

RUN_KERNEL(csr, ESP_HOST_CSR);
RUN_KERNEL(bsr, ESP_HOST_BSR);
RUN_KERNEL(rows, ESP_HOST_ROWS);
RUN_KERNEL(cols, ESP_HOST_COLS);
