/* Coordinates as a view: any compressed weight to its sorted non-zeros, and entries in any order to
 * any pattern, both by way of the dense weight. A mask notes the places that were taken. */
#include "format/formats.h"
#include "format/nonzero.h"

void esp_coo_free(esp_context *context, esp_coo *coo)
{
    esp_release(context, coo->rows);
    esp_release(context, coo->columns);
    esp_release(context, coo->values);
    *coo = (esp_coo){0};
}

/* ---- export ---- */

/* Writes the entries, when arrays are given, and returns how many there are. */
static int64_t list_entries(const esp_tensor *dense, esp_coo *coo)
{
    int64_t in = dense->shape[1], count = 0;
    size_t width = esp_dtype_bytes(dense->dtype);
    for (int64_t row = 0; row < dense->shape[0]; row++) {
        for (int64_t first = 0; first < in; first += 64) {
            uint64_t bits = esp_nonzero_word(dense, row * in + first, ESP_MIN(64, in - first));
            for (; bits != 0; bits &= bits - 1, count++) {
                if (coo->rows != NULL) {
                    int64_t column = first + __builtin_ctzll(bits);
                    coo->rows[count] = (uint32_t)row;
                    coo->columns[count] = (uint32_t)column;
                    esp_copy_weight(width, coo->values, count, dense->data, row * in + column);
                }
            }
        }
    }
    return count;
}

static esp_status export_dense(esp_context *context, const esp_tensor *dense, esp_coo *coo,
                               esp_error *error)
{
    esp_coo made = {
        .dtype = dense->dtype, .out_features = dense->shape[0], .in_features = dense->shape[1]};
    made.count = list_entries(dense, &made);
    size_t count = (size_t)made.count;
    made.rows = esp_alloc_array(context, count, sizeof *made.rows);
    made.columns = esp_alloc_array(context, count, sizeof *made.columns);
    made.values = esp_alloc_array(context, count, esp_dtype_bytes(dense->dtype));
    if (made.rows == NULL || made.columns == NULL || made.values == NULL) {
        esp_coo_free(context, &made);
        return esp_fail_memory(error, count * sizeof *made.rows, "coordinates");
    }
    list_entries(dense, &made);
    *coo = made;
    return ESP_OK;
}

/* Indices have 32 bits. */
static esp_status check_sizes(int64_t out_features, int64_t in_features, esp_error *error)
{
    if (out_features > ESP_FORMAT_MAX_FEATURES || in_features > ESP_FORMAT_MAX_FEATURES) {
        return esp_fail(error, ESP_UNSUPPORTED, "format.too_large",
                        "coordinates reach 4294967295 rows and columns, not [%lld, %lld]",
                        (long long)out_features, (long long)in_features);
    }
    return ESP_OK;
}

esp_status esp_sparse_to_coo(const esp_sparse *sparse, esp_coo *coo, esp_error *error)
{
    ESP_TRY(check_sizes(sparse->out_features, sparse->in_features, error));
    esp_tensor dense = {0};
    int64_t shape[2] = {sparse->out_features, sparse->in_features};
    ESP_TRY(esp_tensor_create(sparse->context, sparse->dtype, 2, shape, &dense, error));
    esp_status status = esp_sparse_decode(sparse, &dense, error);
    if (status == ESP_OK) {
        status = export_dense(sparse->context, &dense, coo, error);
    }
    esp_tensor_free(sparse->context, &dense);
    return status;
}

/* ---- import ---- */

static esp_status scatter(const esp_coo *coo, esp_mask *taken, esp_tensor *dense, esp_error *error)
{
    size_t width = esp_dtype_bytes(coo->dtype);
    for (int64_t i = 0; i < coo->count; i++) {
        int64_t row = coo->rows[i], column = coo->columns[i];
        if (row >= coo->out_features || column >= coo->in_features) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "coo.out_of_range",
                            "entry %lld: row %lld, column %lld lies outside a weight of "
                            "[%lld, %lld]",
                            (long long)i, (long long)row, (long long)column,
                            (long long)coo->out_features, (long long)coo->in_features);
        }
        if (esp_mask_get(taken, row, column)) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "coo.duplicate",
                            "entry %lld: row %lld, column %lld came before; give each place once",
                            (long long)i, (long long)row, (long long)column);
        }
        esp_mask_set(taken, row, column, true);
        esp_copy_weight(width, dense->data, row * coo->in_features + column, coo->values, i);
    }
    return ESP_OK;
}

static esp_status import_dense(esp_context *context, const esp_pattern *pattern, const esp_coo *coo,
                               esp_tensor *dense, esp_sparse **sparse, esp_error *error)
{
    esp_mask *taken = NULL;
    ESP_TRY(esp_mask_create(context, coo->out_features, coo->in_features, &taken, error));
    esp_status status = scatter(coo, taken, dense, error);
    if (status == ESP_OK) {
        status = esp_sparse_encode(context, pattern, dense, taken, sparse, error);
    }
    esp_mask_free(taken);
    return status;
}

esp_status esp_sparse_from_coo(esp_context *context, const esp_pattern *pattern, const esp_coo *coo,
                               esp_sparse **sparse, esp_error *error)
{
    if (!esp_dtype_is_weight(coo->dtype)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "format.bad_dtype",
                        "weights are F32, F16 or BF16, not %s", esp_dtype_name(coo->dtype));
    }
    ESP_TRY(check_sizes(coo->out_features, coo->in_features, error));
    esp_tensor dense = {0};
    int64_t shape[2] = {coo->out_features, coo->in_features};
    ESP_TRY(esp_tensor_create(context, coo->dtype, 2, shape, &dense, error));
    esp_status status = import_dense(context, pattern, coo, &dense, sparse, error);
    esp_tensor_free(context, &dense);
    return status;
}
