/* Private to src/cpu: the catalogue of this back end. */
#ifndef ESP_CPU_KERNELS_H
#define ESP_CPU_KERNELS_H

#include "cpu/cpu.h"

/* kernels.c; NULL-terminated */
extern const esp_kernel *const esp_cpu_kernels[];
extern const esp_ops esp_cpu_ops; /* ops.c */

/* kernels_lists.c: esp_cpu_csr_f32_avx512 and so on */
#define CPU_LISTS_OF_FORMAT(a, format, level)                                                      \
    a format##_f32_##level, a format##_f16_##level, a format##_bf16_##level
#define CPU_LISTS_OF_LEVEL(a, level)                                                               \
    CPU_LISTS_OF_FORMAT(a, esp_cpu_csr, level), CPU_LISTS_OF_FORMAT(a, esp_cpu_bsr, level),        \
        CPU_LISTS_OF_FORMAT(a, esp_cpu_rows, level), CPU_LISTS_OF_FORMAT(a, esp_cpu_cols, level)
extern const esp_kernel CPU_LISTS_OF_LEVEL(, portable);
#ifdef ESP_CPU_X86
extern const esp_kernel CPU_LISTS_OF_LEVEL(, avx2), CPU_LISTS_OF_LEVEL(, avx512);
#endif

/* Level, format, weight type and sizes of a record whose variant is a cpu_variant. */
const char *cpu_why_not(const esp_kernel *kernel, const esp_device *device,
                        const esp_matmul_problem *problem);

/* bf16_matmul.c */
#ifdef ESP_CPU_X86
extern const esp_kernel esp_cpu_dense_f32_amx, esp_cpu_dense_f16_amx, esp_cpu_dense_bf16_amx;
extern const esp_kernel esp_cpu_panel_f32_amx, esp_cpu_panel_f16_amx, esp_cpu_panel_bf16_amx;
extern const esp_kernel esp_cpu_dense_f32_avx512bf16, esp_cpu_dense_f16_avx512bf16,
    esp_cpu_dense_bf16_avx512bf16;
extern const esp_kernel esp_cpu_panel_f32_avx512bf16, esp_cpu_panel_f16_avx512bf16,
    esp_cpu_panel_bf16_avx512bf16;
extern const esp_kernel esp_cpu_dense_f32_amx_split, esp_cpu_dense_f16_amx_split;
extern const esp_kernel esp_cpu_dense_bf16_amx_split, esp_cpu_panel_f32_amx_split;
extern const esp_kernel esp_cpu_panel_f16_amx_split, esp_cpu_panel_bf16_amx_split;
#endif

/* Dense products of libraries that may or may not be there (found at run time). */
extern const esp_kernel esp_cpu_openblas_kernel;                               /* openblas.c */
extern const esp_kernel esp_cpu_onednn_f32_kernel, esp_cpu_onednn_bf16_kernel; /* onednn.c */

/* device->state of a cpu device. Libraries are opened when first asked for. */
typedef struct cpu_state cpu_state;
esp_status cpu_state_open(esp_device *device, esp_error *error);
void cpu_state_close(esp_device *device);

/* The functions of libopenblas, or NULL. */
typedef struct cpu_openblas {
    void *library;
    void (*sgemm)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                  const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc);
    void (*sgemv)(int order, int trans, int m, int n, float alpha, const float *a, int lda,
                  const float *x, int incx, float beta, float *y, int incy);
    void (*set_threads)(int threads);
    int (*get_threads)(void);
} cpu_openblas;
const cpu_openblas *cpu_openblas_of(const esp_device *device);

/* The functions of libdnnl and of its OpenMP, or NULL. gemm is row-major; 0 is success. */
typedef struct cpu_onednn {
    void *library;
    int (*sgemm)(char trans_a, char trans_b, int64_t m, int64_t n, int64_t k, float alpha,
                 const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c,
                 int64_t ldc);
    int (*gemm_bf16)(char trans_a, char trans_b, int64_t m, int64_t n, int64_t k, float alpha,
                     const uint16_t *a, int64_t lda, const uint16_t *b, int64_t ldb, float beta,
                     float *c, int64_t ldc);
    void (*set_threads)(int threads); /* of the calling thread */
    int (*get_threads)(void);
} cpu_onednn;
const cpu_onednn *cpu_onednn_of(const esp_device *device);

/* esp_backend.identify: instruction set and versions of the libraries (identity.c). */
void cpu_identify(const esp_device *device, char *text, size_t capacity);

/* What scoring assumes of the machine, per thread and for all. */
double cpu_memory_us(const esp_device *device, double bytes);
double cpu_compute_us(const esp_device *device, double multiply_adds, double per_ns);

#endif
