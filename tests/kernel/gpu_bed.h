/* What the checkers of the kernels between products and attention share: a case at work, its
 * matrices, and running it for each type. */
#ifndef ESP_TESTS_GPU_BED_H
#define ESP_TESTS_GPU_BED_H

#include <stddef.h>

#include "cuda/gpu_ops.h"
#include "device_matrix.h"
#include "product_device.h"
#include "ref/kernels.h"

static const esp_dtype types[] = {ESP_F16, ESP_BF16};

static inline gpu_type gpu_type_of(esp_dtype type)
{
    return type == ESP_F32 ? GPU_F32 : type == ESP_F16 ? GPU_F16 : GPU_BF16;
}

/* A case at work. */
typedef struct bed {
    test_run *run;
    esp_device *device;
    esp_dtype type;
    esp_random random;
} bed;

static inline matrix bed_matrix(bed *b, esp_dtype type, int64_t rows, int64_t columns)
{
    return matrix_make(b->run, b->device, type, rows, columns, laying_draw(&b->random, columns));
}

/* Filled and in the device's memory. */
static inline matrix bed_drawn(bed *b, esp_dtype type, int64_t rows, int64_t columns, float scale)
{
    matrix m = bed_matrix(b, type, rows, columns);
    matrix_draw(&m, &b->random, scale);
    matrix_upload(b->run, b->device, &m);
    return m;
}

/* Tight, as vectors and tables are. */
static inline matrix bed_table(bed *b, esp_dtype type, int64_t rows, int64_t columns, float scale)
{
    matrix m = matrix_make(b->run, b->device, type, rows, columns, (laying){0, 0});
    matrix_draw(&m, &b->random, scale);
    matrix_upload(b->run, b->device, &m);
    return m;
}

static inline int64_t between(bed *b, int64_t low, int64_t high)
{
    return random_range(&b->random, low, high);
}

/* How often a random case draws one problem of each of `kinds`, so that with both types there are
 * TEST_ROUNDS problems. */
static inline int rounds_of(int kinds, int otherwise)
{
    const char *wanted = getenv("TEST_ROUNDS");
    int a_round = kinds * ESP_COUNT(types);
    return wanted != NULL ? (atoi(wanted) + a_round - 1) / a_round : otherwise;
}

/* body for each type, on a GPU. */
static inline void on_gpu(test_run *run, void (*body)(bed *))
{
    esp_context *context = test_context(run, 1);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(types); i++) {
        bed b = {.run = run, .device = device, .type = types[i]};
        int before = 0;
        esp_random_seed(&b.random, test_seed(run) + (uint64_t)i);
        CHECK_INT(gpu_enter(atoi(device->name + strlen("cuda:")), &before), 0);
        body(&b);
        gpu_leave(before);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* Defines a case by what it does for each type. */
#define ON_GPU(name, body)                                                                         \
    static void name(test_run *run)                                                                \
    {                                                                                              \
        on_gpu(run, body);                                                                         \
    }

#endif
