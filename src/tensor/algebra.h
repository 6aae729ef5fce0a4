/* Dense linear algebra for what is solved while pruning: products, sums of outer products and
 * Cholesky factors in f64, row-major. By OpenBLAS, which has LAPACK within, where it is installed;
 * else by plain loops, which are many times slower.
 *
 * Work is cut into the same pieces whatever the number of threads, and each piece is done by one
 * thread, so results do not depend on it. They do depend on which library works. */
#ifndef ESP_TENSOR_ALGEBRA_H
#define ESP_TENSOR_ALGEBRA_H

#include "base/base.h"

typedef struct esp_algebra esp_algebra;
typedef struct esp_device_algebra esp_device_algebra; /* device_algebra.h */

/* One per context at work; loads the library. */
ESP_MUST_CHECK esp_status esp_algebra_open(esp_context *context, esp_algebra **algebra,
                                           esp_error *error);
/* The same without the library. */
ESP_MUST_CHECK esp_status esp_algebra_open_plain(esp_context *context, esp_algebra **algebra,
                                                 esp_error *error);
void esp_algebra_close(esp_algebra *algebra);
/* "OpenBLAS", "plain loops", or what a device calls itself. */
const char *esp_algebra_name(const esp_algebra *algebra);
/* A device that does what is large from now on (device_algebra.h), closed with this; NULL: none. */
void esp_algebra_set_device(esp_algebra *algebra, esp_device_algebra *device);
esp_device_algebra *esp_algebra_device(const esp_algebra *algebra);
esp_context *esp_algebra_context(const esp_algebra *algebra);

/* C[rows][columns] = beta C + alpha A[rows][depth] B[depth][columns]; b_transposed: B lies as
 * [columns][depth]. C overlaps neither. */
typedef struct esp_algebra_product {
    int64_t rows, columns, depth;
    double alpha, beta;
    const double *a, *b;
    int64_t a_stride, b_stride; /* of a row as it lies */
    bool b_transposed;
    double *c;
    int64_t c_stride;
} esp_algebra_product;

/* All threads of the context, or the calling one within a body of esp_parallel_for. */
void esp_algebra_multiply(const esp_algebra *algebra, const esp_algebra_product *product);
/* H[x_features][y_features] += X Y^T over f32 rows of `tokens` numbers; where y is x, what lies
 * above the diagonal is left for esp_algebra_mirror. A run of 512 tokens is summed in f32, runs are
 * added in f64. scratch: esp_algebra_gram_floats(algebra, y_features). */
void esp_algebra_add_gram(const esp_algebra *algebra, const float *x, int64_t x_features,
                          const float *y, int64_t y_features, int64_t tokens, float *scratch,
                          double *h);
size_t esp_algebra_gram_floats(const esp_algebra *algebra, int64_t y_features);

/* The lower triangle to the upper one. */
void esp_algebra_mirror(double *a, int64_t n);

/* A = L L^T in place: L in the lower triangle, what is above it is not touched. False: A is not
 * positive definite to within rounding. */
bool esp_algebra_factor(const esp_algebra *algebra, double *a, int64_t n);
/* L to (L L^T)^-1, the whole symmetric matrix. */
void esp_algebra_invert(const esp_algebra *algebra, double *l, int64_t n);

#endif
