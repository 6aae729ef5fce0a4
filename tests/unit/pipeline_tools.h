/* Shared by the tests of pruning and converting whole folders. */
#ifndef TESTS_UNIT_PIPELINE_TOOLS_H
#define TESTS_UNIT_PIPELINE_TOOLS_H

#include <stdio.h>

#include "cli/tiny_model.h"
#include "pipeline/pipeline.h"
#include "test.h"

/* The dense model that all cases start from; test_path's buffers are reused, this one is not. */
static inline const char *tiny_dense(test_run *run)
{
    static char path[1024];
    snprintf(path, sizeof path, "%s/dense", test_folder(run));
    if (!esp_path_exists(path) && !tiny_model_write(path, "plain")) {
        test_fail(run, __FILE__, __LINE__, "%s could not be made", path);
    }
    return path;
}

static inline esp_prune_options with_pattern(test_run *run, const char *text)
{
    esp_prune_options options = {0};
    CHECK_OK(esp_pattern_parse(text, &options.pattern, error));
    return options;
}

#endif
