/* Private to src/format: how a wrong pattern is reported. */
#ifndef ESP_FORMAT_PATTERN_FAULT_H
#define ESP_FORMAT_PATTERN_FAULT_H

#include <espalier/pattern.h>
#include <string.h>

#include "base/base.h"

/* `pattern "64:3:8": what`; texts from outside are cut. */
#define PATTERN_FAULT(error, code, text, ...)                                                      \
    (esp_fail(error, ESP_BAD_ARGUMENT, code, __VA_ARGS__),                                         \
     esp_fail_within(error, ESP_BAD_ARGUMENT, "pattern \"%.60s%s\"", text,                         \
                     strlen(text) > 60 ? "..." : ""))

/* text: the pattern as the user wrote it, for messages. */
esp_status esp_pattern_check_ranges(const esp_pattern *pattern, const char *text, esp_error *error);

#endif
