/* Pattern strings: a hand-written reader of a tiny grammar, one message for each way to get it
 * wrong.
 *
 *   pattern  = "dense" | number ":" number | number ":2:" number | "panel:" number "@" fraction
 *            | "block:" number "x" number "@" fraction | ("unstructured" | "rows" | "cols") "@"
 * fraction number   = "0" | digit without 0, digits fraction = number [ "." digits ] [ "e" [ "+" |
 * "-" ] digits ]
 *
 * Syntax is the parser's business; ranges are checked by esp_pattern_check alone, so that a pattern
 * built by hand meets the same rules and codes. Numbers are read and written in the C locale. */
#include <espalier/pattern.h>

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

#define SOME_PATTERNS "dense, 2:4, 4:8, 64:2:8 or panel:64@0.75"
#define LARGEST_NUMBER 1000000000000

typedef struct reader {
    const char *text; /* whole, for messages */
    const char *at;
    esp_error *error;
} reader;

/* `pattern "64:3:8": what`; texts from outside are cut. */
#define FAULT(error, code, text, ...)                                                              \
    (esp_fail(error, ESP_BAD_ARGUMENT, code, __VA_ARGS__),                                         \
     esp_fail_within(error, ESP_BAD_ARGUMENT, "pattern \"%.60s%s\"", text,                         \
                     strlen(text) > 60 ? "..." : ""))

static bool is_digit(char byte)
{
    return byte >= '0' && byte <= '9';
}

/* ---- numbers ---- */

/* which: "the first number"; example: a pattern where that part is right. */
static esp_status read_number(reader *in, const char *which, const char *example, int64_t *value)
{
    const char *start = in->at;
    if (*start == '\0' || strchr(":@x", *start) != NULL) {
        return FAULT(in->error, "pattern.missing_number", in->text, "%s is missing; write %s",
                     which, example);
    }
    if (!is_digit(*start)) {
        return FAULT(in->error, "pattern.bad_number", in->text,
                     "%s, \"%.20s\", must be plain digits without a sign; write %s", which, start,
                     example);
    }
    if (start[0] == '0' && is_digit(start[1])) {
        return FAULT(in->error, "pattern.leading_zero", in->text,
                     "%s must not begin with 0; write %s", which, example);
    }
    int64_t number = 0;
    while (is_digit(*in->at)) {
        number = number * 10 + (*in->at++ - '0');
        if (number > LARGEST_NUMBER) {
            return FAULT(in->error, "pattern.number_too_large", in->text,
                         "%s is far too large; write %s", which, example);
        }
    }
    *value = number;
    return ESP_OK;
}

/* End of a syntactically valid fraction at `at`, or NULL. */
static const char *fraction_end(const char *at)
{
    if (!is_digit(at[0]) || (at[0] == '0' && is_digit(at[1]))) {
        return NULL;
    }
    at += strspn(at, "0123456789");
    if (*at == '.') {
        at++;
        if (!is_digit(*at)) {
            return NULL;
        }
        at += strspn(at, "0123456789");
    }
    if (*at == 'e') {
        at += at[1] == '+' || at[1] == '-' ? 2 : 1;
        if (!is_digit(*at)) {
            return NULL;
        }
        at += strspn(at, "0123456789");
    }
    return at;
}

/* Runs strtod under the C locale of this thread, whatever the program has set. */
static double read_double(const char *text)
{
    locale_t plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    locale_t old = uselocale(plain);
    double value = strtod(text, NULL);
    uselocale(old);
    if (plain != (locale_t)0) {
        freelocale(plain);
    }
    return value;
}

/* The shortest text that reads back as the same double. */
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

static esp_status read_sparsity(reader *in, const char *example, double *sparsity)
{
    if (*in->at != '@' || in->at[1] == '\0') {
        return FAULT(in->error, "pattern.missing_sparsity", in->text,
                     "the sparsity (\"@\" and a fraction) is missing; write %s", example);
    }
    in->at++;
    const char *end = fraction_end(in->at);
    if (end == NULL || *end != '\0') {
        return FAULT(in->error, "pattern.bad_sparsity", in->text,
                     "the sparsity \"%.20s\" must be a fraction such as 0.75; write %s", in->at,
                     example);
    }
    *sparsity = read_double(in->at);
    in->at = end;
    return ESP_OK;
}

static esp_status expect_end(const reader *in, const char *example)
{
    if (*in->at == '\0') {
        return ESP_OK;
    }
    return FAULT(in->error, "pattern.trailing", in->text,
                 "\"%.20s\" after the end of the pattern; write %s", in->at, example);
}

/* ---- the two families: numbers, and words ---- */

static esp_status read_ratio(reader *in, esp_pattern *pattern)
{
    int64_t numbers[3];
    ESP_TRY(read_number(in, "the first number", "2:4 or 64:2:8", &numbers[0]));
    if (*in->at == '\0') {
        return FAULT(in->error, "pattern.incomplete", in->text,
                     "one number alone is no pattern; write 2:4 (keep:group) or 64:2:8 (V:2:M)");
    }
    if (*in->at != ':') {
        return FAULT(in->error, "pattern.unexpected_character", in->text,
                     "numbers are separated by ':', not by \"%.1s\"; write 2:4 or 64:2:8", in->at);
    }
    in->at++;
    ESP_TRY(read_number(in, "the second number", "2:4 or 64:2:8", &numbers[1]));
    if (*in->at != ':') {
        ESP_TRY(expect_end(in, "2:4 or 64:2:8"));
        bool hardware = numbers[0] == 2 && numbers[1] == 4;
        *pattern =
            hardware
                ? (esp_pattern){.kind = ESP_PATTERN_PANEL}
                : (esp_pattern){.kind = ESP_PATTERN_NM, .keep = numbers[0], .group = numbers[1]};
        return ESP_OK;
    }
    in->at++;
    ESP_TRY(read_number(in, "the third number", "2:4 or 64:2:8", &numbers[2]));
    if (*in->at == ':') {
        return FAULT(in->error, "pattern.too_many_parts", in->text,
                     "at most three numbers; write 2:4 (keep:group) or 64:2:8 (V:2:M)");
    }
    ESP_TRY(expect_end(in, "64:2:8"));
    if (numbers[1] != 2) {
        return FAULT(in->error, "pattern.n_not_2", in->text,
                     "N is %lld, but the hardware keeps 2 of 4; write %lld:2:%lld",
                     (long long)numbers[1], (long long)numbers[0], (long long)numbers[2]);
    }
    if (numbers[0] == 0 || numbers[2] == 0) { /* 0 has another meaning inside esp_pattern */
        return FAULT(in->error, numbers[0] == 0 ? "pattern.v_too_small" : "pattern.m_too_small",
                     in->text, "%s; write 64:2:8",
                     numbers[0] == 0 ? "V (rows of a panel) is 0" : "M (columns of a group) is 0");
    }
    *pattern = (esp_pattern){.kind = ESP_PATTERN_PANEL, .v = numbers[0], .m = numbers[2]};
    return ESP_OK;
}

static esp_status read_panel(reader *in, esp_pattern *pattern)
{
    if (*in->at == ':') {
        in->at++;
    }
    int64_t v;
    double sparsity;
    ESP_TRY(read_number(in, "V (rows of a panel)", "panel:64@0.75", &v));
    ESP_TRY(read_sparsity(in, "panel:64@0.75", &sparsity));
    if (v == 0) {
        return FAULT(in->error, "pattern.v_too_small", in->text,
                     "V (rows of a panel) is 0; write panel:64@0.75");
    }
    *pattern = (esp_pattern){.kind = ESP_PATTERN_PANEL, .v = v, .sparsity = sparsity};
    return ESP_OK;
}

static esp_status read_block(reader *in, esp_pattern *pattern)
{
    if (*in->at == ':') {
        in->at++;
    }
    int64_t rows, columns;
    double sparsity;
    ESP_TRY(read_number(in, "the rows of a block", "block:32x32@0.8", &rows));
    if (*in->at == 'x') {
        in->at++;
    }
    ESP_TRY(read_number(in, "the columns of a block", "block:32x32@0.8", &columns));
    ESP_TRY(read_sparsity(in, "block:32x32@0.8", &sparsity));
    *pattern = (esp_pattern){
        .kind = ESP_PATTERN_BLOCK, .block_rows = rows, .block_cols = columns, .sparsity = sparsity};
    return ESP_OK;
}

static const struct {
    const char *word, *example;
    esp_pattern_kind kind;
} words[] = {
    {"dense", "dense", ESP_PATTERN_DENSE},
    {"panel", "panel:64@0.75", ESP_PATTERN_PANEL},
    {"block", "block:32x32@0.8", ESP_PATTERN_BLOCK},
    {"unstructured", "unstructured@0.9", ESP_PATTERN_UNSTRUCTURED},
    {"rows", "rows@0.5", ESP_PATTERN_ROWS},
    {"cols", "cols@0.5", ESP_PATTERN_COLS},
};

static esp_status unknown_word(const reader *in, size_t length)
{
    for (int i = 0; i < ESP_COUNT(words); i++) {
        if (strlen(words[i].word) == length && strncasecmp(in->text, words[i].word, length) == 0) {
            return FAULT(in->error, "pattern.wrong_case", in->text,
                         "patterns are written in small letters; write %s", words[i].example);
        }
    }
    return FAULT(in->error, "pattern.unknown_word", in->text,
                 "\"%.*s\" is no pattern; write " SOME_PATTERNS
                 ", block:32x32@0.8, unstructured@0.9, rows@0.5, cols@0.5",
                 (int)ESP_MIN(length, 40), in->text);
}

static esp_status read_word(reader *in, esp_pattern *pattern)
{
    size_t length = strcspn(in->text, ":@");
    int found = 0;
    while (found < ESP_COUNT(words) && (strlen(words[found].word) != length ||
                                        memcmp(in->text, words[found].word, length) != 0)) {
        found++;
    }
    if (found == ESP_COUNT(words)) {
        return unknown_word(in, length);
    }
    in->at += length;
    switch (words[found].kind) {
    case ESP_PATTERN_PANEL:
        return read_panel(in, pattern);
    case ESP_PATTERN_BLOCK:
        return read_block(in, pattern);
    case ESP_PATTERN_DENSE:
        ESP_TRY(expect_end(in, "dense"));
        *pattern = (esp_pattern){.kind = ESP_PATTERN_DENSE};
        return ESP_OK;
    default: {
        double sparsity;
        ESP_TRY(read_sparsity(in, words[found].example, &sparsity));
        *pattern = (esp_pattern){.kind = words[found].kind, .sparsity = sparsity};
        return ESP_OK;
    }
    }
}

/* ---- ranges ---- */

static esp_status check_nm(const esp_pattern *pattern, const char *text, esp_error *error)
{
    long long keep = pattern->keep, group = pattern->group;
    if (keep < 1) {
        return FAULT(error, "pattern.keep_too_small", text,
                     "keeps %lld of a group, must keep at least 1; write 1:%lld", keep,
                     group > 1 ? group : 4);
    }
    if (keep == group) {
        return FAULT(error, "pattern.keep_not_below_group", text,
                     "keeps all %lld of each %lld; write dense", keep, group);
    }
    if (keep > group) {
        return FAULT(error, "pattern.keep_not_below_group", text,
                     "keeps %lld of only %lld (the order is keep:group); write %lld:%lld", keep,
                     group, group < 1 ? 2 : group, group < 1 ? 4 : keep);
    }
    if (group > 65536) {
        return FAULT(error, "pattern.group_too_large", text,
                     "the group, %lld, must be at most 65536; write 1:16", group);
    }
    if (keep == 2 && group == 4) {
        return FAULT(error, "pattern.not_canonical", text,
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
        return FAULT(error, "pattern.v_too_small", text,
                     "V (rows of a panel) is %lld, must be at least 1; write 64:2:8", v);
    }
    if (v > 1048576) {
        return FAULT(error, "pattern.v_too_large", text,
                     "V (rows of a panel) is %lld, must be at most 1048576; write 64:2:8", v);
    }
    if (m == 0) {
        if (!(pattern->sparsity >= 0.5 && pattern->sparsity < 1)) {
            return FAULT(error, "pattern.sparsity_out_of_range", text,
                         "the overall sparsity must be at least 0.5 (2 of 4 alone gives that) and "
                         "below 1; write panel:%lld@0.75",
                         v);
        }
        return ESP_OK;
    }
    if (m < 5) {
        return FAULT(error, "pattern.m_too_small", text,
                     "M (columns of a group) is %lld, must be 5..1024 because 4 of M are kept; "
                     "write 2:4 or %lld:2:8",
                     m, v);
    }
    if (m > 1024) {
        return FAULT(error, "pattern.m_too_large", text,
                     "M (columns of a group) is %lld, must be 5..1024; write %lld:2:8", m, v);
    }
    return ESP_OK;
}

static esp_status check_ranges(const esp_pattern *pattern, const char *text, esp_error *error)
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
            return FAULT(error, "pattern.block_too_small", text,
                         "a block has at least one row and column; write block:32x32@0.8");
        }
        if (pattern->block_rows > 65536 || pattern->block_cols > 65536) {
            return FAULT(error, "pattern.block_too_large", text,
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
        return FAULT(error, "pattern.sparsity_out_of_range", text,
                     "the sparsity (share of zeros) must be above 0 and below 1; write 0.9");
    }
    return ESP_OK;
}

esp_status esp_pattern_check(const esp_pattern *pattern, esp_error *error)
{
    char text[ESP_PATTERN_TEXT_MAX];
    esp_pattern_print(pattern, text);
    return check_ranges(pattern, text, error);
}

esp_status esp_pattern_parse(const char *text, esp_pattern *pattern, esp_error *error)
{
    if (text[0] == '\0') {
        return esp_fail(error, ESP_BAD_ARGUMENT, "pattern.empty",
                        "the pattern is empty; write " SOME_PATTERNS);
    }
    if (text[strcspn(text, " \t\r\n\v\f")] != '\0') {
        return FAULT(error, "pattern.whitespace", text,
                     "a pattern holds no blanks; write " SOME_PATTERNS);
    }
    reader in = {text, text, error};
    esp_pattern parsed;
    bool word = (text[0] >= 'a' && text[0] <= 'z') || (text[0] >= 'A' && text[0] <= 'Z');
    ESP_TRY(word ? read_word(&in, &parsed) : read_ratio(&in, &parsed));
    ESP_TRY(check_ranges(&parsed, text, error));
    *pattern = parsed;
    return ESP_OK;
}

/* ---- print, compare, derived numbers ---- */

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
