/* Private to the measurement of one product: the job, its operands (bench_operands.c), its rounds
 * (bench_problem.c). */
#ifndef CLI_BENCH_JOB_H
#define CLI_BENCH_JOB_H

#include "bench.h"

/* A weight on the device, several times. */
typedef struct weight_copies {
    esp_packed **copies;
    int count, next;
    size_t bytes; /* of one */
} weight_copies;

typedef struct contestant {
    esp_plan *plan;
    weight_copies *weight;
    void *workspace;
    int repeats; /* runs per round */
    double *round_us;
    kernel_times *times;
} contestant;

typedef struct problem_job {
    cli_state *cli;
    const bench_args *args;
    esp_matmul_problem problem, dense_problem;
    esp_matmul_problem wide_problem; /* dense_problem with the weights widened to f32 */
    weight_copies sparse_weight, dense_weight, wide_weight;
    esp_device *ref;
    esp_packed *ref_weight;
    void *x, *y, *ref_y, *residual;
    float *scale, *bias;
    size_t x_bytes, y_bytes;
    contestant contestants[2 * BENCH_MAX_KERNELS + 1];
    int contestant_count;
    problem_result *result;
} problem_job;

void *bench_aligned_memory(size_t bytes); /* NULL: none left */
int64_t bench_rows_of_y(const esp_matmul_problem *problem);
/* X, Y, residual, scale, bias. */
ESP_MUST_CHECK esp_status bench_make_operands(problem_job *job, esp_error *error);
/* The weights of all problems of the job that have contestants. */
ESP_MUST_CHECK esp_status bench_make_weights(problem_job *job, esp_error *error);
void bench_free_operands(problem_job *job);

#endif
