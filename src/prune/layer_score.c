/* Scores of single weights from weights and inputs. Whole layers go through two passes: the largest
 * score, then scores as a share of it. */
#include <float.h>
#include <math.h>

#include "prune/prune.h"
#include "prune/select.h"

typedef struct score_job {
    esp_layer_score score;
    int64_t out, in;
    const double *weights;
    double *factors; /* [in]: what a weight's part is multiplied by, by column */
    double *columns; /* [in]: sums of |w|, for RIA */
    double *largest; /* [threads]; [0] in the end */
    float *scores;
    bool measuring;
} score_job;

static double value_of(const score_job *job, double weight, int64_t column, double row_sum)
{
    double magnitude = fabs(weight), factor = job->factors[column];
    switch (job->score) {
    case ESP_LAYER_SQUARE:
    case ESP_LAYER_OBD:
    case ESP_LAYER_OBS:
        return weight * weight * factor;
    case ESP_LAYER_RIA:
        return magnitude == 0 ? 0
                              : (magnitude / row_sum + magnitude / job->columns[column]) * factor;
    default:
        return magnitude * factor;
    }
}

static double sum_row(const double *row, int64_t in)
{
    double sum = 0;
    for (int64_t j = 0; j < in; j++) {
        sum += isfinite(row[j]) ? fabs(row[j]) : 0;
    }
    return sum;
}

static void score_rows(void *user, int64_t begin, int64_t end, int thread)
{
    const score_job *job = user;
    double scale = job->largest[0] > 0 ? 1 / job->largest[0] : 1;
    for (int64_t r = begin; r < end; r++) {
        const double *row = job->weights + r * job->in;
        double row_sum = job->score == ESP_LAYER_RIA ? sum_row(row, job->in) : 0;
        for (int64_t j = 0; j < job->in; j++) {
            bool finite = isfinite(row[j]);
            double value = finite ? value_of(job, row[j], j, row_sum) : 0;
            if (job->measuring) {
                job->largest[thread] = ESP_MAX(job->largest[thread], value);
            } else {
                job->scores[r * job->in + j] =
                    finite ? (float)(value * scale) : (float)fabs(row[j]);
            }
        }
    }
}

static double factor_of(const score_job *job, const esp_layer_inputs *inputs,
                        const double *inverse_diagonal, int64_t j)
{
    bool needs_inputs = job->score >= ESP_LAYER_OBD && job->score != ESP_LAYER_OBS;
    double square = needs_inputs ? ESP_MAX(inputs->gram[j * job->in + j], 0) : 0;
    switch (job->score) {
    case ESP_LAYER_OBD:
        return square / 2;
    case ESP_LAYER_WANDA:
        return inputs->norm_power > 0 ? pow(square, inputs->norm_power / 2) : sqrt(square);
    case ESP_LAYER_RIA:
        return pow(square, inputs->norm_power > 0 ? inputs->norm_power / 2 : 0.25);
    case ESP_LAYER_OBS:
        return 1 / inverse_diagonal[j];
    default:
        return 1;
    }
}

static void sum_columns(score_job *job)
{
    for (int64_t r = 0; r < job->out && job->score == ESP_LAYER_RIA; r++) {
        const double *row = job->weights + r * job->in;
        for (int64_t j = 0; j < job->in; j++) {
            job->columns[j] += isfinite(row[j]) ? fabs(row[j]) : 0;
        }
    }
}

esp_status esp_score_layer(esp_context *context, esp_layer_score score,
                           const esp_layer_inputs *inputs, const double *inverse_diagonal,
                           int64_t out, int64_t in, const double *weights, float *scores,
                           esp_error *error)
{
    size_t threads = (size_t)context->threads, columns = (size_t)in;
    score_job job = {.score = score,
                     .out = out,
                     .in = in,
                     .weights = weights,
                     .scores = scores,
                     .measuring = true};
    double *room = esp_alloc_array(context, 2 * columns + threads, sizeof *room);
    if (room == NULL) {
        return esp_fail_memory(error, 2 * columns * sizeof *room, "scores");
    }
    job.factors = room;
    job.columns = room + columns;
    job.largest = room + 2 * columns;
    for (int64_t j = 0; j < in; j++) {
        job.factors[j] = factor_of(&job, inputs, inverse_diagonal, j);
    }
    sum_columns(&job);
    int64_t grain = 1 + 16384 / ESP_MAX(1, in);
    esp_parallel_for(context, out, grain, score_rows, &job);
    for (size_t t = 1; t < threads; t++) {
        job.largest[0] = ESP_MAX(job.largest[0], job.largest[t]);
    }
    job.measuring = false;
    esp_parallel_for(context, out, grain, score_rows, &job);
    esp_release(context, room);
    return ESP_OK;
}
