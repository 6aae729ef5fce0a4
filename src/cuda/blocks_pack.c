/* A block-sparse weight to the GPU: its order is made here from the canonical lists
 * (blocks_order.c), its values are copied as they are and brought into that order on the device
 * (blocks_pack.cu). */
#include "cuda/blocks_order.h"
#include "format/format.h"

bool cuda_reads_blocks(const esp_pattern *pattern)
{
    return pattern->kind == ESP_PATTERN_BLOCK && pattern->block_rows % 16 == 0 &&
           pattern->block_cols % 16 == 0;
}

/* The tables of a packed weight, behind its fragments. */
typedef struct table {
    const void *from;
    size_t bytes;
    const void **at; /* the pointer to it */
} table;
enum { TABLES = 5 };

static void list_tables(const block_order *order, const block_pieces *pieces, gpu_blocks *to,
                        table (*tables)[TABLES])
{
    size_t bands = (size_t)order->bands, words = (size_t)(pieces->count + 1) * GPU_PIECE_FRAGMENTS;
    const table all[TABLES] = {
        {order->steps, (size_t)(order->step_count + 1) * sizeof *order->steps,
         (const void **)(void *)&to->steps},
        {order->band_steps, (bands + 1) * sizeof *order->band_steps,
         (const void **)(void *)&to->band_steps},
        {order->rows, bands * GPU_BAND_ROWS * sizeof *order->rows,
         (const void **)(void *)&to->rows},
        {pieces->runs, bands * 2 * sizeof *pieces->runs, (const void **)(void *)&to->runs},
        {pieces->words, words * sizeof *pieces->words, (const void **)(void *)&to->places},
    };
    memcpy(*tables, all, sizeof all);
}

static size_t fragment_bytes(const block_order *order)
{
    return cuda_round_up((size_t)order->fragments * GPU_FRAGMENT_BYTES);
}

static int upload_tables(const table (*tables)[TABLES], char *memory)
{
    int failed = 0;
    for (int i = 0; failed == 0 && i < TABLES; i++) {
        *(*tables)[i].at = memory;
        failed = gpu_upload(memory, (*tables)[i].from, (*tables)[i].bytes);
        memory += cuda_round_up((*tables)[i].bytes);
    }
    return failed;
}

/* Fragments stand first in the weight's memory. Values and sources lie on the device only while
 * they are packed. */
static int pack_values(const esp_tensor *values, const block_order *order, void *fragments)
{
    size_t value_bytes = (size_t)(values->shape[0] * values->shape[1] * values->shape[2]) * 2;
    size_t source_bytes = (size_t)order->fragments * sizeof *order->sources;
    void *memory = NULL;
    int failed = gpu_alloc(cuda_round_up(value_bytes) + source_bytes, &memory);
    char *sources = (char *)memory + cuda_round_up(value_bytes);
    if (failed == 0) {
        failed = gpu_upload(memory, values->data, value_bytes);
    }
    if (failed == 0) {
        failed = gpu_upload(sources, order->sources, source_bytes);
    }
    if (failed == 0) {
        failed = gpu_pack_blocks(memory, values->shape[1], values->shape[2],
                                 (const uint32_t *)(const void *)sources, order->fragments,
                                 fragments, NULL);
    }
    if (failed == 0) {
        failed = gpu_wait();
    }
    gpu_free(memory);
    return failed;
}

static esp_status place_weight(esp_device *device, const block_lists *lists,
                               const esp_tensor *values, const block_order *order,
                               const block_pieces *pieces, esp_packed *packed, cuda_weight *weight,
                               esp_error *error)
{
    table tables[TABLES];
    weight->blocks = (gpu_blocks){.out = lists->out,
                                  .in = lists->in,
                                  .unit = order->unit_columns,
                                  .narrow = order->unit_rows < GPU_HALF_ROWS,
                                  .bands = order->bands,
                                  .pieces = pieces->count};
    list_tables(order, pieces, &weight->blocks, &tables);
    packed->bytes = fragment_bytes(order);
    for (int i = 0; i < TABLES; i++) {
        packed->bytes += cuda_round_up(tables[i].bytes);
    }
    ESP_TRY(cuda_take(device, packed->bytes, "a weight", &weight->memory, error));
    weight->blocks.fragments = weight->memory;
    int failed = upload_tables(&tables, (char *)weight->memory + fragment_bytes(order));
    failed = failed != 0 ? failed : pack_values(values, order, weight->memory);
    return cuda_check(failed, device, "packing a weight", error);
}

esp_status cuda_pack_blocks(esp_device *device, const esp_sparse *sparse, esp_packed *packed,
                            cuda_weight *weight, esp_error *error)
{
    const esp_tensor *values = esp_sparse_find_part(sparse, "values");
    const esp_tensor *columns = esp_sparse_find_part(sparse, "block_columns");
    const esp_tensor *offsets = esp_sparse_find_part(sparse, "block_row_offsets");
    if (values == NULL || columns == NULL || offsets == NULL) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "pack.missing_part",
                        "pack: the block weight lacks values, block_columns or block_row_offsets");
    }
    block_lists lists = {.out = packed->out_features,
                         .in = packed->in_features,
                         .kept = values->shape[0],
                         .block_rows = values->shape[1],
                         .block_columns = values->shape[2],
                         .columns = columns->data,
                         .offsets = offsets->data,
                         .columns_wide = columns->dtype == ESP_U32,
                         .offsets_wide = offsets->dtype == ESP_U64};
    block_order order;
    block_pieces pieces;
    ESP_TRY(cuda_order_blocks(device->context, &lists, &order, error));
    esp_status status = cuda_list_pieces(device->context, &order, &pieces, error);
    if (status == ESP_OK) {
        status = place_weight(device, &lists, values, &order, &pieces, packed, weight, error);
        cuda_pieces_free(device->context, &pieces);
    }
    cuda_block_order_free(device->context, &order);
    return status;
}
