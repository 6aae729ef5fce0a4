/* The context's inside: allocator, log hook, thread pool, features of the processor, measured
 * times.
 */
#ifndef ESP_BASE_CONTEXT_H
#define ESP_BASE_CONTEXT_H

#include <espalier/base.h>

#include "base/cpu_features.h"
#include "base/tuning_table.h"

struct esp_pool;

struct esp_context {
    esp_allocator allocator;
    esp_log_fn log;
    void *log_user;
    int threads;
    esp_cpu_features cpu; /* already limited by options.cpu_level */
    struct esp_pool *pool;
    esp_tuning_table tuning;
};

void esp_log(const esp_context *context, esp_log_level level, const char *format, ...)
    ESP_PRINTF(3, 4);

#endif
