/* Products of block-sparse weights: what their .cu files offer to the C files; as gpu.h.
 *
 * One form serves every kernel. Its atom is the fragment: 16 rows x 16 columns of the weight, 512
 * bytes, 16 a lane, in the order in which a warp holds the left operand of a product. Stored rows
 * come in bands of 128, each of two halves of 64 rows, each of four strips of 16 rows; columns in
 * steps of 64 that a band's list of columns names in units of 16, 32 or 64. Only fragments of
 * stored blocks exist. docs/kernels-gpu.md draws it. */
#ifndef ESP_CUDA_GPU_BLOCKS_H
#define ESP_CUDA_GPU_BLOCKS_H

#include "cuda/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

#define GPU_BAND_ROWS 128
#define GPU_HALF_ROWS 64
#define GPU_STRIP_ROWS 16
#define GPU_FRAGMENT_BYTES 512
#define GPU_HALF_STEP_FRAGMENTS 16 /* at most: 4 strips x 4 times 16 columns */

/* 64 columns of a band. Bit 16 h + 4 k + s of `present`: half h has a fragment in strip s for the
 * k-th 16 columns. Those of a half lie one after another from first[h] on, in the order of the
 * bits. */
typedef struct gpu_block_step {
    uint32_t first[2];
    uint32_t present;
    uint32_t unused;
    int32_t column[4]; /* of X, for each 16; `in` or more: none */
} gpu_block_step;

/* For few tokens, half a band is a run of fragments, cut into pieces of eight; the last may be
 * short. Runs come in pairs: the longest with the shortest, and so on. A piece has eight words.
 * Word i names the i-th place in X, of 16 columns, that the piece needs (GPU_NO_PLACE: there is
 * none), and for the i-th fragment the number of its place and its strip. */
#define GPU_PIECE_FRAGMENTS 8
#define GPU_NO_PLACE 0x7ffffffu
#define GPU_PLACE_WORD(place, slot, strip) ((uint32_t)(place) << 5 | (slot) << 2 | (strip))
#define GPU_PLACE_COLUMN(word) ((word) >> 5 << 4) /* of X; `in` or more: none */
#define GPU_PLACE_SLOT(word) ((word) >> 2 & 7)
#define GPU_PLACE_STRIP(word) ((int)((word)&3))

typedef struct gpu_block_run {
    uint32_t first; /* fragment */
    int32_t fragments;
    uint32_t piece; /* the first; counted over the whole weight */
    uint32_t half;  /* which: 2 band + half */
} gpu_block_run;

typedef struct gpu_blocks {
    int64_t out, in;
    int unit;    /* columns of X that lie side by side: 16, 32 or 64 */
    bool narrow; /* blocks of fewer than 64 rows: rows of a half differ in their columns */
    int bands;   /* the longest first */
    const gpu_block_step *steps;
    const int32_t *band_steps; /* [bands + 1]: the first step of each band */
    const int32_t *rows;       /* [bands * 128]: output row of a stored row, -1: none; strips of 16
                                * rows side by side */
    const gpu_block_run *runs; /* [bands * 2] */
    const uint32_t *places;    /* [pieces * 8] */
    int64_t pieces;
    const void *fragments;
} gpu_blocks;

/* values: canonical, [blocks][block_rows][block_columns]. sources: for each fragment its number in
 * there, counted [block][16 rows][16 columns]. */
int gpu_pack_blocks(const void *values, int64_t block_rows, int64_t block_columns,
                    const uint32_t *sources, int64_t fragments, void *to, void *stream);

typedef struct gpu_block_product {
    gpu_blocks weight;
    bool bf16;
    const void *x;
    int64_t x_stride;
    int tokens;
    bool x_by_token;
    bool x_aligned; /* base and stride are multiples of 16 bytes */
    gpu_epilogue epilogue;
    int device, multiprocessors;
    int64_t l2_bytes;
    bool overlaps; /* launches can: compute capability 9.0 */
} gpu_block_product;

/* Tiles of 128 rows x `tile_tokens` (128 or 256). X must be aligned. */
int gpu_sm90_blocks_f16(const gpu_block_product *product, int tile_tokens, void *stream);
int gpu_sm90_blocks_bf16(const gpu_block_product *product, int tile_tokens, void *stream);
/* Any GPU: tiles of 128 rows x 256 tokens, and up to 16 tokens. */
int gpu_blocks_tiles(const gpu_block_product *product, void *stream);
#define GPU_BLOCK_FEW_TOKENS 16
int gpu_blocks_few(const gpu_block_product *product, void *stream);
int gpu_sm90_blocks_few(const gpu_block_product *product, void *stream);

#ifdef __cplusplus
}
#endif
#endif
