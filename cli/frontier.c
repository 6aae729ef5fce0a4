#include "frontier.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "whole_file.h"

#define LEFT 70.0
#define TOP 55.0
#define WIDE 560.0
#define HIGH 300.0
#define MARKS 6
#define MOST_OF_DEVICE 110 /* bytes of its name: the figure is no wider */

static void put(whole_file *file, const char *format, ...) ESP_PRINTF(2, 3);
static void put(whole_file *file, const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    whole_file_write(file, text, strlen(text));
}

/* `length` bytes in which none means anything to XML. */
static void put_text(whole_file *file, const char *text, size_t length)
{
    for (const char *end = text + length; text < end; text++) {
        unsigned char byte = (unsigned char)*text;
        const char *name = byte == '<' ? "&lt;" : byte == '&' ? "&amp;" : byte < ' ' ? "?" : NULL;
        whole_file_write(file, name != NULL ? name : text, name != NULL ? strlen(name) : 1);
    }
}

/* The least of 1, 2, 5 times a power of ten that divides `range` into at most MARKS steps. */
static double step_of(double range)
{
    double step = pow(10, floor(log10(fmax(range, 1e-9) / MARKS)));
    return range / step <= MARKS         ? step
           : range / (2 * step) <= MARKS ? 2 * step
           : range / (5 * step) <= MARKS ? 5 * step
                                         : 10 * step;
}

/* "cuda | NVIDIA H100..., 132 multiprocessors | threads...": what comes before the second bar. */
static size_t short_length(const char *identity)
{
    const char *bar = strchr(identity, '|');
    bar = bar != NULL ? strchr(bar + 1, '|') : NULL;
    size_t length = bar != NULL ? (size_t)(bar - identity) : strlen(identity);
    return length < MOST_OF_DEVICE ? length : MOST_OF_DEVICE;
}

typedef struct axis_ranges {
    double least_x, most_x, most_y;
} axis_ranges;

static double x_of(const axis_ranges *axes, double speedup)
{
    return LEFT + WIDE * (speedup - axes->least_x) / (axes->most_x - axes->least_x);
}

static double y_of(const axis_ranges *axes, double loss)
{
    return TOP + HIGH - HIGH * loss / axes->most_y;
}

static void put_axes(whole_file *file, const axis_ranges *axes, const char *loss)
{
    double dx = step_of(axes->most_x - axes->least_x), dy = step_of(axes->most_y);
    for (double x = ceil(axes->least_x / dx) * dx; x <= axes->most_x + dx / 1e6; x += dx) {
        put(file,
            "<path d=\"M%.1f %.1fV%.1f\" stroke=\"#ddd\"/><text x=\"%.1f\" y=\"%.1f\" "
            "text-anchor=\"middle\">%.3g</text>\n",
            x_of(axes, x), TOP, TOP + HIGH, x_of(axes, x), TOP + HIGH + 18, x);
    }
    for (double y = 0; y <= axes->most_y + dy / 1e6; y += dy) {
        put(file,
            "<path d=\"M%.1f %.1fH%.1f\" stroke=\"#ddd\"/><text x=\"%.1f\" y=\"%.1f\" "
            "text-anchor=\"end\">%.3g</text>\n",
            LEFT, y_of(axes, y), LEFT + WIDE, LEFT - 8, y_of(axes, y) + 4, y);
    }
    put(file,
        "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">linear layers, times as fast as "
        "dense</text>\n<text transform=\"translate(18 %.1f) rotate(-90)\" "
        "text-anchor=\"middle\">%s</text>\n",
        LEFT + WIDE / 2, TOP + HIGH + 40, TOP + HIGH / 2, loss);
}

static void put_figure(whole_file *file, const frontier_view *view)
{
    axis_ranges axes = {INFINITY, -INFINITY, 1e-3};
    for (int i = 0; i < view->count; i++) {
        axes.least_x = fmin(axes.least_x, view->points[i].speedup);
        axes.most_x = fmax(axes.most_x, view->points[i].speedup);
        axes.most_y = fmax(axes.most_y, view->points[i].error * 1.05);
    }
    axes.most_x = fmax(axes.most_x, axes.least_x + 0.1);
    put(file, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 660 415\" "
              "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"660\" height=\"415\" "
              "fill=\"white\"/>\n<text x=\"70\" y=\"28\" font-size=\"14\">");
    put_text(file, view->title, strlen(view->title));
    put(file, "</text>\n<text x=\"70\" y=\"42\" font-size=\"10\">");
    put_text(file, view->device, short_length(view->device));
    put(file, "</text>\n");
    put_axes(file, &axes, view->loss);
    put(file, "<polyline fill=\"none\" stroke=\"#1b6ca8\" stroke-width=\"2\" points=\"");
    for (int i = 0; i < view->count; i++) {
        put(file, "%.1f,%.1f ", x_of(&axes, view->points[i].speedup),
            y_of(&axes, view->points[i].error));
    }
    put(file, "\"/>\n");
    if (view->has_chosen) {
        put(file, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"5\" fill=\"#c0392b\"/>\n",
            x_of(&axes, view->chosen.speedup), y_of(&axes, view->chosen.error));
    }
    put(file, "</svg>\n");
}

esp_status frontier_write(const char *path, const frontier_view *view, esp_error *error)
{
    whole_file file;
    TRY(whole_file_begin(&file, path, error));
    put_figure(&file, view);
    return whole_file_end(&file, false, error);
}
