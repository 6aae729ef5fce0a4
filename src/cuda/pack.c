/* Weights to the GPU. The canonical parts are copied as they are; panels are then brought into the
 * form of the tensor cores by kernels (pack.cu), so packing costs the copy over the bus and little
 * more. */
#include "cuda/room.h"

/* Device memory that is handed out piece by piece. */
typedef struct arena {
    char *memory;
    size_t used;
} arena;

static void *take(arena *from, size_t bytes)
{
    void *piece = from->memory + from->used;
    from->used += cuda_round_up(bytes);
    return piece;
}

static bool find_part(const esp_sparse *sparse, const char *name, esp_tensor *found)
{
    for (int i = 0; i < esp_sparse_part_count(sparse); i++) {
        esp_sparse_part part = esp_sparse_get_part(sparse, i);
        if (strcmp(part.name, name) == 0) {
            *found = part.tensor;
            return true;
        }
    }
    return false;
}

static size_t part_bytes(const esp_tensor *part)
{
    size_t bytes = esp_dtype_bytes(part->dtype);
    for (int i = 0; i < part->rank; i++) {
        bytes *= (size_t)part->shape[i];
    }
    return bytes;
}

static esp_status pack_dense(esp_device *device, const esp_sparse *sparse, esp_packed *packed,
                             cuda_weight *weight, esp_error *error)
{
    esp_tensor values;
    if (!find_part(sparse, "", &values)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "pack.missing_part",
                        "pack: the dense weight has no values");
    }
    packed->bytes = part_bytes(&values);
    ESP_TRY(cuda_take(device, packed->bytes, "a weight", &weight->memory, error));
    int64_t out = packed->out_features, in = packed->in_features;
    weight->dense = true;
    weight->values = weight->memory;
    weight->panels = (gpu_panels){.out = out,
                                  .in = in,
                                  .panel_rows = out,
                                  .block_rows = GPU_BLOCK_ROWS,
                                  .panels = 1,
                                  .blocks = (int)esp_ceil_div(out, GPU_BLOCK_ROWS),
                                  .steps = (int)esp_ceil_div(in, GPU_STEP_COLUMNS),
                                  .data = weight->memory,
                                  .straight = true};
    weight->pairs_together = true;
    return cuda_check(gpu_upload(weight->memory, values.data, packed->bytes), device,
                      "copying a weight to it", error);
}

/* Parts in host memory; data NULL: not there. */
typedef struct host_parts {
    esp_tensor values, positions, columns, rows;
} host_parts;

static esp_status find_panel_parts(const esp_sparse *sparse, host_parts *parts,
                                   gpu_panel_parts *shape, esp_error *error)
{
    esp_pattern pattern = esp_sparse_pattern(sparse);
    *parts = (host_parts){0};
    bool listed = find_part(sparse, "columns", &parts->columns);
    (void)find_part(sparse, "rows", &parts->rows);
    if (!find_part(sparse, "values", &parts->values) ||
        !find_part(sparse, "positions", &parts->positions) || listed == (pattern.v == 0)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "pack.missing_part",
                        "pack: the panel weight lacks values, positions or columns");
    }
    int64_t out = esp_sparse_out_features(sparse), in = esp_sparse_in_features(sparse);
    int64_t v = esp_pattern_panel_rows(&pattern, out);
    *shape = (gpu_panel_parts){.out = out,
                               .in = in,
                               .kept = esp_pattern_kept(&pattern, in),
                               .panel_rows = v > 0 ? v : out,
                               .position_bytes = parts->positions.shape[1],
                               .columns_wide = parts->columns.dtype == ESP_U32,
                               .rows_wide = parts->rows.dtype == ESP_U32};
    return ESP_OK;
}

static esp_status plan_panels(const gpu_panel_parts *shape, bool listed, bool ordered,
                              gpu_panels *to, esp_error *error)
{
    int64_t panels = esp_ceil_div(shape->out, shape->panel_rows);
    int64_t block_rows = cuda_block_rows(listed ? shape->panel_rows : 0);
    int64_t blocks = esp_ceil_div(shape->panel_rows, block_rows);
    int64_t steps = esp_ceil_div(shape->kept, GPU_STEP_COLUMNS);
    if (panels * blocks * block_rows > INT32_MAX || shape->in > INT32_MAX) {
        return esp_fail(error, ESP_UNSUPPORTED, "pack.too_large",
                        "pack: %lld rows in panels of %lld and %lld columns are more than the "
                        "GPU's kernels can count",
                        (long long)shape->out, (long long)shape->panel_rows, (long long)shape->in);
    }
    *to = (gpu_panels){.out = shape->out,
                       .in = shape->in,
                       .panel_rows = shape->panel_rows,
                       .block_rows = (int)block_rows,
                       .panels = (int)panels,
                       .blocks = (int)blocks,
                       .steps = (int)steps,
                       .wide = listed && shape->columns_wide,
                       .straight =
                           (panels == 1 || shape->panel_rows % GPU_BLOCK_ROWS == 0) && !ordered};
    return ESP_OK;
}

/* Swiglu joins output rows 2 i and 2 i + 1; they meet in a thread when they are stored rows 2 j and
 * 2 j + 1 of one panel. */
bool cuda_panels_pair(const gpu_panel_parts *shape)
{
    return shape->panel_rows % 2 == 0 || shape->panel_rows >= shape->out;
}

static bool pairs_together(const gpu_panel_parts *shape, const esp_tensor *rows)
{
    if (!cuda_panels_pair(shape)) {
        return false;
    }
    for (int64_t j = 0; rows->data != NULL && 2 * j + 1 < shape->out; j++) {
        int64_t first, second;
        if (shape->rows_wide) {
            first = ((const uint32_t *)rows->data)[2 * j];
            second = ((const uint32_t *)rows->data)[2 * j + 1];
        } else {
            first = ((const uint16_t *)rows->data)[2 * j];
            second = ((const uint16_t *)rows->data)[2 * j + 1];
        }
        if (first % 2 != 0 || second != first + 1) {
            return false;
        }
    }
    return true;
}

static int upload_part(arena *into, const esp_tensor *part, const void **at)
{
    if (part->data == NULL) {
        return 0;
    }
    size_t bytes = part_bytes(part);
    void *to = take(into, bytes);
    *at = to;
    return gpu_upload(to, part->data, bytes);
}

static int pack_parts(const host_parts *parts, gpu_panel_parts *shape, const gpu_panels *to)
{
    arena scratch = {0};
    const esp_tensor *all[] = {&parts->values, &parts->positions, &parts->columns, &parts->rows};
    const void **at[] = {&shape->values, &shape->positions, &shape->columns, &shape->rows};
    size_t bytes = 0;
    for (int i = 0; i < ESP_COUNT(all); i++) {
        bytes += all[i]->data != NULL ? cuda_round_up(part_bytes(all[i])) : 0;
    }
    void *memory = NULL;
    int failed = gpu_alloc(bytes, &memory);
    scratch.memory = memory;
    for (int i = 0; failed == 0 && i < ESP_COUNT(all); i++) {
        failed = upload_part(&scratch, all[i], at[i]);
    }
    if (failed == 0) {
        failed = gpu_pack_panels(shape, to, NULL);
    }
    if (failed == 0) {
        failed = gpu_wait();
    }
    gpu_free(memory);
    return failed;
}

esp_status cuda_place_panels(esp_device *device, const gpu_panel_parts *shape, bool listed,
                             esp_packed *packed, cuda_weight *weight, esp_error *error)
{
    gpu_panels *to = &weight->panels;
    ESP_TRY(plan_panels(shape, listed, weight->reordered, to, error));
    size_t blocks = (size_t)to->panels * (size_t)to->blocks, steps = (size_t)to->steps;
    size_t padded = blocks * (size_t)to->block_rows; /* rows */
    size_t data = padded * steps * GPU_ROW_BYTES, rows = padded * sizeof(int32_t);
    size_t columns = (size_t)to->panels * steps * GPU_STEP_COLUMNS * (to->wide ? 4 : 2);
    columns = listed ? columns : 0;
    packed->bytes = cuda_round_up(data) + cuda_round_up(rows) + cuda_round_up(columns) +
                    cuda_round_up(sizeof *weight->misfits);
    ESP_TRY(cuda_take(device, packed->bytes, "a weight", &weight->memory, error));
    arena into = {weight->memory, 0};
    to->data = take(&into, data);
    to->rows = take(&into, rows);
    to->columns = listed ? take(&into, columns) : NULL;
    weight->misfits = take(&into, sizeof *weight->misfits);
    return ESP_OK;
}

static esp_status pack_panels(esp_device *device, const esp_sparse *sparse, esp_packed *packed,
                              cuda_weight *weight, esp_error *error)
{
    host_parts parts;
    gpu_panel_parts shape;
    ESP_TRY(find_panel_parts(sparse, &parts, &shape, error));
    bool listed = parts.columns.data != NULL;
    weight->reordered = parts.rows.data != NULL;
    ESP_TRY(cuda_place_panels(device, &shape, listed, packed, weight, error));
    weight->pairs_together = pairs_together(&shape, &parts.rows);
    return cuda_check(pack_parts(&parts, &shape, &weight->panels), device, "packing a weight",
                      error);
}

static esp_status pack_on_device(esp_device *device, const esp_sparse *sparse, esp_packed *packed,
                                 cuda_weight *weight, esp_error *error)
{
    esp_pattern pattern = esp_sparse_pattern(sparse);
    if (pattern.kind == ESP_PATTERN_DENSE) {
        return pack_dense(device, sparse, packed, weight, error);
    }
    char text[ESP_PATTERN_TEXT_MAX];
    esp_pattern_print(&pattern, text);
    if (pattern.kind != ESP_PATTERN_PANEL && !cuda_reads_blocks(&pattern)) {
        return esp_fail(error, ESP_UNSUPPORTED, "pack.unsupported_pattern",
                        "pack: no kernel of device '%s' reads weights of pattern %s; supported are "
                        "dense, 2:4, V:2:M, panel:V and blocks whose sides are multiples of 16",
                        device->name, text);
    }
    if (esp_sparse_dtype(sparse) == ESP_F32) {
        return esp_fail(error, ESP_UNSUPPORTED, "pack.unsupported_type",
                        "pack: device '%s' reads %s weights in f16 or bf16 only, not in f32",
                        device->name, text);
    }
    return pattern.kind == ESP_PATTERN_BLOCK
               ? cuda_pack_blocks(device, sparse, packed, weight, error)
               : pack_panels(device, sparse, packed, weight, error);
}

/* The object of a packed weight and its state in one piece of memory. */
esp_packed *cuda_packed_make(esp_device *device, const esp_packed *facts)
{
    struct {
        esp_packed packed;
        cuda_weight weight;
    } *made = esp_alloc_zero(device->context, sizeof *made);
    if (made == NULL) {
        return NULL;
    }
    made->packed = *facts;
    made->packed.device = device;
    made->packed.state = &made->weight;
    return &made->packed;
}

esp_status cuda_pack(esp_device *device, const esp_sparse *sparse, esp_packed **packed,
                     esp_error *error)
{
    const cuda_state *state = device->state;
    const esp_packed facts = {.pattern = esp_sparse_pattern(sparse),
                              .dtype = esp_sparse_dtype(sparse),
                              .out_features = esp_sparse_out_features(sparse),
                              .in_features = esp_sparse_in_features(sparse)};
    esp_packed *made = cuda_packed_make(device, &facts);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made + sizeof(cuda_weight), "a packed weight");
    }
    cuda_weight *weight = made->state;
    int before;
    esp_status status = cuda_check(gpu_enter(state->index, &before), device, "entering it", error);
    if (status == ESP_OK) {
        status = pack_on_device(device, sparse, made, weight, error);
        if (status != ESP_OK) {
            gpu_free(weight->memory);
        }
        gpu_leave(before);
    }
    if (status != ESP_OK) {
        esp_release(device->context, made);
        return status;
    }
    *packed = made;
    return ESP_OK;
}

void cuda_packed_free(esp_packed *packed)
{
    cuda_weight *weight = packed->state;
    packed->device->backend->release(packed->device, weight->memory);
    esp_release(packed->device->context, packed); /* the first member of its block */
}
