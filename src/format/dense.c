/* Dense: the weight as it is.
 *
 *   part ""   dtype [out][in]   row-major
 *
 * Encoded without a mask, all bits are kept, -0.0 too; under a mask the rule of every format holds
 * (dropped entries and -0.0 become +0.0). */
#include "format/formats.h"

static bool accepts(const esp_pattern *pattern)
{
    return pattern->kind == ESP_PATTERN_DENSE;
}

static esp_status layout(const esp_pattern *pattern, esp_dtype dtype, int64_t out_features,
                         int64_t in_features, bool has_rows,
                         esp_sparse_part parts[ESP_SPARSE_MAX_PARTS], int *count, esp_error *error)
{
    (void)pattern;
    if (has_rows) {
        return esp_fail(error, ESP_UNSUPPORTED, "format.no_row_order",
                        "a dense weight has no row order; only panel formats do");
    }
    esp_format_set_part(&parts[0], "", dtype, out_features, in_features);
    *count = 1;
    return ESP_OK;
}

static esp_status copy(const esp_tensor *from, esp_tensor *to, esp_error *error)
{
    size_t bytes;
    ESP_TRY(esp_tensor_size(from, NULL, &bytes, error));
    if (bytes > 0) {
        memcpy(to->data, from->data, bytes);
    }
    return ESP_OK;
}

static esp_status encode(const esp_tensor *dense, const esp_mask *mask, esp_sparse *sparse,
                         esp_error *error)
{
    ESP_TRY(copy(dense, &sparse->parts[0].tensor, error));
    return esp_mask_apply(mask, &sparse->parts[0].tensor, error);
}

static esp_status decode(const esp_sparse *sparse, esp_tensor *dense, esp_error *error)
{
    return copy(&sparse->parts[0].tensor, dense, error);
}

/* Every bit pattern is a dense weight. */
static esp_status check(const esp_sparse *sparse, esp_error *error)
{
    (void)sparse, (void)error;
    return ESP_OK;
}

static void print_row(const esp_sparse *sparse, int64_t row, esp_buffer *text)
{
    int64_t in = sparse->in_features;
    esp_buffer_printf(text, "row %lld:", (long long)row);
    for (int64_t i = 0; i < ESP_MIN(in, ESP_FORMAT_PRINT_ENTRIES); i++) {
        esp_format_print_entry(sparse, &sparse->parts[0].tensor, row * in + i, i, text);
    }
    esp_buffer_text(text, in > ESP_FORMAT_PRINT_ENTRIES ? " ...\n" : "\n");
}

static void each_run(const esp_sparse *sparse, int64_t stored, esp_run_fn see, void *user)
{
    esp_format_show_columns(stored, stored * sparse->in_features, 0, sparse->in_features, see,
                            user);
}

const esp_format esp_format_dense = {
    .name = "dense",
    .accepts = accepts,
    .layout = layout,
    .encode = encode,
    .decode = decode,
    .check = check,
    .print_row = print_row,
    .each_run = each_run,
};
