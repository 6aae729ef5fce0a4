/* The two ways to principal axes. */
#ifndef ESP_TENSOR_AXES_INSIDE_H
#define ESP_TENSOR_AXES_INSIDE_H

#include "tensor/algebra_inside.h"
#include "tensor/axes.h"

/* As esp_principal_axes, signs and order of the axes aside. */
typedef struct axes_job {
    const esp_algebra *algebra;
    const esp_axes_options *options;
    int64_t n;
    double *a, *values, *axes;
} axes_job;

ESP_MUST_CHECK esp_status axes_step(const axes_job *job, double share, esp_error *error);
esp_status axes_not_converged(const axes_job *job, esp_error *error);

/* axes_plain.c: values in any order. */
ESP_MUST_CHECK esp_status axes_by_loops(const axes_job *job, esp_error *error);
/* axes_lapack.c: values rising. */
ESP_MUST_CHECK esp_status axes_by_lapack(const axes_job *job, esp_error *error);

#endif
