/* What the files of esp_algebra share: the library as it was found. */
#ifndef ESP_TENSOR_ALGEBRA_INSIDE_H
#define ESP_TENSOR_ALGEBRA_INSIDE_H

#include "tensor/algebra.h"

typedef struct blas_library {
    void *handle; /* NULL: not there */
    void (*sgemm)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                  const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc);
    void (*dgemm)(int order, int trans_a, int trans_b, int m, int n, int k, double alpha,
                  const double *a, int lda, const double *b, int ldb, double beta, double *c,
                  int ldc);
    /* LAPACK, of column-major matrices */
    void (*dpotrf)(const char *triangle, const int *n, double *a, const int *lda, int *info);
    void (*dpotri)(const char *triangle, const int *n, double *a, const int *lda, int *info);
    void (*dlatrd)(const char *triangle, const int *n, const int *nb, double *a, const int *lda,
                   double *e, double *tau, double *w, const int *ldw);
    void (*dsyr2k)(const char *triangle, const char *trans, const int *n, const int *k,
                   const double *alpha, const double *a, const int *lda, const double *b,
                   const int *ldb, const double *beta, double *c, const int *ldc);
    void (*dsytrd)(const char *triangle, const int *n, double *a, const int *lda, double *d,
                   double *e, double *tau, double *work, const int *lwork, int *info);
    void (*dstedc)(const char *vectors, const int *n, double *d, double *e, double *z,
                   const int *ldz, double *work, const int *lwork, int *iwork, const int *liwork,
                   int *info);
    void (*dormtr)(const char *side, const char *triangle, const char *trans, const int *m,
                   const int *n, const double *a, const int *lda, const double *tau, double *c,
                   const int *ldc, double *work, const int *lwork, int *info);
    void (*set_threads)(int threads);
    int (*get_threads)(void);
} blas_library;

struct esp_algebra {
    esp_context *context;
    blas_library blas;
    esp_device_algebra *device; /* NULL: none */
};

/* The setting is one for the whole process; dense layers may have set another. */
void algebra_keep_to_one_thread(const esp_algebra *algebra);
/* Whether there is one, whose sizes are ints. */
bool algebra_library_takes(const esp_algebra *algebra, int64_t a, int64_t b, int64_t c);

#endif
