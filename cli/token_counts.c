#include "token_counts.h"

#include <stdlib.h>

esp_status parse_token_counts(const char *text, int most, int64_t *counts, int *count,
                              esp_error *error)
{
    *count = 0;
    for (const char *at = text;; at++) {
        char *end = NULL;
        long long value = *at >= '0' && *at <= '9' ? strtoll(at, &end, 10) : 0;
        if (value < 1 || value > INT32_MAX || *count == most || (*end != ',' && *end != '\0')) {
            return cli_fail(error, ESP_BAD_ARGUMENT, "usage.bad_value",
                            "--tokens '%.64s': up to %d token counts such as 1,16,128,512 were "
                            "expected",
                            text, most);
        }
        counts[(*count)++] = value;
        at = end;
        if (*at == '\0') {
            return ESP_OK;
        }
    }
}
