/* Products of panels on every GPU from compute capability 8.0 on: which kernels there are, and when
 * each is the one to take. On Hopper, they serve panels of up to 32 rows. */
#include "cuda/panel_call.h"

static const char *why_not(const esp_kernel *kernel, const esp_device *device,
                           const esp_matmul_problem *problem)
{
    const panel_variant *variant = kernel->variant;
    const cuda_state *state = device->state;
    if (state->facts.major < 8) {
        return "it needs a GPU of compute capability 8.0 or later";
    }
    const char *why = panel_why_not(variant, problem);
    if (why != NULL || variant->few) {
        return why;
    }
    int64_t block_rows = panel_block_rows(problem);
    if ((variant->rows < GPU_BLOCK_ROWS) != (block_rows < GPU_BLOCK_ROWS)) {
        return block_rows < GPU_BLOCK_ROWS ? "its tiles are made of blocks of 64 rows, and panels "
                                             "of up to 32 are packed in blocks of 32"
                                           : "it reads panels of up to 32 rows only";
    }
    return NULL;
}

static int run_product(const panel_variant *variant, const cuda_state *state, gpu_tiled *tiled,
                       void *stream)
{
    gpu_product *product = &tiled->product;
    (void)state;
    if (variant->few) {
        return gpu_sm80_few(product, stream);
    }
    return product->bf16 ? gpu_sm80_panel_bf16(product, variant->tile, stream)
                         : gpu_sm80_panel_f16(product, variant->tile, stream);
}

static double few_us(const esp_device *device, int64_t blocks, int64_t block_rows, int64_t steps)
{
    int64_t step = block_rows * GPU_ROW_BYTES + 2 * GPU_STEP_COLUMNS; /* and its columns */
    double bytes = (double)blocks * (double)steps * (double)step;
    return 3.5 + cuda_memory_us(device, bytes); /* a Hopper's own kernel is a little better */
}

static double score_us(const esp_kernel *kernel, const esp_device *device,
                       const esp_matmul_problem *problem)
{
    const panel_variant *variant = kernel->variant;
    if (!variant->few) {
        return panel_tiles_us(variant, device, problem);
    }
    int64_t v = esp_pattern_panel_rows(&problem->pattern, problem->out_features);
    int64_t panel_rows = v > 0 ? v : problem->out_features, block_rows = panel_block_rows(problem);
    int64_t panels = esp_ceil_div(problem->out_features, panel_rows);
    int64_t kept = esp_pattern_kept(&problem->pattern, problem->in_features);
    int64_t blocks = panels * esp_ceil_div(panel_rows, block_rows);
    return few_us(device, blocks, block_rows, esp_ceil_div(kept, GPU_STEP_COLUMNS));
}

/* ---- records ---- */

#define LISTED "rows of X gathered by the panel's list, mma.sp; speed not measured before 9.0"
#define WHOLE "X as it lies, mma.sp; speed not measured before 9.0"
#define FEW "up to 16 tokens: weights streamed, mma.sp; speed not measured before 9.0"

#define RECORD(short_name, suffix, about, ...)                                                     \
    {                                                                                              \
        .name = "matmul_panel_" short_name "_" short_name "__cuda_sm80_" suffix, .device = "cuda", \
        .format = "panel", .level = "sm80", .idea = about, .why_not = why_not,                     \
        .workspace_bytes = panel_workspace_bytes, .score_us = score_us, .launch = panel_launch,    \
        .variant = &(const panel_variant){__VA_ARGS__, .run = run_product},                        \
    }
#define TILE(short_name, type, suffix, about, with_list, tile_rows, tile_tokens, step, leaving,    \
             by_itself)                                                                            \
    RECORD(short_name, suffix, about, type, .listed = with_list,                                   \
           .tile = GPU_TILE_##tile_rows##X##tile_tokens, .rows = tile_rows, .tokens = tile_tokens, \
           .clocks = step, .finish_clocks = leaving, .alone = by_itself, .off_line = 1.4)
/* Clocks: what an H100 needs; Ampere and Ada are not measured. Tiles alone: an H200 at 768x768x200
 * and, of 2:4, an H100 at 4096x4096x512; those of 32 rows as those of 64. */
#define RECORDS(type, name)                                                                        \
    RECORD(name, "few", FEW, type, .few = true),                                                   \
        TILE(name, type, "128x128", LISTED, true, 128, 128, 920, 2500, 1.85),                      \
        TILE(name, type, "64x256", LISTED, true, 64, 256, 980, 2500, 2.3),                         \
        TILE(name, type, "64x128", LISTED, true, 64, 128, 510, 1250, 2.3),                         \
        TILE(name, type, "32x256", LISTED, true, 32, 256, 600, 1250, 2.3),                         \
        TILE(name, type, "32x128", LISTED, true, 32, 128, 300, 700, 2.3),                          \
        TILE(name, type, "whole_128x128", WHOLE, false, 128, 128, 650, 2500, 1.5),                 \
        TILE(name, type, "whole_64x128", WHOLE, false, 64, 128, 380, 1250, 2)

const esp_kernel cuda_sm80_panel_kernels[] = {RECORDS(ESP_F16, "f16"), RECORDS(ESP_BF16, "bf16")};
