/* rows@s and cols@s: whole rows, or whole columns, of a weight.
 *
 *   rows  values   dtype       [kept][in]    the kept rows one after the other
 *         rows     U16 or U32  [kept]        ascending; U32 when out > 65536
 *   cols  values   dtype       [out][kept]   of each row the kept columns
 *         columns  U16 or U32  [kept]        ascending; U32 when in > 65536
 *
 * kept = n - round_half_up(s * n), at least 1, n = out or in. Where fewer rows (columns) hold a
 * weight, zero ones with the lowest numbers fill up. No -0.0. */
#include "format/lists.h"
#include "format/nonzero.h"

static const esp_list_words row_words = {"rows", NULL, NULL, "row", "rows"};
static const esp_list_words column_words = {"columns", NULL, NULL, "column", "columns"};

static bool accepts_rows(const esp_pattern *pattern)
{
    return pattern->kind == ESP_PATTERN_ROWS;
}

static bool accepts_cols(const esp_pattern *pattern)
{
    return pattern->kind == ESP_PATTERN_COLS;
}

static esp_status layout(const esp_pattern *pattern, esp_dtype dtype, int64_t out_features,
                         int64_t in_features, bool has_rows,
                         esp_sparse_part parts[ESP_SPARSE_MAX_PARTS], int *count, esp_error *error)
{
    ESP_TRY(esp_list_check_sizes(out_features, in_features, has_rows, error));
    bool rows = accepts_rows(pattern);
    int64_t places = rows ? out_features : in_features;
    int64_t kept = esp_pattern_kept_of(pattern, places);
    esp_format_set_part(&parts[0], "values", dtype, rows ? kept : out_features,
                        rows ? in_features : kept);
    esp_list_set_parts(rows ? &row_words : &column_words, 1, places, kept, &parts[1], NULL);
    *count = 2;
    return ESP_OK;
}

typedef struct list_job {
    const esp_sparse *sparse;
    esp_list_view list;
    const esp_tensor *dense; /* encode, decode */
    const esp_mask *mask;    /* encode */
    size_t width;
    char *values;
    uint64_t *live; /* bits of the places that hold a weight, or of the stored ones */
} list_job;

static list_job job_of(const esp_sparse *sparse, const esp_tensor *dense, const esp_mask *mask)
{
    bool rows = accepts_rows(&sparse->pattern);
    return (list_job){
        .sparse = sparse,
        .list = esp_list_view_of(sparse, rows ? &row_words : &column_words, 1,
                                 rows ? sparse->out_features : sparse->in_features),
        .dense = dense,
        .mask = mask,
        .width = esp_dtype_bytes(sparse->dtype),
        .values = sparse->parts[0].tensor.data,
    };
}

/* ---- encode ---- */

/* Joins one row's bits into those of rows (bit `row`) or of columns (all of them). */
static void join_row(const list_job *job, int64_t row, const uint64_t *bits, int64_t words)
{
    if (accepts_rows(&job->sparse->pattern)) {
        if (esp_any_bit(bits, 0, words * 64)) {
            esp_set_bit(job->live, row);
        }
        return;
    }
    for (int64_t i = 0; i < words; i++) {
        job->live[i] |= bits[i];
    }
}

static void copy_live(const void *user, int64_t line, uint64_t *scratch, uint64_t *live)
{
    (void)line, (void)scratch;
    const list_job *job = user;
    memcpy(live, job->live, (size_t)esp_ceil_div(job->list.places, 64) * sizeof *live);
}

/* Masked weights of stored row i (cols: of row i). */
static void copy_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const list_job *job = user;
    const esp_tensor *values = &job->sparse->parts[0].tensor;
    bool rows = accepts_rows(&job->sparse->pattern);
    int64_t in = job->sparse->in_features, count = values->shape[1];
    for (int64_t i = begin; i < end; i++) {
        int64_t row = rows ? esp_list_place(&job->list, i) : i;
        const uint64_t *kept = esp_mask_row(job->mask, row);
        for (int64_t k = 0; k < count; k++) {
            int64_t column = rows ? k : esp_list_place(&job->list, k), at = row * in + column;
            if (esp_bit(kept, column) &&
                !esp_weight_is_zero(job->sparse->dtype, job->dense->data, at)) {
                esp_copy_weight(job->width, job->values, i * count + k, job->dense->data, at);
            }
        }
    }
}

static esp_status encode_live(list_job *job, uint64_t *row_bits, esp_error *error)
{
    for (int64_t row = 0; row < job->sparse->out_features; row++) {
        esp_format_live_row(job->dense, job->mask, row, row_bits);
        join_row(job, row, row_bits, esp_mask_row_words(job->mask));
    }
    esp_list_source source = {.user = job, .live_line = copy_live, .grain = 1};
    ESP_TRY(esp_list_encode(job->sparse, &job->list, &source, error));
    const esp_tensor *values = &job->sparse->parts[0].tensor;
    esp_parallel_for(job->sparse->context, values->shape[0], esp_format_row_grain(values->shape[1]),
                     copy_rows, job);
    return ESP_OK;
}

static esp_status encode(const esp_tensor *dense, const esp_mask *mask, esp_sparse *sparse,
                         esp_error *error)
{
    esp_context *context = sparse->context;
    list_job job = job_of(sparse, dense, mask);
    size_t words = (size_t)esp_ceil_div(job.list.places, 64);
    size_t row_bits_words = (size_t)esp_mask_row_words(mask);
    job.live = esp_alloc_array(context, words, sizeof *job.live);
    uint64_t *row_bits = esp_alloc_array(context, row_bits_words, sizeof *row_bits);
    esp_status status = job.live == NULL || row_bits == NULL
                            ? esp_fail_memory(error, words * sizeof *job.live, "live rows")
                            : encode_live(&job, row_bits, error);
    esp_release(context, job.live);
    esp_release(context, row_bits);
    return status;
}

/* ---- decode: contents may be unchecked, what does not exist is passed over ---- */

static void decode_cols(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const list_job *job = user;
    int64_t in = job->sparse->in_features;
    for (int64_t row = begin; row < end; row++) {
        char *to = (char *)job->dense->data + (size_t)(row * in) * job->width;
        memset(to, 0, (size_t)in * job->width);
        for (int64_t k = 0; k < job->list.kept; k++) {
            int64_t column = esp_list_place(&job->list, k);
            if (column < in) {
                esp_copy_weight(job->width, to, column, job->values, row * job->list.kept + k);
            }
        }
    }
}

/* In one thread: an unchecked list may name a row twice. */
static void decode_rows(const list_job *job)
{
    size_t row_bytes = (size_t)job->sparse->in_features * job->width;
    memset(job->dense->data, 0, (size_t)job->sparse->out_features * row_bytes);
    for (int64_t k = 0; k < job->list.kept; k++) {
        int64_t row = esp_list_place(&job->list, k);
        if (row < job->list.places) {
            memcpy((char *)job->dense->data + (size_t)row * row_bytes,
                   job->values + (size_t)k * row_bytes, row_bytes);
        }
    }
}

static esp_status decode(const esp_sparse *sparse, esp_tensor *dense, esp_error *error)
{
    (void)error;
    list_job job = job_of(sparse, dense, NULL);
    if (sparse->in_features == 0 || sparse->out_features == 0) {
        return ESP_OK;
    }
    if (accepts_rows(&sparse->pattern)) {
        decode_rows(&job);
    } else {
        esp_parallel_for(sparse->context, sparse->out_features,
                         esp_format_row_grain(sparse->in_features), decode_cols, &job);
    }
    return ESP_OK;
}

/* ---- check ---- */

static esp_status check_values_row(void *user, int64_t i, int thread, esp_error *error)
{
    (void)thread;
    const list_job *job = user;
    int64_t count = job->sparse->parts[0].tensor.shape[1];
    for (int64_t k = 0; k < count; k++) {
        if (esp_weight_is_negative_zero(job->sparse->dtype, job->values, i * count + k)) {
            return esp_fail(error, ESP_BAD_FILE, "sparse.negative_zero",
                            "values: stored row %lld, entry %lld: -0.0 is stored, zeros are +0.0",
                            (long long)i, (long long)k);
        }
    }
    return ESP_OK;
}

/* job->live: which of the stored rows (columns) hold a weight. */
static void find_live_units(const list_job *job)
{
    const esp_tensor *values = &job->sparse->parts[0].tensor;
    bool rows = accepts_rows(&job->sparse->pattern);
    int64_t count = values->shape[1];
    for (int64_t i = 0; i < values->shape[0]; i++) {
        for (int64_t first = 0; first < count; first += 64) {
            uint64_t bits = esp_nonzero_word(values, i * count + first, ESP_MIN(64, count - first));
            if (!rows) {
                job->live[first / 64] |= bits;
            } else if (bits != 0) {
                esp_set_bit(job->live, i);
                break;
            }
        }
    }
}

static esp_status check_unit(const void *user, int64_t line, int64_t k, bool *zero,
                             esp_error *error)
{
    (void)line, (void)error;
    const list_job *job = user;
    *zero = !esp_bit(job->live, k);
    return ESP_OK;
}

static esp_status check(const esp_sparse *sparse, esp_error *error)
{
    esp_context *context = sparse->context;
    list_job job = job_of(sparse, NULL, NULL);
    const esp_tensor *values = &sparse->parts[0].tensor;
    ESP_TRY(esp_format_each(context, values->shape[0], esp_format_row_grain(values->shape[1]),
                            check_values_row, &job, error));
    size_t words = (size_t)esp_ceil_div(job.list.kept, 64);
    job.live = esp_alloc_array(context, words, sizeof *job.live);
    if (job.live == NULL) {
        return esp_fail_memory(error, words * sizeof *job.live, "checking lists");
    }
    find_live_units(&job);
    esp_status status = esp_list_check(sparse, &job.list, check_unit, &job, error);
    esp_release(context, job.live);
    return status;
}

/* ---- print ---- */

static void print_row(const esp_sparse *sparse, int64_t row, esp_buffer *text)
{
    list_job job = job_of(sparse, NULL, NULL);
    const esp_tensor *values = &sparse->parts[0].tensor;
    bool rows = accepts_rows(&sparse->pattern);
    int64_t stored = row, count = values->shape[1];
    if (rows) {
        for (stored = 0; stored < job.list.kept && esp_list_place(&job.list, stored) != row;) {
            stored++;
        }
        count = stored < job.list.kept ? count : 0;
    }
    esp_buffer_printf(text, "row %lld:", (long long)row);
    for (int64_t k = 0; k < ESP_MIN(count, ESP_FORMAT_PRINT_ENTRIES); k++) {
        esp_format_print_entry(sparse, values, stored * values->shape[1] + k,
                               rows ? k : esp_list_place(&job.list, k), text);
    }
    esp_buffer_text(text, count > ESP_FORMAT_PRINT_ENTRIES ? " ...\n" : "\n");
}

static void each_row_run(const esp_sparse *sparse, int64_t stored, esp_run_fn see, void *user)
{
    const list_job job = job_of(sparse, NULL, NULL);
    int64_t in = sparse->in_features;
    if (stored < job.list.kept) {
        esp_format_show_columns(esp_list_place(&job.list, stored), stored * in, 0, in, see, user);
    }
}

static void each_column_run(const esp_sparse *sparse, int64_t stored, esp_run_fn see, void *user)
{
    const list_job job = job_of(sparse, NULL, NULL);
    esp_run run = {.row = stored, .first = stored * job.list.kept};
    for (int64_t k = 0; k < job.list.kept; k++) {
        esp_run_add(&run, (uint32_t)esp_list_place(&job.list, k), see, user);
    }
    esp_run_end(&run, see, user);
}

const esp_format esp_format_rows = {
    .name = "rows",
    .accepts = accepts_rows,
    .layout = layout,
    .encode = encode,
    .decode = decode,
    .check = check,
    .print_row = print_row,
    .each_run = each_row_run,
};

const esp_format esp_format_cols = {
    .name = "cols",
    .accepts = accepts_cols,
    .layout = layout,
    .encode = encode,
    .decode = decode,
    .check = check,
    .print_row = print_row,
    .each_run = each_column_run,
};
