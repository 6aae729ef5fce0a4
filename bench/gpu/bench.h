/* Timing products on a GPU next to the dense products of cuBLAS and cuBLASLt. A user of the
 * library: public headers only. */
#ifndef ESP_BENCH_GPU_H
#define ESP_BENCH_GPU_H

#include <cuda_runtime_api.h>
#include <espalier/espalier.h>
#include <stdint.h>

#define MOST_ROUNDS 64
#define MOST_RIVALS 8
#define X_COPIES 3 /* X and Y are rotated, so that a launch does not find its own data warm */

#define NEED(call)                                                                                 \
    do {                                                                                           \
        if ((call) != 0) {                                                                         \
            stop(#call, __LINE__);                                                                 \
        }                                                                                          \
    } while (0)
void stop(const char *what, int line);

/* One thing to time: `run` gives launch number i to the stream. */
typedef struct contestant {
    char name[64];
    void (*run)(void *self, int i, cudaStream_t stream);
    void *self;
    double us[MOST_ROUNDS]; /* of one launch, by round */
} contestant;

/* Device memory of a problem: X and Y copies, dense weights for the rivals. */
typedef struct operands {
    esp_matmul_problem problem;
    int copies_w; /* of weights, dense and sparse: together well beyond the L2 for few tokens */
    void *x[X_COPIES], *y[X_COPIES], *w[64];
} operands;

void operands_make(const esp_matmul_problem *problem, size_t l2_bytes, operands *made);
void operands_free(operands *all);

/* A random weight of the problem's pattern, without going through a dense one. */
esp_sparse *random_sparse(esp_context *context, const esp_matmul_problem *problem, uint64_t seed);

/* The dense rivals: cuBLAS as it comes, and cuBLASLt's best of its list, timed, for X and Y both
 * feature-major and both token-major. Returns how many. */
int rivals_make(const operands *all, cudaStream_t stream, contestant rivals[MOST_RIVALS]);
void rivals_free(contestant *rivals, int count);

/* Median microseconds of a launch over a few batches. */
double time_batch(contestant *who, int launches, cudaStream_t stream);
double median(const double *values, int count);
int sm_clock_mhz(int device);

#endif
