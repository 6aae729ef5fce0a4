#include "timing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli.h"

#define MOST_SAMPLES 64
#define SAMPLE_US 50.0
#define MOST_ROUNDS 10000

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double at_fraction(const double *sorted, int count, double fraction)
{
    double place = fraction * (count - 1);
    int below = (int)place;
    int above = below + 1 < count ? below + 1 : below;
    return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
}

static timing_spread spread_of_sorted(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, compare);
    return (timing_spread){at_fraction(values, count, 0.5), at_fraction(values, count, 0.25),
                           at_fraction(values, count, 0.75), values[0], values[count - 1]};
}

static const timing_spread unknown = {(double)NAN, (double)NAN, (double)NAN, (double)NAN,
                                      (double)NAN};

timing_spread timing_ratio(const double *above, const double *below, int rounds)
{
    double *ratios = calloc((size_t)rounds, sizeof *ratios);
    if (ratios == NULL) {
        return unknown;
    }
    for (int i = 0; i < rounds; i++) {
        ratios[i] = above[i] / (below != NULL ? below[i] : 1);
    }
    timing_spread spread = spread_of_sorted(ratios, rounds);
    free(ratios);
    return spread;
}

timing_spread timing_spread_of(const double *values, int count)
{
    return timing_ratio(values, NULL, count);
}

/* ---- one turn ---- */

static esp_status time_sample(timed_runner *runner, double *us, esp_error *error)
{
    double start = seconds_now();
    if (runner->time != NULL) {
        TRY(runner->time(runner->user, us, error));
        runner->sample_us = 1e6 * (seconds_now() - start);
        return ESP_OK;
    }
    for (int i = 0; i < runner->batch; i++) {
        TRY(runner->run(runner->user, error));
    }
    *us = 1e6 * (seconds_now() - start) / runner->batch;
    runner->sample_us = *us * runner->batch;
    return ESP_OK;
}

static esp_status settle(timed_runner *runner, double settle_s, esp_error *error)
{
    double start = seconds_now(), us;
    if (runner->time == NULL && 1e-6 * runner->sample_us > settle_s) {
        nanosleep(&(struct timespec){.tv_nsec = (long)(1e9 * settle_s)}, NULL);
        return ESP_OK;
    }
    do {
        TRY(time_sample(runner, &us, error));
    } while (isfinite(us) && seconds_now() - start < settle_s);
    return ESP_OK;
}

static esp_status take_turn(timed_runner *runner, const timing_options *options, int round,
                            esp_error *error)
{
    double samples[MOST_SAMPLES];
    int count = 0;
    runner->batch = runner->batch > 0 ? runner->batch : 1;
    TRY(settle(runner, options->settle_s, error));
    for (double start = seconds_now(); count < MOST_SAMPLES; count++) {
        double spent = seconds_now() - start;
        bool more = spent < options->turn_s || (count < 3 && spent < 3 * options->turn_s);
        if (count > 0 && !more) {
            break;
        }
        TRY(time_sample(runner, &samples[count], error));
        if (!isfinite(samples[count])) {
            runner->round_us[round < 0 ? 0 : round] = (double)NAN;
            return ESP_OK;
        }
    }
    timing_spread spread = spread_of_sorted(samples, count);
    if (round < 0 && runner->time != NULL) {
        return ESP_OK;
    }
    if (round < 0) {
        double wanted = SAMPLE_US / fmax(spread.least, 1e-3);
        runner->batch = wanted < 1 ? 1 : (int)wanted + 1;
        return ESP_OK;
    }
    runner->round_us[round] = spread.median;
    runner->least_us = round == 0 ? spread.least : fmin(runner->least_us, spread.least);
    return ESP_OK;
}

/* Even rounds go forwards from a start that moves on, odd ones backwards. */
static int turn_of(int round, int place, int count)
{
    int shift = round < 0 ? 0 : round / 2;
    return (shift + (round % 2 == 0 ? place : count - 1 - place)) % count;
}

esp_status timing_rounds(timed_runner *runners, int count, const timing_options *options,
                         esp_error *error)
{
    int rounds = options->rounds;
    for (int round = -2; round < rounds; round++) {
        for (int i = 0; i < count; i++) {
            double done = round + 2 + (double)i / count;
            if (options->progress != NULL &&
                !options->progress(options->user, "measuring", done, rounds + 2, "rounds")) {
                return cli_fail(error, ESP_CANCELLED, "cancelled",
                                "the measurement was interrupted");
            }
            TRY(take_turn(&runners[turn_of(round, i, count)], options, round, error));
        }
    }
    return ESP_OK;
}
