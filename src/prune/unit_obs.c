/* Structured pruning by second order: which units of columns (hidden features, heads) a weight can
 * do without.
 *
 * With W the least squares over the live columns and P the inverse of H over them, doing without
 * the columns R costs tr(W_R (P_RR)^-1 W_R^T), after which W -= W_R (P_RR)^-1 P_R,    P -= P_R^T
 * (P_RR)^-1 P_R are those over the rest (Hassibi and Stork's Optimal Brain Surgeon, for blocks of
 * columns that all rows share). Units are ranked by what each costs on its own; the cheapest go
 * together, a 64th of all that are to go at a time, and the rest is ranked anew. */
#include <math.h>
#include <stdlib.h>

#include "prune/prune.h"

#define STEPS 64

typedef struct unit_cost {
    double cost;
    int64_t unit;
} unit_cost;

typedef struct unit_job {
    const esp_algebra *algebra;
    esp_context *context;
    int64_t out, in, units, width, most; /* most: columns that go at a time */
    double *inverse;                     /* P, [in][in]; 0 where a column is gone */
    double *weights;                     /* [out][in] */
    bool *gone;                          /* [units] */
    unit_cost *costs;                    /* [units] */
    int64_t *columns;                    /* [most]: R */
    double *square;                      /* [most][most]: (P_RR)^-1 */
    double *rows;                        /* [most][in]: P_R */
    double *solved;                      /* [most][in]: (P_RR)^-1 P_R */
    double *of_rows;                     /* [out][most]: W_R */
    double *of_inverse;                  /* [in][most]: P_R^T */
} unit_job;

static bool make_room(unit_job *job)
{
    esp_context *context = job->context;
    size_t in = (size_t)job->in, most = (size_t)job->most, units = (size_t)job->units;
    job->inverse = esp_alloc_array(context, in * in, sizeof *job->inverse);
    job->gone = esp_alloc_zero(context, units * sizeof *job->gone);
    job->costs = esp_alloc_array(context, units, sizeof *job->costs);
    job->columns = esp_alloc_array(context, most, sizeof *job->columns);
    job->square = esp_alloc_array(context, most * most, sizeof *job->square);
    job->rows = esp_alloc_array(context, most * in, sizeof *job->rows);
    job->solved = esp_alloc_array(context, most * in, sizeof *job->solved);
    job->of_rows = esp_alloc_array(context, (size_t)job->out * most, sizeof *job->of_rows);
    job->of_inverse = esp_alloc_array(context, in * most, sizeof *job->of_inverse);
    return job->inverse != NULL && job->gone != NULL && job->costs != NULL &&
           job->columns != NULL && job->square != NULL && job->rows != NULL &&
           job->solved != NULL && job->of_rows != NULL && job->of_inverse != NULL;
}

static void free_room(unit_job *job)
{
    void *const all[] = {job->inverse, job->gone,   job->costs,   job->columns,   job->square,
                         job->rows,    job->solved, job->of_rows, job->of_inverse};
    for (int i = 0; i < ESP_COUNT(all); i++) {
        esp_release(job->context, all[i]);
    }
}

/* (P_RR)^-1 of columns[0..count), stride count. False: P is not positive definite there. */
static bool invert_square(unit_job *job, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        for (int64_t j = 0; j < count; j++) {
            job->square[i * count + j] = job->inverse[job->columns[i] * job->in + job->columns[j]];
        }
    }
    if (!esp_algebra_factor(job->algebra, job->square, count)) {
        return false;
    }
    esp_algebra_invert(job->algebra, job->square, count);
    return true;
}

static void take_columns(unit_job *job, int64_t unit, int64_t at)
{
    for (int64_t i = 0; i < job->width; i++) {
        job->columns[at + i] = unit * job->width + i;
    }
}

/* Infinite where it cannot be told. */
static double cost_of(unit_job *job, int64_t unit)
{
    int64_t width = job->width;
    double cost = 0;
    take_columns(job, unit, 0);
    if (!invert_square(job, width)) {
        return (double)INFINITY;
    }
    for (int64_t r = 0; r < job->out; r++) {
        const double *w = job->weights + r * job->in + unit * width;
        for (int64_t i = 0; i < width; i++) {
            double sum = 0;
            for (int64_t j = 0; j < width; j++) {
                sum += job->square[i * width + j] * w[j];
            }
            cost += w[i] * sum;
        }
    }
    return cost;
}

static int compare(const void *a, const void *b)
{
    const unit_cost *x = a, *y = b;
    if (x->cost != y->cost) {
        return x->cost < y->cost ? -1 : 1;
    }
    return x->unit > y->unit ? -1 : x->unit < y->unit; /* of equals the later one goes */
}

static void rank(unit_job *job)
{
    int64_t live = 0;
    for (int64_t unit = 0; unit < job->units; unit++) {
        if (!job->gone[unit]) {
            job->costs[live++] = (unit_cost){cost_of(job, unit), unit};
        }
    }
    qsort(job->costs, (size_t)live, sizeof *job->costs, compare);
}

static void multiply(const unit_job *job, int64_t rows, int64_t depth, double alpha, double beta,
                     const double *a, const double *b, double *c)
{
    const esp_algebra_product product = {.rows = rows,
                                         .columns = job->in,
                                         .depth = depth,
                                         .alpha = alpha,
                                         .beta = beta,
                                         .a = a,
                                         .a_stride = depth,
                                         .b = b,
                                         .b_stride = job->in,
                                         .c = c,
                                         .c_stride = job->in};
    esp_algebra_multiply(job->algebra, &product);
}

/* Of columns[0..count): nothing of them is left, to the last bit. */
static void clear(unit_job *job, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        int64_t column = job->columns[i];
        for (int64_t r = 0; r < job->out; r++) {
            job->weights[r * job->in + column] = 0;
        }
        for (int64_t j = 0; j < job->in; j++) {
            job->inverse[column * job->in + j] = job->inverse[j * job->in + column] = 0;
        }
    }
}

/* The cheapest `units` of what is ranked. False: as of invert_square. */
static bool drop(unit_job *job, int64_t units)
{
    int64_t count = units * job->width, in = job->in;
    for (int64_t i = 0; i < units; i++) {
        take_columns(job, job->costs[i].unit, i * job->width);
        job->gone[job->costs[i].unit] = true;
    }
    if (!invert_square(job, count)) {
        return false;
    }
    for (int64_t i = 0; i < count; i++) {
        int64_t column = job->columns[i];
        memcpy(job->rows + i * in, job->inverse + column * in, (size_t)in * sizeof *job->rows);
        for (int64_t r = 0; r < job->out; r++) {
            job->of_rows[r * count + i] = job->weights[r * in + column];
        }
        for (int64_t j = 0; j < in; j++) {
            job->of_inverse[j * count + i] = job->inverse[j * in + column];
        }
    }
    multiply(job, count, count, 1, 0, job->square, job->rows, job->solved);
    multiply(job, job->out, count, -1, 1, job->of_rows, job->solved, job->weights);
    multiply(job, in, count, -1, 1, job->of_inverse, job->solved, job->inverse);
    clear(job, count);
    return true;
}

static void list_kept(const unit_job *job, uint32_t *kept)
{
    for (int64_t unit = 0; unit < job->units; unit++) {
        if (!job->gone[unit]) {
            *kept++ = (uint32_t)unit;
        }
    }
}

static esp_status run(unit_job *job, int64_t keep, const double *inverse, esp_error *error)
{
    size_t count = (size_t)(job->in * job->in);
    if (!make_room(job)) {
        return esp_fail_memory(error, 2 * count * sizeof *inverse, "removing features");
    }
    memcpy(job->inverse, inverse, count * sizeof *inverse);
    for (int64_t left = job->units; left > keep;) {
        int64_t now = ESP_MIN(left - keep, job->most / job->width);
        rank(job);
        if (!drop(job, now)) {
            return esp_fail(error, ESP_CHECK_FAILED, "calibrate.not_definite",
                            "the inputs' second moments cannot be inverted: give more samples or a "
                            "larger damping");
        }
        left -= now;
    }
    return ESP_OK;
}

esp_status esp_unit_obs(const esp_algebra *algebra, int64_t out, int64_t units, int64_t width,
                        int64_t keep, const double *inverse, double *weights, uint32_t *kept,
                        esp_error *error)
{
    unit_job job = {.algebra = algebra,
                    .context = esp_algebra_context(algebra),
                    .out = out,
                    .in = units * width,
                    .units = units,
                    .width = width,
                    .most = width * ESP_MAX(1, esp_ceil_div(units - keep, STEPS)),
                    .weights = weights};
    esp_status status = run(&job, keep, inverse, error);
    if (status == ESP_OK) {
        list_kept(&job, kept);
    }
    free_room(&job);
    return status;
}
