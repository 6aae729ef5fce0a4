/* Random products for the checkers of this folder: weights of every pattern with valid contents, X
 * and residual with NaN in all gaps, Y and workspace poisoned and guarded, results as plain f32
 * rows. */
#ifndef ESP_TESTS_PRODUCT_H
#define ESP_TESTS_PRODUCT_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "op/op.h"
#include "plan/plan.h"
#include "test.h"

#define GUARD 64 /* elements before and behind Y, bytes behind the workspace */

/* INTEGERS: sums are exact in f32. ADVERSARIAL: product_adversarial.c says; not with swiglu. */
typedef enum inputs { INTEGERS, REALS, ADVERSARIAL } inputs;

typedef struct product {
    esp_matmul_problem problem;
    esp_context *context;
    esp_sparse *sparse;
    int64_t x_stride, y_stride, out_rows; /* out_rows: of Y (half for swiglu) */
    char *x, *x_map; /* x lies in x_map, which ends in a page that cannot be read */
    size_t x_map_bytes;
    int offset; /* elements by which Y, scale and bias lie off their blocks' alignment */
    float *scale, *bias;
    float *residual; /* [out_rows][tokens], exact in the output type */
    bool in_place;   /* residual is Y itself */
} product;

/* ---- numbers (product_weight.c) ---- */

int64_t random_range(esp_random *random, int64_t low, int64_t high); /* inclusive */
int64_t random_log(esp_random *random, int64_t low, int64_t high);   /* log-uniform */
float random_value(esp_random *random, inputs kind, bool zeros);
/* Fisher and Yates; writes 0..count-1 in random order. */
void random_order(esp_random *random, uint32_t *order, int64_t count);
esp_sparse *random_weight(test_run *run, esp_context *context, esp_random *random,
                          const esp_matmul_problem *problem, inputs kind, bool reorder);

/* ---- hard numbers (product_adversarial.c) ---- */

/* Draws the live entries of a weight anew; mask NULL: all. */
void adversarial_weights(esp_random *random, const esp_mask *mask, esp_tensor *dense);
/* Draws X anew; all other operands are there. */
void adversarial_x(test_run *run, esp_random *random, product *p);

/* ---- operands (product.c) ---- */

int64_t element_at(bool by_feature, int64_t stride, int64_t feature, int64_t token);
void put(esp_dtype dtype, char *data, int64_t at, float value);
void fill(esp_dtype dtype, char *data, int64_t count, float value);
int64_t x_elements(const product *p);
int64_t y_elements(const product *p);
/* Everything is made from seed alone. wide: strides above tight. */
product product_make(test_run *run, esp_context *context, const esp_matmul_problem *problem,
                     uint64_t seed, inputs kind, bool reorder, bool wide);
void product_free(product *p);

/* ---- running (product_run.c) ---- */

void run_plan(test_run *run, const product *p, const esp_plan *plan, const esp_packed *weight,
              float *result);
/* As run_kernel, on a device that is open. */
void run_on_device(test_run *run, const product *p, esp_device *device, const char *kernel,
                   float *result);
/* result: [out_rows][tokens]. The kernel is forced by name. */
void run_kernel(test_run *run, const product *p, const char *device_name, const char *kernel,
                float *result);
/* Kernels of the cpu that can run the problem, by name. */
int usable_kernels(esp_context *context, const esp_matmul_problem *problem, const char *names[64]);
float *result_of(const product *p);
esp_matmul_problem problem_of(test_run *run, const char *text);

/* ---- comparing (product_bound.c) ---- */

/* sum |w||x| for every [out row][token], from the decoded weight. */
double *magnitudes(test_run *run, const product *p);
/* Fails the case at the first result that is further from the reference than its bound. */
void compare_bounded(test_run *run, const product *p, const double *sums, const float *expected,
                     const float *actual);
/* Fails the case at the first result that is not the reference's, bit for bit (zeros may differ in
 * sign). */
void compare_exact(test_run *run, const product *p, const float *expected, const float *actual);

/* ---- samples of large products (product_samples.c) ---- */

/* The epilogue's activation of v; for swiglu the gate's. */
double activated(unsigned epilogue, double v);
/* Half of the distance between numbers of the type at v, at most. */
double half_step(esp_dtype type, double v);
/* Fails the case at the first of `count` random results, half of them from the last rows and
 * tokens, that is further from the exact one than its bound. */
void check_samples(test_run *run, const product *p, const float *actual, int count);

/* ---- all of large products (product_signs.c) ---- */

/* Rows of a product with a random sign each, added up by blocks of rows. */
typedef struct signed_sums {
    int64_t rows, blocks; /* rows: of a block, the last may have fewer */
    double *signs;        /* of each row */
    double *sizes;        /* length of each row of W, scaled */
    double *errors;       /* of a row's size, what it may be off by */
    double *lengths;      /* of each token of X */
    double *expected;     /* [blocks][tokens] */
} signed_sums;
/* The block of rows and the token that are off by the most of their bound: right up to 1. */
typedef struct signed_misfit {
    double excess;
    int64_t first, last, token;
} signed_misfit;
/* For products without activation. work: multiplications that it may take, about; the more, the
 * fewer rows are in a block and the less can be wrong with one of them. */
signed_sums signed_sums_make(test_run *run, const product *p, double work);
void signed_sums_free(signed_sums *made);
signed_misfit signed_sums_compare(const signed_sums *made, const product *p, const float *actual);
/* Fails the case where the misfit is more than 1. */
void check_signed_sums(test_run *run, const signed_sums *made, const product *p,
                       const float *actual);

#endif
