/* Products of block-sparse weights: which kernels there are, when each is the one to take, and the
 * steps around a launch that a kernel's own tails do not cover: X whose rows are no multiple of 16
 * bytes is copied into the workspace with longer rows; X that the tensor copy engine cannot take
 * even then, by its own stride or address, goes to the kernel that takes any. */
#include <math.h>

#include "cuda/room.h"

#define MHZ 1600.0       /* of a busy chip: scores only order candidates */
#define L2_BYTES 40.0    /* a clock and multiprocessor */
#define FEW_START_US 3.0 /* of a launch, and of adding up */
#define FEW_ANY_START_US 10.0
#define START_US 4.0

typedef enum block_way { TILES_SM90, TILES_ANY, FEW_SM90, FEW_ANY } block_way;

typedef struct block_variant {
    esp_dtype type;
    block_way way;
    int tokens;           /* of a tile */
    double finish_clocks; /* of a tile that is left with scale and bias: its edges */
} block_variant;

static bool takes_few(const block_variant *variant)
{
    return variant->way == FEW_SM90 || variant->way == FEW_ANY;
}

static bool needs_sm90(const block_variant *variant)
{
    return variant->way == TILES_SM90 || variant->way == FEW_SM90;
}

static const char *why_not(const esp_kernel *kernel, const esp_device *device,
                           const esp_matmul_problem *problem)
{
    const block_variant *variant = kernel->variant;
    const cuda_state *state = device->state;
    if (needs_sm90(variant) && (state->facts.major != 9 || state->facts.minor != 0)) {
        return "it needs a GPU of compute capability 9.0";
    }
    if (problem->pattern.kind != ESP_PATTERN_BLOCK) {
        return "it reads blocks only";
    }
    if (!cuda_reads_blocks(&problem->pattern)) {
        return "it reads blocks whose sides are multiples of 16";
    }
    const char *why = cuda_why_not(problem, variant->type);
    if (why != NULL) {
        return why;
    }
    if (takes_few(variant)) {
        return problem->tokens > GPU_BLOCK_FEW_TOKENS ? "it takes at most 16 tokens" : NULL;
    }
    int64_t bands = esp_ceil_div(problem->out_features, GPU_BAND_ROWS);
    return bands <= INT32_MAX / esp_ceil_div(problem->tokens, variant->tokens)
               ? NULL
               : "it has too many tiles to count";
}

/* ---- X ---- */

typedef struct x_room {
    size_t bytes;
    int64_t rows, columns, stride;
} x_room;

static x_room room_for_x(const block_variant *variant, const esp_matmul_problem *problem)
{
    bool by_token = problem->x_layout == ESP_TOKEN_MAJOR;
    x_room room = {.rows = by_token ? problem->tokens : problem->in_features,
                   .columns = by_token ? problem->in_features : problem->tokens};
    room.stride = esp_ceil_div(room.columns, 8) * 8;
    if (!takes_few(variant) && room.stride != room.columns) {
        room.bytes = (size_t)room.rows * (size_t)room.stride * 2;
    }
    return room;
}

static size_t workspace_bytes(const esp_kernel *kernel, const esp_device *device,
                              const esp_matmul_problem *problem)
{
    (void)device;
    x_room room = room_for_x(kernel->variant, problem);
    return room.bytes > 0 ? room.bytes + 256 : 0; /* 256: the caller aligns to 64 only */
}

static bool takes_16_bytes(const void *base, int64_t stride)
{
    return (uintptr_t)base % 16 == 0 && stride % 8 == 0;
}

/* Points the product at X, copied where that is needed and there is room. */
static int place_x(const esp_matmul_call *call, gpu_block_product *product)
{
    const esp_matmul_args *args = call->args;
    x_room room = room_for_x(call->kernel->variant, call->problem);
    product->x = args->x;
    product->x_stride = args->x_stride;
    product->x_aligned = takes_16_bytes(args->x, args->x_stride);
    if (room.bytes == 0 || product->x_aligned) {
        return 0;
    }
    char *to = (char *)cuda_round_up((size_t)(uintptr_t)args->workspace);
    product->x = to;
    product->x_stride = room.stride;
    product->x_aligned = true;
    return gpu_copy_rows(args->x, args->x_stride, to, room.stride, room.rows, room.columns,
                         args->stream);
}

/* ---- launching ---- */

static int run_product(const block_variant *variant, const gpu_block_product *product, void *stream)
{
    if (takes_few(variant)) {
        return variant->way == FEW_SM90 ? gpu_sm90_blocks_few(product, stream)
                                        : gpu_blocks_few(product, stream);
    }
    if (variant->way == TILES_ANY || !product->x_aligned) {
        return gpu_blocks_tiles(product, stream);
    }
    return product->bf16 ? gpu_sm90_blocks_bf16(product, variant->tokens, stream)
                         : gpu_sm90_blocks_f16(product, variant->tokens, stream);
}

static esp_status launch(const esp_matmul_call *call, esp_error *error)
{
    const block_variant *variant = call->kernel->variant;
    const cuda_state *state = call->device->state;
    const cuda_weight *weight = call->args->weight->state;
    ESP_TRY(cuda_check_operands(call, error));
    gpu_block_product product = {.weight = weight->blocks,
                                 .bf16 = variant->type == ESP_BF16,
                                 .tokens = (int)call->problem->tokens,
                                 .x_by_token = call->problem->x_layout == ESP_TOKEN_MAJOR,
                                 .epilogue = cuda_epilogue(call, 0, call->problem->tokens),
                                 .device = state->index,
                                 .multiprocessors = state->facts.multiprocessors,
                                 .l2_bytes = (int64_t)state->facts.l2_bytes,
                                 .overlaps = state->facts.major >= 9};
    int before;
    ESP_TRY(cuda_check(gpu_enter(state->index, &before), call->device, "entering it", error));
    int failed = place_x(call, &product);
    if (failed == 0) {
        failed = run_product(variant, &product, call->args->stream);
    }
    gpu_leave(before);
    return cuda_check(failed, call->device, call->kernel->name, error);
}

/* ---- choosing ---- */

/* Of all columns, those that `rows` rows of random blocks need together. */
static double needed(const esp_pattern *pattern, double rows)
{
    double lines = ESP_MAX(1.0, rows / (double)pattern->block_rows);
    return 1 - pow(pattern->sparsity, lines);
}

/* Clocks of a band's tile but for its start and end: the L2's or the tensor cores'; of any GPU's
 * kernel by what it took on an H100, within a tenth from 64x64@0.9 to 16x16@0.9. */
static double band_clocks(const block_variant *variant, const esp_matmul_problem *problem)
{
    const esp_pattern *pattern = &problem->pattern;
    double in = (double)problem->in_features, tokens = variant->tokens;
    double kept = 1 - pattern->sparsity;
    double loads =
        2 * in * (needed(pattern, GPU_BAND_ROWS) * tokens + kept * GPU_BAND_ROWS) / L2_BYTES;
    if (variant->way == TILES_SM90) { /* m64nTk16: T / 2 clocks */
        return ESP_MAX(loads, in / 16 * 2 * needed(pattern, GPU_HALF_ROWS) * tokens / 2);
    }
    double fragments = kept * GPU_BAND_ROWS / GPU_STRIP_ROWS;
    return in / 16 * (420 * needed(pattern, GPU_BAND_ROWS) + 10 * fragments) * tokens / 256;
}

/* As goes_by_engine of sm90_blocks_leave.cuh, but for alignment. */
static bool leaves_by_engine(const esp_matmul_problem *problem)
{
    bool by_feature = problem->y_layout == ESP_FEATURE_MAJOR;
    bool pairs = (problem->epilogue & ESP_EP_SWIGLU) != 0;
    int64_t row = by_feature ? problem->tokens : problem->out_features;
    return problem->out_type != ESP_F32 && row % 8 == 0 && (by_feature || !pairs);
}

/* Clocks for leaving a tile; what is more than scale and bias is fitted to one H200. Any GPU's
 * kernel sends all sums through strips, so it is never the one that spares an ending. */
static double finish_clocks(const block_variant *variant, const esp_matmul_problem *problem)
{
    unsigned ending = problem->epilogue & ~(unsigned)(ESP_EP_SCALE | ESP_EP_BIAS);
    double share = variant->tokens / 256.0, more = 0;
    bool strips = variant->way == TILES_ANY;
    if (!strips && !leaves_by_engine(problem)) {
        return variant->finish_clocks + 28000 * share;
    }
    if ((ending & ~(unsigned)ESP_EP_RESIDUAL) != 0) {
        more += strips ? 8000 : ending == ESP_EP_GELU ? 3000 : 6000;
    }
    if ((ending & ESP_EP_RESIDUAL) != 0) {
        more += 6000;
    }
    return variant->finish_clocks + more * share;
}

static double score_us(const esp_kernel *kernel, const esp_device *device,
                       const esp_matmul_problem *problem)
{
    const block_variant *variant = kernel->variant;
    const cuda_state *state = device->state;
    double out = (double)problem->out_features, in = (double)problem->in_features;
    double tokens = (double)problem->tokens;
    if (takes_few(variant)) {
        double bytes = 2 * out * in * (1 - problem->pattern.sparsity);
        return (variant->way == FEW_SM90 ? FEW_START_US : FEW_ANY_START_US) +
               cuda_memory_us(device, bytes);
    }
    int64_t tiles = esp_ceil_div(problem->out_features, GPU_BAND_ROWS) *
                    esp_ceil_div(problem->tokens, variant->tokens);
    double rounds = ESP_MAX(1.0, (double)tiles / state->facts.multiprocessors);
    double clocks = rounds * (band_clocks(variant, problem) + finish_clocks(variant, problem));
    double memory_us = cuda_memory_us(device, 2 * (in + out) * tokens);
    bool copied = room_for_x(variant, problem).bytes > 0;
    return START_US + ESP_MAX(clocks / MHZ, memory_us) +
           (copied ? 2 + cuda_memory_us(device, 4 * in * tokens) : 0);
}

/* ---- records ---- */

#define SM90 "X by the tensor copy engine, once for 128 rows that share columns, wgmma"
#define ANY "X once for 128 rows that share columns, mma; speed not measured before 9.0"
#define FEW_IDEA "up to 16 tokens: weights streamed, mma; speed not measured before 9.0"
#define FEW_BULK "up to 16 tokens: weights streamed by bulk copies, mma"

#define RECORD(short_name, architecture, suffix, about, ...)                                       \
    {                                                                                              \
        .name = "matmul_bsr_" short_name "_" short_name "__cuda_" architecture "_" suffix,         \
        .device = "cuda", .format = "bsr", .level = architecture, .idea = about,                   \
        .why_not = why_not, .workspace_bytes = workspace_bytes, .score_us = score_us,              \
        .launch = launch, .variant = &(const block_variant){__VA_ARGS__},                          \
    }
#define RECORDS(type, short_name)                                                                  \
    RECORD(short_name, "sm90", "few", FEW_BULK, type, FEW_SM90, GPU_BLOCK_FEW_TOKENS, 0),          \
        RECORD(short_name, "sm80", "few", FEW_IDEA, type, FEW_ANY, GPU_BLOCK_FEW_TOKENS, 0),       \
        RECORD(short_name, "sm90", "128x256", SM90, type, TILES_SM90, 256, 3500),                  \
        RECORD(short_name, "sm90", "128x128", SM90, type, TILES_SM90, 128, 2100),                  \
        RECORD(short_name, "sm80", "128x256", ANY, type, TILES_ANY, 256, 41000)

const esp_kernel cuda_block_kernels[] = {RECORDS(ESP_F16, "f16"), RECORDS(ESP_BF16, "bf16")};
