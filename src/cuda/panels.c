/* Products of panels on Hopper: which kernels there are, and when each is the one to take. The
 * steps of a call are in panel_call.c. */
#include "cuda/gpu_spread.h"
#include "cuda/panel_call.h"

static const char *why_not(const esp_kernel *kernel, const esp_device *device,
                           const esp_matmul_problem *problem)
{
    const panel_variant *variant = kernel->variant;
    const cuda_state *state = device->state;
    if (state->facts.major != 9 || state->facts.minor != 0) {
        return "it needs a GPU of compute capability 9.0";
    }
    const char *why = panel_why_not(variant, problem);
    if (why != NULL) {
        return why;
    }
    if (!variant->spread && panel_block_rows(problem) != GPU_BLOCK_ROWS) {
        return "it reads blocks of 64 rows, and panels of up to 32 are packed in blocks of 32";
    }
    return NULL;
}

static int run_product(const panel_variant *variant, const cuda_state *state, gpu_tiled *tiled,
                       void *stream)
{
    gpu_product *product = &tiled->product;
    if (variant->few) {
        return gpu_sm90_few(product, stream);
    }
    panel_deal_product(variant, state, product);
    product->y_by_engine = product->weight.straight && panel_y_by_engine(product);
    if (variant->spread) {
        return product->bf16 ? gpu_sm90_panel_spread_bf16(tiled, variant->tile, stream)
                             : gpu_sm90_panel_spread_f16(tiled, variant->tile, stream);
    }
    return product->bf16 ? gpu_sm90_tiles_bf16(tiled, variant->tile, stream)
                         : gpu_sm90_tiles_f16(tiled, variant->tile, stream);
}

/* Pairs that are parted are computed some tokens at a time, but few tokens are one piece. */
static bool takes(const esp_kernel *kernel, const esp_matmul_problem *problem,
                  esp_prologue_kind kind)
{
    const panel_variant *variant = kernel->variant;
    return variant->few && cuda_few_takes(problem, kind);
}

/* The two rows of a pair are in panels of their own, which a block takes together. For a single
 * token that is slower (one H100, 64:2:8, a layer of Llama-2-7B: 44.1 us instead of 42.2), since
 * the product after it gates as it reads; for 8 it takes 47.2 instead of 49.9. */
static bool gates(const esp_kernel *kernel, const esp_matmul_problem *problem,
                  const esp_packed *weight)
{
    const panel_variant *variant = kernel->variant;
    const cuda_weight *packed = weight->state;
    bool sixteen_bits = problem->out_type == variant->type;
    return variant->few && problem->tokens % 8 == 0 && packed != NULL && !packed->dense &&
           packed->panels.straight && sixteen_bits && problem->epilogue == 0 &&
           problem->out_features % 2 == 0 && problem->y_layout == ESP_FEATURE_MAJOR &&
           problem->pattern.v > 0 && problem->out_features / 2 % problem->pattern.v == 0;
}

/* ---- choosing ---- */

static double score_us(const esp_kernel *kernel, const esp_device *device,
                       const esp_matmul_problem *problem)
{
    const panel_variant *variant = kernel->variant;
    if (!variant->few) {
        return panel_tiles_us(variant, device, problem);
    }
    int64_t v = esp_pattern_panel_rows(&problem->pattern, problem->out_features);
    int64_t panel_rows = v > 0 ? v : problem->out_features;
    int64_t panels = esp_ceil_div(problem->out_features, panel_rows);
    int64_t kept = esp_pattern_kept(&problem->pattern, problem->in_features);
    int64_t steps = esp_ceil_div(kept, GPU_STEP_COLUMNS);
    return 3 + panel_reading_us(device, panels, panel_rows, steps,
                                GPU_STEP_BYTES + 2 * GPU_STEP_COLUMNS);
}

/* ---- records ---- */

#define GATHERED "rows of X gathered by the panel's list, wgmma.sp"
#define STAGGERED "as gathered, half of the sums leave while the others are multiplied"
#define WHOLE "X by the tensor copy engine, wgmma.sp"
#define SPREAD "V:2:5 as 2:4 over all columns, X by the tensor copy engine, wgmma.sp"
#define FEW "up to 16 tokens: weights streamed by bulk copies, mma.sp"

/* Microseconds among other kernels. Tiles have a multiprocessor to themselves, so that neither they
 * nor the launch behind them can begin beside another, and long code. DeiT-base, one image, on an
 * H100: 2:4 products take 2.5 us longer than repeated, 128:2:8 1.6, small dense ones 0.3; where
 * both alternate, panels 2 and dense ones behind them 2.2: 0.56 ms, where all are dense 0.48. */
#define AMONG 1.5

#define RECORD_OF(of_spread, short_name, suffix, about, among, ...)                                \
    {                                                                                              \
        .name = "matmul_panel_" short_name "_" short_name "__cuda_sm90_" suffix, .device = "cuda", \
        .format = "panel", .level = "sm90", .idea = about, .why_not = why_not,                     \
        .workspace_bytes = panel_workspace_bytes, .score_us = score_us, .launch = panel_launch,    \
        .takes = takes, .norms = panel_norms, .moment_parts = panel_moment_parts, .gates = gates,  \
        .spread = of_spread, .among_us = among,                                                    \
        .variant = &(const panel_variant){__VA_ARGS__, .spread = of_spread, .run = run_product},   \
    }
#define RECORD(short_name, suffix, about, among, ...)                                              \
    RECORD_OF(false, short_name, suffix, about, among, __VA_ARGS__)
/* Clocks: fitted to 7000 readings of an H100, 64 to 51200 tokens of 384 to 11008 features with and
 * without what models do to sums, at the rate of panel_call.c: 5 to 10 % off, root mean square. */
#define RECORDS(type, short_name)                                                                  \
    RECORD(short_name, "few", FEW, 0, type, .few = true),                                          \
        RECORD(short_name, "128x256", GATHERED, AMONG, type, .listed = true,                       \
               .tile = GPU_TILE_128X256, .rows = 128, .tokens = 256, .most_split = 8,              \
               .halvings = 2, .clocks = 782, .finish_clocks = 1450, .launch_us = 2.22,             \
               .off_line = 1.5, .part_fixed = 0.55),                                               \
        RECORD(short_name, "128x128", GATHERED, AMONG, type, .listed = true,                       \
               .tile = GPU_TILE_128X128, .rows = 128, .tokens = 128, .most_split = 8,              \
               .halvings = 1, .clocks = 570, .finish_clocks = 1020, .launch_us = 2.31,             \
               .off_line = 1.4, .part_fixed = 0.76),                                               \
        RECORD(short_name, "staggered_256x128", STAGGERED, AMONG, type, .listed = true,            \
               .tile = GPU_STAGGERED_256X128, .rows = 256, .tokens = 128, .halvings = 1,           \
               .clocks = 778, .finish_clocks = 1080, .launch_us = 2.62, .off_line = 1.25,          \
               .part_fixed = 0.67),                                                                \
        RECORD(short_name, "64x512", GATHERED, AMONG, type, .listed = true,                        \
               .tile = GPU_TILE_64X512, .rows = 64, .tokens = 512, .halvings = 2, .clocks = 1040,  \
               .finish_clocks = 2370, .launch_us = 1.51, .off_line = 1.9, .part_fixed = 0.67),     \
        RECORD(short_name, "64x256", GATHERED, AMONG, type, .listed = true,                        \
               .tile = GPU_TILE_64X256, .rows = 64, .tokens = 256, .halvings = 2, .clocks = 684,   \
               .finish_clocks = 780, .launch_us = 2.47, .off_line = 1.75, .part_fixed = 0.58),     \
        RECORD(short_name, "whole_128x256", WHOLE, AMONG, type, .tile = GPU_TILE_128X256,          \
               .rows = 128, .tokens = 256, .most_split = 8, .halvings = 2, .clocks = 581,          \
               .finish_clocks = 2300, .launch_us = 1.43, .off_line = 1.4, .part_fixed = 0.56),     \
        RECORD(short_name, "whole_128x128", WHOLE, AMONG, type, .tile = GPU_TILE_128X128,          \
               .rows = 128, .tokens = 128, .most_split = 8, .halvings = 1, .clocks = 383,          \
               .finish_clocks = 1190, .launch_us = 2.01, .off_line = 1.35, .part_fixed = 0.46),    \
        RECORD_OF(true, short_name, "spread_128x256", SPREAD, AMONG, type,                         \
                  .tile = GPU_TILE_128X256, .rows = 128, .tokens = 256, .most_split = 8,           \
                  .halvings = 2, .clocks = 609, .finish_clocks = 2270, .launch_us = 1.65,          \
                  .off_line = 1.4, .part_fixed = 0.51),                                            \
        RECORD_OF(true, short_name, "spread_128x128", SPREAD, AMONG, type,                         \
                  .tile = GPU_TILE_128X128, .rows = 128, .tokens = 128, .most_split = 8,           \
                  .halvings = 1, .clocks = 392, .finish_clocks = 1190, .launch_us = 2.14,          \
                  .off_line = 1.35, .part_fixed = 0.66)

const esp_kernel cuda_panel_kernels[] = {RECORDS(ESP_F16, "f16"), RECORDS(ESP_BF16, "bf16")};
