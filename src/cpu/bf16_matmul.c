/* Products on processors that multiply bf16, with compute bf16 and, in parts, with compute f32:
 * passes, pieces and records. X is packed once per pass. With one part, pieces are <= 64 stored
 * rows of one panel x a group of tokens, small enough that the group's X stays in a second-level
 * cache while the pieces of all rows pass by; with more (split.h), pieces are large and walk depth
 * in blocks. Groups come one after another, so all threads work on the same tokens. */
#include "cpu/bf16/bf16.h"
#include "cpu/kernels.h"

#ifdef ESP_CPU_X86

#define PASS CPU_TOKEN_BLOCK
#define GROUP 256             /* most tokens of a piece */
#define GROUP_BYTES (1 << 20) /* of packed X: half of a second-level cache */
#define MAX_IN ((int64_t)1 << 25)
#define SUMS_PADDING 16 /* keeps rows of sums off the same cache sets */

typedef struct bf16_variant {
    const bf16_level *level;
    esp_cpu_level needs;
    esp_host_format format;
    esp_dtype weight_type;
    esp_kernel exact; /* runs passes with Inf or NaN */
} bf16_variant;

/* Parts of one run's workspace, in this order; bytes, multiples of 64. */
typedef struct bf16_sizes {
    int64_t block;                /* tokens of a pass, padded to whole tiles */
    int64_t group;                /* most tokens of a piece */
    size_t x, raw, sums, scratch; /* sums and scratch: per thread */
    size_t bytes;
} bf16_sizes;

typedef struct bf16_pass {
    cpu_pass pass; /* what the epilogue reads */
    const bf16_variant *variant;
    const esp_host_weight *weight;
    bf16_sizes sizes;
    bf16_pack pack;
    char *per_thread;
    int64_t group, groups, chunk, chunks_of_strip, chunks;
} bf16_pass;

static size_t line(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static int64_t round_up(int64_t value, int64_t step)
{
    return esp_ceil_div(value, step) * step;
}

static bool wants_finite(const bf16_variant *variant)
{
    return variant->level->wants_finite &&
           (variant->format == ESP_HOST_PANEL || variant->level->parts > 1);
}

static int64_t kept_columns(const esp_matmul_problem *problem)
{
    int64_t kept = esp_pattern_kept(&problem->pattern, problem->in_features);
    return kept > 0 ? kept : problem->in_features;
}

/* ---- sizes ---- */

static int64_t most_group(const bf16_level *level, int64_t in)
{
    if (level->parts > 1) { /* depth is walked in blocks whose X fits */
        return BF16_SPLIT_TOKENS;
    }
    int64_t fit = GROUP_BYTES / (in * 2) / BF16_TILE_TOKENS * BF16_TILE_TOKENS;
    return ESP_MAX(BF16_TILE_TOKENS, ESP_MIN(GROUP, fit));
}

/* What the exact kernel needs for the passes of this product. */
static size_t exact_bytes(const bf16_variant *variant, const esp_device *device,
                          const esp_matmul_problem *problem)
{
    if (!wants_finite(variant)) {
        return 0;
    }
    esp_matmul_problem part = *problem;
    part.tokens = ESP_MIN(problem->tokens, PASS);
    size_t bytes = cpu_matmul_workspace(variant->exact.variant, device, &part).bytes;
    part.tokens = problem->tokens % PASS;
    if (part.tokens > 0) {
        size_t last = cpu_matmul_workspace(variant->exact.variant, device, &part).bytes;
        bytes = ESP_MAX(bytes, last);
    }
    return bytes;
}

static bf16_sizes sizes_of(const bf16_variant *variant, const esp_device *device,
                           const esp_matmul_problem *problem)
{
    int64_t in = problem->in_features, threads = device->context->threads;
    bf16_sizes sizes = {.block = round_up(ESP_MIN(problem->tokens, PASS), BF16_TILE_TOKENS)};
    sizes.group = ESP_MIN(sizes.block, most_group(variant->level, in));
    sizes.x =
        line((size_t)(sizes.block * bf16_x_rows(in) * variant->level->parts) * sizeof(uint16_t));
    if ((problem->epilogue & ESP_EP_SWIGLU) != 0) {
        sizes.raw = line((size_t)(problem->out_features * sizes.block) * sizeof(float));
    }
    sizes.sums =
        line((size_t)((variant->level->rows + 16) * (sizes.group + SUMS_PADDING)) * sizeof(float));
    sizes.scratch = line(variant->level->scratch_bytes(variant->format, kept_columns(problem)));
    sizes.bytes = sizes.x + sizes.raw + (size_t)threads * (sizes.sums + sizes.scratch);
    size_t exact = exact_bytes(variant, device, problem);
    sizes.bytes = ESP_MAX(sizes.bytes, exact);
    return sizes;
}

/* ---- passes ---- */

static void run_piece(const bf16_pass *pass, int64_t chunk, int64_t group, int thread)
{
    const esp_host_weight *weight = pass->weight;
    int64_t strip_rows = pass->pass.strip_rows, strip = chunk / pass->chunks_of_strip;
    int64_t row = strip * strip_rows + chunk % pass->chunks_of_strip * pass->chunk;
    int64_t end = ESP_MIN((strip + 1) * strip_rows, weight->out_features);
    int64_t token = group * pass->group;
    if (row >= end) { /* of the last, shorter strip */
        return;
    }
    char *own = pass->per_thread + (size_t)thread * (pass->sizes.sums + pass->sizes.scratch);
    bf16_piece piece = {.weight = weight,
                        .x = pass->pack.x + token * pass->variant->level->parts * pass->pack.x_rows,
                        .x_rows = pass->pack.x_rows,
                        .row = row,
                        .rows = ESP_MIN(pass->chunk, end - row),
                        .tokens = ESP_MIN(pass->group, pass->pass.tokens - token),
                        .sums = (float *)(void *)own,
                        .sums_stride = round_up(pass->group, BF16_TILE_TOKENS) + SUMS_PADDING,
                        .scratch = own + pass->sizes.sums};
    pass->variant->level->product(&piece);
    cpu_piece done = {.weight = weight,
                      .row = row,
                      .rows = piece.rows,
                      .token = token,
                      .tokens = piece.tokens,
                      .sums = piece.sums,
                      .sums_stride = piece.sums_stride};
    cpu_finish_piece(&pass->pass, &done);
}

static void run_pieces(void *user, int64_t begin, int64_t end, int thread)
{
    const bf16_pass *pass = user;
    for (int64_t i = begin; i < end; i++) {
        run_piece(pass, i % pass->chunks, i / pass->chunks, thread);
    }
}

static void pack_blocks(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const bf16_pass *pass = user;
    int64_t last = ESP_MIN(end * 32, pass->pack.x_rows);
    pass->variant->level->pack(&pass->pack, begin * 32, last);
}

/* Chunks of at most `rows` rows; several whole panels where they are small and the level takes
 * that. */
static void set_chunks(bf16_pass *pass, int64_t rows)
{
    int64_t out = pass->weight->out_features;
    int64_t panel = pass->weight->format == ESP_HOST_PANEL ? pass->weight->panel_rows : out;
    int64_t panels = pass->variant->level->rows > BF16_ROWS ? ESP_MAX(rows / panel, 1) : 1;
    pass->pass.strip_rows = panels * panel;
    pass->chunk = ESP_MIN(rows, pass->pass.strip_rows);
    pass->chunks_of_strip = esp_ceil_div(pass->pass.strip_rows, pass->chunk);
    pass->chunks = esp_ceil_div(out, pass->pass.strip_rows) * pass->chunks_of_strip;
}

/* Large pieces use what they make most often; smaller ones keep all threads busy to the end. */
static void cut(bf16_pass *pass)
{
    int64_t threads = pass->pass.call->device->context->threads, rows = pass->variant->level->rows;
    int64_t tokens = round_up(pass->pass.tokens, BF16_TILE_TOKENS);
    pass->groups = esp_ceil_div(tokens, pass->sizes.group);
    pass->group = round_up(esp_ceil_div(tokens, pass->groups), BF16_TILE_TOKENS);
    set_chunks(pass, rows);
    int64_t enough = threads == 1 ? 1 : 4 * threads;
    while (pass->chunks * pass->groups < enough && rows > BF16_ROWS) {
        rows /= 2;
        set_chunks(pass, rows);
    }
    while (pass->chunks * pass->groups < enough && pass->group > 64) {
        pass->group = round_up(pass->group / 2, BF16_TILE_TOKENS);
        pass->groups = esp_ceil_div(tokens, pass->group);
    }
    while (pass->chunks * pass->groups < enough && rows > 16) {
        rows /= 2;
        set_chunks(pass, rows);
    }
}

/* Tokens token .. token + tokens - 1 of the call by another kernel. */
static esp_status run_exact(const bf16_pass *pass, esp_error *error)
{
    const esp_matmul_call *call = pass->pass.call;
    esp_matmul_problem problem = *call->problem;
    esp_matmul_args args = *call->args;
    int64_t token = pass->pass.token;
    int64_t x_at = problem.x_layout == ESP_FEATURE_MAJOR ? token : token * args.x_stride;
    int64_t y_at = problem.y_layout == ESP_FEATURE_MAJOR ? token : token * args.y_stride;
    size_t y_width = esp_dtype_bytes(problem.out_type);
    problem.tokens = pass->pass.tokens;
    args.x = (const char *)args.x + (size_t)x_at * esp_dtype_bytes(problem.act_type);
    args.y = (char *)args.y + (size_t)y_at * y_width;
    if (args.residual != NULL) {
        args.residual = (const char *)args.residual + (size_t)y_at * y_width;
    }
    esp_matmul_call part = {&pass->variant->exact, call->device, &problem, &args, {0}};
    return cpu_matmul_launch(&part, error);
}

static esp_status run_pass(bf16_pass *pass, esp_error *error)
{
    const bf16_variant *variant = pass->variant;
    esp_context *context = pass->pass.call->device->context;
    if (variant->level->parts > 1 && pass->weight->not_finite) {
        return run_exact(pass, error);
    }
    atomic_store(pass->pack.not_finite, false);
    esp_parallel_for(context, pass->pack.x_rows / 32, 1 + 2048 / pass->sizes.block, pack_blocks,
                     pass);
    if (wants_finite(variant) && atomic_load(pass->pack.not_finite)) {
        return run_exact(pass, error);
    }
    cut(pass);
    esp_parallel_for(context, pass->chunks * pass->groups, 1, run_pieces, pass);
    if ((pass->pass.call->problem->epilogue & ESP_EP_SWIGLU) != 0) {
        cpu_finish_swiglu(&pass->pass);
    }
    return ESP_OK;
}

static esp_status launch(const esp_matmul_call *call, esp_error *error)
{
    const bf16_variant *variant = call->kernel->variant;
    const esp_host_weight *weight = call->args->weight->state;
    bf16_sizes sizes = sizes_of(variant, call->device, call->problem);
    atomic_bool not_finite = false;
    char *workspace = call->args->workspace;
    bf16_pass pass = {
        .pass = {.call = call, .level = cpu_level_of(call->device)},
        .variant = variant,
        .weight = weight,
        .sizes = sizes,
        .pack = {.call = call,
                 .form = variant->level->form(variant->format, weight->columns != NULL),
                 .x_rows = bf16_x_rows(call->problem->in_features),
                 .x = (uint16_t *)(void *)workspace,
                 .not_finite = &not_finite},
        .per_thread = workspace + sizes.x + sizes.raw};
    pass.pass.raw = (float *)(void *)(workspace + sizes.x);
    pass.pass.sizes.block = sizes.block;
    for (int64_t token = 0; token < call->problem->tokens; token += PASS) {
        pass.pass.token = pass.pack.token = token;
        pass.pass.tokens = pass.pack.tokens = ESP_MIN(PASS, call->problem->tokens - token);
        ESP_TRY(run_pass(&pass, error));
    }
    return ESP_OK;
}

/* ---- records ---- */

static const char *why_not(const esp_kernel *kernel, const esp_device *device,
                           const esp_matmul_problem *problem)
{
    const bf16_variant *variant = kernel->variant;
    if (variant->needs > device->context->cpu.level) {
        return variant->needs == ESP_CPU_AMX
                   ? "it needs AMX with bf16, which is absent, not permitted or switched off"
                   : "it needs AVX-512 with BF16 and VBMI2, which is absent or switched off";
    }
    if (problem->compute != variant->level->compute) {
        return variant->level->compute == ESP_COMPUTE_BF16 ? "it computes bf16 only"
                                                           : "it computes f32 only";
    }
    const char *why = esp_host_format_why_not(variant->format, &problem->pattern);
    if (why != NULL) {
        return why;
    }
    if (variant->weight_type != problem->weight_type) {
        return "its weights have another type";
    }
    return problem->in_features > MAX_IN ? "it takes at most 33554432 input features" : NULL;
}

static size_t workspace_bytes(const esp_kernel *kernel, const esp_device *device,
                              const esp_matmul_problem *problem)
{
    return sizes_of(kernel->variant, device, problem).bytes;
}

/* Multiply-adds per ns and thread, the zeros of a spread row among them, on the scale of the other
 * kernels' rates (kernels.c): measured on a Xeon that reaches 0.73 of those. */
static double rate_of(const bf16_variant *variant, bool listed)
{
    static const double amx[3] = {615, 615, 615}, f32[3] = {118, 200, 145};
    static const double f16[3] = {150, 230, 165}, bf16[3] = {245, 285, 195};
    int kind = variant->format == ESP_HOST_DENSE ? 0 : 1 + listed;
    if (variant->level->parts == 1) {
        return variant->needs == ESP_CPU_AMX ? amx[kind] : 100; /* without tiles: not measured */
    }
    return variant->weight_type == ESP_F32   ? f32[kind]
           : variant->weight_type == ESP_F16 ? f16[kind]
                                             : bf16[kind];
}

/* Microseconds for ten thousand columns of rows. */
static double making_of(const bf16_variant *variant)
{
    if (variant->level->parts == 1) {
        return 1.4;
    }
    double parts = variant->weight_type == ESP_BF16 ? 1 : variant->weight_type == ESP_F16 ? 2 : 3;
    return variant->format == ESP_HOST_DENSE ? 2 * parts : 1.7 + parts;
}

static double score_us(const esp_kernel *kernel, const esp_device *device,
                       const esp_matmul_problem *problem)
{
    const bf16_variant *variant = kernel->variant;
    bool panel = variant->format == ESP_HOST_PANEL;
    double rate = rate_of(variant, panel && kept_columns(problem) < problem->in_features);
    double out = (double)problem->out_features, tokens = (double)problem->tokens;
    double columns = panel ? (double)kept_columns(problem) : (double)problem->in_features;
    double width = (double)esp_dtype_bytes(problem->weight_type) + 0.25;
    double group = (double)most_group(variant->level, problem->in_features);
    double reads = tokens <= group ? 1 : tokens / group;
    double memory = reads * cpu_memory_us(device, out * columns * width * (panel ? 0.5 : 1));
    double padded = (double)round_up(problem->tokens, 16);
    double compute = cpu_compute_us(device, out * columns * padded, rate);
    /* Rows of weights are made however few the tokens. */
    double making = 1e-4 * making_of(variant) * out * columns / device->context->threads;
    double packing = cpu_memory_us(device, ((double)problem->in_features * 6 + out * 4) * tokens);
    return 3 + ESP_MAX(memory, ESP_MAX(compute, making)) + packing;
}

#define BF16_KERNEL(host_format, format_word, type, type_word, level_word, level_table,            \
                    needs_level, how)                                                              \
    static const cpu_variant exact_##format_word##_##type_word##_##level_word = {                  \
        &esp_cpu_avx512, ESP_CPU_AVX512, host_format, type};                                       \
    static const bf16_variant format_word##_##type_word##_##level_word##_variant = {               \
        &level_table,                                                                              \
        needs_level,                                                                               \
        host_format,                                                                               \
        type,                                                                                      \
        {.variant = &exact_##format_word##_##type_word##_##level_word}};                           \
    const esp_kernel esp_cpu_##format_word##_##type_word##_##level_word = {                        \
        .name = "matmul_" #format_word "_" #type_word "_f32__cpu_" #level_word,                    \
        .device = "cpu",                                                                           \
        .format = #format_word,                                                                    \
        .level = #level_word,                                                                      \
        .idea = how,                                                                               \
        .why_not = why_not,                                                                        \
        .workspace_bytes = workspace_bytes,                                                        \
        .score_us = score_us,                                                                      \
        .launch = launch,                                                                          \
        .variant = &format_word##_##type_word##_##level_word##_variant};

#define BF16_KERNELS(host_format, format_word, level_word, level_table, needs, how)                \
    BF16_KERNEL(host_format, format_word, ESP_F32, f32, level_word, level_table, needs, how)       \
    BF16_KERNEL(host_format, format_word, ESP_F16, f16, level_word, level_table, needs, how)       \
    BF16_KERNEL(host_format, format_word, ESP_BF16, bf16, level_word, level_table, needs, how)

BF16_KERNELS(ESP_HOST_DENSE, dense, amx, esp_cpu_bf16_amx, ESP_CPU_AMX,
             "tile products, rows of weights copied beside them")
BF16_KERNELS(ESP_HOST_PANEL, panel, amx, esp_cpu_bf16_amx, ESP_CPU_AMX,
             "tile products over kept columns, rows spread beside them")
BF16_KERNELS(ESP_HOST_DENSE, dense, avx512bf16, esp_cpu_bf16_avx512, ESP_CPU_AVX512BF16,
             "pairs of columns by one instruction, rows x tokens of sums in registers")
BF16_KERNELS(ESP_HOST_PANEL, panel, avx512bf16, esp_cpu_bf16_avx512, ESP_CPU_AVX512BF16,
             "six pairs of every four kept columns, of which a row takes one")
BF16_KERNELS(ESP_HOST_DENSE, dense, amx_split, esp_cpu_bf16_split, ESP_CPU_AMX,
             "f32 as a sum of tile products of bf16 parts")
BF16_KERNELS(ESP_HOST_PANEL, panel, amx_split, esp_cpu_bf16_split, ESP_CPU_AMX,
             "f32 as a sum of tile products of bf16 parts, over kept columns")
#else
typedef int cpu_no_bf16; /* a C file must declare something */
#endif
