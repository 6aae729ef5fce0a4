/* Dense products of many tokens by our own kernel, beside cuBLASLt's: about as fast, and every
 * epilogue in passing. X and Y are feature-major, as they are inside a model; for others cuBLASLt
 * writes Y in one go too, or is as good. The steps of a call are those of panels (panel_call.c): a
 * dense weight is one panel of all rows, whose data is what it is. */
#include "cuda/gpu_dense.h"
#include "cuda/panel_call.h"

static const char *why_not(const esp_kernel *kernel, const esp_device *device,
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

#define ABOUT(of_tile, ...)                                                                        \
    .tile = of_tile, .rows = 128, .most_split = 8, .part_fixed = 0.05,                            \
    .run = run_product, __VA_ARGS__
#define ABOUT_128X256                                                                              \
    ABOUT(GPU_TILE_128X256, .tokens = 256, .halvings = 2, .clocks = 1150, .finish_clocks = 500)
#define ABOUT_128X128                                                                              \
    ABOUT(GPU_TILE_128X128, .tokens = 128, .halvings = 1, .clocks = 590, .finish_clocks = 600)

static int run_product(const panel_variant *variant, const cuda_state *state, gpu_product *product,
                       void *stream)
{
    panel_deal_product(variant, state, product);
    product->y_by_engine = panel_y_by_engine(product);
    return product->bf16 ? gpu_sm90_dense_bf16(product, variant->tile, stream)
                         : gpu_sm90_dense_f16(product, variant->tile, stream);
}

/* X that the copy engine does not take is left to the other kernel. */
static int run_split(const panel_variant *variant, const cuda_state *state, gpu_product *product,
                     void *stream)
{
    static const panel_variant other = {ABOUT_128X128};
    if (!product->x_aligned) {
        return run_product(&other, state, product, stream);
    }
    int64_t out = product->weight.out, tokens = product->tokens;
    dense_split_us(variant, state, out, product->weight.in, tokens, &product->deal.split);
    product->deal.multiprocessors =
        (int)(esp_ceil_div(out, variant->rows) * esp_ceil_div(tokens, variant->tokens));
    return gpu_sm90_dense_split(product, variant->tokens, stream);
}

static double score_us(const esp_kernel *kernel, const esp_device *device,
                       const esp_matmul_problem *problem)
{
    const panel_variant *variant = kernel->variant;
    double out = (double)problem->out_features, in = (double)problem->in_features;
    double tokens = (double)problem->tokens;
    double memory_us = cuda_memory_us(device, 2 * (out * in + in * tokens + out * tokens));
    int split;
    if (variant->run == run_split) {
        return ESP_MAX(dense_split_us(variant, device->state, problem->out_features,
                                      problem->in_features, problem->tokens, &split),
                       2.5 + memory_us);
    }
    return ESP_MAX(panel_tiles_us(variant, device, problem), 4 + memory_us);
}

#define RECORD(short_name, suffix, about, ...)                                                     \
    {                                                                                              \
        .name = "matmul_dense_" short_name "_" short_name "__cuda_sm90_" suffix, .device = "cuda", \
        .format = "dense", .level = "sm90", .idea = about, .why_not = why_not,                     \
        .workspace_bytes = panel_workspace_bytes, .score_us = score_us, .launch = panel_launch,    \
        .variant = &(const panel_variant){__VA_ARGS__},                                            \
    }
#define TILES "W and X by the tensor copy engine, wgmma; every epilogue in passing"
#define SPLIT "the same in small tiles, whose steps a cluster shares out"
/* Clocks: measured on an H100, at the rate of panel_call.c. */
#define RECORDS(type_, short_name)                                                                 \
    RECORD(short_name, "128x256", TILES, ABOUT_128X256, .type = type_),                            \
        RECORD(short_name, "128x128", TILES, ABOUT_128X128, .type = type_),                        \
        RECORD(short_name, "split_128x128", SPLIT, .type = type_, .rows = 128, .tokens = 128,      \
               .clocks = 800, .finish_clocks = 1500, .run = run_split),                            \
        RECORD(short_name, "split_128x64", SPLIT, .type = type_, .rows = 128, .tokens = 64,        \
               .clocks = 500, .finish_clocks = 1000, .run = run_split)

const esp_kernel cuda_dense_tile_kernels[] = {RECORDS(ESP_F16, "f16"), RECORDS(ESP_BF16, "bf16")};

/* ---- beside cuBLASLt's measured times ---- */

const esp_kernel *cuda_dense_tiles_for(const esp_device *device, const esp_matmul_problem *problem)
{
    const esp_kernel *best = NULL;
    double best_us = 0;
    for (int i = 0; i < CUDA_DENSE_TILE_KERNELS; i++) {
        const esp_kernel *kernel = &cuda_dense_tile_kernels[i];
        if (why_not(kernel, device, problem) == NULL) {
            double us = score_us(kernel, device, problem);
            best = best == NULL || us < best_us ? kernel : best;
            best_us = best == kernel ? us : best_us;
        }
    }
    return best;
}

/* Measured on an H100: a small product takes longer than cuBLASLt's, and instructions of smooth
 * activations are not all hidden. */
double cuda_dense_passing_us(const esp_matmul_problem *problem)
{
    const unsigned smooth = ESP_EP_GELU | ESP_EP_GELU_TANH | ESP_EP_SILU | ESP_EP_SWIGLU;
    double outputs = (double)problem->out_features * (double)problem->tokens;
    return 2 + ((problem->epilogue & smooth) != 0 ? 0.5e-6 * outputs : 0);
}
