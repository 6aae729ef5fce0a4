/* Calibration on a GPU, inside: esp_far by cuBLAS and cuSOLVER, which are found at run time. */
#ifndef ESP_CUDA_FAR_H
#define ESP_CUDA_FAR_H

#include <cublas_v2.h>
#include <cusolverDn.h>

#include "cuda/gpu_calibrate.h"
#include "cuda/room.h"
#include "tensor/tensor.h"

#define FAR_HELD 8

typedef struct far_held {
    const double *host;
    double *device;
    int64_t count;
} far_held;

typedef struct cuda_far {
    esp_far far;
    esp_far_ops ops; /* without those that a library lacks */
    esp_device *device;
    void *stream, *pool;
    void *stage[2], *passed[2]; /* pinned pieces of what is copied; events behind their use */
    void *blas_library, *solver_library; /* NULL: not there */
    cublasHandle_t blas;
    cusolverDnHandle_t solver;
    far_held held[FAR_HELD];
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
} cuda_far;

/* C = beta C + alpha A B of matrices in device memory, all row-major. */
typedef struct far_product {
    int64_t rows, columns, depth;
    double alpha, beta;
    const double *a, *b;
    double *c;
    int64_t a_stride, b_stride, c_stride;
    bool a_transposed, b_transposed;       /* A lies as [depth][rows], B as [columns][depth] */
    int64_t count, a_step, b_step, c_step; /* count > 1: so many, so far apart */
} far_product;

/* Libraries; far_libraries.c. False: there is no cuBLAS. */
bool cuda_far_find(cuda_far *far);
void cuda_far_lose(cuda_far *far);

/* Memory of the device for the call, "device.out_of_memory"; far_give takes NULL too. */
ESP_MUST_CHECK esp_status far_take(const cuda_far *far, size_t bytes, const char *what,
                                   void *memory, esp_error *error);
void far_give(const cuda_far *far, void *memory);
ESP_MUST_CHECK esp_status far_check(const cuda_far *far, int failed, const char *what,
                                    esp_error *error);
ESP_MUST_CHECK esp_status far_blas_check(const cuda_far *far, cublasStatus_t status,
                                         esp_error *error);
/* far_copies.c. send: `from` has been read at the end; bring waits. */
ESP_MUST_CHECK esp_status far_stage_open(cuda_far *far, esp_error *error);
void far_stage_close(cuda_far *far);
ESP_MUST_CHECK esp_status far_send(const cuda_far *far, void *to, const void *from, size_t bytes,
                                   esp_error *error);
ESP_MUST_CHECK esp_status far_bring(const cuda_far *far, void *to, const void *from, size_t bytes,
                                    esp_error *error);
/* The device's copy: the held one, or one that is made, and given back through *own. */
ESP_MUST_CHECK esp_status far_lend(const cuda_far *far, const double *host, int64_t count,
                                   const char *what, double **device, double **own,
                                   esp_error *error);
ESP_MUST_CHECK esp_status far_multiply(const cuda_far *far, const far_product *product,
                                       esp_error *error);
/* A = U^T U in place, U in the upper triangle; below it nothing is touched. */
ESP_MUST_CHECK esp_status far_factor(const cuda_far *far, double *matrix, int64_t n, bool *definite,
                                     esp_error *error);
/* The same of `count` matrices, `step` apart; below diagonals lies anything. far_cholesky.c */
ESP_MUST_CHECK esp_status far_factor_many(const cuda_far *far, double *matrix, int64_t n,
                                          int64_t step, int64_t count, bool *definite,
                                          esp_error *error);
esp_status far_not_definite(esp_error *error);
/* SparseGPT's sweep of device memory, its mask likewise; far_sweep.c. */
ESP_MUST_CHECK esp_status far_sweep_block(const cuda_far *far, gpu_sweep *sweep, esp_error *error);

/* Members of esp_far_ops; the device is current. */
ESP_MUST_CHECK esp_status cuda_far_add_gram(esp_far *far, const esp_far_rows *x,
                                            const esp_far_rows *y, int64_t tokens, double *h,
                                            esp_error *error);
ESP_MUST_CHECK esp_status cuda_far_refit(esp_far *far, esp_far_refit *refit, esp_error *error);
ESP_MUST_CHECK esp_status cuda_far_sweep(esp_far *far, const esp_far_sweep *sweep,
                                         esp_error *error);
ESP_MUST_CHECK esp_status cuda_far_panels(esp_far *far, const esp_far_panels *panels,
                                          esp_error *error);

#endif
