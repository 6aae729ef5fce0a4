/* A weight in host memory as the ref and cpu kernels read it: the canonical parts, copied and
 * 64-byte aligned, with their pointers found once. */
#ifndef ESP_OP_HOST_WEIGHT_H
#define ESP_OP_HOST_WEIGHT_H

#include <espalier/matmul.h>

#include "base/base.h"
#include "tensor/tensor.h"

typedef enum esp_host_format {
    ESP_HOST_DENSE = 0,
    ESP_HOST_NM,
    ESP_HOST_PANEL,
    ESP_HOST_CSR, /* from here on: runs, see esp_host_run_at */
    ESP_HOST_BSR,
    ESP_HOST_ROWS,
    ESP_HOST_COLS
} esp_host_format;

/* Stored rows i = 0..out-1 hold `row_values` values each: dense all columns, nm the kept ones,
 * panel two of each four kept columns. csr, bsr, rows and cols list what they hold instead. */
typedef struct esp_host_weight {
    esp_host_format format;
    esp_dtype dtype;
    int64_t out_features, in_features;
    int64_t row_values;
    const void *values;       /* [out][row_values] */
    const uint8_t *positions; /* panel: [out][position_bytes] nibbles; nm: bit streams */
    int64_t position_bytes;   /* bytes of a row of positions */
    unsigned position_bits;   /* nm: of a position inside its group */
    int64_t keep, group;      /* nm */
    int64_t kept, panel_rows; /* panel: columns of a panel; rows of a panel (out for 2:4) */
    const void *columns;      /* panel: [panels][kept], u16 or u32; NULL: 0, 1, 2... */
    bool columns_wide;        /* u32 */
    const void *rows;         /* [out], u16 or u32; NULL: identity */
    bool rows_wide;
    const void *list;    /* csr, bsr, rows, cols: [listed], u16 or u32: (block) columns or rows */
    const void *offsets; /* csr, bsr: where the list's (block) rows begin, u32 or u64 */
    bool list_wide, offsets_wide;
    int64_t listed, block_rows, block_cols;
    bool not_finite; /* level amx: a value is Inf, NaN or so large that it rounds to Inf in bf16 */
} esp_host_weight;

/* Stored values side by side that stand at neighbouring columns. */
typedef struct esp_host_run {
    int64_t value, column, length; /* first index in values, first column */
} esp_host_run;

/* NULL when a weight of the pattern can be read by host kernels of `format`, else the reason. */
const char *esp_host_format_why_not(esp_host_format format, const esp_pattern *pattern);

/* esp_backend.pack and packed_free of ref and cpu; packed->state is an esp_host_weight. */
ESP_MUST_CHECK esp_status esp_host_pack(esp_device *device, const esp_sparse *sparse,
                                        esp_packed **packed, esp_error *error);
void esp_host_packed_free(esp_packed *packed);
void *esp_host_alloc(esp_device *device, size_t bytes);
void esp_host_release(esp_device *device, void *memory);

static inline uint32_t esp_host_index(const void *list, bool wide, int64_t i)
{
    return wide ? ((const uint32_t *)list)[i] : ((const uint16_t *)list)[i];
}

/* The output row of stored row i. */
static inline int64_t esp_host_row(const esp_host_weight *weight, int64_t i)
{
    return weight->rows != NULL ? (int64_t)esp_host_index(weight->rows, weight->rows_wide, i) : i;
}

/* The input column of kept column j of a panel; in_features for padding. */
static inline int64_t esp_host_column(const esp_host_weight *weight, int64_t panel, int64_t j)
{
    if (weight->columns == NULL) {
        return j < weight->in_features ? j : weight->in_features;
    }
    uint32_t column =
        esp_host_index(weight->columns, weight->columns_wide, panel * weight->kept + j);
    uint32_t padding = weight->columns_wide ? UINT32_MAX : UINT16_MAX;
    return column == padding ? weight->in_features : (int64_t)column;
}

/* Position j of a row of nm positions: bits j * bits upward of a little-endian stream. */
static inline uint32_t esp_host_nm_position(const uint8_t *row, int64_t j, unsigned bits)
{
    int64_t at = j * (int64_t)bits;
    const uint8_t *byte = row + at / 8;
    unsigned shift = (unsigned)(at % 8);
    uint32_t held = byte[0];
    if (shift + bits > 8) {
        held |= (uint32_t)byte[1] << 8;
    }
    if (shift + bits > 16) {
        held |= (uint32_t)byte[2] << 16;
    }
    return held >> shift & ((1u << bits) - 1);
}

/* The input column of stored entry j of row i of an nm weight. */
static inline int64_t esp_host_nm_column(const esp_host_weight *weight, int64_t i, int64_t j)
{
    return j / weight->keep * weight->group +
           (int64_t)esp_host_nm_position(weight->positions + i * weight->position_bytes, j,
                                         weight->position_bits);
}

/* Position of `wanted` in the ascending list, or -1. */
int64_t esp_host_find(const esp_host_weight *weight, int64_t wanted);

static inline int64_t esp_host_offset(const esp_host_weight *weight, int64_t i)
{
    return weight->offsets_wide ? (int64_t)((const uint64_t *)weight->offsets)[i]
                                : (int64_t)((const uint32_t *)weight->offsets)[i];
}

/* Runs of output row i are first .. first + count - 1; rows: `first` is the stored row. */
static inline int64_t esp_host_runs(const esp_host_weight *weight, int64_t i, int64_t *first)
{
    switch (weight->format) {
    case ESP_HOST_CSR:
        *first = esp_host_offset(weight, i);
        return esp_host_offset(weight, i + 1) - *first;
    case ESP_HOST_BSR:
        *first = esp_host_offset(weight, i / weight->block_rows);
        return esp_host_offset(weight, i / weight->block_rows + 1) - *first;
    case ESP_HOST_ROWS:
        *first = esp_host_find(weight, i);
        return *first >= 0;
    default:
        *first = 0;
        return weight->listed;
    }
}

/* Padding of blocks at the right edge is left out. */
static inline esp_host_run esp_host_run_at(const esp_host_weight *weight, int64_t i, int64_t k)
{
    if (weight->format == ESP_HOST_ROWS) {
        return (esp_host_run){k * weight->in_features, 0, weight->in_features};
    }
    int64_t column = esp_host_index(weight->list, weight->list_wide, k);
    if (weight->format == ESP_HOST_BSR) {
        int64_t width = weight->block_cols, left = weight->in_features - column * width;
        return (esp_host_run){(k * weight->block_rows + i % weight->block_rows) * width,
                              column * width, ESP_MIN(width, left)};
    }
    return (esp_host_run){weight->format == ESP_HOST_CSR ? k : i * weight->listed + k, column, 1};
}

#endif
