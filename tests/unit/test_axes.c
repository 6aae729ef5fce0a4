/* Principal axes by LAPACK and by plain loops, by what they are: A v = l v, orthonormal, falling;
 * on matrices of full rank, of zeros, and of few vectors, whose small eigenvalues are nothing but
 * rounding. What does not settle, or is to be stopped, is told. */
#include <math.h>
#include <stdlib.h>

#include "tensor/tensor.h"
#include "test.h"

typedef struct bed {
    esp_context *context;
    esp_algebra *algebra;
    int64_t n;
    double *a, *left, *values, *axes;
} bed;

static double *doubles(int64_t count)
{
    return calloc((size_t)ESP_MAX(count, 1), sizeof(double));
}

static void bed_open(test_run *run, bed *b, int64_t n, bool plain)
{
    *b = (bed){.context = test_context(run, 3), .n = n};
    REQUIRE_OK(plain ? esp_algebra_open_plain(b->context, &b->algebra, error)
                     : esp_algebra_open(b->context, &b->algebra, error));
    b->a = doubles(n * n);
    b->left = doubles(n * n);
    b->values = doubles(n);
    b->axes = doubles(n * n);
}

static void bed_close(test_run *run, bed *b)
{
    esp_algebra_close(b->algebra);
    test_context_free(run, b->context);
    free(b->a);
    free(b->left);
    free(b->values);
    free(b->axes);
}

/* X X^T of so many vectors, the last channel never seen. */
static void fill(bed *b, uint64_t seed, int64_t vectors)
{
    esp_random random;
    esp_random_seed(&random, seed);
    double *x = doubles(b->n);
    for (int64_t t = 0; t < vectors; t++) {
        for (int64_t i = 0; i < b->n - 1; i++) {
            x[i] = (double)esp_random_below(&random, 1u << 24) / (1u << 23) - 1;
        }
        for (int64_t i = 0; i < b->n * b->n; i++) {
            b->a[i] += x[i / b->n] * x[i % b->n];
        }
    }
    memcpy(b->left, b->a, (size_t)(b->n * b->n) * sizeof *b->left);
    free(x);
}

static double dot(const double *x, const double *y, int64_t n)
{
    double sum = 0;
    for (int64_t k = 0; k < n; k++) {
        sum += x[k] * y[k];
    }
    return sum;
}

static void check_axes(test_run *run, const bed *b)
{
    int64_t n = b->n;
    double worst = 0, scale = ESP_MAX(1, fabs(b->values[0]));
    for (int64_t r = 0; r < n; r++) {
        const double *axis = b->axes + r * n;
        double largest = 0;
        CHECK(r == 0 || b->values[r] <= b->values[r - 1]);
        for (int64_t c = 0; c < n; c++) {
            double image = dot(b->a + c * n, axis, n);
            test_note_largest(&worst, fabs(image - b->values[r] * axis[c]) / scale);
            test_note_largest(&worst, fabs(dot(axis, b->axes + c * n, n) - (r == c)));
            largest = fabs(axis[c]) > fabs(largest) ? axis[c] : largest;
        }
        CHECK(largest > 0);
    }
    if (!(worst < 1e-12)) {
        test_fail(run, __FILE__, __LINE__, "%g apart", worst);
    }
}

static void axes_by(test_run *run, bool plain)
{
    /* LAPACK's panels are 64 wide, from 129 on; from 26 on it divides */
    static const int64_t sizes[] = {1, 2, 3, 5, 64, 80, 129, 193, 333};
    for (int i = 0; i < 4 * ESP_COUNT(sizes); i++) {
        int64_t n = sizes[i / 4], vectors[] = {0, 2, n / 10 + 3, n + 2};
        bed b;
        test_sub(run, "%d of %d vectors", (int)n, (int)vectors[i % 4]);
        bed_open(run, &b, n, plain);
        fill(&b, test_seed(run) + (uint64_t)i, vectors[i % 4]);
        CHECK_OK(esp_principal_axes(b.algebra, b.left, n, b.values, b.axes, NULL, error));
        check_axes(run, &b);
        bed_close(run, &b);
    }
}

static void by_library(test_run *run)
{
    axes_by(run, false);
}

static void by_loops(test_run *run)
{
    axes_by(run, true);
}

/* Two steps for an eigenvalue are the rule, so one is not enough for all of them. */
static void not_converged(test_run *run)
{
    const esp_axes_options once = {.most_steps = 1};
    bed b;
    bed_open(run, &b, 40, true);
    fill(&b, 1, 50);
    CHECK_FAILS(esp_principal_axes(b.algebra, b.left, 40, b.values, b.axes, &once, error),
                ESP_CHECK_FAILED, "axes.not_converged");
    bed_close(run, &b);
}

static void not_finite(test_run *run)
{
    for (int plain = 0; plain < 2; plain++) {
        for (int kind = 0; kind < 2; kind++) {
            bed b;
            bed_open(run, &b, 30, plain);
            fill(&b, 1, 50);
            b.left[17 * 30 + 4] = b.left[4 * 30 + 17] = kind == 0 ? (double)NAN : (double)INFINITY;
            CHECK_FAILS(esp_principal_axes(b.algebra, b.left, 30, b.values, b.axes, NULL, error),
                        ESP_CHECK_FAILED, "axes.not_finite");
            bed_close(run, &b);
        }
    }
}

typedef struct listener {
    int calls, stop_at;
    double last;
    bool falls;
} listener;

static esp_status listen(void *user, double share, esp_error *error)
{
    listener *l = user;
    l->falls |= share < l->last || share > 1;
    l->last = share;
    return l->calls++ == l->stop_at ? esp_fail(error, ESP_CANCELLED, "cancelled", "stopped")
                                    : ESP_OK;
}

/* Shares rise, and wherever it is stopped it ends, at once. */
static void stopped(test_run *run)
{
    for (int plain = 0; plain < 2; plain++) {
        bed b;
        listener all = {.stop_at = -1};
        const esp_axes_options how = {.step = listen, .user = &all};
        bed_open(run, &b, 300, plain);
        fill(&b, 1, 20);
        CHECK_OK(esp_principal_axes(b.algebra, b.left, 300, b.values, b.axes, &how, error));
        CHECK(all.calls > 3 && !all.falls);
        for (int stop = 0; stop < all.calls; stop += 1 + all.calls / 5) {
            listener one = {.stop_at = stop};
            const esp_axes_options stops = {.step = listen, .user = &one};
            memcpy(b.left, b.a, (size_t)(300 * 300) * sizeof *b.left);
            CHECK_FAILS(esp_principal_axes(b.algebra, b.left, 300, b.values, b.axes, &stops, error),
                        ESP_CANCELLED, "cancelled");
            CHECK_INT(one.calls, stop + 1);
        }
        bed_close(run, &b);
    }
}

static const test_case cases[] = {{"by_library", by_library},
                                  {"by_loops", by_loops},
                                  {"not_converged", not_converged},
                                  {"not_finite", not_finite},
                                  {"stopped", stopped}};
TEST_MAIN(cases)
