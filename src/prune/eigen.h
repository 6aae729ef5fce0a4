/* Principal axes of small symmetric matrices. */
#ifndef ESP_PRUNE_EIGEN_H
#define ESP_PRUNE_EIGEN_H

#include "base/base.h"

/* a: [n][n] symmetric, used up: its diagonal becomes the eigenvalues, falling. axes: [n][n], row i
 * the unit eigenvector of the i-th, its largest entry positive. */
void esp_principal_axes(double *a, int64_t n, double *axes);

#endif
