/* Matrices in a device's memory: between guards, gaps of their rows and guards poisoned with all
 * ones (NaN in every type), so that what must not be read shows, and what must not be written is
 * seen. */
#ifndef ESP_TESTS_DEVICE_MATRIX_H
#define ESP_TESTS_DEVICE_MATRIX_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/halffloat.h"
#include "base/random.h"
#include "op/op.h"
#include "test.h"

#define MATRIX_GUARD 256 /* bytes; keeps the alignment of what follows */

typedef struct matrix {
    esp_dtype type;
    int64_t rows, columns, stride;
    size_t width, begin, bytes; /* of an element; of the block: where element 0 is, and in all */
    char *host, *device;
} matrix;

/* How rows lie: elements between them beyond the columns, and by which the first is off. */
typedef struct laying {
    int64_t gap, offset;
} laying;

/* Tight, aligned with a gap, or neither. */
static inline laying laying_draw(esp_random *random, int64_t columns)
{
    int64_t up = (8 - columns % 8) % 8;
    switch (esp_random_below(random, 4)) {
    case 0:
        return (laying){0, 0};
    case 1:
        return (laying){(int64_t)esp_random_below(random, 6), (int64_t)esp_random_below(random, 4)};
    default:
        return (laying){up + 8 * (int64_t)esp_random_below(random, 2), 0};
    }
}

static inline matrix matrix_make(test_run *run, esp_device *device, esp_dtype type, int64_t rows,
                                 int64_t columns, laying how)
{
    size_t width = esp_dtype_bytes(type);
    matrix made = {.type = type,
                   .rows = rows,
                   .columns = columns,
                   .stride = columns + how.gap,
                   .width = width,
                   .begin = MATRIX_GUARD + (size_t)how.offset * width};
    made.bytes = made.begin + (size_t)(rows * made.stride) * width + MATRIX_GUARD;
    made.host = malloc(made.bytes);
    made.device = esp_device_alloc(device, made.bytes);
    CHECK(made.host != NULL && made.device != NULL);
    memset(made.host, 0xff, made.bytes);
    return made;
}

static inline void matrix_free(esp_device *device, matrix *m)
{
    esp_device_release(device, m->device);
    free(m->host);
}

static inline void *matrix_there(const matrix *m)
{
    return m->device + m->begin;
}

static inline char *matrix_at(const matrix *m, int64_t row, int64_t column)
{
    return m->host + m->begin + (size_t)(row * m->stride + column) * m->width;
}

static inline float matrix_get(const matrix *m, int64_t row, int64_t column)
{
    const char *at = matrix_at(m, row, column);
    uint16_t half;
    float value;
    if (m->type == ESP_F32) {
        memcpy(&value, at, sizeof value);
        return value;
    }
    memcpy(&half, at, sizeof half);
    return m->type == ESP_F16 ? esp_float_of_f16(half) : esp_float_of_bf16(half);
}

/* value, as the type has it. */
static inline float type_round(esp_dtype type, float value)
{
    return type == ESP_F32   ? value
           : type == ESP_F16 ? esp_float_of_f16(esp_f16_of_float(value))
                             : esp_float_of_bf16(esp_bf16_of_float(value));
}

static inline void matrix_put(const matrix *m, int64_t row, int64_t column, float value)
{
    char *at = matrix_at(m, row, column);
    uint16_t half = m->type == ESP_F16 ? esp_f16_of_float(value) : esp_bf16_of_float(value);
    if (m->type == ESP_F32) {
        memcpy(at, &value, sizeof value);
    } else {
        memcpy(at, &half, sizeof half);
    }
}

static inline void matrix_upload(test_run *run, esp_device *device, const matrix *m)
{
    CHECK_OK(esp_device_upload(device, m->device, m->host, m->bytes, error));
}

/* Values from -scale to scale, in places much larger. */
static inline void matrix_draw(const matrix *m, esp_random *random, float scale)
{
    for (int64_t r = 0; r < m->rows; r++) {
        for (int64_t c = 0; c < m->columns; c++) {
            double v = (2 * esp_random_uniform(random) - 1) * (double)scale;
            matrix_put(m, r, c, (float)(esp_random_below(random, 64) == 0 ? 8 * v : v));
        }
    }
}

/* Tight f32, as the reference reads and writes; freed by the caller. */
static inline float *matrix_values(const matrix *m)
{
    float *values = malloc((size_t)(m->rows * m->columns + 1) * sizeof *values);
    for (int64_t i = 0; i < m->rows * m->columns; i++) {
        values[i] = matrix_get(m, i / m->columns, i % m->columns);
    }
    return values;
}

/* ---- running ---- */

static inline bool in_a_row(const matrix *m, size_t byte)
{
    if (byte < m->begin) {
        return false;
    }
    int64_t element = (int64_t)((byte - m->begin) / m->width);
    return element / m->stride < m->rows && element % m->stride < m->columns;
}

/* Lays what is in m->host down, calls go, and fetches m->host from the device; twice: the same bits
 * must come out, and gaps must be as they were. */
static inline void matrix_run(test_run *run, esp_device *device, matrix *m,
                              int (*go)(const void *user), const void *user)
{
    char *after[2] = {malloc(m->bytes), malloc(m->bytes)};
    for (int i = 0; i < 2; i++) {
        matrix_upload(run, device, m);
        CHECK_INT(go(user), 0);
        CHECK_OK(esp_device_wait(device, error));
        CHECK_OK(esp_device_download(device, after[i], m->device, m->bytes, error));
    }
    CHECK(memcmp(after[0], after[1], m->bytes) == 0); /* the same in every run */
    for (size_t i = 0; i < m->bytes; i++) {
        if (after[0][i] != m->host[i] && !in_a_row(m, i)) {
            test_fail(run, __FILE__, __LINE__, "byte %lld of a gap or guard was written",
                      (long long)i - (long long)m->begin);
            break;
        }
    }
    memcpy(m->host, after[0], m->bytes);
    free(after[0]);
    free(after[1]);
}

/* ---- comparing ---- */

/* The most that rounding to the type moves a value: half of its last place. */
static inline double type_rounding(esp_dtype type, double value)
{
    double size = fabs(value);
    return type == ESP_F32   ? size * 0x1p-24
           : type == ESP_F16 ? fmax(size * 0x1p-11, 0x1p-25)
                             : size * 0x1p-8;
}

/* m against expected, where arithmetic may be off by slack[i] (NULL: by nothing: then expected is
 * rounded and must come out bit for bit, zeros but for their sign). */
static inline void matrix_compare(test_run *run, const matrix *m, const float *expected,
                                  const double *slack)
{
    for (int64_t i = 0; i < m->rows * m->columns; i++) {
        float actual = matrix_get(m, i / m->columns, i % m->columns), wanted = expected[i];
        bool equal = isnan(actual) ? isnan(wanted) : actual == type_round(m->type, wanted);
        if (!equal && slack != NULL && isfinite(wanted)) {
            double away = fabs((double)actual - (double)wanted),
                   most = fabs((double)wanted) + slack[i];
            equal = away <= slack[i] + type_rounding(m->type, most) * (1 + 0x1p-20);
        }
        if (!equal) {
            test_fail(run, __FILE__, __LINE__, "row %lld column %lld: %.9g, reference %.9g",
                      (long long)(i / m->columns), (long long)(i % m->columns), (double)actual,
                      (double)wanted);
            return;
        }
    }
}

/* Host memory in the device's; NULL data: poison. */
static inline void *device_copy(test_run *run, esp_device *device, const void *data, size_t bytes)
{
    char *memory = esp_device_alloc(device, bytes > 0 ? bytes : 1);
    CHECK(memory != NULL);
    if (data != NULL && bytes > 0) {
        CHECK_OK(esp_device_upload(device, memory, data, bytes, error));
    }
    return memory;
}

#endif
