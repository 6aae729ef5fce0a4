/* block:RxC@s: compressed rows of blocks. Blocks of R x C, cut from the upper left; those at the
 * lower and right edge may hang over and are stored whole, padded with +0.0.
 *
 *   values             dtype       [kept][R][C]
 *   block_columns      U16 or U32  [kept]              ascending in a block row; U32 when
 *                                                      ceil(in / C) > 65536
 *   block_row_offsets  U32 or U64  [ceil(out / R) + 1]
 *
 * kept = blocks - round_half_up(s * blocks), at least 1, blocks = ceil(out / R) * ceil(in / C).
 * Missing blocks are zero blocks at the lowest free places, counted block row by block row. No
 * -0.0, nothing but +0.0 on padding. */
#include "format/lists.h"

static const esp_list_words words = {"block_columns", "block_row_offsets", "block row",
                                     "block column", "blocks"};

static bool accepts(const esp_pattern *pattern)
{
    return pattern->kind == ESP_PATTERN_BLOCK;
}

static esp_status layout(const esp_pattern *pattern, esp_dtype dtype, int64_t out_features,
                         int64_t in_features, bool has_rows,
                         esp_sparse_part parts[ESP_SPARSE_MAX_PARTS], int *count, esp_error *error)
{
    ESP_TRY(esp_list_check_sizes(out_features, in_features, has_rows, error));
    int64_t lines = esp_ceil_div(out_features, pattern->block_rows);
    int64_t places = esp_ceil_div(in_features, pattern->block_cols);
    int64_t kept = esp_pattern_kept_of(pattern, lines * places);
    parts[0] = (esp_sparse_part){
        .name = "values",
        .tensor = {
            .dtype = dtype, .rank = 3, .shape = {kept, pattern->block_rows, pattern->block_cols}}};
    esp_list_set_parts(&words, lines, places, kept, &parts[1], &parts[2]);
    *count = 3;
    return ESP_OK;
}

typedef struct block_view {
    const esp_sparse *sparse;
    esp_list_view list;
    int64_t out, in, rows, columns; /* of the weight; of a block */
    size_t width;
    void *values;
} block_view;

static block_view view_of(const esp_sparse *sparse)
{
    const esp_pattern *pattern = &sparse->pattern;
    int64_t out = sparse->out_features, in = sparse->in_features;
    return (block_view){
        .sparse = sparse,
        .list = esp_list_view_of(sparse, &words, esp_ceil_div(out, pattern->block_rows),
                                 esp_ceil_div(in, pattern->block_cols)),
        .out = out,
        .in = in,
        .rows = pattern->block_rows,
        .columns = pattern->block_cols,
        .width = esp_dtype_bytes(sparse->dtype),
        .values = sparse->parts[0].tensor.data,
    };
}

/* The element of `values` for row r and column c of stored block k. */
static int64_t element_of(const block_view *view, int64_t k, int64_t r, int64_t c)
{
    return (k * view->rows + r) * view->columns + c;
}

/* ---- encode ---- */

typedef struct encode_job {
    block_view view;
    const esp_tensor *dense;
    const esp_mask *mask;
    int64_t row_words;
} encode_job;

/* scratch: one row's live bits, the block row's. */
static void live_line(const void *user, int64_t line, uint64_t *scratch, uint64_t *live)
{
    const encode_job *job = user;
    const block_view *view = &job->view;
    uint64_t *any = scratch + job->row_words;
    memset(any, 0, (size_t)job->row_words * sizeof *any);
    for (int64_t r = line * view->rows; r < ESP_MIN(view->out, (line + 1) * view->rows); r++) {
        esp_format_live_row(job->dense, job->mask, r, scratch);
        for (int64_t i = 0; i < job->row_words; i++) {
            any[i] |= scratch[i];
        }
    }
    memset(live, 0, (size_t)esp_ceil_div(view->list.places, 64) * sizeof *live);
    for (int64_t b = 0; b < view->list.places; b++) {
        if (esp_any_bit(any, b * view->columns, ESP_MIN(view->in, (b + 1) * view->columns))) {
            esp_set_bit(live, b);
        }
    }
}

static void store(const void *user, int64_t line, int64_t place, int64_t k)
{
    const encode_job *job = user;
    const block_view *view = &job->view;
    int64_t row = line * view->rows, column = place * view->columns;
    int64_t rows = ESP_MIN(view->rows, view->out - row);
    int64_t columns = ESP_MIN(view->columns, view->in - column);
    for (int64_t r = 0; r < rows; r++) {
        const uint64_t *kept = esp_mask_row(job->mask, row + r);
        for (int64_t c = 0; c < columns; c++) {
            int64_t at = (row + r) * view->in + column + c;
            if (esp_bit(kept, column + c) &&
                !esp_weight_is_zero(view->sparse->dtype, job->dense->data, at)) {
                esp_copy_weight(view->width, view->values, element_of(view, k, r, c),
                                job->dense->data, at);
            }
        }
    }
}

static esp_status encode(const esp_tensor *dense, const esp_mask *mask, esp_sparse *sparse,
                         esp_error *error)
{
    encode_job job = {.view = view_of(sparse),
                      .dense = dense,
                      .mask = mask,
                      .row_words = esp_mask_row_words(mask)};
    esp_list_source source = {.user = &job,
                              .live_line = live_line,
                              .scratch_words = 2 * job.row_words,
                              .store = store,
                              .grain = 1 + esp_format_row_grain(job.view.in) / job.view.rows};
    return esp_list_encode(sparse, &job.view.list, &source, error);
}

/* ---- decode ---- */

typedef struct decode_job {
    block_view view;
    char *dense;
} decode_job;

/* Contents may be unchecked: blocks that do not exist are passed over. */
static void decode_row(const decode_job *job, int64_t row)
{
    const block_view *view = &job->view;
    int64_t line = row / view->rows, stop = esp_list_begin(&view->list, line + 1);
    char *to = job->dense + (size_t)(row * view->in) * view->width;
    memset(to, 0, (size_t)view->in * view->width);
    for (int64_t k = esp_list_begin(&view->list, line); k < stop; k++) {
        int64_t place = esp_list_place(&view->list, k), column = place * view->columns;
        if (place < view->list.places) {
            int64_t from = element_of(view, k, row % view->rows, 0);
            memcpy(to + (size_t)column * view->width,
                   (const char *)view->values + (size_t)from * view->width,
                   (size_t)ESP_MIN(view->columns, view->in - column) * view->width);
        }
    }
}

static void decode_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        decode_row(user, row);
    }
}

static esp_status decode(const esp_sparse *sparse, esp_tensor *dense, esp_error *error)
{
    (void)error;
    decode_job job = {view_of(sparse), dense->data};
    if (sparse->in_features > 0) {
        esp_parallel_for(sparse->context, sparse->out_features,
                         esp_format_row_grain(sparse->in_features), decode_rows, &job);
    }
    return ESP_OK;
}

/* ---- check ---- */

static esp_status check_block(const void *user, int64_t line, int64_t k, bool *zero,
                              esp_error *error)
{
    const block_view *view = user;
    esp_dtype dtype = view->sparse->dtype;
    int64_t rows = ESP_MIN(view->rows, view->out - line * view->rows);
    int64_t columns =
        ESP_MIN(view->columns, view->in - esp_list_place(&view->list, k) * view->columns);
    *zero = true;
    for (int64_t r = 0; r < view->rows; r++) {
        for (int64_t c = 0; c < view->columns; c++) {
            int64_t at = element_of(view, k, r, c);
            if (esp_weight_is_negative_zero(dtype, view->values, at)) {
                return esp_list_bad_unit(&view->list, "sparse.negative_zero", "values", line, k,
                                         "-0.0 is stored, zeros are +0.0", error);
            }
            if (esp_weight_is_zero(dtype, view->values, at)) {
                continue;
            }
            *zero = false;
            if (r >= rows || c >= columns) {
                return esp_list_bad_unit(&view->list, "sparse.padding_not_zero", "values", line, k,
                                         "a weight beyond the edge, where +0.0 must stand", error);
            }
        }
    }
    return ESP_OK;
}

static esp_status check(const esp_sparse *sparse, esp_error *error)
{
    block_view view = view_of(sparse);
    return esp_list_check(sparse, &view.list, check_block, &view, error);
}

static void print_row(const esp_sparse *sparse, int64_t row, esp_buffer *text)
{
    block_view view = view_of(sparse);
    int64_t line = row / view.rows, k = esp_list_begin(&view.list, line), shown = 0;
    int64_t stop = esp_list_begin(&view.list, line + 1);
    esp_buffer_printf(text, "row %lld:", (long long)row);
    for (; k < stop && shown <= ESP_FORMAT_PRINT_ENTRIES; k++) {
        int64_t column = esp_list_place(&view.list, k) * view.columns;
        int64_t end = ESP_MIN(view.in, column + view.columns);
        for (int64_t c = column; c < end && shown <= ESP_FORMAT_PRINT_ENTRIES; c++, shown++) {
            if (shown < ESP_FORMAT_PRINT_ENTRIES) {
                esp_format_print_entry(sparse, &sparse->parts[0].tensor,
                                       element_of(&view, k, row % view.rows, c - column), c, text);
            }
        }
    }
    esp_buffer_text(text, shown > ESP_FORMAT_PRINT_ENTRIES ? " ...\n" : "\n");
}

static void each_run(const esp_sparse *sparse, int64_t stored, esp_run_fn see, void *user)
{
    const block_view view = view_of(sparse);
    int64_t line = stored / view.rows, stop = esp_list_begin(&view.list, line + 1);
    for (int64_t k = esp_list_begin(&view.list, line); k < stop; k++) {
        int64_t column = esp_list_place(&view.list, k) * view.columns;
        int64_t count = ESP_MIN(view.columns, view.in - column);
        esp_format_show_columns(stored, element_of(&view, k, stored % view.rows, 0), column, count,
                                see, user);
    }
}

const esp_format esp_format_bsr = {
    .name = "bsr",
    .accepts = accepts,
    .layout = layout,
    .encode = encode,
    .decode = decode,
    .check = check,
    .print_row = print_row,
    .each_run = each_run,
};
