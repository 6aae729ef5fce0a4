/* Principal axes: what both ways share, which is what makes their results comparable: finite
 * numbers before, falling values and settled signs after. */
#include <math.h>

#include "tensor/axes_inside.h"

esp_status axes_step(const axes_job *job, double share, esp_error *error)
{
    const esp_axes_options *options = job->options;
    return options->step != NULL ? options->step(options->user, share, error) : ESP_OK;
}

esp_status axes_not_converged(const axes_job *job, esp_error *error)
{
    return esp_fail(error, ESP_CHECK_FAILED, "axes.not_converged",
                    "the principal axes of a matrix of %lld channels were not found: its "
                    "eigenvalues do not settle; other or more samples give another matrix",
                    (long long)job->n);
}

static esp_status check_finite(const axes_job *job, esp_error *error)
{
    for (int64_t i = 0; i < job->n * job->n; i++) {
        if (!isfinite(job->a[i])) {
            return esp_fail(error, ESP_CHECK_FAILED, "axes.not_finite",
                            "a matrix of %lld channels has no principal axes: entry (%lld, %lld) "
                            "is %g; 'espalier verify --strict' finds weights that are no numbers",
                            (long long)job->n, (long long)(i / job->n), (long long)(i % job->n),
                            job->a[i]);
        }
    }
    return ESP_OK;
}

static void swap_rows(double *a, int64_t n, int64_t p, int64_t q)
{
    for (int64_t k = 0; k < n; k++) {
        double held = a[p * n + k];
        a[p * n + k] = a[q * n + k];
        a[q * n + k] = held;
    }
}

static void sort_falling(double *values, int64_t n, double *axes)
{
    for (int64_t i = 0; i < n; i++) {
        int64_t best = i;
        for (int64_t j = i + 1; j < n; j++) {
            best = values[j] > values[best] ? j : best;
        }
        double held = values[i];
        values[i] = values[best];
        values[best] = held;
        if (best != i) {
            swap_rows(axes, n, i, best);
        }
    }
}

static void fix_sign(double *axis, int64_t n)
{
    double largest = 0;
    for (int64_t k = 0; k < n; k++) {
        largest = fabs(axis[k]) > fabs(largest) ? axis[k] : largest;
    }
    for (int64_t k = 0; k < n && largest < 0; k++) {
        axis[k] = -axis[k];
    }
}

esp_status esp_principal_axes(const esp_algebra *algebra, double *a, int64_t n, double *values,
                              double *axes, const esp_axes_options *options, esp_error *error)
{
    static const esp_axes_options none = {0};
    const axes_job job = {algebra, options != NULL ? options : &none, n, a, values, axes};
    ESP_TRY(check_finite(&job, error));
    ESP_TRY(algebra_library_takes(algebra, n, n, n) ? axes_by_lapack(&job, error)
                                                    : axes_by_loops(&job, error));
    sort_falling(values, n, axes);
    for (int64_t i = 0; i < n; i++) {
        fix_sign(axes + i * n, n);
    }
    return ESP_OK;
}
