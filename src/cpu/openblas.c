/* Dense f32 products by OpenBLAS: a yardstick, and a candidate like any other. */
#include "cpu/kernels.h"
#include "cpu/library_gemm.h"

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 }; /* the CBLAS numbers */

static const char *why_not(const esp_kernel *kernel, const esp_device *device,
                           const esp_matmul_problem *problem)
{
    (void)kernel;
    const char *why = cpu_library_why_not(problem);
    if (why != NULL) {
        return why;
    }
    if (problem->weight_type != ESP_F32 || problem->act_type != ESP_F32 ||
        problem->compute != ESP_COMPUTE_F32) {
        return "it computes f32 from f32 weights and activations only";
    }
    return cpu_openblas_of(device) == NULL ? "libopenblas.so.0 was not found" : NULL;
}

static double score_us(const esp_kernel *kernel, const esp_device *device,
                       const esp_matmul_problem *problem)
{
    (void)kernel;
    static const cpu_library_speed speeds[] = {
        {4.5, 0.42, 0.25, 18}, {4.5, 0.42, 0.25, 60}, {4.5, 0.42, 0.25, 119}};
    return cpu_library_score_us(device, problem,
                                &speeds[ESP_MIN(device->context->cpu.level, ESP_CPU_AVX512)]);
}

static void multiply(const cpu_openblas *blas, const esp_matmul_call *call, const cpu_gemm *gemm)
{
    const esp_matmul_problem *problem = call->problem;
    if (problem->tokens == 1) {
        bool x_by_token = problem->x_layout == ESP_TOKEN_MAJOR;
        bool y_by_token = problem->y_layout == ESP_TOKEN_MAJOR;
        const esp_host_weight *weight = call->args->weight->state;
        blas->sgemv(ROW_MAJOR, NO_TRANS, (int)problem->out_features, (int)problem->in_features, 1,
                    weight->values, (int)problem->in_features, call->args->x,
                    x_by_token ? 1 : (int)call->args->x_stride, 0, gemm->c,
                    y_by_token ? 1 : (int)gemm->stride_c);
        return;
    }
    blas->sgemm(ROW_MAJOR, gemm->transpose_a ? TRANS : NO_TRANS,
                gemm->transpose_b ? TRANS : NO_TRANS, (int)gemm->rows, (int)gemm->columns,
                (int)gemm->depth, 1, gemm->a, (int)gemm->stride_a, gemm->b, (int)gemm->stride_b, 0,
                gemm->c, (int)gemm->stride_c);
}

static esp_status launch(const esp_matmul_call *call, esp_error *error)
{
    const cpu_openblas *blas = cpu_openblas_of(call->device);
    cpu_gemm gemm;
    ESP_TRY(cpu_library_gemm(call, call->args->x, call->args->x_stride, &gemm, error));
    int threads = call->device->context->threads;
    if (blas->get_threads() != threads) {
        blas->set_threads(threads);
    }
    multiply(blas, call, &gemm);
    cpu_library_finish(call);
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
