/* Checking panels that came from outside: column lists, row order, then every row. The first
 * violation of each stage is reported with part, panel or row, and group. */
#include "format/panel.h"

typedef struct check_job {
    esp_panel_view view;
    const esp_sparse *sparse;
    int64_t seen_words;
    uint64_t *seen; /* [threads][seen_words]: columns met in a panel */
} check_job;

static esp_status bad_columns(esp_error *error, const char *code, int64_t panel, int64_t i,
                              uint32_t column, const char *wrong)
{
    char name[16];
    snprintf(name, sizeof name, column == ESP_NO_COLUMN ? "(padding)" : "%u", column);
    return esp_fail(error, ESP_BAD_FILE, code,
                    "columns: panel %lld, group %lld, entry %lld: column %s %s", (long long)panel,
                    (long long)(i / 4), (long long)(i % 4), name, wrong);
}

/* V:2:M: entry i lies in its group of M columns, and only columns that do not exist are missing. */
static esp_status check_group_of_m(const check_job *job, int64_t panel, int64_t i, uint32_t column,
                                   esp_error *error)
{
    int64_t m = job->sparse->pattern.m, first = i / 4 * m;
    int64_t end = ESP_MIN(job->view.in, first + m);
    bool is_padding = column == ESP_NO_COLUMN;
    if (is_padding != (i % 4 >= end - first)) {
        return bad_columns(error, "sparse.wrong_column_count", panel, i, column,
                           is_padding ? "where the group has columns left to keep"
                                      : "where the group has no column left");
    }
    if (!is_padding && (column < first || column >= end)) {
        return bad_columns(error, "sparse.column_outside_group", panel, i, column,
                           "lies outside its group of M columns");
    }
    return ESP_OK;
}

static esp_status check_columns(void *user, int64_t panel, int thread, esp_error *error)
{
    const check_job *job = user;
    uint64_t *seen = job->seen + thread * job->seen_words;
    memset(seen, 0, (size_t)job->seen_words * sizeof *seen);
    for (int64_t i = 0; i < job->view.kept; i++) {
        uint32_t column = esp_panel_column(&job->view, panel, i);
        bool is_padding = column == ESP_NO_COLUMN;
        if (!is_padding && column >= job->view.in) {
            return bad_columns(error, "sparse.column_out_of_range", panel, i, column,
                               "does not exist");
        }
        if (i % 4 != 0 && !is_padding && column < esp_panel_column(&job->view, panel, i - 1)) {
            return bad_columns(error, "sparse.columns_not_ascending", panel, i, column,
                               "is below the one before it (padding comes last)");
        }
        if (!is_padding && seen[column / 64] >> column % 64 & 1) {
            return bad_columns(error, "sparse.column_twice", panel, i, column,
                               "is in this panel already");
        }
        if (!is_padding) {
            seen[column / 64] |= (uint64_t)1 << column % 64;
        }
        if (job->sparse->pattern.m != 0) {
            ESP_TRY(check_group_of_m(job, panel, i, column, error));
        }
    }
    return ESP_OK;
}

static esp_status check_rows(const check_job *job, esp_error *error)
{
    esp_context *context = job->sparse->context;
    size_t count = (size_t)job->view.out;
    unsigned char *seen = esp_alloc_zero(context, count);
    if (seen == NULL) {
        return esp_fail_memory(error, count, "checking a row order");
    }
    esp_status status = ESP_OK;
    for (size_t i = 0; i < count && status == ESP_OK; i++) {
        size_t row = (size_t)esp_panel_row(&job->view, (int64_t)i);
        if (row >= count || seen[row] != 0) {
            status = esp_fail(error, ESP_BAD_FILE, "sparse.rows_not_bijection",
                              "rows: stored row %zu is output row %zu, which %s (each of %zu rows "
                              "once is expected)",
                              i, row, row >= count ? "does not exist" : "came before", count);
        } else {
            seen[row] = 1;
        }
    }
    esp_release(context, seen);
    return status;
}

static esp_status bad_group(esp_error *error, const char *code, const char *part, int64_t stored,
                            int64_t quad, const char *wrong)
{
    return esp_fail(error, ESP_BAD_FILE, code, "%s: stored row %lld, group %lld: %s", part,
                    (long long)stored, (long long)quad, wrong);
}

static esp_status check_quad(const check_job *job, int64_t stored, int64_t quad, esp_error *error)
{
    const esp_panel_view *view = &job->view;
    esp_dtype dtype = job->sparse->dtype;
    unsigned nibble = esp_panel_nibble(view, stored, quad);
    unsigned position[2] = {nibble & 3, nibble >> 2};
    if (position[0] >= position[1]) {
        return bad_group(error, "sparse.positions_not_increasing", "positions", stored, quad,
                         "the second position must be above the first");
    }
    bool zero[2];
    for (int i = 0; i < 2; i++) {
        int64_t at = stored * view->kept / 2 + 2 * quad + i;
        zero[i] = esp_weight_is_zero(dtype, view->values, at);
        if (zero[i] && esp_weight_is_negative_zero(dtype, view->values, at)) {
            return bad_group(error, "sparse.negative_zero", "values", stored, quad,
                             "-0.0 is stored, zeros are +0.0");
        }
        if (!zero[i] &&
            esp_panel_column(view, stored / view->v, 4 * quad + position[i]) == ESP_NO_COLUMN) {
            return bad_group(error, "sparse.padding_not_zero", "values", stored, quad,
                             "a weight on a padding column, which must hold +0.0");
        }
    }
    /* After the first gap of the positions no zero may follow. */
    bool gap_before[2] = {position[0] > 0, position[1] > 1};
    if ((zero[0] && gap_before[0]) || (zero[1] && gap_before[1])) {
        return bad_group(error, "sparse.fill_not_canonical", "positions", stored, quad,
                         "zeros that fill a group take the lowest free positions");
    }
    return ESP_OK;
}

static esp_status check_row(void *user, int64_t stored, int thread, esp_error *error)
{
    (void)thread;
    const check_job *job = user;
    for (int64_t quad = 0; quad < job->view.quads; quad++) {
        ESP_TRY(check_quad(job, stored, quad, error));
    }
    if (job->view.quads % 2 != 0 && esp_panel_nibble(&job->view, stored, job->view.quads) != 0) {
        return bad_group(error, "sparse.pad_bits_set", "positions", stored, job->view.quads,
                         "the unused high nibble of the row's last byte must be 0");
    }
    return ESP_OK;
}

esp_status esp_panel_check(const esp_sparse *sparse, esp_error *error)
{
    esp_context *context = sparse->context;
    check_job job = {.view = esp_panel_view_of(sparse), .sparse = sparse};
    job.seen_words = esp_ceil_div(job.view.in, 64);
    if (job.view.columns != NULL) {
        size_t words = (size_t)context->threads * (size_t)job.seen_words;
        job.seen = esp_alloc_array(context, words, sizeof *job.seen);
        if (job.seen == NULL) {
            return esp_fail_memory(error, words * sizeof *job.seen, "checking columns");
        }
        esp_status status =
            esp_format_each(context, job.view.panels, 1, check_columns, &job, error);
        esp_release(context, job.seen);
        ESP_TRY(status);
    }
    if (job.view.rows != NULL) {
        ESP_TRY(check_rows(&job, error));
    }
    return esp_format_each(context, job.view.out, esp_format_row_grain(job.view.in), check_row,
                           &job, error);
}
