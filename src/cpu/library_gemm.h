/* Private to src/cpu: what the dense products of all libraries have in common. A library multiplies
 * row-major matrices where they lie and writes Y; the epilogue is a second pass over Y. */
#ifndef ESP_CPU_LIBRARY_GEMM_H
#define ESP_CPU_LIBRARY_GEMM_H

#include "op/op.h"

/* C[rows][columns] = A[rows][depth] B[depth][columns], row-major; a transposed operand lies as its
 * transpose. C is Y; A and B are W and X in the order that Y's layout asks for. */
typedef struct cpu_gemm {
    bool transpose_a, transpose_b;
    int64_t rows, columns, depth;
    const void *a, *b;
    int64_t stride_a, stride_b, stride_c;
    float *c;
} cpu_gemm;

/* Measured on one thread. */
typedef struct cpu_library_speed {
    double weight_bytes;
    double least_ns; /* per weight, from two tokens on: rearranging W takes so long */
    double pass_ns;  /* per weight, on top of the multiply-adds */
    double rate;     /* multiply-adds per ns */
} cpu_library_speed;

/* NULL when pattern, output type, epilogue and sizes are such as libraries take; static text. */
const char *cpu_library_why_not(const esp_matmul_problem *problem);
double cpu_library_score_us(const esp_device *device, const esp_matmul_problem *problem,
                            const cpu_library_speed *speed);
/* X at x, laid out as the problem says. ESP_UNSUPPORTED for strides beyond 32 bits. */
ESP_MUST_CHECK esp_status cpu_library_gemm(const esp_matmul_call *call, const void *x,
                                           int64_t x_stride, cpu_gemm *gemm, esp_error *error);
/* The epilogue, over the Y of a finished product. */
void cpu_library_finish(const esp_matmul_call *call);

#endif
