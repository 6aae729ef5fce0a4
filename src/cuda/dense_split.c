/* Dense products of some hundred tokens in small tiles, whose steps a cluster of blocks shares out
 * (sm90_dense_split.cuh): how many blocks that are, and what it takes. The steps of a call are
 * those of panels (panel_call.c). */
#include "cuda/dense_tiles.h"
#include "cuda/gpu_dense.h"

/* Measured on an H100, microseconds from launch to launch, many of one shape recorded one behind
 * the other with cold weights. A step takes the longer, the more blocks load at a time. */
typedef struct split_costs {
    int at_once;                 /* blocks that a multiprocessor has room for */
    double launch, each;         /* and that, for each block of a cluster of several */
    double step, step_per_block; /* 64 columns; for each block that runs */
    double crowded;              /* for each block of a cluster, where the next launch's find no
                                    place beside them */
    double weights;              /* of what memory takes for them: not hidden */
} split_costs;

static const split_costs costs_of_64 = {2, 1.9, 0.0, 0.16, 0.0015, 0.45, 0.5};
static const split_costs costs_of_128 = {1, 3.2, 0.2, 0.31, 0.0008, 0.0, 0.0};

static const split_costs *costs_of(const panel_variant *variant)
{
    return variant->tokens == 64 ? &costs_of_64 : &costs_of_128;
}

#define MEASURED_TOKENS 640 /* beyond, scores are less sure than those of the other family */
#define ROUND_US 2.5        /* between rounds of blocks */

static const int splits[] = {1, 2, 3, 4, 8};

/* Clusters that run at a time, one block a multiprocessor; three blocks take a place for four. */
static int64_t places(const cuda_state *state, int split)
{
    static const int sizes[] = {0, 0, 1, 2, 2, 3, 3, 3, 3};
    int known = state->most_clusters[sizes[split]];
    return known > 0 ? known : ESP_MAX(1, state->facts.multiprocessors / split);
}

static double split_us(const split_costs *costs, const cuda_state *state, int64_t tiles,
                       int64_t steps, int split)
{
    int64_t alone = places(state, split), room = alone * costs->at_once;
    int64_t rounds = esp_ceil_div(tiles, room);
    double blocks = (double)(ESP_MIN(tiles, room) * split);
    double step = costs->step + costs->step_per_block * blocks;
    bool crowded = tiles > alone || split == 8;
    double round = (double)esp_ceil_div(steps, split) * step;
    return costs->launch + (split > 1 ? costs->each * split : 0) +
           (crowded ? costs->crowded * split : 0) + round +
           (double)(rounds - 1) * (round + ROUND_US);
}

/* The best of the splits, and what it takes. */
static double find_split(const panel_variant *variant, const cuda_state *state, int64_t out,
                         int64_t in, int64_t tokens, int *split)
{
    const split_costs *costs = costs_of(variant);
    int64_t tiles = esp_ceil_div(out, variant->rows) * esp_ceil_div(tokens, variant->tokens);
    int64_t steps = esp_ceil_div(in, GPU_STEP_COLUMNS);
    double best = -1;
    for (int i = 0; i < ESP_COUNT(splits) && splits[i] <= steps; i++) {
        double us = split_us(costs, state, tiles, steps, splits[i]);
        if (best < 0 || us < best) {
            best = us;
            *split = splits[i];
        }
    }
    return best;
}

/* X that the copy engine does not take is left to the other family. */
static int run_product(const panel_variant *variant, const cuda_state *state, gpu_tiled *tiled,
                       void *stream)
{
    gpu_product *product = &tiled->product;
    if (!product->x_aligned) {
        return dense_tiles_run_128x128(state, tiled, stream);
    }
    int64_t out = product->weight.out, tokens = product->tokens;
    product->deal = (gpu_deal){.overlaps = true};
    find_split(variant, state, out, product->weight.in, tokens, &product->deal.split);
    product->deal.multiprocessors =
        (int)(esp_ceil_div(out, variant->rows) * esp_ceil_div(tokens, variant->tokens));
    return gpu_sm90_dense_split(product, variant->tokens, stream);
}

/* The grid counts blocks in 31 bits. */
static const char *why_not(const esp_kernel *kernel, const esp_device *device,
                           const esp_matmul_problem *problem)
{
    const panel_variant *variant = kernel->variant;
    const char *why = dense_tiles_why_not(kernel, device, problem);
    int64_t rows = esp_ceil_div(problem->out_features, variant->rows);
    if (why == NULL && rows > INT32_MAX / 8 / esp_ceil_div(problem->tokens, variant->tokens)) {
        why = "it has too many tiles to count";
    }
    return why;
}

static double score_us(const esp_kernel *kernel, const esp_device *device,
                       const esp_matmul_problem *problem)
{
    const panel_variant *variant = kernel->variant;
    double out = (double)problem->out_features, in = (double)problem->in_features;
    double tokens = (double)problem->tokens;
    double weights_us = cuda_memory_us(device, 2 * out * in);
    double memory_us = weights_us + cuda_memory_us(device, 2 * (in + out) * tokens);
    int split;
    double us = find_split(variant, device->state, problem->out_features, problem->in_features,
                           problem->tokens, &split);
    bool off_line = problem->tokens % CUDA_LINE != 0;
    us += costs_of(variant)->weights * weights_us + cuda_smooth_us(problem);
    us += problem->tokens <= GPU_FEW_TOKENS ? 2 + weights_us : 0; /* that others stream */
    double unknown = problem->tokens > MEASURED_TOKENS ? 0.15 : 0;
    return ESP_MAX(us * (1 + (off_line ? 0.1 : 0) + unknown), 2.5 + memory_us);
}

#define RECORD(type_, short_name, tokens_)                                                         \
    {                                                                                              \
        .name = "matmul_dense_" short_name "_" short_name "__cuda_sm90_split_128x" #tokens_,       \
        .device = "cuda", .format = "dense", .level = "sm90",                                      \
        .idea = "small tiles, whose steps a cluster shares out, wgmma; every epilogue in passing", \
        .why_not = why_not, .workspace_bytes = panel_workspace_bytes, .score_us = score_us,        \
        .launch = panel_launch, .variant = &(const panel_variant)                                  \
        {                                                                                          \
            .type = type_, .rows = 128, .tokens = tokens_, .run = run_product                      \
        }                                                                                          \
    }

const esp_kernel cuda_dense_split_kernels[] = {
    RECORD(ESP_F16, "f16", 128), RECORD(ESP_F16, "f16", 64), RECORD(ESP_BF16, "bf16", 128),
    RECORD(ESP_BF16, "bf16", 64)};
