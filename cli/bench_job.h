/* Private to the measurement of products: a group of problems that differ in pattern only, measured
 * together. bench_problem.c has the group, bench_weights.c its weights, bench_operands.c the other
 * operands, bench_check.c the comparison with the reference before anything is timed. */
#ifndef CLI_BENCH_JOB_H
#define CLI_BENCH_JOB_H

#include "bench.h"
#include "read_probe.h"
#include "timing.h"

#define BENCH_MAX_CONTESTANTS 512

/* ---- weights ---- */

/* One random weight in one pattern, on the device several times. */
typedef struct weight_set {
    esp_pattern pattern;
    esp_dtype dtype;
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

/* The set for the pattern, with at least `copies`; values as in the problem's type, or widened to
 * f32. Sets of another shape or type are given back. */
ESP_MUST_CHECK esp_status bench_weight(weight_store *store, const esp_matmul_problem *problem,
                                       bool widened, size_t rotate_bytes, weight_set **set,
                                       esp_error *error);
ESP_MUST_CHECK esp_status bench_weight_ref(weight_store *store, weight_set *set, esp_error *error);
void bench_weights_free(weight_store *store);

/* ---- a group ---- */

typedef struct contestant {
    struct problem_group *group;
    esp_matmul_problem problem;
    esp_plan *plan;
    char name[96];
    weight_set *weight;
    void *workspace;
    double error; /* largest difference to ref over the largest value of ref */
    double least_us;
    double *round_us;
} contestant;

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
    read_probe *probe; /* NULL: not bound by memory, or nothing rotates */
    esp_matmul_problem problems[BENCH_MAX_GROUP];
    int problem_count;
    esp_matmul_problem dense; /* what all have in common */
    size_t rotate_bytes;
    void *x, *y, *ref_y, *residual;
    float *scale, *bias;
    size_t x_bytes, y_bytes;
    contestant *contestants;
    int contestant_count;
    bench_row *rows;
    int row_count;
    double *probe_us;
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
ESP_MUST_CHECK esp_status bench_check_all(problem_group *group, esp_error *error);

#endif
