/* Times several things against each other, fairly.
 *
 * Rounds are interleaved, so that a change of the machine's mood hits all alike, and what is
 * compared is the ratio inside a round, not of two medians. The order turns from round to round:
 * nobody always runs behind the same neighbour. Each turn begins with a pause of settle_s, in
 * untimed runs (of something slow: in idleness), because threads of a library spin on a core for
 * tens of milliseconds after their last product. A turn's value is the median of its samples: a
 * thread that was interrupted once, or placed badly for one call, does not count against its owner.
 */
#ifndef CLI_TIMING_H
#define CLI_TIMING_H

#include <espalier/base.h>

typedef struct timed_runner {
    esp_status (*run)(void *user, esp_error *error);
    void *user;
    double *round_us; /* [rounds]: median of a round's samples */
    double least_us;  /* of all samples */
    int batch;        /* runs of a sample, so that the clock does not matter; 0 at first */
    double sample_us; /* how long a sample took last */
    /* Not NULL: takes a sample by a clock of its own and tells the time of one run; NaN: it could
     * not, and no longer takes part. */
    esp_status (*time)(void *user, double *us, esp_error *error);
} timed_runner;

typedef struct timing_options {
    int rounds;
    double settle_s, turn_s; /* turn_s: of timed runs at least, three samples if they fit */
    esp_progress_fn progress;
    void *user;
} timing_options;

/* Two untimed rounds, then the timed ones. Errors of run are passed on; ESP_CANCELLED. */
ESP_MUST_CHECK esp_status timing_rounds(timed_runner *runners, int count,
                                        const timing_options *options, esp_error *error);

typedef struct timing_spread {
    double median, low, high, least, most; /* low, high: quartiles */
} timing_spread;

timing_spread timing_spread_of(const double *values, int count);
/* Of above[i] / below[i] over the rounds. */
timing_spread timing_ratio(const double *above, const double *below, int rounds);

#endif
