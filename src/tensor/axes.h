/* Principal axes of symmetric matrices: by LAPACK where OpenBLAS is installed, else by plain loops
 * on one core. */
#ifndef ESP_TENSOR_AXES_H
#define ESP_TENSOR_AXES_H

#include "tensor/algebra.h"

typedef struct esp_axes_options {
    /* Told which share is done; what it returns but ESP_OK ends the work. NULL: nobody is told. */
    esp_status (*step)(void *user, double share, esp_error *error);
    void *user;
    int most_steps; /* of the plain loops, for one eigenvalue; 0: 60, of which two are the rule */
} esp_axes_options;

/* a: [n][n] symmetric, used up. values: [n], falling. axes: [n][n], row i the unit eigenvector of
 * the i-th, its largest entry positive. options: NULL for none. "axes.not_finite";
 * "axes.not_converged". */
ESP_MUST_CHECK esp_status esp_principal_axes(const esp_algebra *algebra, double *a, int64_t n,
                                             double *values, double *axes,
                                             const esp_axes_options *options, esp_error *error);

#endif
