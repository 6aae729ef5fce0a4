#include "sizes.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Steps of a thousand; below that a whole number with the first unit. */
static const char *scaled(double value, const char *const *units, int count,
                          char text[SIZE_TEXT_MAX])
{
    int unit = 0;
    while (value >= 999.5 && unit + 1 < count) {
        value /= 1000;
        unit++;
    }
    if (unit == 0) {
        snprintf(text, SIZE_TEXT_MAX, "%.0f%s%s", value, units[0][0] != '\0' ? " " : "", units[0]);
    } else {
        int digits = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
        snprintf(text, SIZE_TEXT_MAX, "%.*f %s", digits, value, units[unit]);
    }
    return text;
}

const char *size_bytes(double bytes, char text[SIZE_TEXT_MAX])
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
    return scaled(bytes, units, 6, text);
}

const char *size_count(double count, char text[SIZE_TEXT_MAX])
{
    static const char *const units[] = {"", "K", "M", "G", "T"};
    return scaled(count, units, 5, text);
}

const char *size_number(double value, char text[SIZE_TEXT_MAX])
{
    double size = fabs(value);
    if (size > 0 && size < 0.0995) {
        snprintf(text, SIZE_TEXT_MAX, "%.3g", value);
    } else {
        int digits = size >= 99.95 ? 0 : size >= 9.995 ? 1 : size >= 0.9995 ? 2 : 3;
        snprintf(text, SIZE_TEXT_MAX, "%.*f", digits, value);
    }
    return text;
}

const char *size_shape(int rank, const int64_t *shape, char text[SHAPE_TEXT_MAX])
{
    size_t used = (size_t)snprintf(text, SHAPE_TEXT_MAX, "%s", rank == 0 ? "scalar" : "");
    for (int i = 0; i < rank && used < SHAPE_TEXT_MAX; i++) {
        used += (size_t)snprintf(text + used, SHAPE_TEXT_MAX - used, "%s%lld", i > 0 ? "x" : "",
                                 (long long)shape[i]);
    }
    return text;
}

/* ---- parsing ---- */

static uint64_t unit_bytes(const char *unit)
{
    static const struct {
        const char *name;
        uint64_t bytes;
    } units[] = {{"B", 1},
                 {"KB", 1000},
                 {"MB", 1000000},
                 {"GB", 1000000000},
                 {"TB", 1000000000000},
                 {"KiB", (uint64_t)1 << 10},
                 {"MiB", (uint64_t)1 << 20},
                 {"GiB", (uint64_t)1 << 30},
                 {"TiB", (uint64_t)1 << 40}};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        if (strcmp(unit, units[i].name) == 0) {
            return units[i].bytes;
        }
    }
    return 0;
}

/* Up to 15 digits, so that the number is exact and never overflows; NULL without any. */
static const char *read_digits(const char *text, uint64_t *number, uint64_t *scale)
{
    const char *at = text;
    for (; isdigit((unsigned char)*at); at++) {
        if (at - text == 15) {
            return NULL;
        }
        *number = 10 * *number + (uint64_t)(*at - '0');
        *scale *= 10;
    }
    return at != text ? at : NULL;
}

bool size_parse(const char *text, uint64_t *bytes)
{
    uint64_t whole = 0, part = 0, scale = 1, ignored = 1;
    const char *at = read_digits(text, &whole, &ignored);
    if (at != NULL && *at == '.') {
        at = read_digits(at + 1, &part, &scale);
    }
    uint64_t unit = at != NULL ? unit_bytes(at) : 0;
    if (unit == 0) {
        return false;
    }
    long double value = ((long double)whole + (long double)part / (long double)scale) * unit;
    if (value < 1 || value > (long double)INT64_MAX) {
        return false;
    }
    *bytes = (uint64_t)value;
    return true;
}
