/* What an output error is, from second moments of the inputs alone. Products run over slabs of
 * rows, so that a layer takes no second copy of itself. */
#include <math.h>

#include "prune/prune.h"

#define SLAB 64

typedef struct error_job {
    const esp_algebra *algebra;
    const esp_layer_inputs *inputs;
    int64_t out;
    const double *weights, *target; /* weights NULL: the energy of target */
    double *rows;                   /* [threads][2][SLAB][in] */
    double *sums;                   /* [slabs] */
} error_job;

static void add_slabs(void *user, int64_t begin, int64_t end, int thread)
{
    const error_job *job = user;
    int64_t in = job->inputs->in;
    double *difference = job->rows + 2 * thread * SLAB * in, *product = difference + SLAB * in;
    for (int64_t slab = begin; slab < end; slab++) {
        int64_t first = slab * SLAB, rows = ESP_MIN(SLAB, job->out - first);
        const double *target = job->target + first * in;
        for (int64_t i = 0; i < rows * in; i++) {
            difference[i] =
                job->weights != NULL ? job->weights[first * in + i] - target[i] : target[i];
        }
        esp_algebra_product by_gram = {.rows = rows,
                                       .columns = in,
                                       .depth = in,
                                       .alpha = 1,
                                       .a = difference,
                                       .a_stride = in,
                                       .b = job->inputs->gram,
                                       .b_stride = in,
                                       .c = product,
                                       .c_stride = in};
        esp_algebra_multiply(job->algebra, &by_gram);
        double sum = 0;
        for (int64_t i = 0; i < rows * in; i++) {
            sum += difference[i] * product[i];
        }
        job->sums[slab] = sum;
    }
}

esp_status esp_layer_error(const esp_algebra *algebra, const esp_layer_inputs *inputs, int64_t out,
                           const double *weights, const double *target, double *squared,
                           esp_error *error)
{
    esp_context *context = esp_algebra_context(algebra);
    esp_device_algebra *device = esp_algebra_device(algebra);
    if (device != NULL && device->ops->squared != NULL) {
        return device->ops->squared(device, inputs->gram, out, inputs->in, weights, target, squared,
                                    error);
    }
    int64_t slabs = esp_ceil_div(out, SLAB);
    size_t room = 2 * (size_t)context->threads * SLAB * (size_t)inputs->in;
    error_job job = {
        .algebra = algebra, .inputs = inputs, .out = out, .weights = weights, .target = target};
    job.rows = esp_alloc_array(context, room, sizeof *job.rows);
    job.sums = esp_alloc_array(context, (size_t)slabs, sizeof *job.sums);
    esp_status status = ESP_OK;
    if (job.rows == NULL || job.sums == NULL) {
        status = esp_fail_memory(error, room * sizeof *job.rows, "output errors");
    } else {
        esp_parallel_for(context, slabs, 1, add_slabs, &job);
        double sum = 0;
        for (int64_t i = 0; i < slabs; i++) {
            sum += job.sums[i];
        }
        *squared = ESP_MAX(sum, 0);
    }
    esp_release(context, job.rows);
    esp_release(context, job.sums);
    return status;
}

esp_status esp_layer_energy(const esp_algebra *algebra, const esp_layer_inputs *inputs, int64_t out,
                            const double *target, double *squared, esp_error *error)
{
    return esp_layer_error(algebra, inputs, out, NULL, target, squared, error);
}
