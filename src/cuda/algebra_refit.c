/* Refit of a fixed mask on a GPU: src/prune/refit.c with all rows at work together.
 *
 * What costs is the product of directions with H. Rows of one panel share few columns, so slabs of
 * rows are solved within their own columns, each by an H of its own, as one batch of products;
 * where a slab's rows keep nearly all columns between them, all rows multiply the one H. */
#include <math.h>

#include "cuda/algebra.h"

#define NARROW_SLAB 64
#define WIDE_SLAB 128
#define MOST_GATHERED ((size_t)6 << 30) /* bytes of the slabs' own H */
#define GATHER_BELOW 0.75               /* of all columns */

typedef struct refit_job {
    const cuda_algebra *algebra;
    esp_device_refit *refit;
    int64_t slab_rows, width;
    bool gathered;
    int32_t *columns; /* host: [slabs][width] */
    double *gram, *own_gram;
    double *room; /* of everything f64 below */
    void *small;
    double *matrices; /* [slabs at once][width][width] */
} refit_job;

/* ---- columns of slabs ---- */

static int64_t list_columns(const esp_device_refit *refit, int64_t first, int64_t rows,
                            int32_t *columns)
{
    int64_t count = 0, stop = ESP_MIN(refit->out, first + rows);
    for (int64_t word = 0; word < refit->mask_words; word++) {
        uint64_t any = 0;
        for (int64_t r = first; r < stop; r++) {
            any |= refit->mask[r * refit->mask_words + word];
        }
        for (; any != 0; any &= any - 1, count++) {
            if (columns != NULL) {
                columns[count] = (int32_t)(word * 64 + __builtin_ctzll(any));
            }
        }
    }
    return count;
}

static int64_t widest(const esp_device_refit *refit, int64_t slab_rows)
{
    int64_t most = 1;
    for (int64_t first = 0; first < refit->out; first += slab_rows) {
        most = ESP_MAX(most, list_columns(refit, first, slab_rows, NULL));
    }
    return most;
}

static esp_status plan(refit_job *job, esp_error *error)
{
    const esp_device_refit *refit = job->refit;
    int64_t narrow = widest(refit, NARROW_SLAB), wide = widest(refit, WIDE_SLAB);
    job->slab_rows = wide == narrow ? WIDE_SLAB : NARROW_SLAB;
    job->width = ESP_MIN(refit->in, esp_ceil_div(narrow, 8) * 8);
    job->gathered = (double)job->width < GATHER_BELOW * (double)refit->in;
    if (!job->gathered) {
        job->slab_rows = refit->out;
        job->width = refit->in;
    }
    int64_t slabs = esp_ceil_div(refit->out, job->slab_rows), width = job->width;
    size_t count = (size_t)(slabs * width);
    job->columns = esp_alloc_array(job->algebra->device->context, count, sizeof *job->columns);
    if (job->columns == NULL) {
        return esp_fail_memory(error, count * sizeof *job->columns, "columns");
    }
    memset(job->columns, 0xff, count * sizeof *job->columns);
    for (int64_t i = 0; i < slabs; i++) {
        (void)list_columns(refit, i * job->slab_rows, job->slab_rows, job->columns + i * width);
    }
    for (int64_t i = 0; i < width && !job->gathered; i++) {
        job->columns[i] = (int32_t)i;
    }
    return ESP_OK;
}

/* ---- rows first.. of the weight ---- */

typedef struct refit_part {
    int64_t first, rows, slabs;
    gpu_refit gpu;
    double *weights, *goal;
} refit_part;

/* Lays the part's areas out in job->room and job->small. */
static esp_status place(refit_job *job, refit_part *part, esp_error *error)
{
    const esp_device_refit *refit = job->refit;
    int64_t rows = part->slabs * job->slab_rows, width = job->width, in = refit->in;
    size_t each = (size_t)(rows * width), lists = (size_t)(part->slabs * width);
    size_t doubles = 4 * each + lists + 2 * (size_t)rows + 2 * (size_t)(rows * in);
    size_t words = (size_t)(rows * refit->mask_words);
    size_t small = words * sizeof(uint64_t) + (lists + (size_t)rows + 1) * sizeof(int32_t);
    ESP_TRY(algebra_take(job->algebra, doubles * sizeof(double), "a refit", &job->room, error));
    ESP_TRY(algebra_take(job->algebra, small, "a refit", &job->small, error));
    ESP_TRY(algebra_check(job->algebra,
                          gpu_clear(job->room, doubles * sizeof(double), job->algebra->stream),
                          "filling its memory", error));
    double *at = job->room;
    uint64_t *mask = job->small;
    int32_t *columns = (int32_t *)(mask + words);
    gpu_refit *gpu = &part->gpu;
    *gpu = (gpu_refit){.in = in,
                       .rows = part->rows,
                       .width = width,
                       .slab_rows = (int)job->slab_rows,
                       .columns = columns,
                       .mask = mask,
                       .mask_words = refit->mask_words,
                       .gram = job->gram,
                       .iterations = columns + lists,
                       .active = columns + lists + rows,
                       .tolerance = refit->tolerance};
    double **const areas[] = {&gpu->x, &gpu->residual, &gpu->direction, &gpu->product};
    for (int i = 0; i < ESP_COUNT(areas); i++, at += each) {
        *areas[i] = at;
    }
    gpu->inverse = at;
    gpu->energy = gpu->inverse + lists;
    gpu->goal_energy = gpu->energy + rows;
    gpu->goal = part->goal = gpu->goal_energy + rows;
    gpu->weights = part->weights = part->goal + rows * in;
    ESP_TRY(algebra_send(job->algebra, part->goal, refit->goal + part->first * in,
                         (size_t)(part->rows * in) * sizeof(double), error));
    ESP_TRY(algebra_send(job->algebra, part->weights, refit->weights + part->first * in,
                         (size_t)(part->rows * in) * sizeof(double), error));
    ESP_TRY(algebra_send(job->algebra, mask, refit->mask + part->first * refit->mask_words,
                         (size_t)(part->rows * refit->mask_words) * sizeof *mask, error));
    return algebra_send(job->algebra, columns, job->columns + part->first / job->slab_rows * width,
                        lists * sizeof *columns, error);
}

static esp_status multiply(const refit_job *job, const refit_part *part, const double *from,
                           esp_error *error)
{
    int64_t width = job->width;
    const algebra_product product = {.rows = job->gathered ? job->slab_rows : part->rows,
                                     .columns = width,
                                     .depth = width,
                                     .alpha = 1,
                                     .a = from,
                                     .a_stride = width,
                                     .a_step = job->slab_rows * width,
                                     .b = job->gathered ? job->matrices : job->gram,
                                     .b_stride = width,
                                     .b_step = width * width,
                                     .c = part->gpu.product,
                                     .c_stride = width,
                                     .c_step = job->slab_rows * width,
                                     .count = part->slabs};
    return algebra_multiply(job->algebra, &product, error);
}

/* Launches that judge rows, and how many stay at work. */
static esp_status judge(const refit_job *job, const refit_part *part, int iteration, int *active,
                        esp_error *error)
{
    void *stream = job->algebra->stream;
    int failed = gpu_clear(part->gpu.active, sizeof *active, stream);
    if (failed == 0) {
        failed = iteration == 0 ? gpu_refit_begin(&part->gpu, stream)
                                : gpu_refit_step(&part->gpu, iteration, stream);
    }
    ESP_TRY(algebra_check(job->algebra, failed, "a step of the refit", error));
    return algebra_bring(job->algebra, active, part->gpu.active, sizeof *active, error);
}

static esp_status solve(const refit_job *job, const refit_part *part, esp_error *error)
{
    int active = 0;
    void *stream = job->algebra->stream;
    if (job->gathered) {
        ESP_TRY(algebra_check(job->algebra, gpu_refit_gather(&part->gpu, job->matrices, stream),
                              "gathering moments", error));
    }
    ESP_TRY(algebra_check(job->algebra, gpu_refit_start(&part->gpu, stream), "a refit", error));
    ESP_TRY(multiply(job, part, part->gpu.x, error));
    ESP_TRY(judge(job, part, 0, &active, error));
    for (int i = 1; i <= job->refit->max_iterations && active > 0; i++) {
        ESP_TRY(multiply(job, part, part->gpu.direction, error));
        ESP_TRY(judge(job, part, i, &active, error));
    }
    return algebra_check(job->algebra, gpu_refit_finish(&part->gpu, part->weights, stream),
                         "a refit", error);
}

static esp_status report(const refit_job *job, const refit_part *part, esp_error *error)
{
    esp_context *context = job->algebra->device->context;
    size_t rows = (size_t)part->rows;
    double *energy = esp_alloc_array(context, 2 * rows, sizeof *energy);
    int *iterations = esp_alloc_array(context, rows, sizeof *iterations);
    esp_status status = energy == NULL || iterations == NULL
                            ? esp_fail_memory(error, rows * sizeof *energy, "a report")
                            : ESP_OK;
    if (status == ESP_OK) {
        status =
            algebra_bring(job->algebra, energy, part->gpu.energy, rows * sizeof *energy, error);
    }
    if (status == ESP_OK) {
        status = algebra_bring(job->algebra, energy + rows, part->gpu.goal_energy,
                               rows * sizeof *energy, error);
    }
    if (status == ESP_OK) {
        status = algebra_bring(job->algebra, iterations, part->gpu.iterations,
                               rows * sizeof *iterations, error);
    }
    for (size_t r = 0; r < rows && status == ESP_OK; r++) {
        int64_t took = iterations[r] < 0 ? job->refit->max_iterations : iterations[r];
        double residual = energy[rows + r] > 0 ? sqrt(energy[r] / energy[rows + r]) : 0;
        job->refit->iterations = ESP_MAX(job->refit->iterations, took);
        job->refit->residual = ESP_MAX(job->refit->residual, residual);
    }
    esp_release(context, energy);
    esp_release(context, iterations);
    return status;
}

static esp_status solve_part(refit_job *job, int64_t first, int64_t rows, esp_error *error)
{
    int64_t in = job->refit->in;
    refit_part part = {.first = first, .rows = rows, .slabs = esp_ceil_div(rows, job->slab_rows)};
    job->room = NULL;
    job->small = NULL;
    esp_status status = place(job, &part, error);
    status = status == ESP_OK ? solve(job, &part, error) : status;
    if (status == ESP_OK) {
        status = algebra_bring(job->algebra, job->refit->weights + first * in, part.weights,
                               (size_t)(rows * in) * sizeof(double), error);
    }
    status = status == ESP_OK ? report(job, &part, error) : status;
    algebra_give(job->algebra, job->room);
    algebra_give(job->algebra, job->small);
    return status;
}

static esp_status solve_all(refit_job *job, esp_error *error)
{
    const esp_device_refit *refit = job->refit;
    int64_t slabs = esp_ceil_div(refit->out, job->slab_rows), at_once = slabs;
    size_t bytes = (size_t)(job->width * job->width) * sizeof(double);
    ESP_TRY(algebra_lend(job->algebra, refit->gram, refit->in * refit->in, "moments", &job->gram,
                         &job->own_gram, error));
    if (job->gathered) {
        at_once = ESP_MIN(slabs, ESP_MAX(1, (int64_t)(MOST_GATHERED / bytes)));
        ESP_TRY(algebra_take(job->algebra, (size_t)at_once * bytes, "moments of slabs",
                             &job->matrices, error));
    }
    int64_t step = at_once * job->slab_rows;
    for (int64_t first = 0; first < refit->out; first += step) {
        ESP_TRY(solve_part(job, first, ESP_MIN(step, refit->out - first), error));
    }
    return ESP_OK;
}

esp_status cuda_algebra_refit(esp_device_algebra *algebra, esp_device_refit *refit,
                              esp_error *error)
{
    refit_job job = {.algebra = (cuda_algebra *)algebra, .refit = refit};
    refit->iterations = 0;
    refit->residual = 0;
    if (refit->out == 0 || refit->in == 0) { /* no slabs to divide by */
        return ESP_OK;
    }
    esp_status status = plan(&job, error);
    status = status == ESP_OK ? solve_all(&job, error) : status;
    algebra_give(job.algebra, job.matrices);
    algebra_give(job.algebra, job.own_gram);
    esp_release(job.algebra->device->context, job.columns);
    return status;
}
