/* The cases of a program about GPUs where their back end was not built: one, which says so. */
#ifndef ESP_TESTS_WITHOUT_CUDA_H
#define ESP_TESTS_WITHOUT_CUDA_H

#include "test.h"

static void built_without_cuda(test_run *run)
{
    test_skip(run, "built without CUDA");
}

static const test_case cases[] = {{"built_without_cuda", built_without_cuda}};

#endif
