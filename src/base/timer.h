#ifndef ESP_BASE_TIMER_H
#define ESP_BASE_TIMER_H

#include <time.h>

/* Monotonic seconds. */
static inline double esp_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#endif
