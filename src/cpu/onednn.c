/* Dense products by oneDNN 2 or 3: f32, and bf16 with f32 sums, for which X is rounded into the
 * workspace first. gemm is its plain entry point: on this kind of product it is no slower than a
 * matmul primitive (docs/kernels.md). The library runs on OpenMP, whose thread count belongs to
 * the calling thread: it is set for the call and put back. */
#include "cpu/kernels.h"
#include "cpu/library_gemm.h"

#define CHUNK 1024 /* elements that are rounded at a time */

static const char *why_not_common(const esp_device *device, const esp_matmul_problem *problem)
{
    const char *why = cpu_library_why_not(problem);
    if (why != NULL) {
        return why;
    }
    return cpu_onednn_of(device) == NULL ? "libdnnl (built on OpenMP) was not found" : NULL;
}

static const char *f32_why_not(const esp_kernel *kernel, const esp_device *device,
                               const esp_matmul_problem *problem)
{
    (void)kernel;
    if (problem->weight_type != ESP_F32 || problem->act_type != ESP_F32 ||
        problem->compute != ESP_COMPUTE_F32) {
        return "it computes f32 from f32 weights and activations only";
    }
    return why_not_common(device, problem);
}

static const char *bf16_why_not(const esp_kernel *kernel, const esp_device *device,
                                const esp_matmul_problem *problem)
{
    (void)kernel;
    if (problem->weight_type != ESP_BF16 || problem->compute != ESP_COMPUTE_BF16) {
        return "it computes bf16 from bf16 weights only";
    }
    if (!device->context->cpu.avx512_bf16) {
        return "it needs AVX512_BF16, which is absent or switched off";
    }
    return why_not_common(device, problem);
}

/* Beside our own pool, OpenMP's threads cost more than their share of the work: they spin after
 * each call on cores that the next product wants, and wait for the slowest. */
static double with_openmp_us(const esp_device *device, double us)
{
    return device->context->threads > 1 ? 30 + 1.3 * us : us;
}

static double f32_score_us(const esp_kernel *kernel, const esp_device *device,
                           const esp_matmul_problem *problem)
{
    (void)kernel;
    static const cpu_library_speed speeds[] = {
        {5.3, 0.26, 0.08, 18}, {5.3, 0.26, 0.08, 60}, {5.3, 0.26, 0.08, 120}};
    return with_openmp_us(
        device, cpu_library_score_us(device, problem,
                                     &speeds[ESP_MIN(device->context->cpu.level, ESP_CPU_AVX512)]));
}

static double bf16_score_us(const esp_kernel *kernel, const esp_device *device,
                            const esp_matmul_problem *problem)
{
    (void)kernel;
    static const cpu_library_speed speed = {2, 0.235, 0.13, 255};
    double rounding =
        cpu_memory_us(device, (double)problem->in_features * (double)problem->tokens * 8);
    return with_openmp_us(device, cpu_library_score_us(device, problem, &speed) + rounding);
}

/* ---- launches ---- */

static esp_status check_done(int failed, const esp_matmul_call *call, esp_error *error)
{
    if (failed == 1) { /* dnnl_out_of_memory */
        return esp_fail(error, ESP_OUT_OF_MEMORY, "memory.exhausted",
                        "out of memory inside oneDNN");
    }
    return failed == 0 ? ESP_OK
                       : esp_fail(error, ESP_UNSUPPORTED, "matmul.library_refused",
                                  "matmul: oneDNN returned status %d; force another kernel than %s",
                                  failed, call->kernel->name);
}

static char letter(bool transpose)
{
    return transpose ? 'T' : 'N';
}

static esp_status multiply(const esp_matmul_call *call, bool is_bf16, const cpu_gemm *gemm,
                           esp_error *error)
{
    const cpu_onednn *dnnl = cpu_onednn_of(call->device);
    int threads = call->device->context->threads, before = dnnl->get_threads(), failed;
    if (before != threads) {
        dnnl->set_threads(threads);
    }
    if (is_bf16) {
        failed = dnnl->gemm_bf16(letter(gemm->transpose_a), letter(gemm->transpose_b), gemm->rows,
                                 gemm->columns, gemm->depth, 1, gemm->a, gemm->stride_a, gemm->b,
                                 gemm->stride_b, 0, gemm->c, gemm->stride_c);
    } else {
        failed = dnnl->sgemm(letter(gemm->transpose_a), letter(gemm->transpose_b), gemm->rows,
                             gemm->columns, gemm->depth, 1, gemm->a, gemm->stride_a, gemm->b,
                             gemm->stride_b, 0, gemm->c, gemm->stride_c);
    }
    if (before != threads) {
        dnnl->set_threads(before);
    }
    ESP_TRY(check_done(failed, call, error));
    cpu_library_finish(call);
    return ESP_OK;
}

static esp_status f32_launch(const esp_matmul_call *call, esp_error *error)
{
    cpu_gemm gemm;
    ESP_TRY(cpu_library_gemm(call, call->args->x, call->args->x_stride, &gemm, error));
    return multiply(call, false, &gemm, error);
}

/* ---- X in bf16 ---- */

/* Elements of a stored row of X, and rows. */
static int64_t x_columns(const esp_matmul_problem *problem)
{
    return problem->x_layout == ESP_FEATURE_MAJOR ? problem->tokens : problem->in_features;
}

static int64_t x_rows(const esp_matmul_problem *problem)
{
    return problem->x_layout == ESP_FEATURE_MAJOR ? problem->in_features : problem->tokens;
}

static size_t bf16_workspace_bytes(const esp_kernel *kernel, const esp_device *device,
                                   const esp_matmul_problem *problem)
{
    (void)kernel, (void)device;
    return (size_t)(problem->in_features * problem->tokens) * sizeof(uint16_t);
}

static void round_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const esp_matmul_call *call = user;
    const esp_matmul_problem *problem = call->problem;
    int64_t columns = x_columns(problem);
    size_t width = esp_dtype_bytes(problem->act_type);
    for (int64_t row = begin; row < end; row++) {
        const char *from =
            (const char *)call->args->x + (size_t)(row * call->args->x_stride) * width;
        uint16_t *to = (uint16_t *)call->args->workspace + row * columns;
        for (int64_t i = 0; i < columns; i += CHUNK) {
            float piece[CHUNK];
            int64_t count = ESP_MIN(CHUNK, columns - i);
            esp_widen(problem->act_type, from + (size_t)i * width, count, piece);
            esp_narrow(ESP_BF16, piece, count, to + i);
        }
    }
}

static esp_status bf16_launch(const esp_matmul_call *call, esp_error *error)
{
    int64_t columns = x_columns(call->problem);
    cpu_gemm gemm;
    ESP_TRY(cpu_library_gemm(call, call->args->workspace, columns, &gemm, error));
    esp_matmul_call copy = *call;
    esp_parallel_for(call->device->context, x_rows(call->problem), 1 + 16384 / columns, round_rows,
                     &copy);
    return multiply(call, true, &gemm, error);
}

const esp_kernel esp_cpu_onednn_f32_kernel = {
    .name = "matmul_dense_f32_f32__cpu_onednn",
    .device = "cpu",
    .format = "dense",
    .level = "onednn",
    .idea = "sgemm of libdnnl, where it is installed",
    .why_not = f32_why_not,
    .score_us = f32_score_us,
    .launch = f32_launch,
};

const esp_kernel esp_cpu_onednn_bf16_kernel = {
    .name = "matmul_dense_bf16_f32__cpu_onednn",
    .device = "cpu",
    .format = "dense",
    .level = "onednn",
    .idea = "bf16 gemm of libdnnl, where it is installed; X is rounded first",
    .why_not = bf16_why_not,
    .workspace_bytes = bf16_workspace_bytes,
    .score_us = bf16_score_us,
    .launch = bf16_launch,
};
