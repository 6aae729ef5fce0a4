/* Products of panels on Hopper: which kernels there are, and when each is the one to take. The
 * steps of a call are in panel_call.c. */
#include "cuda/panel_call.h"

#define MHZ 1500.0 /* of a chip at its power limit: scores only order candidates */

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
    if (panel_block_rows(problem) != GPU_BLOCK_ROWS) {
        return "it reads blocks of 64 rows, and panels of up to 32 are packed in blocks of 32";
    }
    return NULL;
}

static int run_product(const panel_variant *variant, const gpu_product *product, void *stream)
{
    if (variant->few) {
        return gpu_sm90_few(product, stream);
    }
    return product->bf16 ? gpu_sm90_panel_bf16(product, variant->tile, stream)
                         : gpu_sm90_panel_f16(product, variant->tile, stream);
}

/* ---- choosing ---- */

/* Clocks of all rounds of tiles, plus laying out X where that is needed. */
static double score_us(const esp_kernel *kernel, const esp_device *device,
                       const esp_matmul_problem *problem)
{
    const panel_variant *variant = kernel->variant;
    const cuda_state *state = device->state;
    double in = (double)problem->in_features, tokens = (double)problem->tokens;
    int64_t v = esp_pattern_panel_rows(&problem->pattern, problem->out_features);
    int64_t panel_rows = v > 0 ? v : problem->out_features;
    int64_t panels = esp_ceil_div(problem->out_features, panel_rows);
    int64_t kept = esp_pattern_kept(&problem->pattern, problem->in_features);
    int64_t steps = esp_ceil_div(kept, GPU_STEP_COLUMNS);
    if (variant->few) {
        int64_t blocks = panels * esp_ceil_div(panel_rows, GPU_BLOCK_ROWS);
        double bytes = (double)(blocks * steps) * (GPU_STEP_BYTES + 2 * GPU_STEP_COLUMNS);
        return 3 + cuda_memory_us(device, bytes);
    }
    int64_t tiles = panels * esp_ceil_div(panel_rows, variant->rows) *
                    esp_ceil_div(problem->tokens, variant->tokens);
    double rounds = (double)esp_ceil_div(tiles, state->facts.multiprocessors);
    double us = 4 + rounds * ((double)steps * variant->clocks + variant->finish_clocks) / MHZ;
    return us + (panel_moves_x(variant, problem) ? 2 + cuda_memory_us(device, 4 * in * tokens) : 0);
}

/* ---- records ---- */

#define GATHERED "rows of X gathered by the panel's list, wgmma.sp"
#define WHOLE "X by the tensor copy engine, wgmma.sp"
#define FEW "up to 16 tokens: weights streamed by bulk copies, mma.sp"

#define RECORD(short_name, suffix, about, ...)                                                     \
    {                                                                                              \
        .name = "matmul_panel_" short_name "_" short_name "__cuda_sm90_" suffix, .device = "cuda", \
        .format = "panel", .level = "sm90", .idea = about, .why_not = why_not,                     \
        .workspace_bytes = panel_workspace_bytes, .score_us = score_us, .launch = panel_launch,    \
        .variant = &(const panel_variant){__VA_ARGS__, .run = run_product},                        \
    }
/* Clocks: the larger of what the tensor cores and what the L2 need for a step. */
#define RECORDS(type, short_name)                                                                  \
    RECORD(short_name, "few", FEW, type, .few = true),                                             \
        RECORD(short_name, "128x256", GATHERED, type, .listed = true, .tile = GPU_TILE_128X256,    \
               .rows = 128, .tokens = 256, .clocks = 800, .finish_clocks = 3000),                  \
        RECORD(short_name, "128x128", GATHERED, type, .listed = true, .tile = GPU_TILE_128X128,    \
               .rows = 128, .tokens = 128, .clocks = 520, .finish_clocks = 2500),                  \
        RECORD(short_name, "64x512", GATHERED, type, .listed = true, .tile = GPU_TILE_64X512,      \
               .rows = 64, .tokens = 512, .clocks = 1250, .finish_clocks = 3000),                  \
        RECORD(short_name, "64x256", GATHERED, type, .listed = true, .tile = GPU_TILE_64X256,      \
               .rows = 64, .tokens = 256, .clocks = 720, .finish_clocks = 2500),                   \
        RECORD(short_name, "256x128", GATHERED, type, .listed = true, .tile = GPU_TILE_256X128,    \
               .rows = 256, .tokens = 128, .clocks = 850, .finish_clocks = 3000),                  \
        RECORD(short_name, "whole_128x256", WHOLE, type, .tile = GPU_TILE_128X256, .rows = 128,    \
               .tokens = 256, .clocks = 720, .finish_clocks = 3000),                               \
        RECORD(short_name, "whole_128x128", WHOLE, type, .tile = GPU_TILE_128X128, .rows = 128,    \
               .tokens = 128, .clocks = 430, .finish_clocks = 2500)

const esp_kernel cuda_panel_kernels[] = {RECORDS(ESP_F16, "f16"), RECORDS(ESP_BF16, "bf16")};
