/* What a GPU's products are measured against and is in no catalogue: cuBLAS as it comes, the best
 * of cuBLASLt's list by time, and cuSPARSELt's best by its own search; for X and Y both
 * feature-major and both token-major. All three are found at run time; only builds with CUDA have
 * these files.
 *
 * gpu_group.c makes them contestants, gpu_peers.c puts them together, gpu_blas.c has the dense
 * libraries, gpu_sparselt.c what a child process does with cuSPARSELt, gpu_child.c how it is asked,
 * gpu_clock.c the chip's clock. */
#ifndef CLI_GPU_H
#define CLI_GPU_H

#include "cli.h"
#include "recorded.h"

#define GPU_MOST_RIVALS 8
#define GPU_MOST_MISSING 8

/* What the rivals of a group work on. They write Y without an epilogue, which is less to do. */
typedef struct gpu_shape {
    esp_device *device;
    esp_matmul_problem dense;
    const void *w, *x;     /* host memory: [out][in] of weight_type, in * tokens of act_type */
    void *const *device_x; /* `copies` of X and Y, used in turn */
    void *const *device_y;
    int copies;
    size_t rotate_bytes; /* of copies of the weight together; 0: one */
    int runs;            /* of a recording at least */
} gpu_shape;

typedef struct gpu_rival {
    char name[64];
    bool dense; /* else 2:4 */
    void *self;
    /* Of one product; NaN: it is lost, and the next line says why. */
    esp_status (*time)(void *self, double *us, esp_error *error);
    const char *(*lost)(const void *self); /* NULL: it runs */
    void (*free)(void *self);
} gpu_rival;

typedef struct gpu_missing {
    char name[64], reason[192];
} gpu_missing;

typedef struct gpu_rivals {
    gpu_rival list[GPU_MOST_RIVALS];
    int count;
    gpu_missing missing[GPU_MOST_MISSING]; /* who is not there, and why */
    int missing_count;
} gpu_rivals;

void gpu_note_missing(gpu_rivals *rivals, const char *name, const char *format, ...)
    ESP_PRINTF(3, 4);
void gpu_rivals_free(gpu_rivals *rivals);

/* ---- all of them ---- */

/* What bench_job.h calls a bench_gpu. */
struct bench_gpu;
ESP_MUST_CHECK esp_status gpu_group_open(esp_device *device, struct bench_gpu **gpu,
                                         esp_error *error);

typedef struct gpu_peers gpu_peers;

ESP_MUST_CHECK esp_status gpu_peers_open(esp_device *device, gpu_peers **peers, esp_error *error);
void gpu_peers_close(gpu_peers *peers);
/* Every rival that can run, checked against sums in double precision at samples of Y. */
ESP_MUST_CHECK esp_status gpu_peers_rivals(gpu_peers *peers, const gpu_shape *shape,
                                           gpu_rivals *rivals, esp_error *error);
/* Of a copy of a GiB from device to device: what memory gives in the same rounds. */
ESP_MUST_CHECK esp_status gpu_peers_copy_us(gpu_peers *peers, double *us, esp_error *error);
#define GPU_COPY_BYTES ((size_t)2 << 30) /* read and written */

/* ---- the parts ---- */

int gpu_index(const esp_device *device); /* of "cuda:N" */

typedef struct gpu_blas gpu_blas;
ESP_MUST_CHECK esp_status gpu_blas_open(esp_device *device, gpu_blas **blas, esp_error *error);
void gpu_blas_close(gpu_blas *blas);
ESP_MUST_CHECK esp_status gpu_blas_rivals(gpu_blas *blas, const gpu_shape *shape,
                                          gpu_rivals *rivals, esp_error *error);

/* A process for cuSPARSELt; it starts when it is first asked. */
typedef struct gpu_child gpu_child;
gpu_child *gpu_child_new(const char *device); /* NULL: no memory */
void gpu_child_free(gpu_child *child);
ESP_MUST_CHECK esp_status gpu_child_rival(gpu_child *child, const gpu_shape *shape, bool by_token,
                                          gpu_rivals *rivals, esp_error *error);
/* What the child runs: requests from stdin, answers to stdout. */
#define GPU_CHILD_OPTION "--measure-cusparselt"
int gpu_child_main(const char *device);

/* Of the multiprocessors, as the driver reads it now; 0: unknown. */
int gpu_clock_mhz(const esp_device *device);

/* ---- checking a rival ---- */

/* The largest difference of samples of Y (host memory, of `type`) to sums in double precision over
 * the largest of those; w and x as in gpu_shape, x and y by token or by feature. */
double gpu_sample_error(const esp_matmul_problem *problem, bool by_token, const void *w,
                        const void *x, const void *y, esp_dtype type);
/* What 16-bit results and sums in another order may differ by, of the largest. */
#define GPU_SAMPLE_LIMIT 2e-2

#endif
