/* Attention on the GPU: plain C functions over the kernels of attention_*.cu and
 * sm90_attention_*.cu. Meaning: `attention` and `relative_bias` of src/ref/ops.c.
 *
 * Activations and caches are f16 or bf16 (`type`, of all operands). q, k, v, y are feature-major
 * [heads * head_dim][stride]: element d of head h of column t is at (h * head_dim + d) * stride +
 * t. Products are exact, sums and the softmax f32; the softmax's numerators are rounded to `type`
 * before they multiply the values, y is rounded once. Columns that no group, sequence or token has
 * may hold anything, NaN too: they are read as zeros, or not at all. Any head_dim from 1 to 256;
 * 32, 64, 80, 96 and 128 are fast.
 *
 * Alignment: q, k, v, y and caches begin at multiples of 16 bytes; strides, pitches, starts are
 * multiples of 8 elements. Otherwise the functions return cudaErrorInvalidValue, as for sizes that
 * are out of range.
 *
 * Pointers are device memory. Functions launch on `stream` (a cudaStream_t), wait for nothing,
 * allocate nothing, may be captured, and return an error number of the CUDA runtime; no tokens are
 * no work. Results are the same bits in every run.
 *
 * Order. As gpu_ops.h: on Hopper a launch may start while the one before it in the stream is still
 * running, and lets the next one start early; before all work before it is done it reads only what
 * is marked CONSTANT. */
#ifndef ESP_CUDA_GPU_ATTENTION_H
#define ESP_CUDA_GPU_ATTENTION_H

#include "cuda/gpu.h"
#include "cuda/gpu_ops.h"  /* gpu_place, GPU_MOST_HEAD_DIM */
#define GPU_WIDEST_GRID 64 /* rows and columns */
#ifdef __cplusplus
extern "C" {
#endif

/* Every token of a group sees all tokens of its group: images, texts, windows. Group g is the
 * columns begin(g) .. begin(g) + length(g) - 1 of q, k, v and y. Of y, the columns from there to
 * the next multiple of 8 get zeros. */
typedef struct gpu_attention_groups {
    gpu_type type;
    const void *q, *k, *v; /* unscaled; parts of one matrix, or three */
    void *y;               /* not q, k or v */
    int64_t stride;        /* of q, k, v */
    int64_t y_stride;
    int64_t heads, head_dim;
    int64_t groups;
    int64_t tokens;         /* of each group, or at most */
    int64_t pitch;          /* begin(g) = g * pitch, pitch >= tokens, unless starts is given */
    const int32_t *starts;  /* [groups] begin(g), multiples of 8; NULL: by pitch. With it, all
                             * `stride` columns of every row of k and v are memory of the caller's,
                             * whatever they hold */
    const int32_t *lengths; /* [groups] in 0..tokens; NULL: all `tokens` */
    int64_t read; /* y of a group's tokens behind the first so many may be left; 0: none */
    float scale;  /* multiplies q . k */
    /* Relative positions of a grid of tokens / grid_width rows, or NULL, NULL, 0: key s of query t
     * adds, to the scaled score, q[t] . row_table[row(t) - row(s) + rows - 1] and q[t] .
     * column_table[column(t) - column(s) + grid_width - 1], where token i is at row i / grid_width,
     * column i % grid_width. The tables are rounded to `type` first. Without lengths only; rows and
     * grid_width up to GPU_WIDEST_GRID. */
    const float *row_table;    /* [2 * rows - 1][head_dim], CONSTANT */
    const float *column_table; /* [2 * grid_width - 1][head_dim], CONSTANT */
    int64_t grid_width;
    int device;
} gpu_attention_groups;
int gpu_attend_groups(const gpu_attention_groups *attention, void *stream);

/* Tokens of one sequence over its caches, [kv_heads][capacity][head_dim]: token t sees rows 0 ..
 * past + t. heads is a multiple of kv_heads; head h reads head h / (heads / kv_heads) of the
 * caches. head_dim is a multiple of 8 here. Columns of y from `tokens` to the next multiple of 8
 * get zeros. */
typedef struct gpu_attention_prefill {
    gpu_type type;
    const void *q;
    int64_t stride;
    const void *keys, *values; /* rows 0 .. past + tokens - 1 are filled */
    int64_t capacity;
    void *y; /* not q */
    int64_t y_stride;
    int64_t heads, kv_heads, head_dim;
    int64_t tokens;
    int64_t past;
    const int32_t *past_at; /* added to past; NULL: nothing. What lies past capacity is not seen */
    float scale;
    int device;
} gpu_attention_prefill;
int gpu_attend_prefill(const gpu_attention_prefill *attention, void *stream);

/* One token of each of `sequences` sequences, column n of q and y that of sequence n: it sees rows
 * 0 .. places[n].past of that sequence's caches of a layer, which lie behind places[n].keys and
 * values as gpu_rope_append_run puts them. head_dim is a multiple of 8 here. Rows past the capacity
 * are not read. Any stride and alignment of q and y of whole elements. Work is shared out by
 * `longest`; any number of rows is right. */
typedef struct gpu_attention_decode {
    gpu_type type;
    const void *q;
    int64_t stride;
    void *y; /* may be q */
    int64_t y_stride;
    const gpu_place *places; /* [sequences]; keys, values and capacity are CONSTANT */
    int64_t layer;
    int64_t sequences;
    int64_t longest; /* rows that a sequence may have: its capacity, say */
    int64_t heads, kv_heads, head_dim;
    /* The rows of this step, as gpu_rope_append has them: k is rotated and it and v become rows
     * places[n].past of the caches; q is rotated as it is read, and stays as it is. NULL: q is
     * rotated, and the rows are there. With k the rows before those are CONSTANT. */
    const void *k, *v;            /* [kv_heads * head_dim][stride] */
    const float *cosines, *sines; /* [head_dim / 2][angle_stride]; where there is k */
    int64_t angle_stride;
    float scale;
    int device, multiprocessors;
    bool overlaps; /* the device has compute capability 9.0 or later: clusters, overlapping launches
                    */
} gpu_attention_decode;
int gpu_attend_decode(const gpu_attention_decode *attention, void *stream);

#ifdef __cplusplus
}
#endif
#endif
