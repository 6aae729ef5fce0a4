/* Dense products of many tokens by our own kernel, beside cuBLASLt's: about as fast, and every
 * epilogue in passing. X and Y are feature-major, as they are inside a model; for others cuBLASLt
 * writes Y in one go too, or is as good. The steps of a call are those of panels (panel_call.c): a
 * dense weight is one panel of all rows, whose data is what it is. */
#include "cuda/dense_tiles.h"
#include "cuda/gpu_dense.h"

const char *dense_tiles_why_not(const esp_kernel *kernel, const esp_device *device,
                                const esp_matmul_problem *problem)
{
    const panel_variant *variant = kernel->variant;
    const cuda_state *state = device->state;
    if (state->facts.major != 9 || state->facts.minor != 0) {
        return "it needs a GPU of compute capability 9.0";
    }
    if (problem->pattern.kind != ESP_PATTERN_DENSE) {
        return "it reads dense weights only";
    }
    const char *why = cuda_why_not(problem, variant->type);
    if (why != NULL) {
        return why;
    }
    if (problem->x_layout != ESP_FEATURE_MAJOR) {
        return "it reads X feature-major only";
    }
    if (problem->out_features % 16 != 0 || problem->in_features % 8 != 0) {
        return "it takes output features in sixteens and input features in eights only";
    }
    int64_t rows = esp_ceil_div(problem->out_features, variant->rows);
    return rows <= INT32_MAX / esp_ceil_div(problem->tokens, variant->tokens)
               ? NULL
               : "it has too many tiles to count";
}

static int run_product(const panel_variant *variant, const cuda_state *state, gpu_product *product,
                       void *stream)
{
    panel_deal_product(variant, state, product);
    product->y_by_engine = panel_y_by_engine(product);
    return product->bf16 ? gpu_sm90_dense_bf16(product, variant->tile, stream)
                         : gpu_sm90_dense_f16(product, variant->tile, stream);
}

static double score_us(const esp_kernel *kernel, const esp_device *device,
                       const esp_matmul_problem *problem)
{
    return panel_tiles_us(kernel->variant, device, problem);
}

#define RECORD(short_name, suffix, ...)                                                            \
    {                                                                                              \
        .name = "matmul_dense_" short_name "_" short_name "__cuda_sm90_" suffix, .device = "cuda", \
        .format = "dense", .level = "sm90",                                                        \
        .idea = "W and X by the tensor copy engine, wgmma; every epilogue in passing",             \
        .why_not = dense_tiles_why_not, .workspace_bytes = panel_workspace_bytes,                  \
        .score_us = score_us, .launch = panel_launch,                                              \
        .variant = &(const panel_variant){__VA_ARGS__, .rows = 128, .most_split = 8,               \
                                          .off_line = 1.25, .run = run_product},                   \
    }
/* Clocks: fitted as those of panels. */
#define RECORDS(type, short_name)                                                                  \
    RECORD(short_name, "128x256", type, .tile = GPU_TILE_128X256, .tokens = 256, .halvings = 2,    \
           .clocks = 854, .finish_clocks = 2630, .launch_us = 1.26, .part_fixed = 0.42),           \
        RECORD(short_name, "128x128", type, .tile = GPU_TILE_128X128, .tokens = 128,               \
               .halvings = 1, .clocks = 501, .finish_clocks = 870, .launch_us = 2.04,              \
               .part_fixed = 0.38)

const esp_kernel cuda_dense_tile_kernels[] = {RECORDS(ESP_F16, "f16"), RECORDS(ESP_BF16, "bf16")};

/* ---- beside cuBLASLt's measured times ---- */

int dense_tiles_run_128x128(const cuda_state *state, gpu_product *product, void *stream)
{
    const panel_variant *variant = cuda_dense_tile_kernels[1].variant;
    return run_product(variant, state, product, stream);
}

const esp_kernel *cuda_dense_tiles_for(const esp_device *device, const esp_matmul_problem *problem)
{
    const esp_kernel *best = NULL;
    double best_us = 0;
    for (int i = 0; i < CUDA_DENSE_TILE_KERNELS + CUDA_DENSE_SPLIT_KERNELS; i++) {
        const esp_kernel *kernel = i < CUDA_DENSE_TILE_KERNELS
                                       ? &cuda_dense_tile_kernels[i]
                                       : &cuda_dense_split_kernels[i - CUDA_DENSE_TILE_KERNELS];
        if (kernel->why_not(kernel, device, problem) == NULL) {
            double us = kernel->score_us(kernel, device, problem);
            best = best == NULL || us < best_us ? kernel : best;
            best_us = best == kernel ? us : best_us;
        }
    }
    return best;
}

double cuda_smooth_us(const esp_matmul_problem *problem)
{
    const unsigned smooth = ESP_EP_GELU | ESP_EP_GELU_TANH | ESP_EP_SILU;
    double outputs = (double)problem->out_features * (double)problem->tokens;
    return (problem->epilogue & smooth) != 0 ? 0.5e-6 * outputs : 0;
}

/* Measured on an H100: a small product takes longer than cuBLASLt's, but for the kernels that are
 * made for them. */
double cuda_dense_passing_us(const esp_kernel *own, const esp_matmul_problem *problem)
{
    bool small = own >= cuda_dense_split_kernels &&
                 own < cuda_dense_split_kernels + CUDA_DENSE_SPLIT_KERNELS;
    return (small ? 0.5 : 2) + cuda_smooth_us(problem);
}
