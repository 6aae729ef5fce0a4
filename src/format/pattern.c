/* Patterns as values: their ranges, their canonical text, what follows from them. The ranges are
 * those of the public header and hold for parsed and for hand-made patterns alike. */
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "format/format.h"
#include "format/pattern_fault.h"

/* ---- ranges ---- */

static esp_status check_nm(const esp_pattern *pattern, const char *text, esp_error *error)
{
    long long keep = pattern->keep, group = pattern->group;
    if (keep < 1) {
        return PATTERN_FAULT(error, "pattern.keep_too_small", text,
                             "keeps %lld of a group, must keep at least 1; write 1:%lld", keep,
                             group > 1 ? group : 4);
    }
    if (keep == group) {
        return PATTERN_FAULT(error, "pattern.keep_not_below_group", text,
                             "keeps all %lld of each %lld; write dense", keep, group);
    }
    if (keep > group) {
        return PATTERN_FAULT(error, "pattern.keep_not_below_group", text,
                             "keeps %lld of only %lld (the order is keep:group); write %lld:%lld",
                             keep, group, group < 1 ? 2 : group, group < 1 ? 4 : keep);
    }
    if (group > 65536) {
        return PATTERN_FAULT(error, "pattern.group_too_large", text,
                             "the group, %lld, must be at most 65536; write 1:16", group);
    }
    if (keep == 2 && group == 4) {
        return PATTERN_FAULT(error, "pattern.not_canonical", text,
                             "2:4 belongs to the panel kind (v = 0), not to keep:group");
    }
    return ESP_OK;
}

static esp_status check_panel(const esp_pattern *pattern, const char *text, esp_error *error)
{
    long long v = pattern->v, m = pattern->m;
    if (v == 0 && m == 0) {
        return ESP_OK;
    }
    if (v < 1) {
        return PATTERN_FAULT(error, "pattern.v_too_small", text,
                             "V (rows of a panel) is %lld, must be at least 1; write 64:2:8", v);
    }
    if (v > 1048576) {
        return PATTERN_FAULT(error, "pattern.v_too_large", text,
                             "V (rows of a panel) is %lld, must be at most 1048576; write 64:2:8",
                             v);
    }
    if (m == 0) {
        if (!(pattern->sparsity >= 0.5 && pattern->sparsity < 1)) {
            return PATTERN_FAULT(
                error, "pattern.sparsity_out_of_range", text,
                "the overall sparsity must be at least 0.5 (2 of 4 alone gives that) and "
                "below 1; write panel:%lld@0.75",
                v);
        }
        return ESP_OK;
    }
    if (m < 5) {
        return PATTERN_FAULT(
            error, "pattern.m_too_small", text,
            "M (columns of a group) is %lld, must be 5..1024 because 4 of M are kept; "
            "write 2:4 or %lld:2:8",
            m, v);
    }
    if (m > 1024) {
        return PATTERN_FAULT(error, "pattern.m_too_large", text,
                             "M (columns of a group) is %lld, must be 5..1024; write %lld:2:8", m,
                             v);
    }
    return ESP_OK;
}

esp_status esp_pattern_check_ranges(const esp_pattern *pattern, const char *text, esp_error *error)
{
    switch (pattern->kind) {
    case ESP_PATTERN_DENSE:
        return ESP_OK;
    case ESP_PATTERN_NM:
        return check_nm(pattern, text, error);
    case ESP_PATTERN_PANEL:
        return check_panel(pattern, text, error);
    case ESP_PATTERN_BLOCK:
        if (pattern->block_rows < 1 || pattern->block_cols < 1) {
            return PATTERN_FAULT(error, "pattern.block_too_small", text,
                                 "a block has at least one row and column; write block:32x32@0.8");
        }
        if (pattern->block_rows > 65536 || pattern->block_cols > 65536) {
            return PATTERN_FAULT(
                error, "pattern.block_too_large", text,
                "a block has at most 65536 rows and columns; write block:32x32@0.8");
        }
        break;
    case ESP_PATTERN_UNSTRUCTURED:
    case ESP_PATTERN_ROWS:
    case ESP_PATTERN_COLS:
        break;
    default:
        return esp_fail(error, ESP_BAD_ARGUMENT, "pattern.bad_kind",
                        "pattern: kind %d is none of esp_pattern_kind", (int)pattern->kind);
    }
    if (!(pattern->sparsity > 0 && pattern->sparsity < 1)) {
        return PATTERN_FAULT(
            error, "pattern.sparsity_out_of_range", text,
            "the sparsity (share of zeros) must be above 0 and below 1; write 0.9");
    }
    return ESP_OK;
}

esp_status esp_pattern_check(const esp_pattern *pattern, esp_error *error)
{
    char text[ESP_PATTERN_TEXT_MAX];
    esp_pattern_print(pattern, text);
    return esp_pattern_check_ranges(pattern, text, error);
}

/* ---- print, compare, derived numbers ---- */

/* The shortest text that reads back as the same double, whatever locale the program has set. */
static void print_double(double value, char *text, size_t capacity)
{
    locale_t plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    locale_t old = uselocale(plain);
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, capacity, "%.*g", digits, value);
        if (strtod(text, NULL) == value) {
            break;
        }
    }
    uselocale(old);
    if (plain != (locale_t)0) {
        freelocale(plain);
    }
}

void esp_pattern_print(const esp_pattern *pattern, char text[ESP_PATTERN_TEXT_MAX])
{
    char fraction[32];
    long long v = pattern->v;
    print_double(pattern->sparsity, fraction, sizeof fraction);
    switch (pattern->kind) {
    case ESP_PATTERN_NM:
        snprintf(text, ESP_PATTERN_TEXT_MAX, "%lld:%lld", (long long)pattern->keep,
                 (long long)pattern->group);
        return;
    case ESP_PATTERN_PANEL:
        if (esp_pattern_is_2_4(pattern)) {
            snprintf(text, ESP_PATTERN_TEXT_MAX, "2:4");
        } else if (pattern->m != 0) {
            snprintf(text, ESP_PATTERN_TEXT_MAX, "%lld:2:%lld", v, (long long)pattern->m);
        } else {
            snprintf(text, ESP_PATTERN_TEXT_MAX, "panel:%lld@%s", v, fraction);
        }
        return;
    case ESP_PATTERN_BLOCK:
        snprintf(text, ESP_PATTERN_TEXT_MAX, "block:%lldx%lld@%s", (long long)pattern->block_rows,
                 (long long)pattern->block_cols, fraction);
        return;
    case ESP_PATTERN_UNSTRUCTURED:
        snprintf(text, ESP_PATTERN_TEXT_MAX, "unstructured@%s", fraction);
        return;
    case ESP_PATTERN_ROWS:
        snprintf(text, ESP_PATTERN_TEXT_MAX, "rows@%s", fraction);
        return;
    case ESP_PATTERN_COLS:
        snprintf(text, ESP_PATTERN_TEXT_MAX, "cols@%s", fraction);
        return;
    case ESP_PATTERN_DENSE:
        break;
    }
    snprintf(text, ESP_PATTERN_TEXT_MAX, "dense");
}

bool esp_pattern_equal(const esp_pattern *a, const esp_pattern *b)
{
    if (a->kind != b->kind) {
        return false;
    }
    switch (a->kind) {
    case ESP_PATTERN_DENSE:
        return true;
    case ESP_PATTERN_NM:
        return a->keep == b->keep && a->group == b->group;
    case ESP_PATTERN_PANEL: {
        bool any_columns = a->v != 0 && a->m == 0;
        return a->v == b->v && a->m == b->m && (!any_columns || a->sparsity == b->sparsity);
    }
    case ESP_PATTERN_BLOCK:
        return a->block_rows == b->block_rows && a->block_cols == b->block_cols &&
               a->sparsity == b->sparsity;
    default:
        return a->sparsity == b->sparsity;
    }
}

bool esp_pattern_is_2_4(const esp_pattern *pattern)
{
    return pattern->kind == ESP_PATTERN_PANEL && pattern->v == 0;
}

int64_t esp_pattern_panel_rows(const esp_pattern *pattern, int64_t out_features)
{
    if (pattern->kind != ESP_PATTERN_PANEL || pattern->v == 0) {
        return 0;
    }
    return ESP_MAX(1, ESP_MIN(pattern->v, out_features));
}

int64_t esp_pattern_kept(const esp_pattern *pattern, int64_t in_features)
{
    if (pattern->kind == ESP_PATTERN_NM) {
        int64_t rest = in_features % pattern->group;
        return pattern->keep * (in_features / pattern->group) + ESP_MIN(pattern->keep, rest);
    }
    if (pattern->kind != ESP_PATTERN_PANEL) {
        return -1;
    }
    if (pattern->v == 0) {
        return 4 * esp_ceil_div(in_features, 4);
    }
    if (pattern->m != 0) {
        return 4 * esp_ceil_div(in_features, pattern->m);
    }
    double quads = floor((1 - pattern->sparsity) * (double)in_features / 2 + 0.5);
    return 4 * ESP_MAX(1, (int64_t)quads);
}

int64_t esp_pattern_kept_of(const esp_pattern *pattern, int64_t total)
{
    int64_t dropped = (int64_t)floor(pattern->sparsity * (double)total + 0.5);
    return ESP_MIN(total, ESP_MAX(1, total - dropped));
}
