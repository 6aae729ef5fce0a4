/* Panels at work on a GPU, between the files that choose their columns and two of each four. */
#ifndef ESP_CUDA_ALGEBRA_PANELS_H
#define ESP_CUDA_ALGEBRA_PANELS_H

#include "cuda/algebra.h"

/* Panels at work together: `rows` of their `panels` * v are there. */
typedef struct panel_part {
    const cuda_algebra *algebra;
    const esp_device_panels *of;
    double *shared; /* H^-1 */
    int64_t first, panels, rows;
    int64_t v, n; /* rows of a panel, places */
    gpu_columns columns;
    double *slots; /* [panels + 1][step] */
    int64_t step;
    double *other;   /* room for weights: [panels][v][stride] */
    int32_t *places; /* host: [panels][n], numbers of columns as they are gathered in the end */
    int32_t *listed; /* host: [panels][n], the places' columns */
    int32_t *device_listed;
    double *matrix; /* [panels][n][n], `step` apart */
    double *values; /* [panels][v][n] */
    double *corner, *lost, *owed, *room;
    uint8_t *live; /* of a block */
    double *errors;
    uint64_t *mask, *bits; /* of all rows, or as places of a panel; bits: on the host */
    double *back;          /* [rows][in] */
} panel_part;

/* algebra_columns.c: places that a panel keeps; of V:2:M four of each group. */
int64_t panel_places(const esp_device_panels *of);
/* Of a matrix [n][n], so that all begin at whole sectors. */
int64_t panel_slot(int64_t n);
/* Device memory of one panel while its columns go; a slot more is wanted. */
size_t panel_bytes(const esp_device_panels *of);
/* Drops columns until matrix and values are those of the places that are listed. */
ESP_MUST_CHECK esp_status panel_choose_columns(panel_part *p, esp_error *error);
/* What is left of its memory after a failure. */
void panel_give_columns(panel_part *p);

#endif
