/* Private to src/format: the list of formats, and what their files share. */
#ifndef ESP_FORMAT_FORMATS_H
#define ESP_FORMAT_FORMATS_H

#include "format/format.h"

extern const esp_format esp_format_dense; /* dense.c */
extern const esp_format esp_format_nm;    /* nm.c */
extern const esp_format esp_format_panel; /* panel.c */
extern const esp_format esp_format_csr;   /* csr.c */
extern const esp_format esp_format_bsr;   /* bsr.c */
extern const esp_format esp_format_rows;  /* rows_cols.c */
extern const esp_format esp_format_cols;  /* rows_cols.c */

/* All parts allocated and zeroed. */
ESP_MUST_CHECK esp_status esp_sparse_create(esp_context *context, const esp_pattern *pattern,
                                            esp_dtype dtype, int64_t out_features,
                                            int64_t in_features, bool has_rows, esp_sparse **sparse,
                                            esp_error *error);

/* Column lists stop below 2^32 - 1, the mark of a missing column. */
#define ESP_FORMAT_MAX_FEATURES 4294967295

/* Calls body for each index, in parallel. When some fail, the lowest one is run once more for its
 * message, so that what is reported does not depend on threads; body must be repeatable. */
typedef esp_status (*esp_index_fn)(void *user, int64_t index, int thread, esp_error *error);
esp_status esp_format_each(esp_context *context, int64_t count, int64_t grain, esp_index_fn body,
                           void *user, esp_error *error);

/* Rows of one piece of a parallel loop: about 64 Ki weights. */
static inline int64_t esp_format_row_grain(int64_t in_features)
{
    return 1 + 65536 / ESP_MAX(1, in_features);
}

/* live[word] of one output row: what the mask keeps and is not zero. */
void esp_format_live_row(const esp_tensor *dense, const esp_mask *mask, int64_t row,
                         uint64_t *live);

/* Fills one part of a layout. */
void esp_format_set_part(esp_sparse_part *part, const char *name, esp_dtype dtype, int64_t rows,
                         int64_t columns);

/* One element by its width, 2 or 4 bytes; both sides any alignment. */
static inline void esp_copy_weight(size_t width, void *to, int64_t to_index, const void *from,
                                   int64_t from_index)
{
    memcpy((char *)to + (size_t)to_index * width, (const char *)from + (size_t)from_index * width,
           width);
}

/* -0.0 has no place in a compressed weight: whether the element is exactly that. */
static inline bool esp_weight_is_negative_zero(esp_dtype dtype, const void *data, int64_t index)
{
    const unsigned char *at = data;
    size_t width = esp_dtype_bytes(dtype);
    return esp_weight_is_zero(dtype, data, index) && at[(size_t)index * width + width - 1] == 0x80;
}

/* Shows `count` values from `first` on, which belong to neighbouring columns from `column` on. */
void esp_format_show_columns(int64_t row, int64_t first, int64_t column, int64_t count,
                             esp_run_fn see, void *user);
/* Adds a value to a run, which is shown before it gets too long, and behind the last one. */
static inline void esp_run_add(esp_run *run, uint32_t column, esp_run_fn see, void *user)
{
    run->columns[run->count++] = column;
    if (run->count == ESP_RUN_MOST) {
        see(user, run);
        run->first += run->count;
        run->count = 0;
    }
}
static inline void esp_run_end(const esp_run *run, esp_run_fn see, void *user)
{
    if (run->count > 0) {
        see(user, run);
    }
}

/* " 12:0.5" for a person. */
void esp_format_print_entry(const esp_sparse *sparse, const esp_tensor *values, int64_t index,
                            int64_t column, esp_buffer *text);
/* Entries that print_row shows before it writes "...". */
#define ESP_FORMAT_PRINT_ENTRIES 16

#endif
