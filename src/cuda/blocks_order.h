/* Where the blocks of a weight go in the form of gpu_blocks.h; made on the host from the lists of a
 * canonical weight, whose contents are not trusted. */
#ifndef ESP_CUDA_BLOCKS_ORDER_H
#define ESP_CUDA_BLOCKS_ORDER_H

#include "cuda/room.h"

/* The lists of src/format/bsr.c. */
typedef struct block_lists {
    int64_t out, in, kept;
    int64_t block_rows, block_columns;
    const void *columns, *offsets;
    bool columns_wide, offsets_wide; /* u32, u64 */
} block_lists;

typedef struct block_order {
    int unit_rows, unit_columns; /* blocks are cut into units of powers of two: rows 16 to 128,
                                  * columns 16 to 64 */
    int bands, step_count;
    int64_t fragments;
    gpu_block_step *steps; /* [step_count + 1]: one more, so that a kernel may read ahead */
    int32_t *band_steps;   /* [bands + 1] */
    int32_t *rows;         /* [bands * 128] */
    uint32_t *sources;     /* [fragments] */
} block_order;

/* "pack.too_large" and ESP_OUT_OF_MEMORY are the errors. */
ESP_MUST_CHECK esp_status cuda_order_blocks(esp_context *context, const block_lists *lists,
                                            block_order *made, esp_error *error);
void cuda_block_order_free(esp_context *context, block_order *order);

typedef struct block_pieces {
    gpu_block_run *runs; /* [bands * 2] */
    uint32_t *words;     /* [count * 8], and eight more */
    int64_t count;
} block_pieces;

/* ESP_OUT_OF_MEMORY is the error. */
ESP_MUST_CHECK esp_status cuda_list_pieces(esp_context *context, const block_order *order,
                                           block_pieces *made, esp_error *error);
void cuda_pieces_free(esp_context *context, block_pieces *pieces);

#endif
