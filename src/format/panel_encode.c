/* Encoding panels, in two parallel passes. First each panel fixes its columns: V:2:M from the live
 * columns of every group of M, filled with the lowest dead ones, so that a pruned tensor has one
 * encoding whoever chose its mask; free columns from the mask, or four by four in ascending order.
 * Then each row picks its two values of every four columns. `live` is always mask and not zero. */
#include "format/panel.h"

typedef struct encode_job {
    esp_panel_view view;
    const esp_pattern *pattern;
    const esp_tensor *dense;
    const esp_mask *mask;
    const uint32_t *mask_columns; /* [panels][kept], or NULL */
    int64_t row_words;
    uint64_t *scratch; /* [threads][2 * row_words]: one row's live bits, one panel's */
} encode_job;

/* Positions of a group by its four live bits: lower | upper << 2, filled canonically. 255: three or
 * more live. */
static const uint8_t nibble_of_live[16] = {
    0 | 1 << 2, 0 | 1 << 2, 0 | 1 << 2, 0 | 1 << 2, 0 | 2 << 2, 0 | 2 << 2, 1 | 2 << 2, 255,
    0 | 3 << 2, 0 | 3 << 2, 1 | 3 << 2, 255,        2 | 3 << 2, 255,        255,        255};

static bool bit_of(const uint64_t *words, int64_t bit)
{
    return words[bit / 64] >> bit % 64 & 1;
}

static int64_t mask_row_of(const encode_job *job, int64_t stored)
{
    const uint32_t *rows = esp_mask_rows(job->mask);
    return rows != NULL ? (int64_t)rows[stored] : stored;
}

/* ---- pass one: columns ---- */

static void put_column(const encode_job *job, int64_t panel, int64_t i, uint32_t column)
{
    int64_t at = panel * job->view.kept + i;
    if (job->view.wide_columns) {
        ((uint32_t *)job->view.columns)[at] = column;
    } else {
        ((uint16_t *)job->view.columns)[at] = (uint16_t)column; /* padding stays all ones */
    }
}

static void find_panel_live(const encode_job *job, int64_t panel, uint64_t *row_live,
                            uint64_t *panel_live)
{
    memset(panel_live, 0, (size_t)job->row_words * sizeof *panel_live);
    int64_t end = ESP_MIN(job->view.out, (panel + 1) * job->view.v);
    for (int64_t stored = panel * job->view.v; stored < end; stored++) {
        esp_format_live_row(job->dense, job->mask, mask_row_of(job, stored), row_live);
        for (int64_t i = 0; i < job->row_words; i++) {
            panel_live[i] |= row_live[i];
        }
    }
}

/* Group g of M columns: the live ones, then the lowest others up to four, ascending. */
static esp_status choose_group(const encode_job *job, int64_t panel, int64_t group,
                               const uint64_t *live, esp_error *error)
{
    int64_t m = job->pattern->m, first = group * m;
    int64_t end = ESP_MIN(job->view.in, first + m);
    int64_t live_count = 0;
    for (int64_t c = first; c < end; c++) {
        live_count += bit_of(live, c);
    }
    if (live_count > 4) {
        return esp_fail(error, ESP_CHECK_FAILED, "format.mask_mismatch",
                        "panel %lld (rows %lld to %lld), group %lld (columns %lld to %lld): %lld "
                        "columns hold weights, a panel keeps 4 of each %lld",
                        (long long)panel, (long long)(panel * job->view.v),
                        (long long)(ESP_MIN(job->view.out, (panel + 1) * job->view.v) - 1),
                        (long long)group, (long long)first, (long long)(end - 1),
                        (long long)live_count, (long long)m);
    }
    int64_t fill = ESP_MIN(4, end - first) - live_count, used = 0;
    for (int64_t c = first; c < end && used < 4; c++) {
        bool is_live = bit_of(live, c);
        if (is_live || fill > 0) {
            fill -= !is_live;
            put_column(job, panel, group * 4 + used++, (uint32_t)c);
        }
    }
    while (used < 4) {
        put_column(job, panel, group * 4 + used++, ESP_NO_COLUMN);
    }
    return ESP_OK;
}

/* Free columns without a list: live ones in ascending order. */
static esp_status deal_ascending(const encode_job *job, int64_t panel, const uint64_t *live,
                                 esp_error *error)
{
    int64_t used = 0;
    for (int64_t word = 0; word < job->row_words; word++) {
        for (uint64_t rest = live[word]; rest != 0; rest &= rest - 1, used++) {
            if (used < job->view.kept) {
                put_column(job, panel, used, (uint32_t)(word * 64 + __builtin_ctzll(rest)));
            }
        }
    }
    if (used > job->view.kept) {
        return esp_fail(error, ESP_CHECK_FAILED, "format.mask_mismatch",
                        "panel %lld (from row %lld): %lld columns hold weights, the pattern keeps "
                        "%lld",
                        (long long)panel, (long long)(panel * job->view.v), (long long)used,
                        (long long)job->view.kept);
    }
    for (; used < job->view.kept; used++) {
        put_column(job, panel, used, ESP_NO_COLUMN);
    }
    return ESP_OK;
}

static esp_status choose_columns(void *user, int64_t panel, int thread, esp_error *error)
{
    const encode_job *job = user;
    if (job->mask_columns != NULL) {
        for (int64_t i = 0; i < job->view.kept; i++) {
            put_column(job, panel, i, job->mask_columns[panel * job->view.kept + i]);
        }
        return ESP_OK;
    }
    uint64_t *row_live = job->scratch + thread * 2 * job->row_words;
    uint64_t *panel_live = row_live + job->row_words;
    find_panel_live(job, panel, row_live, panel_live);
    if (job->pattern->m == 0) {
        return deal_ascending(job, panel, panel_live, error);
    }
    for (int64_t group = 0; group < job->view.quads; group++) {
        ESP_TRY(choose_group(job, panel, group, panel_live, error));
    }
    return ESP_OK;
}

/* ---- pass two: values and positions ---- */

static esp_status too_many_live(const encode_job *job, int64_t stored, int64_t quad, unsigned live,
                                esp_error *error)
{
    uint32_t columns[4];
    for (int i = 0; i < 4; i++) {
        columns[i] = esp_panel_column(&job->view, stored / job->view.v, 4 * quad + i);
    }
    return esp_fail(error, ESP_CHECK_FAILED, "format.mask_mismatch",
                    "row %lld, group %lld (kept columns %u, %u, %u, %u): %d of 4 hold weights, at "
                    "most 2 can",
                    (long long)mask_row_of(job, stored), (long long)quad, columns[0], columns[1],
                    columns[2], columns[3], __builtin_popcount(live));
}

/* A live column that the panel's list lacks. */
static esp_status not_listed(const encode_job *job, int64_t stored, uint64_t *live,
                             esp_error *error)
{
    int64_t panel = stored / job->view.v;
    for (int64_t i = 0; i < job->view.kept; i++) {
        uint32_t column = esp_panel_column(&job->view, panel, i);
        if (column != ESP_NO_COLUMN) {
            live[column / 64] &= ~((uint64_t)1 << column % 64);
        }
    }
    int64_t word = 0;
    while (word < job->row_words - 1 && live[word] == 0) {
        word++;
    }
    return esp_fail(error, ESP_CHECK_FAILED, "format.mask_mismatch",
                    "row %lld, column %lld holds a weight, but panel %lld does not keep that "
                    "column",
                    (long long)mask_row_of(job, stored),
                    (long long)(word * 64 + (live[word] != 0 ? __builtin_ctzll(live[word]) : 0)),
                    (long long)panel);
}

static unsigned live_of_quad(const encode_job *job, int64_t panel, int64_t quad,
                             const uint64_t *live)
{
    if (job->view.columns == NULL) {
        return (unsigned)(live[quad / 16] >> quad % 16 * 4 & 15);
    }
    unsigned bits = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t column = esp_panel_column(&job->view, panel, 4 * quad + i);
        if (column != ESP_NO_COLUMN) {
            bits |= (unsigned)bit_of(live, column) << i;
        }
    }
    return bits;
}

/* Inlined for a constant width. Returns the live entries that found a place, or -1 - quad for a
 * group with more than two. */
static inline __attribute__((always_inline)) int64_t
encode_quads(const encode_job *job, int64_t stored, int64_t row, const uint64_t *live, size_t width)
{
    const esp_panel_view *view = &job->view;
    const char *from = (const char *)job->dense->data + (size_t)(row * view->in) * width;
    char *values = (char *)view->values + (size_t)(stored * view->kept / 2) * width;
    uint8_t *positions = view->positions + stored * view->position_bytes;
    int64_t panel = stored / view->v, placed = 0;
    for (int64_t quad = 0; quad < view->quads; quad++) {
        unsigned bits = live_of_quad(job, panel, quad, live);
        unsigned nibble = nibble_of_live[bits];
        if (nibble == 255) {
            return -1 - quad;
        }
        positions[quad / 2] |= (uint8_t)(nibble << quad % 2 * 4);
        for (int i = 0; i < 2; i++) {
            unsigned position = i == 0 ? nibble & 3 : nibble >> 2;
            if (bits >> position & 1) {
                int64_t column = esp_panel_column(view, panel, 4 * quad + position);
                esp_copy_weight(width, values, 2 * quad + i, from, column);
                placed++;
            }
        }
    }
    return placed;
}

static esp_status encode_row(void *user, int64_t stored, int thread, esp_error *error)
{
    const encode_job *job = user;
    uint64_t *live = job->scratch + thread * 2 * job->row_words;
    int64_t row = mask_row_of(job, stored);
    esp_format_live_row(job->dense, job->mask, row, live);
    int64_t placed = job->view.width == 2 ? encode_quads(job, stored, row, live, 2)
                                          : encode_quads(job, stored, row, live, 4);
    if (placed < 0) {
        int64_t quad = -1 - placed;
        unsigned bits = live_of_quad(job, stored / job->view.v, quad, live);
        return too_many_live(job, stored, quad, bits, error);
    }
    int64_t wanted = 0;
    for (int64_t i = 0; i < job->row_words; i++) {
        wanted += __builtin_popcountll(live[i]);
    }
    return placed == wanted ? ESP_OK : not_listed(job, stored, live, error);
}

/* ---- the whole ---- */

static void write_rows(const encode_job *job)
{
    const uint32_t *rows = esp_mask_rows(job->mask);
    for (int64_t i = 0; job->view.rows != NULL && i < job->view.out; i++) {
        if (job->view.wide_rows) {
            ((uint32_t *)job->view.rows)[i] = rows[i];
        } else {
            ((uint16_t *)job->view.rows)[i] = (uint16_t)rows[i];
        }
    }
}

/* Only free columns are taken from the mask: V:2:M follows from the live entries. */
static esp_status take_mask_columns(encode_job *job, esp_error *error)
{
    int64_t v = 0, kept = 0;
    const uint32_t *columns = esp_mask_columns(job->mask, &v, &kept);
    if (columns == NULL || job->pattern->v == 0 || job->pattern->m != 0) {
        return ESP_OK;
    }
    if (ESP_MAX(1, ESP_MIN(v, job->view.out)) != job->view.v || kept != job->view.kept) {
        return esp_fail(error, ESP_CHECK_FAILED, "format.mask_mismatch",
                        "the mask has panels of %lld rows that keep %lld columns, the pattern "
                        "wants %lld rows and %lld columns",
                        (long long)v, (long long)kept, (long long)job->view.v,
                        (long long)job->view.kept);
    }
    job->mask_columns = columns;
    return ESP_OK;
}

esp_status esp_panel_encode(const esp_tensor *dense, const esp_mask *mask, esp_sparse *sparse,
                            esp_error *error)
{
    esp_context *context = sparse->context;
    encode_job job = {.view = esp_panel_view_of(sparse),
                      .pattern = &sparse->pattern,
                      .dense = dense,
                      .mask = mask,
                      .row_words = esp_mask_row_words(mask)};
    ESP_TRY(take_mask_columns(&job, error));
    size_t words = (size_t)context->threads * 2 * (size_t)job.row_words;
    job.scratch = esp_alloc_array(context, words, sizeof *job.scratch);
    if (job.scratch == NULL) {
        return esp_fail_memory(error, words * sizeof *job.scratch, "live rows");
    }
    esp_status status = ESP_OK;
    if (job.view.columns != NULL) {
        status = esp_format_each(context, job.view.panels, 1, choose_columns, &job, error);
    }
    if (status == ESP_OK) {
        write_rows(&job);
        status = esp_format_each(context, job.view.out, esp_format_row_grain(job.view.in),
                                 encode_row, &job, error);
    }
    esp_release(context, job.scratch);
    return status;
}
