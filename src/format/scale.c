/* Columns of a weight scaled, in whatever form it lies, and what is asked of its rows on the way:
 * how a weight takes in a factor and an addend of each input feature. Rows go to threads whole, so
 * sums do not depend on how many there are. */
#include <math.h>

#include "format/formats.h"

typedef struct scale_job {
    const esp_sparse *sparse;
    const esp_format *format;
    char *values;
    const esp_scaling *scaling;
} scale_job;

/* Factors and addends of a run's columns; zeros where there is none. */
static void gather(const scale_job *job, const esp_run *run, float *factors, float *addends)
{
    const esp_scaling *scaling = job->scaling;
    for (int i = 0; i < run->count; i++) {
        bool there = run->columns[i] < job->sparse->in_features;
        factors[i] = there ? scaling->factors[run->columns[i]] : 0.0f;
        addends[i] = there && scaling->addends != NULL ? scaling->addends[run->columns[i]] : 0.0f;
    }
}

/* Infinite and NaN losses stay so. */
static void add_up(esp_scaled_row *row, const float *wide, const float *back, int count)
{
    double sum = 0, lost = 0, all = 0;
    for (int i = 0; i < count; i++) {
        double apart = (double)back[i] - (double)wide[i];
        sum += (double)back[i];
        lost += apart * apart;
        all += (double)wide[i] * (double)wide[i];
    }
    row->sum += sum;
    row->lost += lost;
    row->all += all;
}

static void write_back(const scale_job *job, const float *wide, int count, char *values)
{
    esp_dtype dtype = job->sparse->dtype;
    size_t width = esp_dtype_bytes(dtype);
    esp_narrow(dtype, wide, count, values);
    for (int i = 0; i < count; i++) {
        if (esp_weight_is_negative_zero(dtype, values, i)) {
            memset(values + (size_t)i * width, 0, width);
        }
    }
}

static void scale_run(void *user, const esp_run *run)
{
    const scale_job *job = user;
    esp_dtype dtype = job->sparse->dtype, stored = job->scaling->stored;
    float wide[ESP_RUN_MOST], back[ESP_RUN_MOST], factors[ESP_RUN_MOST], addends[ESP_RUN_MOST];
    char narrow[ESP_RUN_MOST * sizeof(float)];
    esp_scaled_row *row = &job->scaling->rows[run->row];
    char *values = job->values + (size_t)run->first * esp_dtype_bytes(dtype);
    gather(job, run, factors, addends);
    esp_widen(dtype, values, run->count, wide);
    double sum = 0;
    for (int i = 0; i < run->count; i++) {
        sum += (double)wide[i] * (double)addends[i];
        wide[i] *= factors[i];
    }
    row->addend += sum;
    esp_narrow(stored, wide, run->count, narrow);
    esp_widen(stored, narrow, run->count, back);
    add_up(row, wide, back, run->count);
    write_back(job, wide, run->count, values);
}

static void scale_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    scale_job *job = user;
    for (int64_t stored = begin; stored < end; stored++) {
        job->format->each_run(job->sparse, stored, scale_run, job);
    }
}

bool esp_sparse_scale(esp_sparse *sparse, const esp_scaling *scaling)
{
    const esp_tensor *values = esp_sparse_find_part(sparse, "values");
    scale_job job = {.sparse = sparse,
                     .format = esp_format_for(&sparse->pattern),
                     .values = values != NULL ? values->data : sparse->parts[0].tensor.data,
                     .scaling = scaling};
    esp_dtype stored = scaling->stored;
    double unit = stored == ESP_BF16 ? 0x1p-9 : stored == ESP_F16 ? 0x1p-11 : 0x1p-24;
    double lost = 0, all = 0;
    memset(scaling->rows, 0, (size_t)sparse->out_features * sizeof *scaling->rows);
    if (sparse->in_features > 0) {
        esp_parallel_for(sparse->context, sparse->out_features,
                         esp_format_row_grain(sparse->in_features), scale_rows, &job);
    }
    for (int64_t row = 0; row < sparse->out_features; row++) {
        lost += scaling->rows[row].lost;
        all += scaling->rows[row].all;
    }
    return isfinite(lost) && lost <= unit * unit * all;
}
