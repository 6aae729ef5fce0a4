/* Dense products of up to 16 tokens by our own kernels, beside cuBLASLt's: one launch with every
 * epilogue, and no library. */
#include "cuda/room.h"

/* esp_kernel.variant. */
typedef struct dense_few {
    esp_dtype type;
    bool hopper;
    int (*run)(const gpu_dense_product *product, void *stream);
} dense_few;

static const char *why_not_here(const dense_few *variant, const cuda_state *state,
                                const esp_matmul_problem *problem)
{
    const gpu_facts *facts = &state->facts;
    if (!variant->hopper) {
        return facts->major < 8 ? "it needs a GPU of compute capability 8.0 or later" : NULL;
    }
    if (facts->major != 9 || facts->minor != 0) {
        return "it needs a GPU of compute capability 9.0";
    }
    return problem->in_features % 8 != 0 ? "its rows begin at multiples of 16 bytes" : NULL;
}

static const char *why_not(const esp_kernel *kernel, const esp_device *device,
                           const esp_matmul_problem *problem)
{
    const dense_few *variant = kernel->variant;
    if (problem->pattern.kind != ESP_PATTERN_DENSE) {
        return "it reads dense weights only";
    }
    const char *why = cuda_why_not(problem, variant->type);
    why = why == NULL ? why_not_here(variant, device->state, problem) : why;
    if (why != NULL) {
        return why;
    }
    return problem->tokens > GPU_FEW_TOKENS ? "it takes at most 16 tokens" : NULL;
}

/* X that is not read sixteen bytes or one token at a time: an H100 takes 1.7 times as long for 16
 * tokens; what fewer cost is not measured, and left to cuBLASLt. */
static double reading_factor(const esp_matmul_problem *problem)
{
    bool by_token = problem->x_layout == ESP_TOKEN_MAJOR;
    if (problem->tokens == 1 || (!by_token && problem->tokens % 8 == 0)) {
        return 1;
    }
    return problem->tokens > 8 ? 1.7 : 1.3;
}

/* Bytes of the weights; rows that are not a multiple of 16 bytes go element by element. */
static double score_us(const esp_kernel *kernel, const esp_device *device,
                       const esp_matmul_problem *problem)
{
    const dense_few *variant = kernel->variant;
    double out = (double)problem->out_features, in = (double)problem->in_features;
    double us = cuda_memory_us(device, 2 * out * in) * reading_factor(problem);
    return (variant->hopper ? 3 : 3.5) + (problem->in_features % 8 == 0 ? us : 6 * us);
}

static bool takes(const esp_kernel *kernel, const esp_matmul_problem *problem,
                  esp_prologue_kind kind)
{
    const dense_few *variant = kernel->variant;
    return variant->hopper && cuda_few_takes(problem, kind);
}

static esp_status launch(const esp_matmul_call *call, esp_error *error)
{
    const dense_few *variant = call->kernel->variant;
    const cuda_state *state = call->device->state;
    const cuda_weight *weight = call->args->weight->state;
    const esp_matmul_problem *problem = call->problem;
    const esp_matmul_args *args = call->args;
    ESP_TRY(cuda_check_operands(call, error));
    gpu_dense_product product = {.out = problem->out_features,
                                 .in = problem->in_features,
                                 .weight = weight->values,
                                 .bf16 = variant->type == ESP_BF16,
                                 .x = args->x,
                                 .x_stride = args->x_stride,
                                 .tokens = (int)problem->tokens,
                                 .x_by_token = problem->x_layout == ESP_TOKEN_MAJOR,
                                 .x_aligned =
                                     (uintptr_t)args->x % 16 == 0 && args->x_stride % 8 == 0,
                                 .epilogue = cuda_epilogue(call, 0, problem->tokens),
                                 .device = state->index};
    product.prologue = cuda_prologue(call, &product.x_aligned);
    product.ahead = cuda_ahead(call);
    int before;
    ESP_TRY(cuda_check(gpu_enter(state->index, &before), call->device, "entering it", error));
    int failed = variant->run(&product, args->stream);
    gpu_leave(before);
    return cuda_check(failed, call->device, call->kernel->name, error);
}

#define RECORD(short_name, arch, about, ...)                                                       \
    {                                                                                              \
        .name = "matmul_dense_" short_name "_" short_name "__cuda_" arch "_few", .device = "cuda", \
        .format = "dense", .level = arch, .idea = about, .why_not = why_not, .score_us = score_us, \
        .launch = launch, .takes = takes, .variant = &(const dense_few)                            \
        {                                                                                          \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }
#define HOPPER "up to 16 tokens: weights streamed by tensor copies, mma"
#define ANY "up to 16 tokens: weights streamed, mma; speed not measured before 9.0"

const esp_kernel cuda_dense_few_kernels[] = {
    RECORD("f16", "sm90", HOPPER, ESP_F16, true, gpu_sm90_dense_few),
    RECORD("bf16", "sm90", HOPPER, ESP_BF16, true, gpu_sm90_dense_few),
    RECORD("f16", "sm80", ANY, ESP_F16, false, gpu_sm80_dense_few),
    RECORD("bf16", "sm80", ANY, ESP_BF16, false, gpu_sm80_dense_few)};
