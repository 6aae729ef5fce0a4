/* The percentile bootstrap (Efron, 1979) over parts of a text or images.
 *
 * Tokens of one document resemble each other, so that documents are drawn, not tokens; a mean is
 * the ratio of two sums over the drawn parts, as the result itself is over all. */
#include "assess/parts.h"

#include <stdlib.h>
#include <string.h>

#define MAX_RESAMPLES 1000000
#define TAIL 0.025 /* of each side */

enum { NATS, EXCESS, KL, TOP1, MEANS };

esp_status esp_parts_check(const esp_eval_parts *options, esp_error *error)
{
    if (options->resamples < 0 || options->resamples > MAX_RESAMPLES) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "eval.bad_resamples",
                        "%lld resamples; from 0 (no intervals) to %d are possible",
                        (long long)options->resamples, MAX_RESAMPLES);
    }
    return ESP_OK;
}

/* means: [MEANS] of one resample */
static void draw(const esp_eval_part *list, int64_t count, esp_random *random, double *means)
{
    double sums[MEANS] = {0}, tokens = 0;
    for (int64_t i = 0; i < count; i++) {
        const esp_eval_part *part = &list[esp_random_below(random, (uint64_t)count)];
        tokens += (double)part->tokens;
        sums[NATS] += part->nats;
        sums[EXCESS] += part->nats - part->baseline_nats;
        sums[KL] += part->kl;
        sums[TOP1] += (double)part->top1;
    }
    for (int k = 0; k < MEANS; k++) {
        means[k] = sums[k] / tokens;
    }
}

static int compare(const void *a, const void *b)
{
    double first = *(const double *)a, second = *(const double *)b;
    return (first > second) - (first < second);
}

/* Between the two nearest of ascending values. */
static double quantile(const double *values, int64_t count, double share)
{
    double place = share * (double)(count - 1);
    int64_t below = (int64_t)place, above = ESP_MIN(below + 1, count - 1);
    return values[below] + (place - (double)below) * (values[above] - values[below]);
}

static esp_interval interval_of(double *values, int64_t count)
{
    qsort(values, (size_t)count, sizeof *values, compare);
    return (esp_interval){quantile(values, count, TAIL), quantile(values, count, 1 - TAIL)};
}

static esp_status resample(esp_context *context, const esp_eval_parts *options,
                           const esp_eval_part *list, int64_t count, esp_eval_intervals *intervals,
                           esp_error *error)
{
    int64_t resamples = options->resamples;
    double *values = esp_alloc_array(context, (size_t)(MEANS * resamples), sizeof *values);
    if (values == NULL) {
        return esp_fail_memory(error, (size_t)(MEANS * resamples) * sizeof *values, "resamples");
    }
    esp_random random;
    esp_random_seed(&random, options->seed);
    for (int64_t i = 0; i < resamples; i++) {
        double means[MEANS];
        draw(list, count, &random, means);
        for (int k = 0; k < MEANS; k++) {
            values[k * resamples + i] = means[k];
        }
    }
    *intervals = (esp_eval_intervals){.parts = count, .resamples = resamples};
    esp_interval *const found[MEANS] = {&intervals->nats, &intervals->excess, &intervals->kl,
                                        &intervals->top1};
    for (int k = 0; k < MEANS; k++) {
        *found[k] = interval_of(values + k * resamples, resamples);
    }
    esp_release(context, values);
    return ESP_OK;
}

esp_status esp_parts_finish(esp_context *context, const esp_eval_parts *options,
                            esp_eval_part *list, int64_t count, esp_eval_intervals *intervals,
                            esp_error *error)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i++) {
        if (list[i].tokens > 0) {
            list[kept++] = list[i];
        }
    }
    for (int64_t i = 0; i < kept && options->on_part != NULL; i++) {
        options->on_part(options->user, &list[i]);
    }
    if (options->resamples == 0) {
        return ESP_OK;
    }
    if (kept < 2) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "eval.one_part",
                        "an interval needs two documents, windows or images, and this is one; give "
                        "more of them, or ask for no resamples");
    }
    return resample(context, options, list, kept, intervals, error);
}
