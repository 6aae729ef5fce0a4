/* A weight times a vector, and with its columns scaled, in whatever form it lies: what is needed to
 * take a factor and an addend of each input feature into the weight. Rows go to threads whole, so
 * sums do not depend on how many there are. */
#include <math.h>

#include "format/formats.h"

/* A pass over all values. */
typedef struct scale_job {
    const esp_sparse *sparse;
    const esp_format *format;
    esp_run_fn see;
    char *values;
    const float *factors; /* [in]; NULL: ones */
    esp_dtype to;         /* of values after scaling */
    double *sums;         /* [out], or losses [out][2] */
} scale_job;

static void see_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    scale_job *job = user;
    for (int64_t stored = begin; stored < end; stored++) {
        job->format->each_run(job->sparse, stored, job->see, job);
    }
}

static scale_job job_of(const esp_sparse *sparse, const float *factors, esp_run_fn see)
{
    const esp_tensor *values = esp_sparse_find_part(sparse, "values");
    return (scale_job){.sparse = sparse,
                       .format = esp_format_for(&sparse->pattern),
                       .see = see,
                       .values = values != NULL ? values->data : sparse->parts[0].tensor.data,
                       .factors = factors,
                       .to = sparse->dtype};
}

static void run_job(scale_job *job)
{
    int64_t in = job->sparse->in_features;
    if (in > 0) {
        esp_parallel_for(job->sparse->context, job->sparse->out_features, esp_format_row_grain(in),
                         see_rows, job);
    }
}

static char *values_of(const scale_job *job, const esp_run *run)
{
    return job->values + (size_t)run->first * esp_dtype_bytes(job->sparse->dtype);
}

/* The factor of value i; of what belongs to no column it is 0. */
static float factor_of(const scale_job *job, const esp_run *run, int i)
{
    bool there = run->columns[i] < job->sparse->in_features;
    return !there ? 0.0f : job->factors == NULL ? 1.0f : job->factors[run->columns[i]];
}

/* ---- products ---- */

static void add_up(void *user, const esp_run *run)
{
    const scale_job *job = user;
    float wide[ESP_RUN_MOST];
    double sum = 0;
    esp_widen(job->sparse->dtype, values_of(job, run), run->count, wide);
    for (int i = 0; i < run->count; i++) {
        if (run->columns[i] < job->sparse->in_features) {
            sum += (double)wide[i] * (double)factor_of(job, run, i);
        }
    }
    job->sums[run->row] += sum;
}

void esp_sparse_multiply(const esp_sparse *sparse, const float *x, double *y)
{
    scale_job job = job_of(sparse, x, add_up);
    memset(y, 0, (size_t)sparse->out_features * sizeof *y);
    job.sums = y;
    run_job(&job);
}

/* ---- scaling ---- */

static void scale_wide(const scale_job *job, const esp_run *run, float *wide)
{
    esp_widen(job->sparse->dtype, values_of(job, run), run->count, wide);
    for (int i = 0; i < run->count; i++) {
        wide[i] *= factor_of(job, run, i);
    }
}

static void scale_run(void *user, const esp_run *run)
{
    const scale_job *job = user;
    float wide[ESP_RUN_MOST];
    char *values = values_of(job, run);
    size_t width = esp_dtype_bytes(job->to);
    scale_wide(job, run, wide);
    esp_narrow(job->to, wide, run->count, values);
    for (int i = 0; i < run->count; i++) {
        if (esp_weight_is_negative_zero(job->to, values, i)) {
            memset(values + (size_t)i * width, 0, width);
        }
    }
}

void esp_sparse_scale(esp_sparse *sparse, const float *factors)
{
    scale_job job = job_of(sparse, factors, scale_run);
    run_job(&job);
}

static void lose(void *user, const esp_run *run)
{
    const scale_job *job = user;
    float wide[ESP_RUN_MOST], back[ESP_RUN_MOST];
    char narrow[ESP_RUN_MOST * sizeof(float)];
    double *losses = &job->sums[2 * run->row];
    scale_wide(job, run, wide);
    esp_narrow(job->to, wide, run->count, narrow);
    esp_widen(job->to, narrow, run->count, back);
    for (int i = 0; i < run->count; i++) {
        double lost = (double)back[i] - (double)wide[i]; /* infinite or NaN where one of them is */
        losses[0] += lost * lost;
        losses[1] += (double)wide[i] * (double)wide[i];
    }
}

bool esp_sparse_can_scale(const esp_sparse *sparse, const float *factors, esp_dtype dtype,
                          double *losses)
{
    scale_job job = job_of(sparse, factors, lose);
    double lost = 0, all = 0;
    double half = dtype == ESP_BF16 ? 0x1p-9 : dtype == ESP_F16 ? 0x1p-11 : 0x1p-24;
    memset(losses, 0, 2 * (size_t)sparse->out_features * sizeof *losses);
    job.to = dtype;
    job.sums = losses;
    run_job(&job);
    for (int64_t row = 0; row < sparse->out_features; row++) {
        lost += losses[2 * row];
        all += losses[2 * row + 1];
    }
    return isfinite(lost) && lost <= half * half * all; /* not where a NaN is */
}
