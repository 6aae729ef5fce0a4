/* kernel_check: every kernel of the catalogue, at every level of the processor, against the
 * reference; then timed. main.c reads options, draw.c draws problems, check.c compares, time.c
 * measures. */
#ifndef ESP_KERNEL_CHECK_H
#define ESP_KERNEL_CHECK_H

#include "kernel/product.h"

typedef struct check_options {
    const char *kernel;  /* glob over names */
    const char *level;   /* glob over names of levels */
    const char *problem; /* NULL: drawn at random */
    const char *inputs;  /* "exact", "random" or NULL for both */
    int threads, cases, rounds;
    int64_t rotate; /* bytes; -1: as `espalier bench` */
    uint64_t seed;
    bool bench, list, json;
} check_options;

extern check_options the_options; /* main.c */

#define MAX_LEVELS 16

/* Levels of this processor that --level names, the best first; returns how many. */
int check_levels(const char *names[MAX_LEVELS]);
bool check_is_selected(const esp_kernel_info *info);
/* Kernels of libraries: nothing is asked of their bits. */
bool check_is_library(const esp_kernel_info *info);

/* A random problem of a pattern that the format stores. Exact: with an epilogue that keeps sums of
 * small integers exact. */
void draw_problem(esp_random *random, const char *format, bool exact,
                  char text[ESP_PROBLEM_TEXT_MAX]);

/* The case of test_main: one sub-case per kernel, level and kind of input. */
void check_catalogue(test_run *run);
/* Notes what is running, for the line that a crash leaves. */
void check_note(const char *text);
void check_catch_crashes(void);

/* Times the selected kernels, each on --problem or on a few of its own: JSON lines. */
esp_status check_bench(esp_error *error);

#endif
