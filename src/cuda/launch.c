/* What every launch on a GPU shares: checks of operands, and the call's epilogue in the form of the
 * kernels. */
#include "cuda/room.h"

/* More would not fit the kernels' 32-bit counts of rows, columns and tokens. */
#define MOST ((int64_t)INT32_MAX - 1024)

gpu_type cuda_type(esp_dtype dtype)
{
    return dtype == ESP_F16 ? GPU_F16 : dtype == ESP_BF16 ? GPU_BF16 : GPU_F32;
}

const char *cuda_why_not(const esp_matmul_problem *problem, esp_dtype type)
{
    if (problem->weight_type != type) {
        return "its weights have another type";
    }
    if (problem->act_type != type) {
        return "its activations have the weights' type";
    }
    if (problem->compute == ESP_COMPUTE_BF16 && type != ESP_BF16) {
        return "it computes in bf16 only with bf16 weights";
    }
    bool fits =
        problem->out_features <= MOST && problem->in_features <= MOST && problem->tokens <= MOST;
    return fits ? NULL : "it takes fewer than 2^31 rows, columns and tokens";
}

double cuda_memory_us(const esp_device *device, double bytes)
{
    const cuda_state *state = device->state;
    double gb_per_s = state->facts.gb_per_s > 0 ? 0.85 * state->facts.gb_per_s : 1000;
    return bytes / (gb_per_s * 1e3);
}

/* From the first element of a matrix to its last, in bytes; rows are `stride` elements apart. */
static size_t span(int64_t rows, int64_t row, int64_t stride, esp_dtype type)
{
    return (size_t)((rows - 1) * stride + row) * esp_dtype_bytes(type);
}

static size_t bytes_of_x(const esp_matmul_call *call)
{
    const esp_matmul_problem *problem = call->problem;
    bool by_feature = problem->x_layout == ESP_FEATURE_MAJOR;
    int64_t rows = by_feature ? problem->in_features : problem->tokens;
    int64_t row = by_feature ? problem->tokens : problem->in_features;
    return span(rows, row, call->args->x_stride, problem->act_type);
}

static size_t bytes_of_y(const esp_matmul_call *call)
{
    const esp_matmul_problem *problem = call->problem;
    bool by_feature = problem->y_layout == ESP_FEATURE_MAJOR;
    int64_t out = problem->out_features >> ((problem->epilogue & ESP_EP_SWIGLU) != 0);
    return span(by_feature ? out : problem->tokens, by_feature ? problem->tokens : out,
                call->args->y_stride, problem->out_type);
}

static size_t bytes_of_workspace(const esp_matmul_call *call)
{
    const esp_kernel *kernel = call->kernel;
    return kernel->workspace_bytes != NULL
               ? kernel->workspace_bytes(kernel, call->device, call->problem)
               : 0;
}

static esp_status not_on_device(const esp_matmul_call *call, const char *name, const void *memory,
                                size_t bytes, esp_error *error)
{
    const cuda_state *state = call->device->state;
    if (cuda_holds(state, memory, 1)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "matmul.too_small",
                        "matmul: %s needs %zu bytes, but its memory of device '%s' ends before "
                        "that",
                        name, bytes, call->device->name);
    }
    return esp_fail(error, ESP_BAD_ARGUMENT, "matmul.not_on_device",
                    "matmul: %s is not memory of device '%s'; esp_device_alloc gives such memory, "
                    "and so does cudaMalloc",
                    name, call->device->name);
}

/* What a model's norms add to the operands: moments in pairs, sums of rows. */
static esp_status check_norms(const esp_matmul_call *call, esp_error *error)
{
    const esp_normed *normed = call->around.normed;
    const esp_moments *left = call->around.moments;
    const cuda_state *state = call->device->state;
    size_t part = (size_t)call->problem->tokens * 2 * sizeof(float);
    size_t sums = (size_t)call->problem->out_features * sizeof(float);
    const struct {
        const char *name;
        const float *memory;
        size_t bytes, alignment;
        bool used;
    } operands[] = {{"moments of x", normed != NULL ? normed->of_x.values : NULL,
                     normed != NULL ? part * (size_t)ESP_MAX(1, normed->of_x.parts) : 0, 8,
                     normed != NULL},
                    {"row sums", normed != NULL ? normed->row_sums : NULL, sums, 4,
                     normed != NULL && normed->row_sums != NULL},
                    {"moments of y", left != NULL ? left->values : NULL,
                     left != NULL ? part * (size_t)ESP_MAX(1, left->parts) : 0, 8, left != NULL}};
    for (int i = 0; i < ESP_COUNT(operands); i++) {
        if (!operands[i].used) {
            continue;
        }
        if (!cuda_holds(state, operands[i].memory, operands[i].bytes)) {
            return not_on_device(call, operands[i].name, operands[i].memory, operands[i].bytes,
                                 error);
        }
        if ((uintptr_t)operands[i].memory % operands[i].alignment != 0) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "matmul.misaligned",
                            "matmul: %s must be aligned to %zu bytes", operands[i].name,
                            operands[i].alignment);
        }
    }
    return ESP_OK;
}

esp_status cuda_check_operands(const esp_matmul_call *call, esp_error *error)
{
    const esp_matmul_args *args = call->args;
    const cuda_state *state = call->device->state;
    unsigned epilogue = call->problem->epilogue;
    size_t y_bytes = bytes_of_y(call), scratch = bytes_of_workspace(call);
    size_t terms = (size_t)call->problem->out_features * sizeof(float);
    const struct {
        const char *name;
        const void *memory;
        size_t bytes;
        bool used;
    } operands[] = {{"x", args->x, bytes_of_x(call), true},
                    {"y", args->y, y_bytes, true},
                    {"scale", args->scale, terms, (epilogue & ESP_EP_SCALE) != 0},
                    {"bias", args->bias, terms, (epilogue & ESP_EP_BIAS) != 0},
                    {"residual", args->residual, y_bytes,
                     (epilogue & ESP_EP_RESIDUAL) != 0 && args->residual != args->y},
                    {"workspace", args->workspace, scratch, scratch > 0}};
    for (int i = 0; i < ESP_COUNT(operands); i++) {
        if (operands[i].used && !cuda_holds(state, operands[i].memory, operands[i].bytes)) {
            return not_on_device(call, operands[i].name, operands[i].memory, operands[i].bytes,
                                 error);
        }
    }
    size_t x_width = esp_dtype_bytes(call->problem->act_type);
    size_t y_width = esp_dtype_bytes(call->problem->out_type);
    bool terms_right = ((epilogue & ESP_EP_SCALE) == 0 || (uintptr_t)args->scale % 4 == 0) &&
                       ((epilogue & ESP_EP_BIAS) == 0 || (uintptr_t)args->bias % 4 == 0);
    bool right = (uintptr_t)args->x % x_width == 0 && (uintptr_t)args->y % y_width == 0 &&
                 ((epilogue & ESP_EP_RESIDUAL) == 0 || (uintptr_t)args->residual % y_width == 0);
    if (!right || !terms_right) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "matmul.misaligned",
                        "matmul: x, y, residual, scale and bias must be aligned to their own "
                        "elements");
    }
    return check_norms(call, error);
}

/* More tokens than this: each block would find the same sums and gates once more, which takes
 * longer than a launch of its own. */
#define MOST_GATED_TOKENS 8

bool cuda_few_takes(const esp_matmul_problem *problem, esp_prologue_kind kind)
{
    return kind == ESP_PROLOGUE_RMS_NORM ? problem->tokens == 1
                                         : problem->tokens <= MOST_GATED_TOKENS;
}

gpu_prologue cuda_prologue(const esp_matmul_call *call, bool *aligned)
{
    const esp_prologue *from = call->around.prologue;
    if (from == NULL || from->kind == ESP_PROLOGUE_NONE) {
        return (gpu_prologue){0};
    }
    if (from->kind == ESP_PROLOGUE_RMS_NORM) {
        return (gpu_prologue){.kind = GPU_RMS_NORM, .weight = from->weight, .eps = from->eps};
    }
    *aligned = *aligned && (uintptr_t)from->up % 16 == 0;
    return (gpu_prologue){.kind = GPU_SWIGLU, .up = from->up};
}

gpu_ahead cuda_ahead(const esp_matmul_call *call)
{
    const esp_packed *next = call->around.next;
    next = next == NULL || !next->hollow ? next : next->dense != NULL ? next->dense : next->spread;
    const cuda_weight *weight = next != NULL ? next->state : NULL;
    if (weight == NULL) {
        return (gpu_ahead){0};
    }
    if (weight->dense) {
        return (gpu_ahead){weight->values,
                           (size_t)next->out_features * (size_t)next->in_features * 2};
    }
    const gpu_panels *panels = &weight->panels;
    size_t steps = (size_t)panels->panels * (size_t)panels->blocks * (size_t)panels->steps;
    return (gpu_ahead){panels->data, steps * (size_t)panels->block_rows * GPU_ROW_BYTES};
}

static bool takes_16_bytes(const void *base, int64_t stride, size_t width)
{
    return (uintptr_t)base % 16 == 0 && (size_t)stride * width % 16 == 0;
}

gpu_epilogue cuda_epilogue(const esp_matmul_call *call, int64_t first, int64_t tokens)
{
    const esp_matmul_problem *problem = call->problem;
    const esp_matmul_args *args = call->args;
    bool by_feature = problem->y_layout == ESP_FEATURE_MAJOR;
    size_t width = esp_dtype_bytes(problem->out_type);
    int64_t token_step = by_feature ? 1 : args->y_stride;
    size_t offset = (size_t)(first * token_step) * width;
    gpu_epilogue made = {.bits = problem->epilogue,
                         .type = cuda_type(problem->out_type),
                         .scale = args->scale,
                         .bias = args->bias,
                         .residual = NULL,
                         .y = (char *)args->y + offset,
                         .feature_step = by_feature ? args->y_stride : 1,
                         .token_step = token_step,
                         .tokens = (int)tokens};
    made.aligned = takes_16_bytes(made.y, args->y_stride, width);
    if ((problem->epilogue & ESP_EP_RESIDUAL) != 0) {
        made.residual = (const char *)args->residual + offset;
        made.aligned = made.aligned && takes_16_bytes(made.residual, args->y_stride, width);
    }
    return made;
}
