/* `espalier advise`: what it was asked, and what came of it. */
#ifndef CLI_ADVISE_JOB_H
#define CLI_ADVISE_JOB_H

#include "calibration.h"
#include "output.h"

#define ADVISE_MAX_PATTERNS 32

typedef struct advise_args {
    text_list patterns;
    const char *tokens, *recipe, *figure, *random_weights;
    double speedup, model_speedup, bytes;
    int64_t rounds;
    int type; /* of random weights: index into advise_types */
    bool layers_only;
    calibration_args calibration;
} advise_args;

typedef struct advise_job {
    cli_state *cli;
    const char *model; /* a folder */
    const advise_args *args;
    esp_checkpoint *checkpoint;
    esp_pattern patterns[ADVISE_MAX_PATTERNS];
    int64_t tokens[ESP_ADVISE_MAX_TOKENS];
    esp_advise_options options;
    calibration_data data;
    esp_calibration_options calibration;
    esp_advice *advice;
    esp_advised_point *points;
    int point_count;
} advise_job;

static inline bool advise_has_wish(const advise_job *job)
{
    return job->args->speedup > 0 || job->args->model_speedup > 0 || job->args->bytes > 0;
}

/* advise_report.c */
ESP_MUST_CHECK esp_status advise_print_text(const advise_job *job, esp_error *error);
ESP_MUST_CHECK esp_status advise_print_json(const advise_job *job, esp_error *error);

#endif
