/* How long each kernel of a piece of work took on a GPU, as NVIDIA's CUPTI saw it. The library is
 * opened when it is first asked for: it comes with CUDA's toolkit and with PyTorch. */
#ifndef CLI_GPU_TRACE_H
#define CLI_GPU_TRACE_H

#include "cli.h"

#define TRACE_MOST_ROWS 96
#define TRACE_NAME_MAX 96

typedef enum trace_kind {
    TRACE_SPARSE = 0, /* products of compressed weights */
    TRACE_DENSE,
    TRACE_ATTENTION,
    TRACE_NORM,
    TRACE_OTHER, /* everything else that computes */
    TRACE_COPY,  /* to, from and on the device */
    TRACE_KINDS
} trace_kind;

const char *trace_kind_name(trace_kind kind); /* "sparse_products" */

typedef struct trace_row {
    char name[TRACE_NAME_MAX]; /* of a kernel, without its template's arguments */
    trace_kind kind;
    int64_t runs;
    double us; /* of all runs */
} trace_row;

typedef struct gpu_trace {
    trace_row rows[TRACE_MOST_ROWS]; /* the longest first; the last of a full list has the rest */
    int count;
    double us[TRACE_KINDS];
    double busy_us; /* of all of them */
} gpu_trace;

/* False: there is no tracing, and `why` says so. One trace at a time. */
bool gpu_trace_begin(char *why, size_t capacity);
/* Of what was given to the GPU since; waits for it. */
void gpu_trace_end(gpu_trace *trace);

#endif
