/* Exact least squares of the kept weights: conjugate gradients (Hestenes and Stiefel, 1952) on the
 * normal equations of each row, scaled by H's diagonal.
 *
 * A slab of 64 rows goes at once, because one product of the slab's directions with H serves all of
 * them, each row with step lengths of its own. Rows of one panel keep the same few columns, so a
 * slab is solved within the columns that any of its rows keeps: for V:2:M that is 4 / M of them,
 * and 16 / M^2 of the work. A row that has converged leaves the slab. */
#include <math.h>

#include "prune/prune.h"

#define SLAB 64
#define TOLERANCE 1e-7
#define MAX_ITERATIONS 500

typedef struct refit_job {
    const esp_algebra *algebra;
    const esp_layer_inputs *inputs;
    const esp_mask *mask;
    const double *goal;
    double *weights;
    esp_refit_options options;
    double *room; /* [threads][room_doubles] */
    size_t room_doubles;
    int64_t *columns;        /* [threads][in] */
    esp_refit_report *worst; /* [threads] */
} refit_job;

/* One slab at work; rows [SLAB][width] over its columns. */
typedef struct slab {
    int64_t first, rows, width;                           /* rows: still at work */
    const int64_t *columns;                               /* [width] */
    const double *gram;                                   /* [width][width] */
    double *gathered;                                     /* room for gram */
    double *x, *residual, *direction, *product, *inverse; /* inverse: [width], 1 / H_jj */
    double *live;                                         /* 1 or 0 */
    double energy[SLAB], goal_energy[SLAB];               /* r^T D^-1 r, b^T D^-1 b */
    int64_t row[SLAB];                                    /* of the weight */
} slab;

static int64_t list_columns(const refit_job *job, int64_t first, int64_t rows, int64_t *columns)
{
    int64_t in = job->inputs->in, count = 0;
    for (int64_t word = 0; word < esp_ceil_div(in, 64); word++) {
        uint64_t any = 0;
        for (int64_t r = first; r < first + rows; r++) {
            any |= esp_mask_row(job->mask, r)[word];
        }
        for (; any != 0; any &= any - 1) {
            columns[count++] = word * 64 + __builtin_ctzll(any);
        }
    }
    return count;
}

static void gather_gram(const refit_job *job, slab *s)
{
    int64_t in = job->inputs->in;
    s->gram = job->inputs->gram;
    for (int64_t i = 0; i < s->width; i++) {
        const double *row = job->inputs->gram + s->columns[i] * in;
        s->inverse[i] = row[s->columns[i]] > 0 ? 1 / row[s->columns[i]] : 0;
        for (int64_t j = 0; j < s->width && s->width < in; j++) {
            s->gathered[i * s->width + j] = row[s->columns[j]];
        }
    }
    if (s->width < in) {
        s->gram = s->gathered;
    }
}

static void multiply(const refit_job *job, const slab *s, const double *from)
{
    const esp_algebra_product by_gram = {.rows = s->rows,
                                         .columns = s->width,
                                         .depth = s->width,
                                         .alpha = 1,
                                         .a = from,
                                         .a_stride = s->width,
                                         .b = s->gram,
                                         .b_stride = s->width,
                                         .c = s->product,
                                         .c_stride = s->width};
    esp_algebra_multiply(job->algebra, &by_gram);
}

/* x: the start, cut to the mask; residual: goal - x H there; direction: scaled residual. */
static void begin_slab(const refit_job *job, slab *s)
{
    int64_t in = job->inputs->in, width = s->width;
    for (int64_t r = 0; r < s->rows; r++) {
        const uint64_t *words = esp_mask_row(job->mask, s->first + r);
        s->row[r] = s->first + r;
        for (int64_t i = 0; i < width; i++) {
            int64_t column = s->columns[i];
            double live = (double)(words[column / 64] >> column % 64 & 1);
            s->live[r * width + i] = live;
            s->x[r * width + i] = live != 0 ? job->weights[(s->first + r) * in + column] : 0;
        }
    }
    multiply(job, s, s->x);
    for (int64_t r = 0; r < s->rows; r++) {
        const double *goal = job->goal + (s->first + r) * in;
        double energy = 0, goal_energy = 0;
        for (int64_t i = 0; i < width; i++) {
            int64_t at = r * width + i;
            double wanted = goal[s->columns[i]] * s->live[at];
            double left = (goal[s->columns[i]] - s->product[at]) * s->live[at];
            s->residual[at] = left;
            s->direction[at] = left * s->inverse[i];
            energy += left * s->direction[at];
            goal_energy += wanted * wanted * s->inverse[i];
        }
        s->energy[r] = energy;
        s->goal_energy[r] = goal_energy;
    }
}

static double relative_residual(const slab *s, int64_t r)
{
    return s->goal_energy[r] > 0 ? sqrt(s->energy[r] / s->goal_energy[r]) : 0;
}

/* Writes a row back and lets the last one take its place. */
static void leave(const refit_job *job, slab *s, int64_t r)
{
    int64_t width = s->width, last = --s->rows;
    double *weights = job->weights + s->row[r] * job->inputs->in;
    memset(weights, 0, (size_t)job->inputs->in * sizeof *weights);
    for (int64_t i = 0; i < width; i++) {
        weights[s->columns[i]] = s->x[r * width + i];
    }
    double *const areas[] = {s->x, s->residual, s->direction, s->live};
    for (int i = 0; i < ESP_COUNT(areas) && r != last; i++) {
        memcpy(areas[i] + r * width, areas[i] + last * width, (size_t)width * sizeof **areas);
    }
    s->row[r] = s->row[last];
    s->energy[r] = s->energy[last];
    s->goal_energy[r] = s->goal_energy[last];
}

/* One step of one row: along its direction to the least error, then a new conjugate direction. */
static void step_row(slab *s, int64_t r)
{
    int64_t width = s->width, at = r * width;
    double *x = s->x + at, *residual = s->residual + at, *direction = s->direction + at;
    const double *product = s->product + at, *live = s->live + at;
    double curvature = 0, energy = 0;
    for (int64_t i = 0; i < width; i++) {
        curvature += direction[i] * product[i];
    }
    double step = curvature > 0 ? s->energy[r] / curvature : 0;
    for (int64_t i = 0; i < width; i++) {
        x[i] += step * direction[i];
        residual[i] -= step * product[i] * live[i];
        energy += residual[i] * residual[i] * s->inverse[i];
    }
    double keep = s->energy[r] > 0 ? energy / s->energy[r] : 0;
    for (int64_t i = 0; i < width; i++) {
        direction[i] = residual[i] * s->inverse[i] + keep * direction[i];
    }
    s->energy[r] = energy;
}

static void solve_slab(const refit_job *job, slab *s, esp_refit_report *worst)
{
    begin_slab(job, s);
    for (int iteration = 0; s->rows > 0; iteration++) {
        bool last = iteration == job->options.max_iterations;
        for (int64_t r = s->rows - 1; r >= 0; r--) {
            double residual = relative_residual(s, r);
            if (last || !(residual > job->options.tolerance)) {
                worst->iterations = ESP_MAX(worst->iterations, iteration);
                worst->residual = ESP_MAX(worst->residual, residual);
                leave(job, s, r);
            }
        }
        if (s->rows > 0) {
            multiply(job, s, s->direction);
            for (int64_t r = 0; r < s->rows; r++) {
                step_row(s, r);
            }
        }
    }
}

static void solve_slabs(void *user, int64_t begin, int64_t end, int thread)
{
    const refit_job *job = user;
    int64_t in = job->inputs->in, out = esp_mask_out_features(job->mask);
    int64_t *columns = job->columns + thread * in;
    double *room = job->room + (size_t)thread * job->room_doubles;
    for (int64_t i = begin; i < end; i++) {
        slab s = {.first = i * SLAB, .rows = ESP_MIN(SLAB, out - i * SLAB), .columns = columns};
        s.width = list_columns(job, s.first, s.rows, columns);
        double **const areas[] = {&s.x, &s.residual, &s.direction, &s.product, &s.live};
        for (int a = 0; a < ESP_COUNT(areas); a++) {
            *areas[a] = room + a * SLAB * in;
        }
        s.inverse = room + ESP_COUNT(areas) * SLAB * in;
        s.gathered = s.inverse + in;
        gather_gram(job, &s);
        solve_slab(job, &s, &job->worst[thread]);
    }
}

/* The widest list of columns that is narrower than the whole, which needs no copy of H. */
static int64_t widest_gathered(const refit_job *job, int64_t out)
{
    int64_t widest = 0;
    for (int64_t first = 0; first < out; first += SLAB) {
        int64_t width = list_columns(job, first, ESP_MIN(SLAB, out - first), job->columns);
        widest = width < job->inputs->in ? ESP_MAX(widest, width) : widest;
    }
    return widest;
}

static esp_status solve(refit_job *job, int64_t out, esp_error *error)
{
    esp_context *context = esp_algebra_context(job->algebra);
    size_t threads = (size_t)context->threads, in = (size_t)job->inputs->in, total = 0;
    size_t widest = (size_t)widest_gathered(job, out);
    job->room_doubles = (5 * SLAB + 1) * in + widest * widest;
    bool fits = esp_mul_size(threads, job->room_doubles, &total);
    job->room = fits ? esp_alloc_array(context, total, sizeof *job->room) : NULL;
    if (job->room == NULL) {
        return esp_fail_memory(error, fits ? total * sizeof *job->room : SIZE_MAX, "a refit");
    }
    esp_parallel_for(context, esp_ceil_div(out, SLAB), 1, solve_slabs, job);
    return ESP_OK;
}

/* By a device that does all rows at once. */
static esp_status refit_on_device(esp_device_algebra *device, refit_job *job,
                                  esp_refit_report *report, esp_error *error)
{
    int64_t out = esp_mask_out_features(job->mask);
    esp_device_refit refit = {.out = out,
                              .in = job->inputs->in,
                              .gram = job->inputs->gram,
                              .goal = job->goal,
                              .weights = job->weights,
                              .mask = out > 0 ? esp_mask_row(job->mask, 0) : NULL,
                              .mask_words = esp_mask_row_words(job->mask),
                              .tolerance = job->options.tolerance,
                              .max_iterations = job->options.max_iterations};
    ESP_TRY(device->ops->refit(device, &refit, error));
    if (report != NULL) {
        *report = (esp_refit_report){refit.iterations, refit.residual};
    }
    return ESP_OK;
}

esp_status esp_refit(const esp_algebra *algebra, const esp_layer_inputs *inputs,
                     const esp_mask *mask, const double *goal, double *weights,
                     const esp_refit_options *options, esp_refit_report *report, esp_error *error)
{
    static const esp_refit_options defaults = {0};
    esp_context *context = esp_algebra_context(algebra);
    size_t threads = (size_t)context->threads;
    refit_job job = {.algebra = algebra,
                     .inputs = inputs,
                     .mask = mask,
                     .goal = goal,
                     .weights = weights,
                     .options = options != NULL ? *options : defaults};
    job.options.tolerance = job.options.tolerance > 0 ? job.options.tolerance : TOLERANCE;
    job.options.max_iterations =
        job.options.max_iterations > 0 ? job.options.max_iterations : MAX_ITERATIONS;
    esp_device_algebra *device = esp_algebra_device(algebra);
    if (device != NULL && device->ops->refit != NULL) {
        return refit_on_device(device, &job, report, error);
    }
    job.columns = esp_alloc_array(context, threads * (size_t)inputs->in, sizeof *job.columns);
    job.worst = esp_alloc_array(context, threads, sizeof *job.worst);
    esp_status status = job.columns == NULL || job.worst == NULL
                            ? esp_fail_memory(error, threads * (size_t)inputs->in * 8, "a refit")
                            : solve(&job, esp_mask_out_features(mask), error);
    for (size_t t = 0; t < threads && status == ESP_OK && report != NULL; t++) {
        *report = t == 0 ? (esp_refit_report){0} : *report;
        report->iterations = ESP_MAX(report->iterations, job.worst[t].iterations);
        report->residual = ESP_MAX(report->residual, job.worst[t].residual);
    }
    esp_release(context, job.room);
    esp_release(context, job.columns);
    esp_release(context, job.worst);
    return status;
}
