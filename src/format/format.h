/* The door of src/format: what each sparsity format means, one file each. */
#ifndef ESP_SRC_FORMAT_H
#define ESP_SRC_FORMAT_H

#include <espalier/sparse.h>

#include "base/base.h"
#include "tensor/tensor.h"

/* The canonical compressed weight. Parts are owned, 64-byte aligned, in layout order. */
struct esp_sparse {
    esp_context *context;
    esp_pattern pattern;
    esp_dtype dtype;
    int64_t out_features, in_features;
    int part_count;
    esp_sparse_part parts[ESP_SPARSE_MAX_PARTS];
};

/* Stored values of one output row that lie side by side: values[first + i] belongs to column
 * columns[i], ESP_NO_COLUMN: to none. */
#define ESP_RUN_MOST 256
#define ESP_NO_COLUMN UINT32_MAX
typedef struct esp_run {
    int64_t row, first;
    int count;
    uint32_t columns[ESP_RUN_MOST];
} esp_run;
typedef void (*esp_run_fn)(void *user, const esp_run *run);

/* One record per format: panel.c, nm.c, dense.c, csr.c, bsr.c, rows_cols.c. */
typedef struct esp_format {
    const char *name;
    bool (*accepts)(const esp_pattern *pattern);
    esp_status (*layout)(const esp_pattern *pattern, esp_dtype dtype, int64_t out_features,
                         int64_t in_features, bool has_rows,
                         esp_sparse_part parts[ESP_SPARSE_MAX_PARTS], int *count, esp_error *error);
    /* sparse: parts allocated, zeroed; mask never NULL here. */
    esp_status (*encode)(const esp_tensor *dense, const esp_mask *mask, esp_sparse *sparse,
                         esp_error *error);
    esp_status (*decode)(const esp_sparse *sparse, esp_tensor *dense, esp_error *error);
    esp_status (*check)(const esp_sparse *sparse, esp_error *error);
    void (*print_row)(const esp_sparse *sparse, int64_t row, esp_buffer *text);
    /* Shows the values of stored row 0..out_features-1 in the order in which they lie, none where
     * fewer rows are stored. */
    void (*each_run)(const esp_sparse *sparse, int64_t stored, esp_run_fn see, void *user);
} esp_format;

/* NULL when no format takes the pattern. */
const esp_format *esp_format_for(const esp_pattern *pattern);

/* Of `total` entries, blocks, rows or columns, how many a pattern with a plain sparsity keeps:
 * total - round_half_up(sparsity * total), at least 1 where there is any. */
int64_t esp_pattern_kept_of(const esp_pattern *pattern, int64_t total);

/* Rounds the values to another weight type; "sparse.type_overflow" where a finite one is too large
 * for it. */
ESP_MUST_CHECK esp_status esp_sparse_retype(esp_sparse *sparse, esp_dtype dtype, esp_error *error);

/* What is found of a row as its weight is scaled. */
typedef struct esp_scaled_row {
    double sum;       /* of the scaled weights, as they will be stored */
    double addend;    /* of the weights before, each times its column's addend */
    double lost, all; /* squares: of what storing them loses, and of the scaled weights */
} esp_scaled_row;

typedef struct esp_scaling {
    const float *factors; /* [in_features] */
    const float *addends; /* [in_features], or NULL */
    esp_dtype stored;     /* the type that the weight will have in the end: its own, or narrower */
    esp_scaled_row *rows; /* [out_features]: to be filled in */
} esp_scaling;

/* Multiplies each column by its factor; zeros are +0.0 then. Whether `stored` holds the result as
 * well as it holds weights: all is finite, and rounding loses no more than of normal numbers. */
bool esp_sparse_scale(esp_sparse *sparse, const esp_scaling *scaling);

/* V:2:5 as 2:4 over all columns in another order, which spread.c draws: 96 places for 80 columns.
 * Kernels read it (ESP_FORM_SPREAD); files never hold it. */
bool esp_pattern_spreads(const esp_pattern *pattern);
int64_t esp_spread_places(int64_t in_features);
ESP_MUST_CHECK esp_status esp_sparse_spread(const esp_sparse *sparse, esp_sparse **spread,
                                            esp_error *error);

/* Weights of one input, type and pattern as one: their rows one behind the other, or with `pairs`
 * those of two in turn. Where esp_pattern_stacks says so of the pattern and the parts' rows. */
#define ESP_MOST_STACKED 3
bool esp_pattern_stacks(const esp_pattern *pattern, const int64_t *rows, int count, bool pairs);
ESP_MUST_CHECK esp_status esp_sparse_stack(const esp_sparse *const *parts, int count, bool pairs,
                                           esp_sparse **sparse, esp_error *error);

/* The part by name, or NULL. */
const esp_tensor *esp_sparse_find_part(const esp_sparse *sparse, const char *name);

/* Bits of one mask row, 64 columns a word, column c at bit c % 64 of word c / 64. */
const uint64_t *esp_mask_row(const esp_mask *mask, int64_t row);
uint64_t *esp_mask_row_mut(esp_mask *mask, int64_t row);
int64_t esp_mask_row_words(const esp_mask *mask);

#endif
