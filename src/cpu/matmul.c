/* One product on threads: passes over blocks of tokens, so that scratch stays bounded; in a pass X
 * is packed (pack_x.c), then pieces of rows x tokens are computed by the level's kernel (isa/) and
 * finished (epilogue.c) while they are warm. A sum never depends on how pieces are cut. */
#include "cpu/matmul.h"

#define GROUP 128         /* smallest token group: the widest tile of all levels */
#define SUMS_PADDING 16   /* keeps rows of sums off the same cache sets */
#define PIECE_BYTES 16384 /* weight bytes that are worth handing to another thread */

/* rows and cols hold dense products of what they keep. */
static esp_host_format runs_as(esp_host_format format)
{
    return format == ESP_HOST_ROWS || format == ESP_HOST_COLS ? ESP_HOST_DENSE : format;
}

static int64_t kept_columns(const esp_matmul_problem *problem)
{
    int64_t kept = esp_pattern_kept(&problem->pattern, problem->in_features);
    return kept > 0 ? kept : problem->in_features;
}

/* Beyond so many tokens tiles are faster. */
#define FEW_LIMIT (2 * CPU_FEW_TOKENS)

/* Rows and tokens of the largest piece. A panel's depth is walked once per tile of tokens, for so
 * many rows that X is fetched into the near caches rarely; other formats decode a block of depth
 * once for many tiles. */
static int64_t most_rows(esp_host_format format, bool few)
{
    return format == ESP_HOST_PANEL && !few ? CPU_PANEL_ROWS : CPU_MAX_ROWS;
}

static int64_t most_group(const cpu_variant *variant, bool few)
{
    if (few) {
        return CPU_FEW_TOKENS;
    }
    return variant->format == ESP_HOST_PANEL
               ? variant->level->sparse_vectors * variant->level->lanes
               : CPU_TOKEN_BLOCK;
}

static int64_t sums_stride(bool few, int64_t tokens)
{
    return few ? CPU_FEW_TOKENS : tokens + SUMS_PADDING;
}

cpu_workspace cpu_matmul_workspace(const cpu_variant *variant, const esp_device *device,
                                   const esp_matmul_problem *problem)
{
    cpu_workspace sizes = {0};
    int64_t tokens = problem->tokens;
    esp_host_format format = runs_as(variant->format);
    sizes.few = tokens <= FEW_LIMIT && !cpu_rounds(problem);
    sizes.block = sizes.few ? ESP_MIN(tokens, CPU_FEW_TOKENS)
                            : cpu_round_up(ESP_MIN(tokens, CPU_TOKEN_BLOCK), variant->level->lanes);
    int64_t row = sizes.few ? cpu_few_stride(problem->in_features) : problem->in_features + 1;
    sizes.x = (size_t)cpu_round_up(row * sizes.block, 16);
    if ((problem->epilogue & ESP_EP_SWIGLU) != 0) {
        sizes.raw = (size_t)cpu_round_up(problem->out_features * sizes.block, 16);
    }
    int64_t decoded =
        CPU_MAX_ROWS * (format == ESP_HOST_DENSE ? CPU_DENSE_DEPTH : 2 * CPU_SPARSE_DEPTH);
    int64_t gathered = CPU_FEW_TOKENS * (cpu_round_up(kept_columns(problem), 32) + 64);
    sizes.sums = (size_t)(most_rows(format, sizes.few) *
                          sums_stride(sizes.few, most_group(variant, sizes.few)));
    sizes.scratch = sizes.sums + (size_t)(sizes.few ? gathered : decoded);
    sizes.bytes =
        sizeof(float) * (sizes.x + sizes.raw + sizes.scratch * (size_t)device->context->threads);
    return sizes;
}

static void run_piece(const cpu_pass *pass, int64_t chunk, int64_t group, int thread)
{
    const esp_host_weight *weight = pass->call->args->weight->state;
    const cpu_variant *variant = pass->call->kernel->variant;
    int64_t strip = chunk / pass->chunks_of_strip;
    int64_t row = strip * pass->strip_rows + chunk % pass->chunks_of_strip * pass->chunk;
    int64_t end = ESP_MIN((strip + 1) * pass->strip_rows, cpu_stored_rows(weight));
    float *scratch = pass->scratch + (size_t)thread * pass->sizes.scratch;
    bool few = pass->sizes.few;
    int64_t all = few ? pass->tokens : pass->padded;
    cpu_piece piece = {.weight = weight,
                       .rounds = cpu_rounds(pass->call->problem),
                       .x = pass->x,
                       .x_rows = cpu_dense_columns(weight) + 1,
                       .x_stride = cpu_few_stride(weight->in_features),
                       .row = row,
                       .rows = ESP_MIN(pass->chunk, end - row),
                       .token = group * pass->group,
                       .sums = scratch};
    piece.tokens = ESP_MIN(pass->group, all - piece.token);
    piece.sums_stride = sums_stride(few, piece.tokens);
    piece.scratch = scratch + pass->sizes.sums;
    if (piece.rows > 0) {
        (few ? pass->level->few : pass->level->many)[runs_as(variant->format)](&piece);
        cpu_finish_piece(pass, &piece);
    }
}

static void run_pieces(void *user, int64_t begin, int64_t end, int thread)
{
    const cpu_pass *pass = user;
    for (int64_t i = begin; i < end; i++) {
        run_piece(pass, i / pass->groups, i % pass->groups, thread);
    }
}

/* Chunks of at most `rows` rows: whole panels where panels are small (few tokens: one at most). */
static void set_chunks(cpu_pass *pass, int64_t rows)
{
    const esp_host_weight *weight = pass->call->args->weight->state;
    int64_t stored = cpu_stored_rows(weight);
    int64_t panel = weight->format == ESP_HOST_PANEL ? weight->panel_rows : stored;
    int64_t panels = pass->sizes.few ? 1 : ESP_MAX(rows / panel, 1);
    pass->strip_rows = panels * panel;
    pass->chunk = ESP_MIN(rows, pass->strip_rows);
    pass->chunks_of_strip = esp_ceil_div(pass->strip_rows, pass->chunk);
    pass->chunks = esp_ceil_div(stored, pass->strip_rows) * pass->chunks_of_strip;
}

/* Large pieces use caches best; smaller ones keep all threads busy to the end. */
static void cut(cpu_pass *pass)
{
    const cpu_variant *variant = pass->call->kernel->variant;
    int64_t threads = pass->call->device->context->threads;
    bool few = pass->sizes.few;
    int64_t rows = most_rows(variant->format, few);
    pass->group = most_group(variant, few);
    pass->groups = few ? 1 : esp_ceil_div(pass->padded, pass->group);
    set_chunks(pass, rows);
    if (threads == 1) {
        return;
    }
    int64_t enough = few ? 2 * threads : 4 * threads; /* few: each piece gathers X */
    while (rows > 24 &&
           pass->chunks * (variant->format == ESP_HOST_PANEL ? pass->groups : 1) < enough) {
        rows /= 2;
        set_chunks(pass, rows);
    }
    while (!few && pass->group > GROUP && pass->chunks * pass->groups < 4 * threads) {
        pass->group /= 2;
        pass->groups = esp_ceil_div(pass->padded, pass->group);
    }
}

/* Pieces that one thread takes at a time: enough weights to be worth a hand-over. */
static int64_t grain_of(const cpu_pass *pass)
{
    const esp_host_weight *weight = pass->call->args->weight->state;
    int64_t values =
        runs_as(weight->format) == ESP_HOST_DENSE ? cpu_dense_columns(weight) : weight->row_values;
    int64_t bytes = pass->chunk * values * (int64_t)esp_dtype_bytes(weight->dtype);
    int64_t work = bytes * (pass->sizes.few ? 1 : 1 + pass->padded / 16);
    int64_t grain = 1 + PIECE_BYTES / ESP_MAX(1, work);
    /* Few tokens: neighbouring pieces by one thread, which has asked for their first rows. */
    int64_t shares = 8 * pass->call->device->context->threads;
    return pass->sizes.few ? ESP_MAX(grain, pass->chunks / shares) : grain;
}

static void run_pass(cpu_pass *pass)
{
    cpu_pack_x(pass);
    cut(pass);
    esp_parallel_for(pass->call->device->context, pass->chunks * pass->groups, grain_of(pass),
                     run_pieces, pass);
    const esp_host_weight *weight = pass->call->args->weight->state;
    if (weight->format == ESP_HOST_ROWS) {
        cpu_finish_absent_rows(pass);
    }
    if ((pass->call->problem->epilogue & ESP_EP_SWIGLU) != 0) {
        cpu_finish_swiglu(pass);
    }
}

esp_status cpu_matmul_launch(const esp_matmul_call *call, esp_error *error)
{
    (void)error;
    const cpu_variant *variant = call->kernel->variant;
    cpu_pass pass = {.call = call, .level = variant->level};
    pass.sizes = cpu_matmul_workspace(variant, call->device, call->problem);
    pass.x = call->args->workspace;
    pass.raw = pass.x + pass.sizes.x;
    pass.scratch = pass.raw + pass.sizes.raw;
    pass.most_vectors = runs_as(variant->format) == ESP_HOST_DENSE ? variant->level->dense_vectors
                                                                   : variant->level->sparse_vectors;
    for (int64_t token = 0; token < call->problem->tokens; token += pass.sizes.block) {
        pass.token = token;
        pass.tokens = ESP_MIN(pass.sizes.block, call->problem->tokens - token);
        pass.padded = cpu_round_up(pass.tokens, variant->level->lanes);
        run_pass(&pass);
    }
    return ESP_OK;
}
