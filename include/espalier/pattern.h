/* pattern.h - the sparsity patterns, and the strings by which users name them.
 *
 *   dense                    every weight
 *   2:4                      two of each four input columns, per row (the hardware pattern)
 *   4:8, 1:16, ...           keep:group, any other n:m
 *   64:2:8                   V:N:M, N = 2: panels of V rows keep 4 of M columns, rows 2 of the 4
 *   panel:64@0.75            panels of V rows, any columns, overall sparsity in [0.5, 1)
 *   block:32x32@0.8          whole blocks
 *   unstructured@0.9  rows@0.5  cols@0.5
 */
#ifndef ESPALIER_PATTERN_H
#define ESPALIER_PATTERN_H

#include <espalier/base.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum esp_pattern_kind {
    ESP_PATTERN_DENSE = 0,
    ESP_PATTERN_NM,    /* keep:group, every pair but 2:4 */
    ESP_PATTERN_PANEL, /* the panel family: 2:4 (v == 0), V:2:M (m > 0), free columns (m == 0) */
    ESP_PATTERN_BLOCK,
    ESP_PATTERN_UNSTRUCTURED,
    ESP_PATTERN_ROWS,
    ESP_PATTERN_COLS
} esp_pattern_kind;

typedef struct esp_pattern {
    esp_pattern_kind kind;
    int64_t keep, group; /* NM: 1 <= keep < group <= 65536 */
    int64_t v;           /* PANEL: rows of a panel, 1..1048576; 0 means 2:4, no column list */
    int64_t m;           /* PANEL: columns of a group, 5..1024; 0 means free columns */
    int64_t block_rows, block_cols; /* BLOCK: 1..65536 each */
    double sparsity; /* free PANEL [0.5, 1), BLOCK, UNSTRUCTURED, ROWS, COLS (0, 1) */
} esp_pattern;

#define ESP_PATTERN_TEXT_MAX 64

/* ESP_BAD_ARGUMENT, code "pattern.*", on a wrong string: the message names the wrong part and shows
 * a right one. */
ESP_MUST_CHECK ESP_API esp_status esp_pattern_parse(const char *text, esp_pattern *pattern,
                                                    esp_error *error);
/* Canonical text, such that parsing it gives the same pattern back. Always fits
 * ESP_PATTERN_TEXT_MAX. */
ESP_API void esp_pattern_print(const esp_pattern *pattern, char text[ESP_PATTERN_TEXT_MAX]);
ESP_API bool esp_pattern_equal(const esp_pattern *a, const esp_pattern *b);
/* Checks the ranges stated above; same codes as parse. */
ESP_MUST_CHECK ESP_API esp_status esp_pattern_check(const esp_pattern *pattern, esp_error *error);

ESP_API bool esp_pattern_is_2_4(const esp_pattern *pattern);
/* V larger than `out` means one panel of all rows; returns the v that is used (0 for 2:4). */
ESP_API int64_t esp_pattern_panel_rows(const esp_pattern *pattern, int64_t out_features);
/* Columns that each panel (PANEL) keeps, padding included; for 2:4 in rounded up to 4; for NM the
 * values that each row keeps. -1 for the other kinds. See docs/formats.md for the remainder rule.
 */
ESP_API int64_t esp_pattern_kept(const esp_pattern *pattern, int64_t in_features);

#ifdef __cplusplus
}
#endif
#endif
