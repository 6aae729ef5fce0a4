/* Private to the measurement of products: a group of problems that differ in pattern only, measured
 * together. bench_problem.c has the group, bench_weights.c its weights, bench_operands.c the other
 * operands, bench_check.c the comparison with the reference before anything is timed. */
#ifndef CLI_BENCH_JOB_H
#define CLI_BENCH_JOB_H

#include "bench.h"
#include "read_probe.h"
#include "recorded.h"
#include "timing.h"

#define BENCH_MAX_CONTESTANTS 512

/* ---- weights ---- */

/* One random weight in one pattern, on the device several times. */
typedef struct weight_set {
    esp_pattern pattern;
    esp_dtype dtype;
    unsigned form; /* that is on the device */
    esp_sparse *sparse;
    esp_packed **copies; /* distinct memory */
    int count, capacity;
    int used, next;      /* of the running group */
    esp_packed *ref;     /* for the reference; NULL until asked for */
    size_t bytes;        /* resident, of one copy */
    size_t stream_bytes; /* what a product must read at least: compressed or resident */
    struct weight_set *after;
} weight_set;

/* The weights of one shape and type, kept from group to group; problems that differ in tokens,
 * types of activations or compute alone share them. */
typedef struct weight_store {
    cli_state *cli;
    esp_device *ref;
    esp_dtype dtype; /* of the problems; a set may be widened */
    int64_t out_features, in_features;
    esp_tensor dense; /* the values; data NULL: none yet */
    weight_set *sets;
} weight_store;

/* The set for the pattern in one form, with at least `copies`; values as in the problem's type, or
 * widened to f32. Sets of another shape or type are given back. */
ESP_MUST_CHECK esp_status bench_weight(weight_store *store, const esp_matmul_problem *problem,
                                       bool widened, unsigned form, size_t rotate_bytes,
                                       weight_set **set, esp_error *error);
/* Forms in which the weights of contestants may be, each in one of them. */
#define BENCH_FORMS ((unsigned)(ESP_FORM_SPARSE | ESP_FORM_SPREAD))
ESP_MUST_CHECK esp_status bench_weight_ref(weight_store *store, weight_set *set, esp_error *error);
void bench_weights_free(weight_store *store);

/* ---- a group ---- */

typedef struct bench_gpu bench_gpu;

/* A kernel of the catalogue, or one of the GPU's rivals that are in none. */
typedef struct contestant {
    struct problem_group *group;
    esp_matmul_problem problem;
    char name[96];
    esp_plan *plan; /* NULL: a rival */
    weight_set *weight;
    void *workspace; /* of the device */
    int next;        /* of the copies of X and Y */
    recorded runs;   /* on a GPU */
    void *rival;     /* what is timed there by `time_rival` */
    esp_status (*time_rival)(void *rival, double *us, esp_error *error);
    double clock_sum; /* MHz, of clock_readings */
    int clock_readings;
    double clock_seconds; /* when it was read last */
    double error;         /* largest difference to ref over the largest value of ref */
    double least_us;
    double *round_us;
} contestant;

#define BENCH_MOST_COPIES 3

/* What a product works on, besides weights: on the host with the reference's result, and on the
 * device; there X and Y are rotated on a GPU, so that none finds its own data warm. */
typedef struct bench_data {
    void *x, *y, *ref_y, *residual;
    float *scale, *bias;
    size_t x_bytes, y_bytes;
    void *device_x[BENCH_MOST_COPIES], *device_y[BENCH_MOST_COPIES], *device_residual;
    float *device_scale, *device_bias;
    int copies;
} bench_data;

/* A line of results: one kernel on one of the group's problems, against its rivals. Numbers are
 * places among the contestants. */
typedef struct bench_row {
    int problem, runner;
    bool chosen; /* by the plan, or the only one */
    int rivals[BENCH_MAX_KERNELS], rival_count;
    int widened[BENCH_MAX_KERNELS], wide_count;
} bench_row;

typedef struct problem_group {
    cli_state *cli;
    const bench_args *args;
    weight_store *store;
    bench_gpu *gpu;    /* NULL on a processor */
    read_probe *probe; /* NULL: not bound by memory, or nothing rotates, or a GPU */
    esp_matmul_problem problems[BENCH_MAX_GROUP];
    int problem_count;
    esp_matmul_problem dense; /* what all have in common */
    size_t rotate_bytes;
    bench_data data;
    contestant *contestants;
    int contestant_count;
    bench_row *rows;
    int row_count;
    double *probe_us;   /* NULL: no probe */
    double probe_bytes; /* that it moves */
    bool pinned;
} problem_group;

void *bench_aligned_memory(size_t bytes); /* NULL: none left */
int64_t bench_rows_of_y(const esp_matmul_problem *problem);
/* [rows][columns] of uniform numbers in [-scale, scale). */
ESP_MUST_CHECK esp_status bench_random_matrix(int64_t rows, int64_t columns, esp_dtype dtype,
                                              float scale, uint64_t seed, void **data,
                                              size_t *bytes, esp_error *error);
/* X, Y, residual, scale, bias. */
ESP_MUST_CHECK esp_status bench_make_operands(problem_group *group, esp_error *error);
void bench_free_operands(problem_group *group);
/* Rows, contestants and their weights, bench_rivals.c */
ESP_MUST_CHECK esp_status bench_add_rows(problem_group *group, esp_error *error);
/* A timed_runner's run, of a contestant. */
ESP_MUST_CHECK esp_status bench_run_once(void *runner, esp_error *error);
ESP_MUST_CHECK esp_status bench_run_in(contestant *runner, void *stream, esp_error *error);
ESP_MUST_CHECK esp_status bench_check_all(problem_group *group, esp_error *error);

/* ---- on a GPU, bench_gpu.c ---- */

/* What a group meets on a GPU and what lives from group to group: libraries, processes, the probe
 * of the memory. gpu_group.c is it, in builds with CUDA. */
struct bench_gpu {
    void (*close)(bench_gpu *gpu);
    /* The rivals that no catalogue lists, as contestants; before any row asks for them. */
    esp_status (*meet)(bench_gpu *gpu, problem_group *group, esp_error *error);
    /* Gives the group's rivals back. */
    void (*part)(bench_gpu *gpu);
    int first, count; /* of those contestants */
    /* Why rival number i of them was lost; NULL: it was not. */
    const char *(*lost)(const bench_gpu *gpu, int i);
    /* Who is not there at all: name and reason of number i; false: no more. */
    bool (*missing)(const bench_gpu *gpu, int i, const char **name, const char **reason);
    /* A copy of probe_bytes (read and written) from device to device. */
    esp_status (*probe)(bench_gpu *gpu, double *us, esp_error *error);
    double probe_bytes;
    int (*clock_mhz)(const bench_gpu *gpu); /* of the multiprocessors, now; 0: unknown */
};

ESP_MUST_CHECK esp_status bench_gpu_open(esp_device *device, bench_gpu **gpu, esp_error *error);
/* The rivals that `globs` name (NULL: all), as rivals of a row. */
void bench_gpu_add_rivals(const problem_group *group, bench_row *row, const char *globs);
/* Runs of a recording: every copy of weight, X and Y as often as the others. */
int bench_gpu_runs(const problem_group *group, int weight_copies);
/* A timed_runner's time, of a contestant; it is recorded at the first call. */
ESP_MUST_CHECK esp_status bench_gpu_time(void *runner, double *us, esp_error *error);
/* The same, of the probe; user: the group. */
ESP_MUST_CHECK esp_status bench_gpu_probe(void *group, double *us, esp_error *error);
/* Who did not run and why, what a call costs the host, the clock. */
ESP_MUST_CHECK esp_status bench_gpu_fill(const problem_group *group, contestant *mine,
                                         problem_result *result, esp_error *error);
bool bench_is_named(const char *globs, const char *name);
void bench_note(int *list, int *count, int place);

#endif
