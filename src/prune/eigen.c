/* Householder's reflections (1958) leave three diagonals, and implicit QL steps on these (Bowdler,
 * Martin, Reinsch and Wilkinson, 1968) one. All of it goes along rows, so that thousands of
 * channels take minutes of one core. */
#include "prune/eigen.h"

#include <float.h>
#include <math.h>

#define MOST_STEPS 60 /* for one eigenvalue, which takes two as a rule */

static void swap_rows(double *a, int64_t n, int64_t p, int64_t q)
{
    for (int64_t k = 0; k < n; k++) {
        double held = a[p * n + k];
        a[p * n + k] = a[q * n + k];
        a[q * n + k] = held;
    }
}

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

/* The first place from i on behind which the matrix falls apart. */
static int64_t end_of_block(const double *diagonal, const double *beside, int64_t n, int64_t i)
{
    for (; i < n - 1; i++) {
        if (fabs(beside[i]) <= DBL_EPSILON * (fabs(diagonal[i]) + fabs(diagonal[i + 1]))) {
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

/* diagonal[n], beside[n]: beside[i] links i and i + 1; the last is room. */
static void diagonalise(double *diagonal, double *beside, int64_t n, double *axes)
{
    for (int64_t i = 0; i < n; i++) {
        for (int step = 0; step < MOST_STEPS; step++) {
            int64_t last = end_of_block(diagonal, beside, n, i);
            if (last == i) {
                break;
            }
            ql_step(diagonal, beside, n, i, last, axes);
        }
    }
}

/* ---- both ---- */

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

void esp_principal_axes(double *a, int64_t n, double *axes, double *room)
{
    double *diagonal = room, *beside = room + n, *sums = room + 2 * n;
    for (int64_t k = 0; k < n - 2; k++) {
        find_reflection(a + k * n, n, k, &beside[k]);
        reflect(a, n, k, sums);
    }
    for (int64_t k = 0; k < n; k++) {
        diagonal[k] = a[k * n + k];
    }
    beside[n - 1] = 0;
    if (n > 1) {
        beside[n - 2] = a[(n - 2) * n + n - 1];
    }
    multiply_reflections(a, n, axes, sums);
    transpose(axes, n);
    diagonalise(diagonal, beside, n, axes);
    sort_falling(diagonal, n, axes);
    for (int64_t i = 0; i < n; i++) {
        a[i * n + i] = diagonal[i];
        fix_sign(axes + i * n, n);
    }
}

void esp_deal_ranks(int64_t n, int64_t m, int64_t *rank_of)
{
    int64_t rank = 0;
    for (int64_t slot = 0; slot < m; slot++) {
        for (int64_t place = slot; place < n; place += m) {
            rank_of[place] = rank++;
        }
    }
}
