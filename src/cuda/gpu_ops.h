/* What a whole model needs on the GPU besides products and attention: plain C functions over the
 * kernels of ops_*.cu. Meaning: src/ref/ops.c.
 *
 * Activations are f16 or bf16 (`type`), feature-major [features][tokens]: element (f, t) is at
 * f * stride + t, and a stride, in elements, is at least the number of columns. Any stride and any
 * address of the type's alignment is right; multiples of 8 elements and of 16 bytes are fast.
 * Arithmetic is f32, rounded once, where an activation is written. Nothing is read or written
 * beyond the columns that are named, so what gaps hold does not matter and stays. Weights, biases,
 * positions and tables of angles are f32.
 *
 * Pointers are device memory. Functions launch on `stream` (a cudaStream_t), wait for nothing,
 * allocate nothing, may be captured, and return an error number of the CUDA runtime; a size of 0 is
 * no work. Results are the same bits in every run.
 *
 * Order. On Hopper, launches overlap: each kernel may start while the one before it in the stream
 * is still running (programmatic dependent launch, as sm90_few.cu), and lets the next one start
 * early. Before it has waited for all work before it, it reads only what is marked CONSTANT: this
 * must be complete when the function is called, or written by work that is not the launch directly
 * before (the loading of weights, say). Everything else is read, and anything is written, after
 * that. */
#ifndef ESP_CUDA_GPU_OPS_H
#define ESP_CUDA_GPU_OPS_H

#include "cuda/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- norms (ops_norm.cu) ---- */

typedef struct gpu_norm {
    gpu_type type;
    const void *x;
    int64_t x_stride;
    const float *weight; /* [features], CONSTANT */
    const float *bias;   /* [features], CONSTANT; NULL: nothing is added; rms_norm reads none */
    float eps;
    int64_t features, tokens;
    void *y; /* may be x, with its stride */
    int64_t y_stride;
} gpu_norm;

/* y = x / sqrt(mean over features of x^2 + eps) * weight, per token. */
int gpu_rms_norm(const gpu_norm *norm, void *stream);
/* y = (x - mean) / sqrt(variance + eps) * weight + bias. */
int gpu_layer_norm(const gpu_norm *norm, void *stream);

/* ---- tokens (ops_tokens.cu) ---- */

/* Rows of a table, of which each token picks one. */
typedef struct gpu_lookup {
    const void *table;   /* `type`, [rows][features] tight, CONSTANT */
    const int32_t *rows; /* [tokens]; NULL: row 0 for all. Outside of 0..count-1: zeros */
    int64_t count;       /* of the table's rows */
} gpu_lookup;

/* x[:, t] = the sum of what 1 to 3 tables have for t, rounded once. */
#define GPU_MOST_LOOKUPS 3
int gpu_embed(gpu_type type, const gpu_lookup *lookups, int count, int64_t features, int64_t tokens,
              void *x, int64_t x_stride, void *stream);

/* y[f][i] = x[f][index[i]], zero where index[i] < 0; with `add` it is added to y. y is not x. */
int gpu_gather_columns(gpu_type type, const void *x, int64_t x_stride, int64_t features,
                       const int32_t *index, int64_t count, bool add, void *y, int64_t y_stride,
                       void *stream);

/* Tokens of images from what the projection made of their patches. Column g * pitch + t of x, t <
 * specials + patches: positions[:, t], plus column g * from_pitch + t - specials of `from` for t >=
 * specials; zero for the other columns of a pitch. x may be from where neither moves: specials 0,
 * the same pitch and stride. */
typedef struct gpu_image_tokens {
    gpu_type type;
    const void *from;
    int64_t from_stride, from_pitch;
    int64_t features, images, patches, specials, pitch;
    const float *positions; /* [features][positions_stride], CONSTANT */
    int64_t positions_stride;
    void *x;
    int64_t x_stride;
} gpu_image_tokens;
int gpu_place_image_tokens(const gpu_image_tokens *tokens, void *stream);

/* The largest of each row of logits ([count][size], f32, f16 or bf16; of equals the first, NaN and
 * -infinity never): ids[i], -1 where there is none. */
int gpu_argmax(gpu_type type, const void *logits, int64_t stride, int64_t count, int64_t size,
               int32_t *ids, void *stream);

/* ---- positions and caches (ops_rope.cu) ---- */

#define GPU_MOST_HEAD_DIM 256 /* and a multiple of 2 */

/* Where the next token of a sequence goes: row `past` of each head of its caches. An array of these
 * lies in device memory, so that recorded work can be replayed while sequences grow. */
typedef struct gpu_place {
    void *keys, *values; /* `type`, of layer 0: [kv_heads][capacity][head_dim] */
    int32_t past, capacity;
} gpu_place;

/* past += by, of `count` places. */
int gpu_advance(gpu_place *places, int64_t count, int32_t by, void *stream);

/* Position of token t: base + (at ? at[t * step] : 0) + (running ? t : 0). `at` may be
 * &places[0].past with a step of sizeof(gpu_place) / 4. */
typedef struct gpu_positions {
    int64_t base;
    const int32_t *at;
    int64_t step;
    bool running;
} gpu_positions;

/* cosines, sines: [head_dim / 2][stride] of position * frequency, an f32 product. frequencies:
 * [head_dim / 2], CONSTANT. */
int gpu_rope_angles(const float *frequencies, const gpu_positions *positions, int64_t head_dim,
                    int64_t tokens, float *cosines, float *sines, int64_t stride, void *stream);

/* All that lies between the products for q, k and v and attention, in one launch: rotates halves
 * (i, i + head_dim / 2) of q's heads in place; rotates k's and puts k and v into caches, which are
 * rows of head_dim. q, k, v: [heads or kv_heads * head_dim][stride]; parts of one matrix, or three.
 */
typedef struct gpu_rope_append {
    gpu_type type;
    void *q; /* NULL: only k and v */
    const void *k, *v;
    int64_t stride; /* of q, k, v */
    int64_t heads, kv_heads, head_dim, tokens;
    const float *cosines, *sines; /* [head_dim / 2][angle_stride]; NULL: nothing turns */
    int64_t angle_stride;
    /* Tokens of one sequence: rows past, past + 1... of keys and values; or, where places is not
     * NULL, a sequence each: token t to places[t], where layer's caches lie 2 * layer * kv_heads *
     * capacity * head_dim elements behind its keys and values.
     * Rows outside of 0..capacity-1 are not written. */
    void *keys, *values;
    int64_t capacity;
    int64_t past;
    const int32_t *past_at; /* added to past; NULL: nothing */
    const gpu_place *places;
    int64_t layer;
} gpu_rope_append;
int gpu_rope_append_run(const gpu_rope_append *append, void *stream);

/* ---- images (ops_image.cu) ---- */

/* pixels [images][channels][height][width] to y: row (c * patch + down) * patch + right, column
 * image * pitch + row * columns + column. Pixels beyond the last whole patch are left out; columns
 * of a pitch behind its patches get zeros. */
typedef struct gpu_patches {
    gpu_type pixel_type; /* f32, or `type` */
    const void *pixels;  /* tight */
    int64_t images, channels, height, width, patch;
    gpu_type type;
    void *y;
    int64_t y_stride, pitch;
} gpu_patches;
int gpu_cut_patches(const gpu_patches *patches, void *stream);

/* y[(f * side + i) * side + j][t] = x[f] of the token i - side / 2 rows below and j - side / 2
 * columns right of t, 0 outside of its grid. Grids are height x width tokens, `pitch` columns
 * apart; side is odd. Columns between grids are not written. */
typedef struct gpu_unfold {
    gpu_type type;
    const void *x;
    int64_t x_stride;
    void *y;
    int64_t y_stride;
    int64_t features, grids, height, width, pitch, side;
} gpu_unfold;
int gpu_unfold_grids(const gpu_unfold *unfold, void *stream);

/* ---- vectors of texts (ops_pool.cu) ---- */

typedef enum gpu_pooling { GPU_POOL_MEAN = 0, GPU_POOL_FIRST, GPU_POOL_MAX } gpu_pooling;

/* vectors[i] = the pooled tokens first[i] .. first[i] + lengths[i] - 1 of x, f32 [texts][features];
 * then, if asked, over max(its length, 1e-12). A text without tokens gives zeros. */
typedef struct gpu_pool {
    gpu_type type;
    const void *x;
    int64_t x_stride, features, texts;
    const int32_t *first, *lengths; /* [texts] */
    gpu_pooling pooling;
    bool normalize;
    float *vectors;
} gpu_pool;
int gpu_pool_texts(const gpu_pool *pool, void *stream);

/* ---- elementwise (ops_elementwise.cu) ---- */

/* y = silu(gate) * up; y may be gate or up. */
int gpu_swiglu(gpu_type type, const void *gate, int64_t gate_stride, const void *up,
               int64_t up_stride, int64_t features, int64_t tokens, void *y, int64_t y_stride,
               void *stream);
/* y = activation(y + bias[feature]), in place; bits: of esp_epilogue, an activation's or none; bias
 * NULL: none. */
int gpu_finish_in_place(gpu_type type, unsigned bits, const float *bias, void *y, int64_t stride,
                        int64_t features, int64_t tokens, void *stream);
/* to[r][c], or to[c][r] with `turn`, = from[r][c], r < rows, c < columns; any two of the types. */
int gpu_convert(gpu_type from_type, const void *from, int64_t from_stride, gpu_type to_type,
                void *to, int64_t to_stride, int64_t rows, int64_t columns, bool turn,
                void *stream);

#ifdef __cplusplus
}
#endif
#endif
