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

static int upload_order(const block_order *order, gpu_blocks *to, char *memory)
{
    const struct {
        const void *from;
        size_t bytes;
        const void **at;
    } pieces[] = {
        {order->steps, (size_t)(order->step_count + 1) * sizeof *order->steps,
         (const void **)(void *)&to->steps},
        {order->band_steps, (size_t)(order->bands + 1) * sizeof *order->band_steps,
         (const void **)(void *)&to->band_steps},
        {order->rows, (size_t)order->bands * GPU_BAND_ROWS * sizeof *order->rows,
         (const void **)(void *)&to->rows},
    };
    to->fragments = memory;
    memory += cuda_round_up((size_t)order->fragments * GPU_FRAGMENT_BYTES);
    int failed = 0;
    for (int i = 0; failed == 0 && i < ESP_COUNT(pieces); i++) {
        *pieces[i].at = memory;
        failed = gpu_upload(memory, pieces[i].from, pieces[i].bytes);
        memory += cuda_round_up(pieces[i].bytes);
    }
    return failed;
}

static size_t packed_bytes(const block_order *order)
{
    return cuda_round_up((size_t)order->fragments * GPU_FRAGMENT_BYTES) +
           cuda_round_up((size_t)(order->step_count + 1) * sizeof *order->steps) +
           cuda_round_up((size_t)(order->bands + 1) * sizeof *order->band_steps) +
           cuda_round_up((size_t)order->bands * GPU_BAND_ROWS * sizeof *order->rows);
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
    ESP_TRY(cuda_order_blocks(device->context, &lists, &order, error));
    packed->bytes = packed_bytes(&order);
    esp_status status = cuda_take(device, packed->bytes, "a weight", &weight->memory, error);
    weight->blocks = (gpu_blocks){.out = lists.out,
                                  .in = lists.in,
                                  .unit = order.unit_columns,
                                  .narrow = order.unit_rows < GPU_HALF_ROWS,
                                  .bands = order.bands};
    if (status == ESP_OK) {
        int failed = upload_order(&order, &weight->blocks, weight->memory);
        failed = failed != 0 ? failed : pack_values(values, &order, weight->memory);
        status = cuda_check(failed, device, "packing a weight", error);
    }
    cuda_block_order_free(device->context, &order);
    return status;
}
