#include "recorded.h"

#include "cli.h"

#define LEAST_US 500.0
#define MOST_REPEATS 1000.0

esp_status recorded_time(recorded *what, double *us, esp_error *error)
{
    double taken;
    if (what->repeats == 0) {
        TRY(esp_recording_time(what->recording, 1, &taken, error));
        double wanted = LEAST_US / (taken > 1 ? taken : 1) + 1;
        what->repeats = (int)(wanted < MOST_REPEATS ? wanted : MOST_REPEATS);
    }
    TRY(esp_recording_time(what->recording, what->repeats, &taken, error));
    *us = taken / ((double)what->runs * what->repeats);
    return ESP_OK;
}

void recorded_free(recorded *what)
{
    esp_recording_free(what->recording);
    *what = (recorded){0};
}
