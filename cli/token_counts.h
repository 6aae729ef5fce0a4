/* Lists of token counts on the command line. */
#ifndef CLI_TOKEN_COUNTS_H
#define CLI_TOKEN_COUNTS_H

#include "cli.h"

#define MAX_TOKEN_COUNTS 32

/* "1,16,512": the value of --tokens, at most `most` counts. "usage.bad_value" */
ESP_MUST_CHECK esp_status parse_token_counts(const char *text, int most, int64_t *counts,
                                             int *count, esp_error *error);

#endif
