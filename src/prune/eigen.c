/* Jacobi's method (1846), cyclic: plane rotations clear one entry after the other, and what lies
 * off the diagonal vanishes quadratically. Fit for heads of a few hundred channels. */
#include "prune/eigen.h"

#include <math.h>

#define MOST_SWEEPS 30

/* Rows p and q of a matrix with n columns, by cosine c and sine s. */
static void rotate_rows(double *a, int64_t n, int64_t p, int64_t q, double c, double s)
{
    for (int64_t k = 0; k < n; k++) {
        double x = a[p * n + k], y = a[q * n + k];
        a[p * n + k] = c * x - s * y;
        a[q * n + k] = s * x + c * y;
    }
}

static void rotate_columns(double *a, int64_t n, int64_t p, int64_t q, double c, double s)
{
    for (int64_t k = 0; k < n; k++) {
        double x = a[k * n + p], y = a[k * n + q];
        a[k * n + p] = c * x - s * y;
        a[k * n + q] = s * x + c * y;
    }
}

static void clear(double *a, int64_t n, double *axes, int64_t p, int64_t q)
{
    double theta = (a[q * n + q] - a[p * n + p]) / (2 * a[p * n + q]);
    double t = copysign(1, theta) / (fabs(theta) + sqrt(theta * theta + 1));
    double c = 1 / sqrt(t * t + 1), s = t * c;
    rotate_rows(a, n, p, q, c, s);
    rotate_columns(a, n, p, q, c, s);
    rotate_rows(axes, n, p, q, c, s);
}

static bool sweep(double *a, int64_t n, double *axes)
{
    bool cleared = false;
    for (int64_t p = 0; p < n; p++) {
        for (int64_t q = p + 1; q < n; q++) {
            double scale = sqrt(fabs(a[p * n + p] * a[q * n + q]));
            if (fabs(a[p * n + q]) > 1e-14 * scale + 1e-300) {
                clear(a, n, axes, p, q);
                cleared = true;
            }
        }
    }
    return cleared;
}

static void swap_rows(double *a, int64_t n, int64_t p, int64_t q)
{
    for (int64_t k = 0; k < n; k++) {
        double held = a[p * n + k];
        a[p * n + k] = a[q * n + k];
        a[q * n + k] = held;
    }
}

static void sort_falling(double *a, int64_t n, double *axes)
{
    for (int64_t i = 0; i < n; i++) {
        int64_t best = i;
        for (int64_t j = i + 1; j < n; j++) {
            best = a[j * n + j] > a[best * n + best] ? j : best;
        }
        double held = a[i * n + i];
        a[i * n + i] = a[best * n + best];
        a[best * n + best] = held;
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

void esp_principal_axes(double *a, int64_t n, double *axes)
{
    for (int64_t i = 0; i < n * n; i++) {
        axes[i] = i % (n + 1) == 0;
    }
    for (int i = 0; i < MOST_SWEEPS && sweep(a, n, axes); i++) {
    }
    sort_falling(a, n, axes);
    for (int64_t i = 0; i < n; i++) {
        fix_sign(axes + i * n, n);
    }
}
