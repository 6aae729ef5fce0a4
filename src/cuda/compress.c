/* Weights made on the device: operands are checked, kernels do the work (prune.cu, compress.cu),
 * and what they found that does not fit becomes an error that names its place. */
#include "cuda/room.h"

/* ---- operands ---- */

static esp_status check_operand(const esp_device *device, const char *name, const void *memory,
                                size_t alignment, size_t bytes, esp_error *error)
{
    const cuda_state *state = device->state;
    if (!cuda_holds(state, memory, bytes)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "compress.not_on_device",
                        "compress: %s is not memory of device '%s' that holds %zu bytes", name,
                        device->name, bytes);
    }
    if ((uintptr_t)memory % alignment != 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "compress.misaligned",
                        "compress: %s must be aligned to its own elements, %zu bytes", name,
                        alignment);
    }
    return ESP_OK;
}

static size_t mask_row_bytes(int64_t in)
{
    return (size_t)esp_ceil_div(in, 64) * sizeof(uint64_t);
}

static int64_t panel_rows_of(const esp_pattern *pattern, int64_t out)
{
    int64_t v = esp_pattern_panel_rows(pattern, out);
    return v > 0 ? v : out;
}

static esp_status check_operands(const esp_device *device, const esp_pattern *pattern,
                                 const esp_device_dense *dense, const esp_device_mask *mask,
                                 esp_error *error)
{
    int64_t out = dense->out_features, in = dense->in_features;
    size_t elements = (size_t)((out - 1) * dense->stride + in);
    ESP_TRY(check_operand(device, "the dense weight", dense->data, 2, 2 * elements, error));
    if (mask->bits != NULL) {
        ESP_TRY(check_operand(device, "the mask", mask->bits, sizeof(uint64_t),
                              (size_t)out * mask_row_bytes(in), error));
    }
    if (mask->columns != NULL && pattern->v != 0) {
        size_t count = (size_t)esp_ceil_div(out, panel_rows_of(pattern, out)) *
                       (size_t)esp_pattern_kept(pattern, in);
        ESP_TRY(check_operand(device, "the list of columns", mask->columns, sizeof(uint32_t),
                              count * sizeof(uint32_t), error));
    }
    return ESP_OK;
}

static gpu_dense dense_of(const esp_device_dense *dense)
{
    return (gpu_dense){.out = dense->out_features,
                       .in = dense->in_features,
                       .stride = dense->stride,
                       .data = dense->data,
                       .bf16 = dense->dtype == ESP_BF16,
                       .aligned = (uintptr_t)dense->data % 16 == 0 && dense->stride % 8 == 0,
                       .mask_bytes = (int64_t)mask_row_bytes(dense->in_features)};
}

/* ---- pruning ---- */

static int prune(const gpu_dense *from, const esp_pattern *pattern, const esp_mask_options *options,
                 const esp_device_mask *mask, void *stream)
{
    int64_t panel_rows = panel_rows_of(pattern, from->out);
    int failed = 0;
    if (pattern->v != 0) {
        gpu_search search = options->search == ESP_SEARCH_EXACT   ? GPU_EXACT
                            : options->search == ESP_SEARCH_SWAPS ? GPU_SWAPS
                                                                  : GPU_GREEDY;
        failed =
            gpu_choose_columns(from, panel_rows, pattern->m, options->score == ESP_SCORE_SQUARE,
                               search, mask->columns, stream);
    }
    if (failed == 0) {
        failed = gpu_choose_entries(from, panel_rows, pattern->v != 0 ? pattern->m : 4,
                                    pattern->v != 0 ? mask->columns : NULL, (uint8_t *)mask->bits,
                                    from->mask_bytes, stream);
    }
    return failed;
}

esp_status cuda_prune(esp_device *device, const esp_device_dense *dense, const esp_pattern *pattern,
                      const esp_mask_options *options, const esp_device_mask *mask, void *stream,
                      esp_error *error)
{
    const cuda_state *state = device->state;
    int before;
    ESP_TRY(check_operands(device, pattern, dense, mask, error));
    ESP_TRY(cuda_check(gpu_enter(state->index, &before), device, "entering it", error));
    gpu_dense from = dense_of(dense);
    int failed = prune(&from, pattern, options, mask, stream);
    gpu_leave(before);
    return cuda_check(failed, device, "pruning", error);
}

/* ---- compressing ---- */

static gpu_panel_parts shape_of(const esp_packed *packed)
{
    int64_t in = packed->in_features;
    return (gpu_panel_parts){.out = packed->out_features,
                             .in = in,
                             .kept = esp_pattern_kept(&packed->pattern, in),
                             .panel_rows = panel_rows_of(&packed->pattern, packed->out_features),
                             .columns_wide = in > UINT16_MAX};
}

/* Of zeros: a weight that products may read from the first. */
static int fill_with_zeros(const esp_packed *packed, const cuda_weight *weight, int64_t kept)
{
    gpu_dense zeros = {.out = packed->out_features, .in = packed->in_features};
    int failed = gpu_fill_rows(&weight->panels, NULL);
    if (failed == 0) {
        failed = gpu_compress(&zeros, packed->pattern.m, kept, NULL, &weight->panels,
                              weight->misfits, NULL);
    }
    return failed == 0 ? gpu_wait() : failed;
}

esp_status cuda_packed_create(esp_device *device, const esp_pattern *pattern, esp_dtype dtype,
                              int64_t out_features, int64_t in_features, esp_packed **packed,
                              esp_error *error)
{
    const cuda_state *state = device->state;
    const esp_packed facts = {.pattern = *pattern,
                              .dtype = dtype,
                              .out_features = out_features,
                              .in_features = in_features};
    esp_packed *made = cuda_packed_make(device, &facts);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made + sizeof(cuda_weight), "a packed weight");
    }
    cuda_weight *weight = made->state;
    gpu_panel_parts shape = shape_of(made);
    int before;
    esp_status status = cuda_check(gpu_enter(state->index, &before), device, "entering it", error);
    if (status == ESP_OK) {
        status = cuda_place_panels(device, &shape, pattern->v != 0, made, weight, error);
        weight->pairs_together = cuda_panels_pair(&shape);
        if (status == ESP_OK) {
            int failed = fill_with_zeros(made, weight, shape.kept);
            status = cuda_check(failed, device, "clearing a weight", error);
        }
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

/* ---- what does not fit ---- */

static esp_status bad_list(const gpu_misfits *found, int64_t kept, esp_error *error)
{
    long long panel = (long long)(found->list / (uint64_t)kept);
    long long entry = (long long)(found->list % (uint64_t)kept);
    return esp_fail(error, ESP_BAD_ARGUMENT, "mask.bad_columns",
                    "compress: panel %lld, entry %lld of its list of columns lies outside the "
                    "weight, is there twice, or does not ascend in its group of four",
                    panel, entry);
}

static esp_status crowded_panel(const esp_packed *packed, const gpu_misfits *found, int64_t width,
                                int64_t kept, esp_error *error)
{
    long long panel = (long long)(found->panel / (uint64_t)width), m = (long long)packed->pattern.m;
    long long group = (long long)(found->panel % (uint64_t)width / 4);
    if (m != 0) {
        return esp_fail(error, ESP_CHECK_FAILED, "format.mask_mismatch",
                        "compress: panel %lld, group %lld (columns from %lld): more than 4 columns "
                        "hold weights, a panel keeps 4 of each %lld",
                        panel, group, group * m, m);
    }
    return esp_fail(error, ESP_CHECK_FAILED, "format.mask_mismatch",
                    "compress: panel %lld: more columns hold weights than the %lld that the "
                    "pattern keeps",
                    panel, (long long)kept);
}

static esp_status crowded_row(const gpu_misfits *found, int64_t quads, int64_t in, esp_error *error)
{
    uint64_t quad_row = found->quad != UINT64_MAX ? found->quad / (uint64_t)quads : UINT64_MAX;
    uint64_t lost_row = found->column != UINT64_MAX ? found->column / (uint64_t)in : UINT64_MAX;
    if (quad_row <= lost_row) {
        return esp_fail(error, ESP_CHECK_FAILED, "format.mask_mismatch",
                        "compress: row %lld, group %lld of kept columns: more than 2 of 4 hold "
                        "weights",
                        (long long)quad_row, (long long)(found->quad % (uint64_t)quads));
    }
    return esp_fail(error, ESP_CHECK_FAILED, "format.mask_mismatch",
                    "compress: row %lld, column %lld holds a weight, but its panel does not keep "
                    "that column",
                    (long long)lost_row, (long long)(found->column % (uint64_t)in));
}

static esp_status judge(const esp_packed *packed, const cuda_weight *weight,
                        const gpu_misfits *found, esp_error *error)
{
    int64_t width = (int64_t)weight->panels.steps * GPU_STEP_COLUMNS;
    int64_t kept = esp_pattern_kept(&packed->pattern, packed->in_features);
    if (found->list != UINT64_MAX) {
        return bad_list(found, kept, error);
    }
    if (found->panel != UINT64_MAX) {
        return crowded_panel(packed, found, width, kept, error);
    }
    if (found->quad != UINT64_MAX || found->column != UINT64_MAX) {
        return crowded_row(found, width / 4, packed->in_features, error);
    }
    return ESP_OK;
}

esp_status cuda_compress(esp_packed *packed, const esp_device_dense *dense,
                         const esp_device_mask *mask, void *stream, esp_error *error)
{
    esp_device *device = packed->device;
    const cuda_state *state = device->state;
    const cuda_weight *weight = packed->state;
    const esp_pattern *pattern = &packed->pattern;
    gpu_misfits found;
    int before;
    if (weight->reordered) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "compress.bad_weight",
                        "compress: the packed weight has a row order, which a dense weight has "
                        "not; compress into one that esp_packed_create made");
    }
    ESP_TRY(check_operands(device, pattern, dense, mask, error));
    ESP_TRY(cuda_check(gpu_enter(state->index, &before), device, "entering it", error));
    gpu_dense from = dense_of(dense);
    from.mask = (const uint8_t *)mask->bits;
    int failed = gpu_compress(&from, pattern->m, esp_pattern_kept(pattern, from.in),
                              pattern->m == 0 ? mask->columns : NULL, &weight->panels,
                              weight->misfits, stream);
    if (failed == 0) {
        failed = gpu_copy_to_host(&found, weight->misfits, sizeof found, stream);
    }
    gpu_leave(before);
    ESP_TRY(cuda_check(failed, device, "compressing", error));
    return judge(packed, weight, &found, error);
}
