/* Kernels of calibration, between the library's products; as gpu.h. Matrices are f64 and row-major.
 */
#ifndef ESP_CUDA_GPU_CALIBRATE_H
#define ESP_CUDA_GPU_CALIBRATE_H

#include "cuda/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Memory of the stream's order, from a pool that keeps what is given back. */
int gpu_pool_take(size_t bytes, void **memory, void *stream);
void gpu_pool_give(void *memory, void *stream);
void gpu_pool_trim(void); /* gives what is free back; the pool keeps nothing until the next take */
int gpu_clear(void *memory, size_t bytes, void *stream);
/* Within the device, after all work that was given to it; waits. */
int gpu_copy(void *to, const void *from, size_t bytes);
/* The same in the stream's order. */
int gpu_move(void *to, const void *from, size_t bytes, void *stream);

/* to[rows][columns] = x - less (NULL: nothing), x's rows `stride` elements apart. */
int gpu_widen_rows(const void *x, const void *less, gpu_type type, int64_t rows, int64_t columns,
                   int64_t stride, double *to, void *stream);
/* The lower triangle to the upper one, or the other way down. */
int gpu_mirror(double *matrix, int64_t n, bool down, void *stream);
/* difference = a - b */
int gpu_subtract(const double *a, const double *b, int64_t count, double *difference, void *stream);

/* ---- refit ---- */

/* Slabs of rows that share a list of columns, each at work on [rows][width] of its own. */
typedef struct gpu_refit {
    int64_t in, rows, width; /* rows: of all slabs */
    int slab_rows;
    const int32_t *columns; /* [slabs][width], -1: padding */
    const uint64_t *mask;   /* [rows][mask_words], of all columns */
    int64_t mask_words;
    const double *gram;                                   /* [in][in] */
    const double *goal, *weights;                         /* [rows][in] */
    double *x, *residual, *direction, *product, *inverse; /* inverse: [slabs][width], 1 / H_jj */
    double *energy, *goal_energy;                         /* [rows] */
    int *iterations;                                      /* [rows]; -1: at work */
    int *active;                                          /* rows at work after the latest step */
    double tolerance;
} gpu_refit;

/* to[slabs][width][width]: H within each slab's columns. */
int gpu_refit_gather(const gpu_refit *refit, double *to, void *stream);
/* x: weights cut to the mask; inverse. */
int gpu_refit_start(const gpu_refit *refit, void *stream);
/* After product = x H. */
int gpu_refit_begin(const gpu_refit *refit, void *stream);
/* After product = direction H: step `iteration`, from 1 on. */
int gpu_refit_step(const gpu_refit *refit, int iteration, void *stream);
/* weights = x in the columns' places, 0 elsewhere. */
int gpu_refit_finish(const gpu_refit *refit, double *weights, void *stream);

/* ---- SparseGPT ---- */

#define GPU_SWEEP_GROUP 1024 /* the widest group of which a row chooses by itself */

typedef struct gpu_sweep {
    int64_t rows, in;
    const double *factor; /* U, [in][in] */
    double *weights;      /* [rows][in] */
    double *errors;       /* [rows][block] */
    uint64_t *mask;       /* [rows][mask_words], from word mask_first of a row on */
    int64_t mask_words, mask_first;
    int64_t begin, end;  /* of the block */
    int64_t first, stop; /* columns to decide now */
    int64_t group, keep; /* keep > 0: as many of each group, from `first` on, live */
} gpu_sweep;

int gpu_sweep_columns(const gpu_sweep *sweep, void *stream);
/* scores[rows][width]: (w / U_jj)^2 in f32, of columns first.. */
int gpu_sweep_scores(const gpu_sweep *sweep, int64_t width, float *scores, void *stream);

/* ---- columns of panels ---- */

#define GPU_PENDING 128 /* pivots that are owed to the matrix */

/* Panels in step: each drops a column a turn, as long as it may. */
typedef struct gpu_columns {
    int64_t in, v, rows, panels; /* rows: of all panels, the last may be short */
    int64_t group, kept;         /* free: kept columns of all; else four of each group stay */
    bool free;
    double *matrix;           /* [panels][in][in], as of the last flush */
    double *diagonal;         /* [panels][in], of now; 0 once dropped */
    double *weights;          /* [panels][v][in], of now */
    double *costs;            /* [panels][in]: sums of squares of columns */
    double *pending, *scaled; /* [panels][GPU_PENDING][in] */
    int32_t *left;            /* [panels][in]: columns of each group that are left */
    int32_t *chosen;          /* [panels]: the column to drop; -1: none any more */
    double *pivots, *times;   /* of it: [panels], [panels][v] */
    int32_t *alive;           /* [panels][in] */
} gpu_columns;

int gpu_columns_begin(const gpu_columns *columns, void *stream);
/* Drops a column of each panel; `turn` of them are pending before. */
int gpu_columns_drop(const gpu_columns *columns, int turn, void *stream);

/* to[panels][n][n], values[panels][v][n]: matrix and weights at the listed columns, [panels][n]. */
int gpu_columns_gather(const gpu_columns *columns, const int32_t *listed, int64_t n, double *to,
                       double *values, void *stream);

/* ---- two of each four of a row ---- */

#define GPU_ROW_PLACES 1024
#define GPU_SHORT_PLACES 512

typedef struct gpu_rows {
    int64_t rows, width;  /* width: places, up to GPU_ROW_PLACES */
    int64_t panel_rows;   /* rows that share a corner */
    const double *corner; /* [panels][width][width]: H^-1 there */
    double *values;       /* rows values_stride apart: all live; then the best ones, dropped 0 */
    int64_t values_stride;
    double *lost;  /* [rows][width]: the tableau's values of dropped places, live 0 */
    uint8_t *live; /* [rows][width] */
    double *room;  /* [blocks][width][width] */
    int blocks;    /* of threads */
} gpu_rows;

int gpu_rows_search(const gpu_rows *rows, void *stream);
/* Rows that one multiprocessor has at work. */
int gpu_rows_at_once(int64_t width);
/* Zeros below the diagonals of `count` matrices [n][n]. */
int gpu_zero_lower(double *matrix, int64_t n, int64_t count, void *stream);

#ifdef __cplusplus
}
#endif
#endif
