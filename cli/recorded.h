/* Runs of one product, recorded and replayed so often that the device's clock can tell their time.
 */
#ifndef CLI_RECORDED_H
#define CLI_RECORDED_H

#include <espalier/device.h>

typedef struct recorded {
    esp_recording *recording; /* owned */
    int runs;                 /* products in it */
    int repeats;              /* replays of a sample; 0: not known yet */
} recorded;

/* Microseconds of one product, over replays of half a millisecond at least; the first call finds
 * out how many those are. */
ESP_MUST_CHECK esp_status recorded_time(recorded *what, double *us, esp_error *error);
void recorded_free(recorded *what);

#endif
