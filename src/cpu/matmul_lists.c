/* csr and bsr products on threads. As matmul.c, with three differences: rows hold what they hold,
 * so pieces are cut to equal numbers of stored values; a thread walks many rows under one group of
 * tokens, few enough for their X to stay in its L2; and a piece's sums cover that group alone. A
 * sum never depends on how pieces are cut. */
#include "cpu/matmul.h"

#define X_BYTES (1 << 20) /* packed X of a group of tokens: half of a common L2 */
#define PIECE_BYTES 16384 /* weight bytes that are worth handing to another thread */
#define PIECES 8
#define SUMS_PADDING 16              /* keeps rows of sums off the same cache sets */
#define ROW_COST 4                   /* what finishing a row costs, in stored values */
#define SLACK (16 * CPU_DENSE_DEPTH) /* bsr: each decoded block ends on a whole vector */

typedef struct lists_job {
    const cpu_pass *pass;
    const esp_host_weight *weight;
    int64_t rows; /* most of one call of a kernel */
    int64_t pieces, groups, group;
} lists_job;

static int64_t sums_floats(const cpu_variant *variant, const cpu_workspace *sizes, int64_t group)
{
    int64_t rows = variant->format == ESP_HOST_CSR ? CPU_LIST_ROWS : CPU_MAX_ROWS;
    return rows * (sizes->few ? CPU_FEW_TOKENS : group + SUMS_PADDING);
}

static int64_t widest_tile(const cpu_variant *variant)
{
    const cpu_level *level = variant->level;
    return level->lanes *
           (variant->format == ESP_HOST_CSR ? level->sparse_vectors : level->dense_vectors);
}

/* Tokens of a group: whole tiles. csr takes all, because its columns are walked in chunks. */
static int64_t group_of(const cpu_variant *variant, const esp_matmul_problem *problem)
{
    int64_t tile = widest_tile(variant);
    int64_t tiles = X_BYTES / (4 * tile * problem->in_features);
    int64_t most = CPU_TOKEN_BLOCK / tile;
    return tile * (variant->format == ESP_HOST_CSR ? most : ESP_MAX(1, ESP_MIN(tiles, most)));
}

static int64_t scratch_floats(const cpu_variant *variant, bool few)
{
    if (variant->format == ESP_HOST_CSR) {
        return few ? 0 : 2 * CPU_LIST_ROWS;
    }
    return few ? CPU_MAX_ROWS * CPU_FEW_TOKENS * variant->level->lanes
               : CPU_MAX_ROWS * CPU_DENSE_DEPTH + SLACK;
}

cpu_workspace cpu_lists_workspace(const cpu_variant *variant, const esp_device *device,
                                  const esp_matmul_problem *problem)
{
    cpu_workspace sizes = {0};
    int64_t tokens = problem->tokens;
    /* beyond, tiles are faster; gathers of csr stay ahead of them for two passes */
    int64_t few_limit = (variant->format == ESP_HOST_CSR ? 2 : 1) * CPU_FEW_TOKENS;
    sizes.few = tokens <= few_limit && !cpu_rounds(problem);
    sizes.block = sizes.few ? ESP_MIN(tokens, CPU_FEW_TOKENS)
                            : cpu_round_up(ESP_MIN(tokens, CPU_TOKEN_BLOCK), variant->level->lanes);
    int64_t row = sizes.few ? cpu_few_stride(problem->in_features) : problem->in_features + 1;
    sizes.x = (size_t)cpu_round_up(row * sizes.block, 16);
    if ((problem->epilogue & ESP_EP_SWIGLU) != 0) {
        sizes.raw = (size_t)cpu_round_up(problem->out_features * sizes.block, 16);
    }
    sizes.scratch = (size_t)(sums_floats(variant, &sizes, group_of(variant, problem)) +
                             scratch_floats(variant, sizes.few));
    sizes.bytes =
        sizeof(float) * (sizes.x + sizes.raw + sizes.scratch * (size_t)device->context->threads);
    return sizes;
}

/* ---- pieces: rows (csr) or block rows (bsr) of about as many stored values each ---- */

static int64_t unit_rows(const esp_host_weight *weight)
{
    return weight->format == ESP_HOST_BSR ? weight->block_rows : 1;
}

/* What stands in front of unit i, in stored values. */
static int64_t work_before(const esp_host_weight *weight, int64_t i)
{
    int64_t values = weight->format == ESP_HOST_BSR ? weight->block_rows * weight->block_cols : 1;
    return esp_host_offset(weight, i) * values + i * unit_rows(weight) * ROW_COST;
}

/* The first unit of piece i of `pieces`; for i = pieces, the number of units. */
static int64_t piece_begin(const lists_job *job, int64_t i)
{
    int64_t units = esp_ceil_div(job->weight->out_features, unit_rows(job->weight));
    double share = (double)work_before(job->weight, units) / (double)job->pieces;
    int64_t low = 0, high = units;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if ((double)work_before(job->weight, middle) < share * (double)i) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return i == job->pieces ? units : low;
}

/* The end of the rows that one call takes from row on: whole block rows where they fit. */
static int64_t call_end(const lists_job *job, int64_t row, int64_t end)
{
    int64_t height = unit_rows(job->weight);
    if (height > job->rows) {
        end = ESP_MIN(end, (row / height + 1) * height);
        return ESP_MIN(end, row + job->rows);
    }
    return ESP_MIN(end, row + job->rows / height * height);
}

static void run_piece(const lists_job *job, int64_t piece_index, int64_t group, int thread)
{
    const cpu_pass *pass = job->pass;
    const cpu_variant *variant = pass->call->kernel->variant;
    const esp_host_weight *weight = job->weight;
    bool few = pass->sizes.few;
    cpu_piece piece = {.weight = weight,
                       .rounds = cpu_rounds(pass->call->problem),
                       .x = pass->x,
                       .x_rows = weight->in_features + 1,
                       .x_stride = cpu_few_stride(weight->in_features),
                       .token = group * job->group,
                       .sums = pass->scratch + (size_t)thread * pass->sizes.scratch};
    piece.tokens = ESP_MIN(job->group, (few ? pass->tokens : pass->padded) - piece.token);
    piece.sums_stride = few ? CPU_FEW_TOKENS : job->group + SUMS_PADDING;
    piece.scratch = piece.sums + sums_floats(variant, &pass->sizes, job->group);
    int64_t begin = piece_begin(job, piece_index) * unit_rows(weight);
    int64_t end =
        ESP_MIN(piece_begin(job, piece_index + 1) * unit_rows(weight), weight->out_features);
    while (begin < end) {
        piece.row = begin;
        begin = call_end(job, begin, end);
        piece.rows = begin - piece.row;
        (few ? pass->level->few : pass->level->many)[variant->format](&piece);
        cpu_finish_piece(pass, &piece);
    }
}

/* Rows vary fastest: threads stay under one group of tokens. */
static void run_pieces(void *user, int64_t begin, int64_t end, int thread)
{
    const lists_job *job = user;
    for (int64_t i = begin; i < end; i++) {
        run_piece(job, i % job->pieces, i / job->pieces, thread);
    }
}

static void run_pass(const cpu_pass *pass)
{
    const esp_host_weight *weight = pass->call->args->weight->state;
    const cpu_variant *variant = pass->call->kernel->variant;
    int64_t threads = pass->call->device->context->threads;
    lists_job job = {.pass = pass, .weight = weight, .groups = 1, .group = CPU_FEW_TOKENS};
    job.rows = variant->format == ESP_HOST_CSR ? CPU_LIST_ROWS : CPU_MAX_ROWS;
    int64_t units = esp_ceil_div(weight->out_features, unit_rows(weight));
    int64_t bytes = work_before(weight, units) * (int64_t)esp_dtype_bytes(weight->dtype);
    if (!pass->sizes.few) {
        job.group = group_of(variant, pass->call->problem);
        job.groups = esp_ceil_div(pass->padded, job.group);
        bytes *= 1 + ESP_MIN(job.group, pass->padded) / 16;
    }
    int64_t most = threads == 1 ? 1 : ESP_MIN(PIECES * threads, 1 + bytes / PIECE_BYTES);
    job.pieces = ESP_MIN(units, most);
    cpu_pack_x(pass);
    esp_parallel_for(pass->call->device->context, job.pieces * job.groups, 1, run_pieces, &job);
    if ((pass->call->problem->epilogue & ESP_EP_SWIGLU) != 0) {
        cpu_finish_swiglu(pass);
    }
}

esp_status cpu_lists_launch(const esp_matmul_call *call, esp_error *error)
{
    (void)error;
    const cpu_variant *variant = call->kernel->variant;
    cpu_pass pass = {.call = call, .level = variant->level};
    pass.sizes = cpu_lists_workspace(variant, call->device, call->problem);
    pass.x = call->args->workspace;
    pass.raw = pass.x + pass.sizes.x;
    pass.scratch = pass.raw + pass.sizes.raw;
    pass.most_vectors = (int)widest_tile(variant) / variant->level->lanes;
    for (; pass.token < call->problem->tokens; pass.token += pass.sizes.block) {
        pass.tokens = ESP_MIN(pass.sizes.block, call->problem->tokens - pass.token);
        pass.padded = cpu_round_up(pass.tokens, variant->level->lanes);
        run_pass(&pass);
    }
    return ESP_OK;
}
