/* Householder's reflections (1958) leave three diagonals, and implicit QL steps on these (Bowdler,
 * Martin, Reinsch and Wilkinson, 1968) one. All of it goes along rows, so that thousands of
 * channels take minutes of one core. */
#include <float.h>
#include <math.h>

#include "tensor/axes_inside.h"

#define MOST_STEPS 60 /* for one eigenvalue, which takes two as a rule */

/* Rows p and q of a matrix with n columns, by cosine c and sine s. */
static void rotate_rows(double *a, int64_t n, int64_t p, int64_t q, double c, double s)
{
    for (int64_t k = 0; k < n; k++) {
        double x = a[p * n + k], y = a[q * n + k];
        a[p * n + k] = c * x - s * y;
        a[q * n + k] = s * x + c * y;
    }
}

/* ---- Householder ---- */

/* The reflection that leaves of row k, right of the diagonal, one number: unit vector v[k + 1..],
 * kept in that row; 0 where there is nothing to reflect. */
static void find_reflection(double *row, int64_t n, int64_t k, double *beside)
{
    double norm = 0, *v = row + k + 1;
    int64_t count = n - k - 1;
    for (int64_t i = 0; i < count; i++) {
        norm = hypot(norm, v[i]);
    }
    double target = v[0] > 0 ? -norm : norm;
    *beside = target;
    v[0] -= target;
    double length = 0;
    for (int64_t i = 0; i < count; i++) {
        length = hypot(length, v[i]);
    }
    for (int64_t i = 0; i < count; i++) {
        v[i] = length > 0 ? v[i] / length : 0;
    }
}

/* What is right of and below the reflected row, both sides: A - v w^T - w v^T. */
static void reflect(double *a, int64_t n, int64_t k, double *w)
{
    const double *v = a + k * n;
    double along = 0;
    for (int64_t i = k + 1; i < n; i++) {
        double sum = 0;
        for (int64_t j = k + 1; j < n; j++) {
            sum += a[i * n + j] * v[j];
        }
        w[i] = 2 * sum;
        along += v[i] * sum;
    }
    for (int64_t i = k + 1; i < n; i++) {
        w[i] -= 2 * along * v[i];
    }
    for (int64_t i = k + 1; i < n; i++) {
        for (int64_t j = k + 1; j < n; j++) {
            a[i * n + j] -= v[i] * w[j] + w[i] * v[j];
        }
    }
}

/* axes = the product of the reflections, first to last: from the last one back only what lies
 * behind it is not the unit matrix. */
static void multiply_reflections(const double *a, int64_t n, double *axes, double *sums)
{
    for (int64_t i = 0; i < n * n; i++) {
        axes[i] = i % (n + 1) == 0;
    }
    for (int64_t k = n - 3; k >= 0; k--) {
        const double *v = a + k * n;
        for (int64_t j = k + 1; j < n; j++) {
            sums[j] = 0;
        }
        for (int64_t i = k + 1; i < n; i++) {
            for (int64_t j = k + 1; j < n; j++) {
                sums[j] += v[i] * axes[i * n + j];
            }
        }
        for (int64_t i = k + 1; i < n; i++) {
            for (int64_t j = k + 1; j < n; j++) {
                axes[i * n + j] -= 2 * v[i] * sums[j];
            }
        }
    }
}

static void transpose(double *a, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < i; j++) {
            double held = a[i * n + j];
            a[i * n + j] = a[j * n + i];
            a[j * n + i] = held;
        }
    }
}

/* ---- QL ---- */

/* Below what a link is none: against all of the matrix, not its neighbours, since those of a matrix
 * of less than full rank are themselves nothing but rounding, which no step makes smaller. */
static double least_link(const double *diagonal, const double *beside, int64_t n)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++) {
        most = ESP_MAX(most, fabs(diagonal[i]) + fabs(beside[i]));
    }
    return DBL_EPSILON * most;
}

/* The first place from i on behind which the matrix falls apart. */
static int64_t end_of_block(const double *beside, int64_t n, int64_t i, double least)
{
    for (; i < n - 1; i++) {
        if (fabs(beside[i]) <= least) {
            break;
        }
    }
    return i;
}

/* One implicit step with Wilkinson's shift on places first to last: a bulge runs upwards. */
static void ql_step(double *diagonal, double *beside, int64_t n, int64_t first, int64_t last,
                    double *axes)
{
    double half = (diagonal[first + 1] - diagonal[first]) / (2 * beside[first]);
    double root = copysign(hypot(half, 1), half);
    double g = diagonal[last] - diagonal[first] + beside[first] / (half + root);
    double s = 1, c = 1, p = 0;
    for (int64_t i = last - 1; i >= first; i--) {
        double f = s * beside[i], b = c * beside[i], r = hypot(f, g);
        beside[i + 1] = r;
        if (r == 0) { /* falls apart here: the rest is for the next step */
            diagonal[i + 1] -= p;
            beside[last] = 0;
            return;
        }
        s = f / r;
        c = g / r;
        g = diagonal[i + 1] - p;
        r = (diagonal[i] - g) * s + 2 * c * b;
        p = s * r;
        diagonal[i + 1] = g + p;
        g = c * r - b;
        rotate_rows(axes, n, i, i + 1, c, s);
    }
    diagonal[first] -= p;
    beside[first] = g;
    beside[last] = 0;
}

/* The next eigenvalue, at place i; the values beside link i and i + 1, the last is room. */
static bool settle(const axes_job *job, double *beside, double least, int64_t i)
{
    int most = job->options->most_steps > 0 ? job->options->most_steps : MOST_STEPS;
    for (int step = 0;; step++) {
        int64_t last = end_of_block(beside, job->n, i, least);
        if (last == i) {
            return true;
        }
        if (step == most) {
            return false;
        }
        ql_step(job->values, beside, job->n, i, last, job->axes);
    }
}

/* ---- both ---- */

/* Shares of the work as n^3 have them: a third, a sixth, half. */
static esp_status reduce(const axes_job *job, double *beside, double *sums, esp_error *error)
{
    int64_t n = job->n;
    for (int64_t k = 0; k < n - 2; k++) {
        double left = (double)(n - k) / (double)n;
        ESP_TRY(axes_step(job, (1 - left * left * left) / 3, error));
        find_reflection(job->a + k * n, n, k, &beside[k]);
        reflect(job->a, n, k, sums);
    }
    for (int64_t k = 0; k < n; k++) {
        job->values[k] = job->a[k * n + k];
    }
    beside[n - 1] = 0;
    if (n > 1) {
        beside[n - 2] = job->a[(n - 2) * n + n - 1];
    }
    return ESP_OK;
}

static esp_status find(const axes_job *job, double *beside, double *sums, esp_error *error)
{
    int64_t n = job->n;
    ESP_TRY(reduce(job, beside, sums, error));
    ESP_TRY(axes_step(job, 1.0 / 3, error));
    multiply_reflections(job->a, n, job->axes, sums);
    transpose(job->axes, n);
    double least = least_link(job->values, beside, n);
    for (int64_t i = 0; i < n; i++) {
        ESP_TRY(axes_step(job, 0.5 + 0.5 * (double)i / (double)n, error));
        if (!settle(job, beside, least, i)) {
            return axes_not_converged(job, error);
        }
    }
    return ESP_OK;
}

esp_status axes_by_loops(const axes_job *job, esp_error *error)
{
    size_t n = (size_t)job->n;
    double *room = esp_alloc_array(job->algebra->context, 2 * n, sizeof *room);
    if (room == NULL) {
        return esp_fail_memory(error, 2 * n * sizeof *room, "principal axes");
    }
    esp_status status = find(job, room, room + n, error);
    esp_release(job->algebra->context, room);
    return status;
}
