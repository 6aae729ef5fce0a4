/* Private to src/cpu: what one instruction-set level provides. The kernel sources in isa/ are
 * written once on vectors of LANES floats and compiled once per level (level_portable.c,
 * level_avx2.c, level_avx512.c), each copy filling one of these tables. */
#ifndef ESP_CPU_LEVEL_H
#define ESP_CPU_LEVEL_H

#include "op/op.h"

#define CPU_TOKEN_BLOCK 512 /* tokens of one pass over the weights */
#define CPU_MAX_ROWS 96     /* stored rows of one piece of work */
#define CPU_PANEL_ROWS                                                                             \
    512                     /* the same for panels and many tokens, where a piece is one tile wide \
                             */
#define CPU_DENSE_DEPTH 128 /* input columns between two visits of the sums */
#define CPU_SPARSE_DEPTH 32 /* stored entries of a row between two visits of the sums */
#define CPU_LIST_ROWS 512   /* rows of one piece of an unstructured weight */
#define CPU_LIST_CHUNK 512  /* at most so many columns between two visits of their sums */
#define CPU_FEW_TOKENS 4    /* at most so many share one pass of the few-token kernels */

/* X of one pass, packed. Many tokens: tiles of up to `tile` tokens side by side, each a block
 * [in + 1][width], width a power of two of vectors, missing tokens zero, row `in` zero (what
 * padding columns read); the tile of token t begins at x + t * (in + 1). Few tokens:
 * [token][stride], zero from column in on. */
typedef struct cpu_piece {
    const esp_host_weight *weight;
    bool rounds; /* weights are rounded to bf16 */
    const float *x;
    int64_t x_rows;    /* in + 1 (many tokens); in: for cols the columns that are kept */
    int64_t x_stride;  /* few tokens */
    int64_t row, rows; /* stored rows row .. row + rows - 1; few tokens: all of one panel */
    int64_t token;     /* first token, relative to the pass; a multiple of the widest tile */
    int64_t tokens;    /* a multiple of LANES (many), or 1..CPU_FEW_TOKENS */
    float *sums;       /* [rows][sums_stride] results */
    int64_t sums_stride;
    float *scratch; /* decoded weights or gathered activations; 64-byte aligned */
} cpu_piece;

/* Columns of a stored row of a dense weight, or of what rows and cols keep: as many as features of
 * packed X. */
static inline int64_t cpu_dense_columns(const esp_host_weight *weight)
{
    return weight->format == ESP_HOST_COLS ? weight->listed : weight->in_features;
}

/* Stored rows, and the output row of each. */
static inline int64_t cpu_stored_rows(const esp_host_weight *weight)
{
    return weight->format == ESP_HOST_ROWS ? weight->listed : weight->out_features;
}

static inline int64_t cpu_output_row(const esp_host_weight *weight, int64_t i)
{
    return weight->format == ESP_HOST_ROWS
               ? (int64_t)esp_host_index(weight->list, weight->list_wide, i)
               : esp_host_row(weight, i);
}

typedef void (*cpu_product_fn)(const cpu_piece *piece);

typedef struct cpu_level {
    const char *name;
    int lanes;
    int dense_vectors, sparse_vectors; /* of a full tile */
    cpu_product_fn many[5];            /* by esp_host_format; rows and cols run as dense */
    cpu_product_fn few[5];
    /* values[i] = activation(values[i]); an esp_epilogue activation bit, SWIGLU excepted */
    void (*activate)(unsigned epilogue, float *values, int64_t count);
    /* y = silu(gate) * up; y may be gate */
    void (*swiglu)(const float *gate, const float *up, int64_t count, float *y);
    /* tokens of x and y at `stride` between features; factors: [tokens] scratch */
    void (*rms_norm)(const float *x, const float *weight, float eps, int64_t features,
                     int64_t tokens, int64_t stride, float *factors, float *y);
    /* the same; means, factors: [tokens] scratch */
    void (*layer_norm)(const float *x, const float *weight, const float *bias, float eps,
                       int64_t features, int64_t tokens, int64_t stride, float *means,
                       float *factors, float *y);
    /* `tokens` <= 2 * lanes (one, where the call has fewer than CPU_FEW_TOKENS) of one head;
     * scratch: (head_dim + lanes + past + all tokens) * 2 * lanes floats */
    void (*attend)(const esp_attention *attention, int64_t head, int64_t token, int64_t tokens,
                   float *scratch);
    /* one row of a relative_bias: the scores of one head with one key */
    void (*relate)(const esp_relative *relative, int64_t head, int64_t key);
} cpu_level;

/* The best level that the device's context allows. */
const cpu_level *cpu_level_of(const esp_device *device);

extern const cpu_level esp_cpu_portable;
#ifdef ESP_CPU_X86
extern const cpu_level esp_cpu_avx2;
extern const cpu_level esp_cpu_avx512;
#endif

#endif
