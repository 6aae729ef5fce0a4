/* Several prompts at once, for `run --prompts`. */
#ifndef CLI_MANY_H
#define CLI_MANY_H

#include "explain.h"
#include "load.h"

typedef struct run_many_args {
    const char *file; /* a prompt a line */
    int64_t max_tokens;
    esp_sampling sampling;
    bool no_special;
} run_many_args;

/* cli->plan is set. */
ESP_MUST_CHECK esp_status run_many(cli_state *cli, const run_many_args *args, esp_error *error);

#endif
