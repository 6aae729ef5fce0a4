#include "op/op.h"

const char *esp_host_format_why_not(esp_host_format format, const esp_pattern *pattern)
{
    static const struct {
        esp_pattern_kind kind;
        const char *why_not;
    } formats[] = {{ESP_PATTERN_DENSE, "it reads dense weights only"},
                   {ESP_PATTERN_NM, "it reads keep:group weights (other than 2:4) only"},
                   {ESP_PATTERN_PANEL, "it reads panels (2:4, V:2:M, panel:V) only"},
                   {ESP_PATTERN_UNSTRUCTURED, "it reads unstructured weights only"},
                   {ESP_PATTERN_BLOCK, "it reads blocks only"},
                   {ESP_PATTERN_ROWS, "it reads weights of kept rows only"},
                   {ESP_PATTERN_COLS, "it reads weights of kept columns only"}};
    return pattern->kind == formats[format].kind ? NULL : formats[format].why_not;
}

static const esp_tensor *find_part(const esp_sparse *sparse, const char *name, esp_tensor *found)
{
    for (int i = 0; i < esp_sparse_part_count(sparse); i++) {
        esp_sparse_part part = esp_sparse_get_part(sparse, i);
        if (strcmp(part.name, name) == 0) {
            *found = part.tensor;
            return found;
        }
    }
    return NULL;
}

static void view_panel(const esp_sparse *sparse, const esp_pattern *pattern,
                       esp_host_weight *weight)
{
    esp_tensor part;
    weight->format = ESP_HOST_PANEL;
    weight->kept = esp_pattern_kept(pattern, weight->in_features);
    weight->row_values = weight->kept / 2;
    weight->position_bytes = esp_ceil_div(weight->kept, 8);
    int64_t v = esp_pattern_panel_rows(pattern, weight->out_features);
    weight->panel_rows = v > 0 ? v : weight->out_features;
    if (find_part(sparse, "columns", &part) != NULL) {
        weight->columns = part.data;
        weight->columns_wide = part.dtype == ESP_U32;
    }
}

static void view_nm(const esp_pattern *pattern, const esp_tensor *positions,
                    esp_host_weight *weight)
{
    weight->format = ESP_HOST_NM;
    weight->keep = pattern->keep;
    weight->group = pattern->group;
    weight->row_values = esp_pattern_kept(pattern, weight->in_features);
    weight->position_bytes = positions->shape[1];
    while ((int64_t)1 << weight->position_bits < pattern->group) {
        weight->position_bits++;
    }
}

int64_t esp_host_find(const esp_host_weight *weight, int64_t wanted)
{
    int64_t low = 0, high = weight->listed; /* wanted is in [low, high) if anywhere */
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        int64_t held = esp_host_index(weight->list, weight->list_wide, middle);
        if (held == wanted) {
            return middle;
        }
        low = held < wanted ? middle + 1 : low;
        high = held < wanted ? high : middle;
    }
    return -1;
}

/* csr, bsr, rows, cols: false for any other pattern. */
static bool view_list(const esp_sparse *sparse, const esp_pattern *pattern, esp_host_weight *weight)
{
    static const struct {
        esp_pattern_kind kind;
        esp_host_format format;
        const char *list, *offsets;
    } forms[] = {{ESP_PATTERN_UNSTRUCTURED, ESP_HOST_CSR, "columns", "row_offsets"},
                 {ESP_PATTERN_BLOCK, ESP_HOST_BSR, "block_columns", "block_row_offsets"},
                 {ESP_PATTERN_ROWS, ESP_HOST_ROWS, "rows", NULL},
                 {ESP_PATTERN_COLS, ESP_HOST_COLS, "columns", NULL}};
    int i = 0;
    while (i < ESP_COUNT(forms) && forms[i].kind != pattern->kind) {
        i++;
    }
    esp_tensor values, list, offsets = {0};
    if (i == ESP_COUNT(forms) || find_part(sparse, "values", &values) == NULL ||
        find_part(sparse, forms[i].list, &list) == NULL ||
        (forms[i].offsets != NULL && find_part(sparse, forms[i].offsets, &offsets) == NULL)) {
        return false;
    }
    weight->format = forms[i].format;
    weight->values = values.data;
    weight->list = list.data;
    weight->list_wide = list.dtype == ESP_U32;
    weight->listed = list.shape[0];
    weight->offsets = offsets.data;
    weight->offsets_wide = offsets.dtype == ESP_U64;
    weight->block_rows = pattern->block_rows;
    weight->block_cols = pattern->block_cols;
    return true;
}

static esp_status view_parts(const esp_sparse *sparse, esp_host_weight *weight, esp_error *error)
{
    esp_pattern pattern = esp_sparse_pattern(sparse);
    *weight = (esp_host_weight){.dtype = esp_sparse_dtype(sparse),
                                .out_features = esp_sparse_out_features(sparse),
                                .in_features = esp_sparse_in_features(sparse)};
    if (view_list(sparse, &pattern, weight)) {
        return ESP_OK;
    }
    bool dense = pattern.kind == ESP_PATTERN_DENSE;
    esp_tensor values, positions, rows;
    bool has_positions = find_part(sparse, "positions", &positions) != NULL;
    if (find_part(sparse, dense ? "" : "values", &values) == NULL || has_positions == dense ||
        (!dense && pattern.kind != ESP_PATTERN_NM && pattern.kind != ESP_PATTERN_PANEL)) {
        char text[ESP_PATTERN_TEXT_MAX];
        esp_pattern_print(&pattern, text);
        return esp_fail(error, ESP_UNSUPPORTED, "pack.unsupported_pattern",
                        "pack: no kernel of this processor reads weights of pattern %s; supported "
                        "are dense, keep:group and panels",
                        text);
    }
    weight->values = values.data;
    if (dense) {
        weight->format = ESP_HOST_DENSE;
        weight->row_values = weight->in_features;
        return ESP_OK;
    }
    weight->positions = positions.data;
    if (pattern.kind == ESP_PATTERN_NM) {
        view_nm(&pattern, &positions, weight);
    } else {
        view_panel(sparse, &pattern, weight);
    }
    if (find_part(sparse, "rows", &rows) != NULL) {
        weight->rows = rows.data;
        weight->rows_wide = rows.dtype == ESP_U32;
    }
    return ESP_OK;
}

/* Largest magnitude as bits: with the sign away, floats order as integers. */
static int32_t largest_bits(const esp_tensor *values, int64_t count)
{
    int32_t most = 0;
    if (values->dtype == ESP_F32) {
        const int32_t *bits = values->data;
        for (int64_t i = 0; i < count; i++) {
            int32_t magnitude = bits[i] & INT32_MAX;
            most = magnitude > most ? magnitude : most;
        }
        return most;
    }
    const int16_t *bits = values->data;
    int16_t half = 0;
    for (int64_t i = 0; i < count; i++) {
        int16_t magnitude = (int16_t)(bits[i] & INT16_MAX);
        half = magnitude > half ? magnitude : half;
    }
    return half;
}

/* Whether a part "values" (dense: "") holds what bf16 cannot. */
static bool find_not_finite(const esp_sparse *sparse)
{
    esp_tensor values;
    int64_t count;
    size_t bytes;
    if ((find_part(sparse, "values", &values) == NULL && find_part(sparse, "", &values) == NULL) ||
        esp_tensor_size(&values, &count, &bytes, NULL) != ESP_OK) {
        return false;
    }
    int32_t limit = values.dtype == ESP_F32   ? 0x7f7f8000
                    : values.dtype == ESP_F16 ? 0x7c00
                                              : 0x7f80;
    return largest_bits(&values, count) >= limit;
}

static esp_status copy_sparse(esp_context *context, const esp_sparse *sparse, esp_sparse **copy,
                              esp_error *error)
{
    esp_sparse_part parts[ESP_SPARSE_MAX_PARTS];
    int count = esp_sparse_part_count(sparse);
    for (int i = 0; i < count; i++) {
        parts[i] = esp_sparse_get_part(sparse, i);
    }
    esp_pattern pattern = esp_sparse_pattern(sparse);
    return esp_sparse_from_parts(context, &pattern, esp_sparse_dtype(sparse),
                                 esp_sparse_out_features(sparse), esp_sparse_in_features(sparse),
                                 parts, count, copy, error);
}

esp_status esp_host_pack(esp_device *device, const esp_sparse *sparse, esp_packed **packed,
                         esp_error *error)
{
    esp_context *context = device->context;
    struct {
        esp_packed packed;
        esp_host_weight weight;
    } *made = esp_alloc_zero(context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "a packed weight");
    }
    esp_sparse *copy = NULL;
    esp_status status = copy_sparse(context, sparse, &copy, error);
    if (status == ESP_OK) {
        status = view_parts(copy, &made->weight, error);
        /* One more read of the weight: only where kernels ask for the answer. */
        made->weight.not_finite = context->cpu.level >= ESP_CPU_AMX && find_not_finite(copy);
    }
    if (status != ESP_OK) {
        esp_sparse_free(copy);
        esp_release(context, made);
        return status;
    }
    made->packed = (esp_packed){.device = device,
                                .pattern = esp_sparse_pattern(copy),
                                .dtype = made->weight.dtype,
                                .out_features = made->weight.out_features,
                                .in_features = made->weight.in_features,
                                .sparse = copy,
                                .state = &made->weight,
                                .bytes = esp_sparse_bytes(copy)};
    *packed = &made->packed;
    return ESP_OK;
}

void esp_host_packed_free(esp_packed *packed)
{
    if (packed != NULL) {
        esp_sparse_free(packed->sparse);
        esp_release(packed->device->context, packed); /* the first member of its block */
    }
}

void *esp_host_alloc(esp_device *device, size_t bytes)
{
    return esp_alloc(device->context, bytes);
}

void esp_host_release(esp_device *device, void *memory)
{
    esp_release(device->context, memory);
}
