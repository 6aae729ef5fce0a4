/* The steps of a product of panels, whichever kernel computes it: reasons to decline, workspace,
 * and what a kernel's own tails do not cover. X token-major cannot be gathered by column, so it is
 * transposed into the workspace first; X whose rows are no multiple of 16 bytes is copied there
 * with rows of whole lines; swiglu whose two rows do not meet in one thread (a row order, odd
 * panels) goes through f32 sums in the workspace, some tokens at a time. */
#include "cuda/panel_call.h"

#include "format/format.h"

#define PAIR_TOKENS 512 /* of sums that wait for their pair */
#define MHZ 1500.0      /* of a chip at its power limit: scores only order candidates */

int64_t panel_block_rows(const esp_matmul_problem *problem)
{
    return cuda_block_rows(esp_pattern_panel_rows(&problem->pattern, problem->out_features));
}

const char *panel_why_not(const panel_variant *variant, const esp_matmul_problem *problem)
{
    if (problem->pattern.kind != ESP_PATTERN_PANEL) {
        return "it reads panels (2:4, V:2:M, panel:V) only";
    }
    const char *why = cuda_why_not(problem, variant->type);
    if (why != NULL) {
        return why;
    }
    if (variant->few) {
        return problem->tokens > GPU_FEW_TOKENS ? "it takes at most 16 tokens" : NULL;
    }
    if (variant->spread && !esp_pattern_spreads(&problem->pattern)) {
        return "it reads V:2:5 only";
    }
    if (!variant->spread && variant->listed != (problem->pattern.v != 0)) {
        return variant->listed ? "it gathers by a column list, and 2:4 has none"
                               : "it reads 2:4 only";
    }
    int64_t row_tiles = esp_ceil_div(problem->out_features, 64) +
                        esp_ceil_div(problem->out_features, ESP_MAX(1, problem->pattern.v));
    return row_tiles <= INT32_MAX / esp_ceil_div(problem->tokens, variant->tokens)
               ? NULL
               : "it has too many tiles to count";
}

/* ---- norms ---- */

/* Its sums leave by the engine, by feature, where Y's rows begin aligned. */
static bool leaves_by_feature(const panel_variant *variant, const esp_matmul_problem *problem,
                              const cuda_weight *weight)
{
    bool pairs = (problem->epilogue & ESP_EP_SWIGLU) != 0;
    bool straight = weight != NULL && (weight->dense || weight->panels.straight) &&
                    (!pairs || weight->pairs_together);
    return !variant->few && straight && problem->y_layout == ESP_FEATURE_MAJOR &&
           problem->out_type == variant->type && problem->out_features % 2 == 0 &&
           problem->tokens % 8 == 0;
}

bool panel_norms(const esp_kernel *kernel, const esp_matmul_problem *problem,
                 const esp_packed *weight)
{
    const unsigned compiled = ESP_EP_BIAS | ESP_EP_GELU | ESP_EP_SWIGLU;
    return leaves_by_feature(kernel->variant, problem, weight->state) &&
           problem->x_layout == ESP_FEATURE_MAJOR && (problem->epilogue & ~compiled) == 0;
}

/* Parts of moments are blocks of rows, which must be whole, and are found where a residual is
 * added; 0: not at all. */
static int64_t parts_found(const esp_kernel *kernel, const esp_matmul_problem *problem)
{
    const unsigned others = ESP_EP_SCALE | ESP_EP_BIAS;
    bool adds = (problem->epilogue & ~others) == ESP_EP_RESIDUAL;
    bool whole = problem->out_features % GPU_BLOCK_ROWS == 0;
    return kernel->moment_parts != NULL && adds && whole ? problem->out_features / GPU_BLOCK_ROWS
                                                         : 0;
}

/* Each tile of a product that norms reads all parts of its tokens. Where there are many that takes
 * longer than adding them up once: 60 us of 229 for 128:2:8 at 2304x768x50432 on an H100. */
#define MOST_PARTED_TOKENS 2048

static bool adds_parts(const esp_matmul_problem *problem)
{
    return problem->tokens > MOST_PARTED_TOKENS;
}

int panel_moment_parts(const esp_kernel *kernel, const esp_matmul_problem *problem,
                       const esp_packed *weight)
{
    int64_t parts = parts_found(kernel, problem);
    bool leaves = parts > 0 && leaves_by_feature(kernel->variant, problem, weight->state);
    return !leaves ? 0 : adds_parts(problem) ? 1 : (int)parts;
}

/* Of parts that are to be added up. */
static size_t parts_bytes(const esp_kernel *kernel, const esp_matmul_problem *problem)
{
    size_t part = (size_t)problem->tokens * 2 * sizeof(float);
    return adds_parts(problem) ? cuda_round_up((size_t)parts_found(kernel, problem) * part) : 0;
}

/* ---- workspace ---- */

typedef struct workspace {
    size_t x_bytes; /* of X laid out anew */
    int64_t x_rows, x_stride;
    size_t sum_bytes;
    int64_t sum_tokens;
} workspace;

static workspace workspace_of(const panel_variant *variant, const esp_matmul_problem *problem)
{
    workspace made = {0};
    bool by_token = problem->x_layout == ESP_TOKEN_MAJOR;
    int64_t row = by_token ? problem->in_features : problem->tokens;
    bool turned = by_token && (variant->listed || variant->spread);
    if (!variant->few && (turned || row % 8 != 0)) {
        row = turned ? problem->tokens : row;
        made.x_rows = by_token && !turned ? problem->tokens : problem->in_features;
        made.x_stride = esp_ceil_div(row, CUDA_LINE) * CUDA_LINE;
        made.x_bytes = cuda_round_up((size_t)made.x_rows * (size_t)made.x_stride * 2);
    }
    if ((problem->epilogue & ESP_EP_SWIGLU) != 0) {
        made.sum_tokens = ESP_MIN(problem->tokens, PAIR_TOKENS);
        made.sum_bytes = (size_t)problem->out_features * (size_t)made.sum_tokens * sizeof(float);
    }
    return made;
}

size_t panel_workspace_bytes(const esp_kernel *kernel, const esp_device *device,
                             const esp_matmul_problem *problem)
{
    (void)device;
    workspace made = workspace_of(kernel->variant, problem);
    size_t bytes = made.x_bytes + made.sum_bytes + parts_bytes(kernel, problem);
    return bytes > 0 ? bytes + 256 : 0; /* 256: the caller aligns to 64 only */
}

bool panel_moves_x(const panel_variant *variant, const esp_matmul_problem *problem)
{
    return workspace_of(variant, problem).x_bytes > 0;
}

/* ---- launching ---- */

static bool aligned(const gpu_product *product)
{
    return (uintptr_t)product->x % 16 == 0 && product->x_stride % 8 == 0;
}

/* Points the product at X, laid out anew in `to` where that is needed and there is room. */
static int place_x(const esp_matmul_call *call, const panel_variant *variant,
                   const workspace *sizes, char *to, gpu_product *product)
{
    const esp_matmul_problem *problem = call->problem;
    const esp_matmul_args *args = call->args;
    product->x = args->x;
    product->x_stride = args->x_stride;
    product->x_by_token = problem->x_layout == ESP_TOKEN_MAJOR;
    product->x_aligned = aligned(product);
    bool turned = product->x_by_token && (variant->listed || variant->spread) && !variant->few;
    if (sizes->x_bytes == 0 || (product->x_aligned && !turned)) {
        return 0;
    }
    int failed = turned
                     ? gpu_transpose(args->x, args->x_stride, to, sizes->x_stride, problem->tokens,
                                     problem->in_features, args->stream)
                     : gpu_copy_rows(args->x, args->x_stride, to, sizes->x_stride, sizes->x_rows,
                                     product->x_by_token ? problem->in_features : problem->tokens,
                                     args->stream);
    product->x = to;
    product->x_stride = sizes->x_stride;
    product->x_by_token = product->x_by_token && !turned;
    product->x_aligned = aligned(product);
    return failed;
}

/* Swiglu through f32 sums [out][tokens]. */
static int run_parted_pairs(const esp_matmul_call *call, const panel_variant *variant,
                            int64_t most_tokens, float *sums, gpu_tiled *tiled)
{
    gpu_product *product = &tiled->product;
    const cuda_state *state = call->device->state;
    const char *x = product->x;
    int64_t x_step = product->x_by_token ? product->x_stride : 1, tokens = call->problem->tokens;
    int failed = 0;
    for (int64_t first = 0; failed == 0 && first < tokens; first += most_tokens) {
        int64_t count = ESP_MIN(most_tokens, tokens - first);
        product->x = x + first * x_step * 2;
        product->x_aligned = aligned(product);
        product->tokens = (int)count;
        product->epilogue = (gpu_epilogue){.type = GPU_F32,
                                           .y = sums,
                                           .feature_step = count,
                                           .token_step = 1,
                                           .tokens = (int)count,
                                           .aligned = count % 4 == 0};
        failed = variant->run(variant, state, tiled, call->args->stream);
        if (failed == 0) {
            gpu_epilogue epilogue = cuda_epilogue(call, first, count);
            failed =
                gpu_finish(sums, false, call->problem->out_features, &epilogue, call->args->stream);
        }
    }
    return failed;
}

static gpu_normed normed_of(const esp_matmul_call *call)
{
    const esp_normed *from = call->around.normed;
    if (from == NULL) {
        return (gpu_normed){0};
    }
    return (gpu_normed){.moments = from->of_x.values,
                        .parts = from->of_x.parts,
                        .stride = call->problem->tokens,
                        .features = (float)call->problem->in_features,
                        .eps = from->eps,
                        .row_sums = from->row_sums};
}

/* What a kernel that norms or leaves moments cannot know before. */
static esp_status check_normed(const esp_matmul_call *call, esp_error *error)
{
    gpu_epilogue epilogue = cuda_epilogue(call, 0, call->problem->tokens);
    bool asked = call->around.normed != NULL || call->around.moments != NULL;
    if (asked && (!epilogue.aligned || epilogue.feature_step % 8 != 0)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "matmul.misaligned",
                        "matmul: rows of y and residual must begin at multiples of 16 bytes where "
                        "the product finishes a norm or leaves moments");
    }
    return ESP_OK;
}

esp_status panel_launch(const esp_matmul_call *call, esp_error *error)
{
    const panel_variant *variant = call->kernel->variant;
    const cuda_state *state = call->device->state;
    const cuda_weight *weight = call->args->weight->state;
    const esp_matmul_problem *problem = call->problem;
    ESP_TRY(cuda_check_operands(call, error));
    ESP_TRY(check_normed(call, error));
    workspace sizes = workspace_of(variant, problem);
    char *room = (char *)cuda_round_up((size_t)(uintptr_t)call->args->workspace);
    gpu_tiled tiled = {.product = {.weight = weight->panels,
                                   .bf16 = variant->type == ESP_BF16,
                                   .tokens = (int)problem->tokens,
                                   .device = state->index,
                                   .multiprocessors = state->facts.multiprocessors},
                       .normed = normed_of(call),
                       .moments_stride = problem->tokens};
    gpu_product *product = &tiled.product;
    product->weight.in = problem->in_features; /* spread weights have more places than features */
    const esp_moments *left = call->around.moments;
    bool adds = left != NULL && adds_parts(problem);
    if (left != NULL) {
        tiled.moments = adds ? (float *)(void *)(room + sizes.x_bytes) : left->values;
    }
    int before;
    ESP_TRY(cuda_check(gpu_enter(state->index, &before), call->device, "entering it", error));
    int failed = place_x(call, variant, &sizes, room, product);
    product->prologue = cuda_prologue(call, &product->x_aligned);
    product->ahead = cuda_ahead(call);
    product->gates = call->around.gates;
    if (failed == 0 && (problem->epilogue & ESP_EP_SWIGLU) != 0 && !weight->pairs_together) {
        float *sums = (float *)(void *)(room + sizes.x_bytes);
        failed = run_parted_pairs(call, variant, sizes.sum_tokens, sums, &tiled);
    } else if (failed == 0) {
        product->epilogue = cuda_epilogue(call, 0, problem->tokens);
        failed = variant->run(variant, state, &tiled, call->args->stream);
        if (failed == 0 && adds) {
            failed = gpu_sum_moments(tiled.moments, (int)parts_found(call->kernel, problem),
                                     problem->tokens, left->values, call->args->stream);
        }
    }
    gpu_leave(before);
    return cuda_check(failed, call->device, call->kernel->name, error);
}

/* ---- dealing and choosing ---- */

#define GROUP_ROWS 4096 /* whose weights stay in the L2; 6144 where tiles have 64 */
/* Measured on an H100 in rounds that are alone: what of a tile's time a part of it takes however
 * narrow it is, for the way to memory is as far; clocks to add up the sums of a cluster: to meet,
 * and for each token of the tile, of which tiles of 256 take no more than those of 128. */
#define PART_FIXED 0.65
#define MEET_CLOCKS 2300
#define SHARE_CLOCKS 38
#define SHARE_TOKENS 128
#define BESIDE 0.4 /* of the time that memory takes is not hidden by products */
#define EDGE 2     /* a gathered step takes so often as long where tokens end within the part */
#define SMOOTH_CLOCKS (3200.0 / (128 * 256)) /* of an activation's instructions, for each sum */

static panel_tiling tiling_of(const panel_variant *variant, int64_t panels, int64_t panel_rows,
                              int64_t steps, int64_t tokens, unsigned bits, const cuda_state *state)
{
    panel_tiling made = {.panels = panels,
                         .of_panel = esp_ceil_div(panel_rows, variant->rows),
                         .tokens = tokens,
                         .tile_tokens = variant->tokens,
                         .most_shift = variant->halvings,
                         .most_group = variant->rows <= 64 ? 96 : GROUP_ROWS / variant->rows,
                         .multiprocessors = state->facts.multiprocessors,
                         .most_split = variant->most_split,
                         .least_share = (bits & ESP_EP_SWIGLU) != 0 ? 64 : 32, /* as chunks have */
                         .steps = steps,
                         .edge = variant->listed ? EDGE : 1};
    memcpy(made.most_clusters, state->most_clusters, sizeof made.most_clusters);
    const unsigned activations = ESP_EP_GELU | ESP_EP_GELU_TANH | ESP_EP_SILU;
    double smooth = (bits & activations) != 0 ? SMOOTH_CLOCKS * variant->rows * variant->tokens : 0;
    double fixed = variant->part_fixed > 0 ? variant->part_fixed : PART_FIXED;
    for (int shift = 0; shift <= variant->halvings; shift++) {
        double part = fixed + (1 - fixed) / (1 << shift);
        made.step_clocks[shift] = variant->clocks * part;
        made.finish_clocks[shift] = variant->finish_clocks * part + smooth / (1 << shift);
        made.share_clocks[shift] =
            MEET_CLOCKS + SHARE_CLOCKS * ESP_MIN(variant->tokens >> shift, SHARE_TOKENS);
    }
    return made;
}

void panel_deal_product(const panel_variant *variant, const cuda_state *state, gpu_product *product)
{
    const gpu_panels *weight = &product->weight;
    panel_tiling tiling =
        tiling_of(variant, weight->panels, (int64_t)weight->blocks * GPU_BLOCK_ROWS, weight->steps,
                  product->tokens, product->epilogue.bits, state);
    panel_deal(&tiling, &product->deal);
    product->deal.overlaps = true;
}

bool panel_y_by_engine(const gpu_product *product)
{
    const gpu_epilogue *e = &product->epilogue;
    const unsigned activations = ESP_EP_RELU | ESP_EP_GELU | ESP_EP_GELU_TANH | ESP_EP_SILU;
    bool adds = (e->bits & ESP_EP_RESIDUAL) != 0, pairs = (e->bits & ESP_EP_SWIGLU) != 0;
    bool by_token = e->token_step != 1, alone = !adds && !by_token;
    int64_t stride = by_token ? e->token_step : e->feature_step;
    int64_t rows = pairs ? product->weight.out / 2 : product->weight.out;
    return product->weight.out % 2 == 0 && e->type != GPU_F32 && e->aligned && stride % 8 == 0 &&
           (by_token ? rows : e->tokens) % 8 == 0 && !(adds && pairs) &&
           (alone || (e->bits & activations) == 0);
}

double panel_reading_us(const esp_device *device, int64_t panels, int64_t panel_rows, int64_t steps,
                        int64_t step_bytes)
{
    int64_t blocks = panels * esp_ceil_div(panel_rows, GPU_BLOCK_ROWS);
    return cuda_memory_us(device, (double)(blocks * steps * step_bytes));
}

/* One row of tiles, all there is of few tokens, asks for weights too slowly: 2:4 of 11008x4096 took
 * 45, 48 and 27 us at 1, 8 and 16 tokens on an H100 whose memory gives its bytes in 17, dense
 * 4096x11008 66, 44 and 38 us instead of 32. */
static double few_times(double tokens)
{
    return tokens <= GPU_FEW_TOKENS ? 2 : 1;
}

/* Rows of X, and of Y, that begin in the middle of 128 bytes: an H100 takes the longer for them,
 * the more there is of X. 200 tokens 1.1 times as long, 1000 and more as the variant says. */
static double off_line(const panel_variant *variant, const esp_matmul_problem *problem)
{
    const double many = 1000;
    bool off = problem->x_layout == ESP_FEATURE_MAJOR && problem->tokens % CUDA_LINE != 0;
    double times = off && variant->off_line > 1 ? variant->off_line : 1;
    return 1 + (times - 1) * ESP_MIN(1, (double)problem->tokens / many);
}

/* X and Y, which products hide in part; residuals come on top of both. */
static double moving_us(const esp_device *device, const esp_matmul_problem *problem)
{
    double features = (double)problem->in_features + (double)problem->out_features;
    return cuda_memory_us(device, 2 * features * (double)problem->tokens);
}

static double residual_us(const esp_device *device, const esp_matmul_problem *problem)
{
    double outputs = (double)problem->out_features * (double)problem->tokens;
    return (problem->epilogue & ESP_EP_RESIDUAL) != 0 ? cuda_memory_us(device, 2 * outputs) : 0;
}

double panel_tiles_us(const panel_variant *variant, const esp_device *device,
                      const esp_matmul_problem *problem)
{
    const cuda_state *state = device->state;
    double in = (double)problem->in_features, tokens = (double)problem->tokens;
    int64_t v = esp_pattern_panel_rows(&problem->pattern, problem->out_features);
    int64_t panel_rows = v > 0 && !variant->spread ? v : problem->out_features;
    int64_t panels = esp_ceil_div(problem->out_features, panel_rows);
    bool dense = problem->pattern.kind == ESP_PATTERN_DENSE;
    int64_t kept = dense             ? problem->in_features
                   : variant->spread ? esp_spread_places(problem->in_features)
                                     : esp_pattern_kept(&problem->pattern, problem->in_features);
    int64_t steps = esp_ceil_div(kept, GPU_STEP_COLUMNS);
    panel_tiling tiling =
        tiling_of(variant, panels, panel_rows, steps, problem->tokens, problem->epilogue, state);
    gpu_deal deal;
    double tile = (double)steps * variant->clocks + variant->finish_clocks;
    double tiles_us = ESP_MAX(panel_deal(&tiling, &deal), variant->alone * tile) / MHZ;
    tiles_us *= off_line(variant, problem);
    double us = variant->launch_us > 0 ? variant->launch_us : 4;
    double weights_us = dense ? cuda_memory_us(device, 2 * in * (double)problem->out_features)
                              : panel_reading_us(device, panels, panel_rows, steps, GPU_STEP_BYTES);
    weights_us *= few_times(tokens);
    double memory_us = weights_us + moving_us(device, problem);
    us += ESP_MAX(tiles_us + BESIDE * memory_us, memory_us) + residual_us(device, problem);
    return us + (panel_moves_x(variant, problem) ? 2 + cuda_memory_us(device, 4 * in * tokens) : 0);
}
