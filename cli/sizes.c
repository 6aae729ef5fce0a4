#include "sizes.h"

#include <math.h>
#include <stdio.h>

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
