/* Kernels of calibration, between the library's products; as gpu.h. Matrices are f64 and row-major.
 */
#ifndef ESP_CUDA_GPU_CALIBRATE_H
#define ESP_CUDA_GPU_CALIBRATE_H

#include "cuda/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Memory in the stream's order, from a pool of the current device that keeps what is given back
 * until it is trimmed or freed. */
int gpu_pool_create(void **pool);
void gpu_pool_free(void *pool);
int gpu_pool_take(void *pool, size_t bytes, void **memory, void *stream);
void gpu_pool_give(void *memory, void *stream);
void gpu_pool_trim(void *pool);
int gpu_clear(void *memory, size_t bytes, void *stream);
/* Within the device, after all work that was given to it; waits. */
int gpu_copy(void *to, const void *from, size_t bytes);
/* The same in the stream's order. */
int gpu_move(void *to, const void *from, size_t bytes, void *stream);

/* Events of a stream; one that was never recorded has passed. */
int gpu_event_create(void **event);
void gpu_event_free(void *event);
int gpu_event_record(void *event, void *stream);
int gpu_event_wait(void *event);

/* Rows of activations: `columns` of them in runs, `pitch` apart. */
typedef struct gpu_activations {
    const void *x, *less; /* less: NULL for nothing */
    gpu_type type;
    int64_t rows, columns, stride, run, pitch;
} gpu_activations;

/* to[rows][columns] = x - less */
int gpu_widen_rows(const gpu_activations *activations, double *to, void *stream);
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

/* ---- Cholesky factors of many matrices ---- */

#define GPU_LEAF 64 /* columns of a corner */

/* Upper corners [n][n], n up to GPU_LEAF, of `count` matrices become U, A = U^T U; inverse, rows
 * GPU_LEAF apart: U^-T. faults: 1 for a matrix of which that cannot be made, else as they were. */
int gpu_cholesky_leaf(double *matrix, int64_t stride, int64_t step, int64_t n, int64_t count,
                      double *inverse, int64_t inverse_step, int32_t *faults, void *stream);
/* A part of each of `count` matrices to another place. */
int gpu_cholesky_copy(const double *from, int64_t from_stride, int64_t from_step, int64_t rows,
                      int64_t columns, int64_t count, double *to, int64_t to_stride,
                      int64_t to_step, void *stream);

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

#define GPU_PENDING 128       /* turns that are owed to matrix and weights */
#define GPU_COLUMNS_ACROSS 64 /* columns of which there is one offer */

typedef struct gpu_offer {
    double cost;
    int32_t column; /* INT32_MAX: none */
} gpu_offer;

/* Panels in step: each drops a column a turn, as long as it may. Rows of all but the matrices lie
 * `stride`, which is even, apart. What is given up is left out from time to time, and columns are
 * numbered anew. */
typedef struct gpu_columns {
    int64_t width, stride, v, rows, panels; /* rows: of all panels, the last may be short */
    int64_t group, kept;
    bool free;                /* kept columns of all; else four of each group stay */
    int64_t strip;            /* entries are right up to the end of a row's own strip of columns */
    double *matrix;           /* of each panel [width][width], as of the last flush */
    int64_t matrix_step;      /* from panel to panel */
    double *weights;          /* [panels][v], likewise */
    double *diagonal, *costs; /* [panels], of now; costs: sums of squares of columns */
    double *pending, *scaled; /* [panels][GPU_PENDING]: lines since; the same by their pivots */
    double *times;            /* [panels][GPU_PENDING][v]: what rows gave up of these */
    double *pivots; /* [panels][GPU_PENDING]; these two too: what a turn takes of former */
    double *by_line, *by_gain; /* ones for its line, and of times; by_gain of itself: a square */
    gpu_offer *offers;         /* [panels][ceil(width / GPU_COLUMNS_ACROSS)] */
    int32_t *left;             /* [panels]: columns of each group that are left */
    int32_t *chosen;           /* one of each panel: the column to drop; -1: none any more */
    int32_t *alive, *listed;   /* [panels] */
    int32_t *original;         /* [panels]: numbers that columns had at first */
    int32_t *renumbered;       /* the same for listed ones */
} gpu_columns;

/* Everything but what `settle` makes; weights: [rows][width]. */
int gpu_columns_begin(const gpu_columns *columns, const double *weights, void *stream);
/* Diagonals, costs and offers; nothing is owed. */
int gpu_columns_settle(const gpu_columns *columns, void *stream);
/* Drops a column of each panel; `turn` of them are pending before. */
int gpu_columns_drop(const gpu_columns *columns, int turn, void *stream);
int gpu_columns_scale(const gpu_columns *columns, int turns, void *stream);
/* listed: the first n columns of each panel that are alive, of which there are as many. */
int gpu_columns_list(const gpu_columns *columns, int64_t n, void *stream);
/* to[n][n]: a panel's matrix at n listed columns. */
int gpu_columns_matrix(const gpu_columns *columns, int64_t panel, const int32_t *listed, int64_t n,
                       double *to, void *stream);
/* to: [panels][v], weights at n columns each, which are listed listed_stride apart. */
int gpu_columns_values(const gpu_columns *columns, const int32_t *listed, int64_t listed_stride,
                       int64_t n, double *to, int64_t to_stride, void *stream);
/* renumbered, alive: of the first n listed ones. */
int gpu_columns_renumber(const gpu_columns *columns, int64_t n, void *stream);

/* ---- two of each four of a row ---- */

#define GPU_ROW_PLACES 1024
#define GPU_SHORT_PLACES 512

typedef struct gpu_rows {
    int64_t rows, width;  /* width: places, up to GPU_ROW_PLACES */
    int64_t panel_rows;   /* rows that share a corner */
    const double *corner; /* [panels], corner_step apart: H^-1 there, [width][width] */
    int64_t corner_step;
    double *values; /* rows values_stride apart: all live; then the best ones, dropped 0 */
    int64_t values_stride;
    double *lost;  /* [rows][width]: the tableau's values of dropped places, live 0 */
    uint8_t *live; /* [rows][width] */
    double *room;  /* [blocks][width][width] */
    int blocks;    /* of threads */
} gpu_rows;

int gpu_rows_search(const gpu_rows *rows, void *stream);
/* Bits of mask, [rows][mask_words], of places that live: of row r, places 0..width of its panel's
 * listed columns, which lie `listed_stride` apart. */
int gpu_rows_mark(const gpu_rows *rows, const int32_t *listed, int64_t listed_stride,
                  uint64_t *mask, int64_t mask_words, void *stream);
/* to[rows][in], zeros at first: values [rows][n] at their panel's listed columns, [n]. */
int gpu_rows_spread(const double *values, const int32_t *listed, int64_t rows, int64_t panel_rows,
                    int64_t n, double *to, int64_t in, void *stream);
/* Rows that one multiprocessor has at work. */
int gpu_rows_at_once(int64_t width);
/* Zeros below the diagonals of `count` matrices [n][n], `step` apart. */
int gpu_zero_lower(double *matrix, int64_t n, int64_t count, int64_t step, void *stream);

#ifdef __cplusplus
}
#endif
#endif
