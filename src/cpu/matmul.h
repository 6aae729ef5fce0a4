/* Private to src/cpu: how one product is cut into passes and pieces. */
#ifndef ESP_CPU_MATMUL_H
#define ESP_CPU_MATMUL_H

#include "cpu/level.h"

/* What a kernel record's variant points to. */
typedef struct cpu_variant {
    const cpu_level *level;
    esp_cpu_level needs;
    esp_host_format format;
    esp_dtype weight_type;
} cpu_variant;

/* The parts of one run's workspace, in this order; floats, each a multiple of 16. */
typedef struct cpu_workspace {
    bool few;               /* the few-token kernels run */
    int64_t block;          /* tokens of a pass, padded */
    size_t x, raw, scratch; /* packed X; sums before swiglu; per thread */
    size_t sums;            /* of a piece, at the beginning of a thread's scratch */
    size_t bytes;
} cpu_workspace;

static inline int64_t cpu_round_up(int64_t value, int64_t step)
{
    return esp_ceil_div(value, step) * step;
}

/* Weights have to be rounded to bf16. */
static inline bool cpu_rounds(const esp_matmul_problem *problem)
{
    return problem->compute == ESP_COMPUTE_BF16 && problem->weight_type != ESP_BF16;
}

/* Floats of a row of few-token X: columns, the zero column, and room to read past the end. */
static inline int64_t cpu_few_stride(int64_t in)
{
    return cpu_round_up(in + 1, 32) + 64;
}

cpu_workspace cpu_matmul_workspace(const cpu_variant *variant, const esp_device *device,
                                   const esp_matmul_problem *problem);
esp_status cpu_matmul_launch(const esp_matmul_call *call, esp_error *error);

/* The same for csr and bsr (matmul_lists.c). */
cpu_workspace cpu_lists_workspace(const cpu_variant *variant, const esp_device *device,
                                  const esp_matmul_problem *problem);
esp_status cpu_lists_launch(const esp_matmul_call *call, esp_error *error);

/* One pass: tokens token .. token + tokens - 1 of the call. */
typedef struct cpu_pass {
    const esp_matmul_call *call;
    const cpu_level *level;
    cpu_workspace sizes;
    int64_t token, tokens;
    int64_t padded; /* tokens rounded up to whole vectors */
    int most_vectors;
    float *x, *raw, *scratch;
    /* pieces: stored rows in chunks that no strip's border crosses, times groups of tokens; strips
     * are whole panels */
    int64_t chunk, chunks_of_strip, strip_rows, chunks, group, groups;
} cpu_pass;

void cpu_pack_x(const cpu_pass *pass);
/* Epilogue of a computed piece, into Y or, for swiglu, into pass->raw; its sums are overwritten. */
void cpu_finish_piece(const cpu_pass *pass, const cpu_piece *piece);
/* Epilogue of the rows that a weight of kept rows does not store: sums of zero. */
void cpu_finish_absent_rows(const cpu_pass *pass);
/* Joins pass->raw. */
void cpu_finish_swiglu(const cpu_pass *pass);

#endif
