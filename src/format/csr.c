/* unstructured@s: compressed sparse rows. Any entries, a fixed number of them in the whole weight.
 *
 *   values       dtype       [kept]      row by row, columns ascending
 *   columns      U16 or U32  [kept]      U32 when in > 65536
 *   row_offsets  U32 or U64  [out + 1]   row i holds the entries row_offsets[i] ..
 *                                        row_offsets[i + 1] - 1; U64 when kept > 4294967295
 *
 * kept = out * in - round_half_up(s * out * in), at least 1. Missing entries are +0.0 at the lowest
 * free places, counted row by row. No -0.0. */
#include "format/lists.h"

static const esp_list_words words = {"columns", "row_offsets", "row", "column", "entries"};

static bool accepts(const esp_pattern *pattern)
{
    return pattern->kind == ESP_PATTERN_UNSTRUCTURED;
}

static esp_status layout(const esp_pattern *pattern, esp_dtype dtype, int64_t out_features,
                         int64_t in_features, bool has_rows,
                         esp_sparse_part parts[ESP_SPARSE_MAX_PARTS], int *count, esp_error *error)
{
    ESP_TRY(esp_list_check_sizes(out_features, in_features, has_rows, error));
    int64_t kept = esp_pattern_kept_of(pattern, out_features * in_features);
    esp_format_set_part(&parts[0], "values", dtype, kept, -1);
    esp_list_set_parts(&words, out_features, in_features, kept, &parts[1], &parts[2]);
    *count = 3;
    return ESP_OK;
}

static esp_list_view view_of(const esp_sparse *sparse)
{
    return esp_list_view_of(sparse, &words, sparse->out_features, sparse->in_features);
}

/* ---- encode ---- */

typedef struct encode_job {
    const esp_tensor *dense;
    const esp_mask *mask;
    size_t width;
    void *values;
} encode_job;

static void live_line(const void *user, int64_t row, uint64_t *scratch, uint64_t *live)
{
    (void)scratch;
    const encode_job *job = user;
    esp_format_live_row(job->dense, job->mask, row, live);
}

static void store(const void *user, int64_t row, int64_t column, int64_t k)
{
    const encode_job *job = user;
    esp_copy_weight(job->width, job->values, k, job->dense->data,
                    row * job->dense->shape[1] + column);
}

static esp_status encode(const esp_tensor *dense, const esp_mask *mask, esp_sparse *sparse,
                         esp_error *error)
{
    esp_list_view view = view_of(sparse);
    encode_job job = {dense, mask, esp_dtype_bytes(sparse->dtype), sparse->parts[0].tensor.data};
    esp_list_source source = {.user = &job,
                              .live_line = live_line,
                              .store = store,
                              .grain = esp_format_row_grain(sparse->in_features)};
    return esp_list_encode(sparse, &view, &source, error);
}

/* ---- decode ---- */

typedef struct decode_job {
    const esp_sparse *sparse;
    esp_list_view view;
    char *dense;
} decode_job;

/* Contents may be unchecked: columns that do not exist are passed over. */
static void decode_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const decode_job *job = user;
    size_t width = esp_dtype_bytes(job->sparse->dtype);
    for (int64_t row = begin; row < end; row++) {
        char *to = job->dense + (size_t)(row * job->view.places) * width;
        memset(to, 0, (size_t)job->view.places * width);
        int64_t stop = esp_list_begin(&job->view, row + 1);
        for (int64_t k = esp_list_begin(&job->view, row); k < stop; k++) {
            int64_t column = esp_list_place(&job->view, k);
            if (column < job->view.places) {
                esp_copy_weight(width, to, column, job->sparse->parts[0].tensor.data, k);
            }
        }
    }
}

static esp_status decode(const esp_sparse *sparse, esp_tensor *dense, esp_error *error)
{
    (void)error;
    decode_job job = {sparse, view_of(sparse), dense->data};
    if (sparse->in_features > 0) {
        esp_parallel_for(sparse->context, sparse->out_features,
                         esp_format_row_grain(sparse->in_features), decode_rows, &job);
    }
    return ESP_OK;
}

/* ---- check ---- */

static esp_status check_entry(const void *user, int64_t row, int64_t k, bool *zero,
                              esp_error *error)
{
    const decode_job *job = user;
    const void *values = job->sparse->parts[0].tensor.data;
    *zero = esp_weight_is_zero(job->sparse->dtype, values, k);
    if (*zero && esp_weight_is_negative_zero(job->sparse->dtype, values, k)) {
        return esp_list_bad_unit(&job->view, "sparse.negative_zero", "values", row, k,
                                 "-0.0 is stored, zeros are +0.0", error);
    }
    return ESP_OK;
}

static esp_status check(const esp_sparse *sparse, esp_error *error)
{
    decode_job job = {sparse, view_of(sparse), NULL};
    return esp_list_check(sparse, &job.view, check_entry, &job, error);
}

static void print_row(const esp_sparse *sparse, int64_t row, esp_buffer *text)
{
    esp_list_view view = view_of(sparse);
    int64_t begin = esp_list_begin(&view, row), end = esp_list_begin(&view, row + 1);
    esp_buffer_printf(text, "row %lld:", (long long)row);
    for (int64_t k = begin; k < ESP_MIN(end, begin + ESP_FORMAT_PRINT_ENTRIES); k++) {
        esp_format_print_entry(sparse, &sparse->parts[0].tensor, k, esp_list_place(&view, k), text);
    }
    esp_buffer_text(text, end - begin > ESP_FORMAT_PRINT_ENTRIES ? " ...\n" : "\n");
}

static void each_run(const esp_sparse *sparse, int64_t stored, esp_run_fn see, void *user)
{
    esp_list_view view = view_of(sparse);
    int64_t first = esp_list_begin(&view, stored), stop = esp_list_begin(&view, stored + 1);
    esp_run run = {.row = stored, .first = first};
    for (int64_t k = first; k < stop; k++) {
        esp_run_add(&run, (uint32_t)esp_list_place(&view, k), see, user);
    }
    esp_run_end(&run, see, user);
}

const esp_format esp_format_csr = {
    .name = "csr",
    .accepts = accepts,
    .layout = layout,
    .encode = encode,
    .decode = decode,
    .check = check,
    .print_row = print_row,
    .each_run = each_run,
};
