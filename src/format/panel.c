/* The panel family: 2:4, V:2:M and free columns are one form. Stored rows lie in panels of V; a
 * panel lists the input columns that it keeps; on those columns every row is an ordinary 2:4 row.
 *
 *   values     dtype   [out][kept / 2]         v0 v1 | v2 v3 | ...    two of each four columns
 *   positions  U8      [out][ceil(kept / 8)]   one nibble a group of four, first group low:
 *                                              bits 0-1 lower, bits 2-3 higher position
 *   columns    U16/32  [ceil(out / V)][kept]   c0 c1 c2 c3 | c4 ...   absent for 2:4
 *   rows       U16/32  [out]                   optional: stored row i is output row rows[i]
 *
 * W[row(i)][columns[i / V][4 g + position]] = value, everything else +0.0. Invariants: positions of
 * a group strictly increase; a group with fewer than two non-zeros is filled by +0.0 at the lowest
 * free positions; columns ascend inside a group of four, padding (all ones) last, none twice in a
 * panel; no -0.0 anywhere. docs/formats.md draws the bytes. */
#include "format/panel.h"

static bool accepts(const esp_pattern *pattern)
{
    return pattern->kind == ESP_PATTERN_PANEL;
}

static esp_status layout(const esp_pattern *pattern, esp_dtype dtype, int64_t out_features,
                         int64_t in_features, bool has_rows,
                         esp_sparse_part parts[ESP_SPARSE_MAX_PARTS], int *count, esp_error *error)
{
    if (in_features > ESP_FORMAT_MAX_FEATURES || out_features > ESP_FORMAT_MAX_FEATURES) {
        return esp_fail(error, ESP_UNSUPPORTED, "format.too_large",
                        "a panel weight has at most 4294967295 rows and columns, not %lld x %lld",
                        (long long)out_features, (long long)in_features);
    }
    int64_t kept = esp_pattern_kept(pattern, in_features);
    int parts_used = 0;
    esp_format_set_part(&parts[parts_used++], "values", dtype, out_features, kept / 2);
    esp_format_set_part(&parts[parts_used++], "positions", ESP_U8, out_features,
                        esp_ceil_div(kept, 8));
    if (!esp_pattern_is_2_4(pattern)) {
        int64_t v = esp_pattern_panel_rows(pattern, out_features);
        /* 65535 marks padding in U16, so column 65535 must not exist */
        esp_format_set_part(&parts[parts_used++], "columns",
                            in_features <= UINT16_MAX ? ESP_U16 : ESP_U32,
                            esp_ceil_div(out_features, v), kept);
    }
    if (has_rows) {
        esp_format_set_part(&parts[parts_used++], "rows", out_features <= 65536 ? ESP_U16 : ESP_U32,
                            out_features, -1);
    }
    *count = parts_used;
    return ESP_OK;
}

esp_panel_view esp_panel_view_of(const esp_sparse *sparse)
{
    const esp_tensor *values = esp_sparse_find_part(sparse, "values");
    const esp_tensor *positions = esp_sparse_find_part(sparse, "positions");
    const esp_tensor *columns = esp_sparse_find_part(sparse, "columns");
    const esp_tensor *rows = esp_sparse_find_part(sparse, "rows");
    int64_t out = sparse->out_features;
    int64_t kept = esp_pattern_kept(&sparse->pattern, sparse->in_features);
    int64_t v = esp_pattern_panel_rows(&sparse->pattern, out);
    v = v == 0 ? ESP_MAX(1, out) : v;
    return (esp_panel_view){
        .out = out,
        .in = sparse->in_features,
        .v = v,
        .panels = esp_ceil_div(out, v),
        .kept = kept,
        .quads = kept / 4,
        .position_bytes = esp_ceil_div(kept, 8),
        .width = esp_dtype_bytes(sparse->dtype),
        .values = values->data,
        .positions = positions->data,
        .columns = columns != NULL ? columns->data : NULL,
        .wide_columns = columns != NULL && columns->dtype == ESP_U32,
        .rows = rows != NULL ? rows->data : NULL,
        .wide_rows = rows != NULL && rows->dtype == ESP_U32,
    };
}

/* ---- decode ---- */

typedef struct decode_job {
    esp_panel_view view;
    char *dense;
} decode_job;

/* Contents may be unchecked: what points outside is passed over. Inlined for a constant width. */
static inline __attribute__((always_inline)) void decode_row(const decode_job *job, int64_t stored,
                                                             size_t width)
{
    const esp_panel_view *view = &job->view;
    int64_t row = esp_panel_row(view, stored), panel = stored / view->v;
    if (row >= view->out) {
        return;
    }
    char *to = job->dense + (size_t)(row * view->in) * width;
    memset(to, 0, (size_t)view->in * width);
    const char *values = (const char *)view->values + (size_t)(stored * view->kept / 2) * width;
    for (int64_t quad = 0; quad < view->quads; quad++) {
        unsigned nibble = esp_panel_nibble(view, stored, quad);
        uint32_t lower = esp_panel_column(view, panel, 4 * quad + (nibble & 3));
        uint32_t upper = esp_panel_column(view, panel, 4 * quad + (nibble >> 2));
        if (lower < view->in) {
            esp_copy_weight(width, to, lower, values, 2 * quad);
        }
        if (upper < view->in) {
            esp_copy_weight(width, to, upper, values, 2 * quad + 1);
        }
    }
}

static void decode_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const decode_job *job = user;
    for (int64_t row = begin; row < end; row++) {
        if (job->view.width == 2) {
            decode_row(job, row, 2);
        } else {
            decode_row(job, row, 4);
        }
    }
}

static esp_status decode(const esp_sparse *sparse, esp_tensor *dense, esp_error *error)
{
    (void)error;
    decode_job job = {esp_panel_view_of(sparse), dense->data};
    if (job.view.in > 0) {
        esp_parallel_for(sparse->context, job.view.out, esp_format_row_grain(job.view.in),
                         decode_rows, &job);
    }
    return ESP_OK;
}

static void print_row(const esp_sparse *sparse, int64_t row, esp_buffer *text)
{
    esp_panel_view view = esp_panel_view_of(sparse);
    const esp_tensor *values = esp_sparse_find_part(sparse, "values");
    esp_buffer_printf(text, "row %lld:", (long long)esp_panel_row(&view, row));
    for (int64_t i = 0; i < ESP_MIN(view.kept / 2, ESP_FORMAT_PRINT_ENTRIES); i++) {
        unsigned nibble = esp_panel_nibble(&view, row, i / 2);
        unsigned position = i % 2 == 0 ? nibble & 3 : nibble >> 2;
        uint32_t column = esp_panel_column(&view, row / view.v, i / 2 * 4 + position);
        if (column != ESP_NO_COLUMN) {
            esp_format_print_entry(sparse, values, row * view.kept / 2 + i, column, text);
        }
    }
    esp_buffer_text(text, view.kept / 2 > ESP_FORMAT_PRINT_ENTRIES ? " ...\n" : "\n");
}

static void each_run(const esp_sparse *sparse, int64_t stored, esp_run_fn see, void *user)
{
    const esp_panel_view view = esp_panel_view_of(sparse);
    int64_t panel = stored / view.v;
    esp_run run = {.row = esp_panel_row(&view, stored), .first = stored * view.kept / 2};
    for (int64_t quad = 0; quad < view.quads; quad++) {
        unsigned nibble = esp_panel_nibble(&view, stored, quad);
        esp_run_add(&run, esp_panel_column(&view, panel, 4 * quad + (nibble & 3)), see, user);
        esp_run_add(&run, esp_panel_column(&view, panel, 4 * quad + (nibble >> 2)), see, user);
    }
    esp_run_end(&run, see, user);
}

const esp_format esp_format_panel = {
    .name = "panel",
    .accepts = accepts,
    .layout = layout,
    .encode = esp_panel_encode,
    .decode = decode,
    .check = esp_panel_check,
    .print_row = print_row,
    .each_run = each_run,
};
