/* Dense f32 products by OpenBLAS: the yardstick, and a candidate like any other. It takes X and
 * writes Y where they lie; the epilogue is a second pass over Y. */
#include <limits.h>

#include "cpu/kernels.h"
#include "cpu/matmul.h"

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 }; /* the CBLAS numbers */

static const char *why_not(const esp_kernel *kernel, const esp_device *device,
                           const esp_matmul_problem *problem)
{
    (void)kernel;
    if (problem->pattern.kind != ESP_PATTERN_DENSE) {
        return "it multiplies dense weights only";
    }
    if (problem->weight_type != ESP_F32 || problem->act_type != ESP_F32 ||
        problem->out_type != ESP_F32 || problem->compute != ESP_COMPUTE_F32) {
        return "it computes f32 from f32 weights and activations only";
    }
    if ((problem->epilogue & (ESP_EP_SWIGLU | ESP_EP_RESIDUAL)) != 0) {
        return "it has no swiglu and no residual";
    }
    if (problem->out_features > INT_MAX || problem->in_features > INT_MAX ||
        problem->tokens > INT_MAX) {
        return "a size is above 2147483647";
    }
    return cpu_openblas_of(device) == NULL ? "libopenblas.so.0 was not found" : NULL;
}

static double score_us(const esp_kernel *kernel, const esp_device *device,
                       const esp_matmul_problem *problem)
{
    (void)kernel;
    static const double rates[] = {18, 60, 105}; /* where it knows the processor */
    double weights = (double)problem->out_features * (double)problem->in_features;
    double memory = cpu_memory_us(device, weights * 4);
    double compute = cpu_compute_us(device, weights * (double)problem->tokens,
                                    rates[device->context->cpu.level]);
    return 10 + ESP_MAX(memory, compute);
}

/* Y = W X (row-major throughout); token-major operands are the transposes. */
static void multiply(const cpu_openblas *blas, const esp_matmul_call *call)
{
    const esp_matmul_problem *problem = call->problem;
    const esp_matmul_args *args = call->args;
    const esp_host_weight *weight = args->weight->state;
    int out = (int)problem->out_features, in = (int)problem->in_features;
    int tokens = (int)problem->tokens;
    int x_stride = (int)args->x_stride, y_stride = (int)args->y_stride;
    bool x_tok = problem->x_layout == ESP_TOKEN_MAJOR, y_tok = problem->y_layout == ESP_TOKEN_MAJOR;
    if (tokens == 1) {
        blas->sgemv(ROW_MAJOR, NO_TRANS, out, in, 1, weight->values, in, args->x,
                    x_tok ? 1 : x_stride, 0, args->y, y_tok ? 1 : y_stride);
    } else if (y_tok) {
        blas->sgemm(ROW_MAJOR, x_tok ? NO_TRANS : TRANS, TRANS, tokens, out, in, 1, args->x,
                    x_stride, weight->values, in, 0, args->y, y_stride);
    } else {
        blas->sgemm(ROW_MAJOR, NO_TRANS, x_tok ? TRANS : NO_TRANS, out, tokens, in, 1,
                    weight->values, in, args->x, x_stride, 0, args->y, y_stride);
    }
}

static void finish_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const esp_matmul_call *call = user;
    const esp_matmul_problem *problem = call->problem;
    const esp_matmul_args *args = call->args;
    unsigned epilogue = problem->epilogue;
    const cpu_level *level = cpu_level_of(call->device);
    bool y_tok = problem->y_layout == ESP_TOKEN_MAJOR;
    int64_t columns = y_tok ? problem->out_features : problem->tokens;
    for (int64_t row = begin; row < end; row++) {
        float *y = (float *)args->y + row * args->y_stride;
        for (int64_t i = 0; i < columns; i++) {
            int64_t o = y_tok ? i : row;
            y[i] = (epilogue & ESP_EP_SCALE) != 0 ? y[i] * args->scale[o] : y[i];
            y[i] = (epilogue & ESP_EP_BIAS) != 0 ? y[i] + args->bias[o] : y[i];
        }
        level->activate(epilogue & ~(unsigned)(ESP_EP_SCALE | ESP_EP_BIAS), y, columns);
    }
}

static esp_status launch(const esp_matmul_call *call, esp_error *error)
{
    const cpu_openblas *blas = cpu_openblas_of(call->device);
    const esp_matmul_problem *problem = call->problem;
    if (call->args->x_stride > INT_MAX || call->args->y_stride > INT_MAX) {
        return esp_fail(error, ESP_UNSUPPORTED, "matmul.bad_stride",
                        "matmul: OpenBLAS takes strides up to 2147483647");
    }
    int threads = call->device->context->threads;
    if (blas->get_threads() != threads) {
        blas->set_threads(threads);
    }
    multiply(blas, call);
    if (problem->epilogue != 0) {
        esp_matmul_call copy = *call;
        bool y_tok = problem->y_layout == ESP_TOKEN_MAJOR;
        int64_t rows = y_tok ? problem->tokens : problem->out_features;
        int64_t columns = y_tok ? problem->out_features : problem->tokens;
        esp_parallel_for(call->device->context, rows, 1 + 16384 / columns, finish_rows, &copy);
    }
    return ESP_OK;
}

const esp_kernel esp_cpu_openblas_kernel = {
    .name = "matmul_dense_f32_f32__cpu_openblas",
    .device = "cpu",
    .format = "dense",
    .level = "openblas",
    .idea = "sgemm of libopenblas, where it is installed",
    .why_not = why_not,
    .score_us = score_us,
    .launch = launch,
};
