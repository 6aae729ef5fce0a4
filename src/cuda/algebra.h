/* Calibration on a GPU, inside: esp_device_algebra by cuBLAS and cuSOLVER, which are found at run
 * time. */
#ifndef ESP_CUDA_ALGEBRA_H
#define ESP_CUDA_ALGEBRA_H

#include <cublas_v2.h>
#include <cusolverDn.h>

#include "cuda/gpu_calibrate.h"
#include "cuda/room.h"
#include "tensor/tensor.h"

#define ALGEBRA_HELD 8

typedef struct algebra_held {
    const double *host;
    double *device;
    int64_t count;
} algebra_held;

typedef struct cuda_algebra {
    esp_device_algebra base;
    esp_device_algebra_ops ops; /* without those that a library lacks */
    esp_device *device;
    void *stream, *pool;
    void *stage[2], *passed[2]; /* pinned pieces of what is copied; events behind their use */
    void *blas_library, *solver_library; /* NULL: not there */
    cublasHandle_t blas;
    cusolverDnHandle_t solver;
    algebra_held held[ALGEBRA_HELD];
    cublasStatus_t (*blas_create)(cublasHandle_t *);
    cublasStatus_t (*blas_destroy)(cublasHandle_t);
    cublasStatus_t (*blas_set_stream)(cublasHandle_t, cudaStream_t);
    cublasStatus_t (*gemm)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int,
                           const double *, const double *, int, const double *, int, const double *,
                           double *, int);
    cublasStatus_t (*gemm_batch)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int,
                                 int, const double *, const double *, int, long long,
                                 const double *, int, long long, const double *, double *, int,
                                 long long, int);
    cublasStatus_t (*syrk)(cublasHandle_t, cublasFillMode_t, cublasOperation_t, int, int,
                           const double *, const double *, int, const double *, double *, int);
    cublasStatus_t (*dot)(cublasHandle_t, int, const double *, int, const double *, int, double *);
    cusolverStatus_t (*solver_create)(cusolverDnHandle_t *);
    cusolverStatus_t (*solver_destroy)(cusolverDnHandle_t);
    cusolverStatus_t (*solver_set_stream)(cusolverDnHandle_t, cudaStream_t);
    cusolverStatus_t (*potrf_size)(cusolverDnHandle_t, cublasFillMode_t, int, double *, int, int *);
    cusolverStatus_t (*potrf)(cusolverDnHandle_t, cublasFillMode_t, int, double *, int, double *,
                              int, int *);
    cusolverStatus_t (*potri_size)(cusolverDnHandle_t, cublasFillMode_t, int, double *, int, int *);
    cusolverStatus_t (*potri)(cusolverDnHandle_t, cublasFillMode_t, int, double *, int, double *,
                              int, int *);
} cuda_algebra;

/* C = beta C + alpha A B of matrices in device memory, all row-major. */
typedef struct algebra_product {
    int64_t rows, columns, depth;
    double alpha, beta;
    const double *a, *b;
    double *c;
    int64_t a_stride, b_stride, c_stride;
    bool a_transposed, b_transposed;       /* A lies as [depth][rows], B as [columns][depth] */
    int64_t count, a_step, b_step, c_step; /* count > 1: so many, so algebra apart */
} algebra_product;

/* Libraries; algebra_libraries.c. False: there is no cuBLAS. */
bool cuda_algebra_find(cuda_algebra *algebra);
void cuda_algebra_lose(cuda_algebra *algebra);

/* Memory of the device for the call, "device.out_of_memory"; algebra_give takes NULL too. */
ESP_MUST_CHECK esp_status algebra_take(const cuda_algebra *algebra, size_t bytes, const char *what,
                                       void *memory, esp_error *error);
void algebra_give(const cuda_algebra *algebra, void *memory);
ESP_MUST_CHECK esp_status algebra_check(const cuda_algebra *algebra, int failed, const char *what,
                                        esp_error *error);
ESP_MUST_CHECK esp_status algebra_blas_check(const cuda_algebra *algebra, cublasStatus_t status,
                                             esp_error *error);
/* algebra_copies.c. send: `from` has been read at the end; bring waits. */
ESP_MUST_CHECK esp_status algebra_stage_open(cuda_algebra *algebra, esp_error *error);
void algebra_stage_close(cuda_algebra *algebra);
ESP_MUST_CHECK esp_status algebra_send(const cuda_algebra *algebra, void *to, const void *from,
                                       size_t bytes, esp_error *error);
ESP_MUST_CHECK esp_status algebra_bring(const cuda_algebra *algebra, void *to, const void *from,
                                        size_t bytes, esp_error *error);
/* The device's copy: the held one, or one that is made, and given back through *own. */
ESP_MUST_CHECK esp_status algebra_lend(const cuda_algebra *algebra, const double *host,
                                       int64_t count, const char *what, double **device,
                                       double **own, esp_error *error);
ESP_MUST_CHECK esp_status algebra_multiply(const cuda_algebra *algebra,
                                           const algebra_product *product, esp_error *error);
/* A = U^T U in place, U in the upper triangle; below it nothing is touched. */
ESP_MUST_CHECK esp_status algebra_factor(const cuda_algebra *algebra, double *matrix, int64_t n,
                                         bool *definite, esp_error *error);
/* The same of `count` matrices, `step` apart; below diagonals lies anything. algebra_cholesky.c */
ESP_MUST_CHECK esp_status algebra_factor_many(const cuda_algebra *algebra, double *matrix,
                                              int64_t n, int64_t step, int64_t count,
                                              bool *definite, esp_error *error);
esp_status algebra_not_definite(esp_error *error);
/* SparseGPT's sweep of device memory, its mask likewise; algebra_sweep.c. */
ESP_MUST_CHECK esp_status algebra_sweep_block(const cuda_algebra *algebra, gpu_sweep *sweep,
                                              esp_error *error);

/* Members of esp_device_algebra_ops; the device is current. */
ESP_MUST_CHECK esp_status cuda_algebra_add_gram(esp_device_algebra *algebra,
                                                const esp_token_rows *x, const esp_token_rows *y,
                                                int64_t tokens, double *h, esp_error *error);
ESP_MUST_CHECK esp_status cuda_algebra_refit(esp_device_algebra *algebra, esp_device_refit *refit,
                                             esp_error *error);
ESP_MUST_CHECK esp_status cuda_algebra_sweep(esp_device_algebra *algebra,
                                             const esp_device_sweep *sweep, esp_error *error);
ESP_MUST_CHECK esp_status cuda_algebra_panels(esp_device_algebra *algebra,
                                              const esp_device_panels *panels, esp_error *error);

#endif
