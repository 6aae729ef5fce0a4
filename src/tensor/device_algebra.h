/* A device that does the heavy algebra of calibration in the host's place.
 *
 * Matrices are f64, row-major, in the host's memory, and known by where they lie: what is `held`
 * has a copy on the device, which stands for it in every call until it is dropped; what is not held
 * travels with the call. Each function has its meaning in plain C: esp_algebra_* (algebra.h) and
 * src/prune. A function that is NULL is left to the host. One thread calls at a time. */
#ifndef ESP_TENSOR_DEVICE_ALGEBRA_H
#define ESP_TENSOR_DEVICE_ALGEBRA_H

#include <espalier/tensor.h>

#include "tensor/algebra.h"

/* What layers read: [features][tokens], rows `stride` elements apart; element (f, t) is
 * data - less. Tokens may lie in runs, `pitch` apart; run 0: all side by side. */
typedef struct esp_token_rows {
    const void *data, *less; /* less: NULL for nothing */
    esp_dtype type;
    int64_t features, stride;
    bool on_device;
    int64_t run, pitch;
} esp_token_rows;

/* esp_refit; words of the mask: [out][mask_words]. */
typedef struct esp_device_refit {
    int64_t out, in;
    const double *gram, *goal;
    double *weights;
    const uint64_t *mask;
    int64_t mask_words;
    double tolerance;
    int max_iterations;
    int64_t iterations; /* these two: what came of it */
    double residual;
} esp_device_refit;

/* esp_sparse_gpt from H^-1, which it factors. Which weights live is given (group 0), or `keep` of
 * each `group` in a row, or chosen by the host group by group (keep 0): choose gets the scores
 * [out][width] of columns begin.. and fills these in the mask. */
typedef struct esp_device_sweep {
    int64_t out, in, block;
    const double *inverse;
    double *weights;
    uint64_t *mask;
    int64_t mask_words;
    int64_t group, keep;
    esp_status (*choose)(void *user, int64_t begin, int64_t width, const float *scores,
                         esp_error *error);
    void *user;
} esp_device_sweep;

/* Places of a row that esp_joint_panels searches together: all up to 1024, blocks of 512 where
 * there are more. */
static inline int64_t esp_joint_block(int64_t places)
{
    return places <= 1024 ? places : 512;
}

/* esp_panel_obs, or esp_joint_panels where `joint`, of panels with one list of columns each;
 * `every`: all rows keep all columns. */
typedef struct esp_device_panels {
    int64_t out, in, v, group, kept;
    bool free, every, joint;
    const double *inverse;
    double *weights;
    uint32_t *columns; /* [panels][kept]: what was chosen, ascending, padded with UINT32_MAX */
    uint64_t *mask;    /* zeros at first */
    int64_t mask_words;
    /* NULL: fours are of ascending columns. Else the host deals a panel's places to fours, anew:
     * values [rows][places] and what the diagonal of the panel's H^-1 is; order[i]: place i's old
     * number. columns then lie in the new order. */
    esp_status (*deal)(void *user, int64_t rows, int64_t places, const double *values,
                       const double *diagonal, uint32_t *order, esp_error *error);
    void *user;
} esp_device_panels;

typedef struct esp_device_algebra_ops {
    void (*close)(esp_device_algebra *device);
    /* A copy of the matrix as it is; or zeros in its place, which `fetch` brings back. */
    esp_status (*hold)(esp_device_algebra *device, const double *matrix, int64_t count, bool zeros,
                       esp_error *error);
    esp_status (*fetch)(esp_device_algebra *device, double *matrix, esp_error *error);
    void (*drop)(esp_device_algebra *device, const double *matrix);
    /* Rows of C lie side by side, and those of A and B are there for the whole of their stride. */
    esp_status (*multiply)(esp_device_algebra *device, const esp_algebra_product *product,
                           esp_error *error);
    /* h, which is held, += X Y^T in f64; where y is x only what is not above the diagonal. Memory
     * of the device must be written by then, and has been read at the end. */
    esp_status (*add_gram)(esp_device_algebra *device, const esp_token_rows *x,
                           const esp_token_rows *y, int64_t tokens, double *h, esp_error *error);
    /* The lower triangle of what is held to the upper one. */
    esp_status (*mirror)(esp_device_algebra *device, const double *matrix, int64_t n,
                         esp_error *error);
    /* inverse, which is held then, = gram^-1; *definite: whether there is one. */
    esp_status (*invert)(esp_device_algebra *device, const double *gram, int64_t n, double *inverse,
                         bool *definite, esp_error *error);
    /* tr((W - T) H (W - T)^T); weights NULL: of T. */
    esp_status (*squared)(esp_device_algebra *device, const double *gram, int64_t out, int64_t in,
                          const double *weights, const double *target, double *squared,
                          esp_error *error);
    esp_status (*refit)(esp_device_algebra *device, esp_device_refit *refit, esp_error *error);
    /* "calibrate.not_definite" */
    esp_status (*sweep)(esp_device_algebra *device, const esp_device_sweep *sweep,
                        esp_error *error);
    esp_status (*panels)(esp_device_algebra *device, const esp_device_panels *panels,
                         esp_error *error);
} esp_device_algebra_ops;

struct esp_device_algebra {
    const esp_device_algebra_ops *ops;
    const char *name; /* static: "cuBLAS and cuSOLVER" */
};

#endif
