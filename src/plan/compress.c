/* Weights made on a device: the checks that all devices share. */
#include "plan/plan.h"

static esp_status host_memory(const esp_device *device, esp_error *error)
{
    return esp_fail(error, ESP_UNSUPPORTED, "compress.host_memory",
                    "compress: device '%s' keeps weights in the host's memory; there use "
                    "esp_prune_mask, esp_sparse_encode and esp_pack",
                    device->name);
}

static esp_status check_type(esp_dtype dtype, esp_error *error)
{
    if (dtype == ESP_F16 || dtype == ESP_BF16) {
        return ESP_OK;
    }
    return esp_fail(error, ESP_UNSUPPORTED, "pack.unsupported_type",
                    "compress: weights on a device are F16 or BF16, not %s", esp_dtype_name(dtype));
}

static esp_status check_panels(const esp_pattern *pattern, esp_error *error)
{
    ESP_TRY(esp_pattern_check(pattern, error));
    if (pattern->kind == ESP_PATTERN_PANEL) {
        return ESP_OK;
    }
    char text[ESP_PATTERN_TEXT_MAX];
    esp_pattern_print(pattern, text);
    return esp_fail(error, ESP_UNSUPPORTED, "pack.unsupported_pattern",
                    "compress: a device compresses 2:4, V:2:M and panel:V, not %s", text);
}

static esp_status check_shape(int64_t out, int64_t in, esp_error *error)
{
    if (out >= 1 && in >= 1) {
        return ESP_OK;
    }
    return esp_fail(error, ESP_BAD_ARGUMENT, "compress.bad_shape",
                    "compress: a weight of %lld x %lld has no entries", (long long)out,
                    (long long)in);
}

/* Fills in the stride. */
static esp_status check_dense(const esp_device_dense *dense, esp_device_dense *full,
                              esp_error *error)
{
    ESP_TRY(check_type(dense->dtype, error));
    ESP_TRY(check_shape(dense->out_features, dense->in_features, error));
    *full = *dense;
    full->stride = dense->stride != 0 ? dense->stride : dense->in_features;
    if (dense->data == NULL) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "compress.missing_operand",
                        "compress: the dense weight is NULL");
    }
    if (full->stride < dense->in_features) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "compress.bad_stride",
                        "compress: the stride is %lld elements, but a row has %lld; give 0 for "
                        "tight rows",
                        (long long)full->stride, (long long)dense->in_features);
    }
    return ESP_OK;
}

/* ---- pruning ---- */

static esp_status check_options(const esp_pattern *pattern, const esp_mask_options *options,
                                esp_error *error)
{
    if (options->score != ESP_SCORE_ABS && options->score != ESP_SCORE_SQUARE) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "prune.bad_score", "score %d is none of esp_score",
                        (int)options->score);
    }
    if (options->search < ESP_SEARCH_AUTO || options->search > ESP_SEARCH_JOINT) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "prune.bad_search",
                        "search %d is none of esp_search", (int)options->search);
    }
    if (options->search == ESP_SEARCH_EXACT && pattern->m > ESP_EXACT_WIDEST) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "prune.exact_too_wide",
                        "the exact search looks at every quadruple and takes M up to %d, not %lld; "
                        "use the search with swaps",
                        ESP_EXACT_WIDEST, (long long)pattern->m);
    }
    if ((pattern->v != 0 && pattern->m == 0) || options->regroup) {
        return esp_fail(
            error, ESP_UNSUPPORTED, "prune.host_only",
            "prune: the columns of panel:V, and which rows share a panel, are chosen on "
            "the host, by esp_prune_mask");
    }
    return ESP_OK;
}

esp_status esp_device_prune(esp_device *device, const esp_device_dense *dense,
                            const esp_pattern *pattern, const esp_mask_options *options,
                            const esp_device_mask *mask, void *stream, esp_error *error)
{
    esp_mask_options use = options != NULL ? *options : (esp_mask_options){0};
    esp_device_dense full;
    if (device->backend->prune == NULL) {
        return host_memory(device, error);
    }
    ESP_TRY(check_panels(pattern, error));
    ESP_TRY(check_dense(dense, &full, error));
    ESP_TRY(check_options(pattern, &use, error));
    if (mask->bits == NULL || (pattern->v != 0 && mask->columns == NULL)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "compress.missing_operand",
                        "prune: the mask's %s are NULL, but pruning writes them",
                        mask->bits == NULL ? "bits" : "columns");
    }
    if (use.search == ESP_SEARCH_AUTO || use.search == ESP_SEARCH_JOINT) {
        use.search = pattern->m <= ESP_EXACT_WIDEST ? ESP_SEARCH_EXACT : ESP_SEARCH_SWAPS;
    }
    return device->backend->prune(device, &full, pattern, &use, mask, stream, error);
}

/* ---- compressing ---- */

esp_status esp_packed_create(esp_device *device, const esp_pattern *pattern, esp_dtype dtype,
                             int64_t out_features, int64_t in_features, esp_packed **packed,
                             esp_error *error)
{
    if (device->backend->packed_create == NULL) {
        return host_memory(device, error);
    }
    ESP_TRY(check_panels(pattern, error));
    ESP_TRY(check_type(dtype, error));
    ESP_TRY(check_shape(out_features, in_features, error));
    return device->backend->packed_create(device, pattern, dtype, out_features, in_features, packed,
                                          error);
}

esp_status esp_packed_compress(esp_packed *packed, const esp_device_dense *dense,
                               const esp_device_mask *mask, void *stream, esp_error *error)
{
    esp_device_dense full;
    if (packed->device->backend->compress == NULL) {
        return host_memory(packed->device, error);
    }
    ESP_TRY(check_panels(&packed->pattern, error));
    ESP_TRY(check_dense(dense, &full, error));
    if (dense->dtype != packed->dtype || dense->out_features != packed->out_features ||
        dense->in_features != packed->in_features || esp_packed_forms(packed) != ESP_FORM_SPARSE) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "compress.bad_weight",
                        "compress: the dense weight is %s/%lldx%lld, the packed one %s/%lldx%lld%s",
                        esp_dtype_short_name(dense->dtype), (long long)dense->out_features,
                        (long long)dense->in_features, esp_dtype_short_name(packed->dtype),
                        (long long)packed->out_features, (long long)packed->in_features,
                        esp_packed_forms(packed) != ESP_FORM_SPARSE ? " and holds another form"
                                                                    : "");
    }
    static const esp_device_mask none = {NULL, NULL};
    return packed->device->backend->compress(packed, &full, mask != NULL ? mask : &none, stream,
                                             error);
}
