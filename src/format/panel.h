/* Private to src/format: a panel tensor's parts as plain pointers and sizes. */
#ifndef ESP_FORMAT_PANEL_H
#define ESP_FORMAT_PANEL_H

#include "format/formats.h"

typedef struct esp_panel_view {
    int64_t out, in;
    int64_t v;              /* rows of a panel; all rows for 2:4 */
    int64_t panels;         /* 1 for 2:4 with rows */
    int64_t kept;           /* columns of a panel, padding included */
    int64_t quads;          /* kept / 4 */
    int64_t position_bytes; /* of a row */
    size_t width;           /* bytes of a value: 2 or 4 */
    void *values;           /* [out][kept / 2] */
    uint8_t *positions;     /* [out][position_bytes] */
    void *columns;          /* [panels][kept], NULL for 2:4 */
    bool wide_columns;      /* U32 */
    void *rows;             /* [out] or NULL */
    bool wide_rows;
} esp_panel_view;

esp_panel_view esp_panel_view_of(const esp_sparse *sparse);

/* Column that entry i of a panel's list names; ESP_NO_COLUMN for padding. For 2:4 column i. */
static inline uint32_t esp_panel_column(const esp_panel_view *view, int64_t panel, int64_t i)
{
    if (view->columns == NULL) {
        return i < view->in ? (uint32_t)i : ESP_NO_COLUMN;
    }
    int64_t at = panel * view->kept + i;
    if (view->wide_columns) {
        return ((const uint32_t *)view->columns)[at];
    }
    uint16_t column = ((const uint16_t *)view->columns)[at];
    return column == UINT16_MAX ? ESP_NO_COLUMN : column;
}

/* Output row of a stored row. */
static inline int64_t esp_panel_row(const esp_panel_view *view, int64_t stored)
{
    if (view->rows == NULL) {
        return stored;
    }
    return view->wide_rows ? (int64_t)((const uint32_t *)view->rows)[stored]
                           : (int64_t)((const uint16_t *)view->rows)[stored];
}

/* Four bits: the lower position, then the higher one. */
static inline unsigned esp_panel_nibble(const esp_panel_view *view, int64_t stored, int64_t quad)
{
    unsigned pair = view->positions[stored * view->position_bytes + quad / 2];
    return pair >> quad % 2 * 4 & 15;
}

esp_status esp_panel_encode(const esp_tensor *dense, const esp_mask *mask, esp_sparse *sparse,
                            esp_error *error);
esp_status esp_panel_check(const esp_sparse *sparse, esp_error *error);

#endif
