/* Reading pattern strings: a hand-written reader of a tiny grammar, one message for each way to get
 * it wrong.
 *
 *   pattern  = "dense" | number ":" number | number ":2:" number
 *            | "panel:" number "@" fraction
 *            | "block:" number "x" number "@" fraction
 *            | ("unstructured" | "rows" | "cols") "@" fraction
 *   number   = "0" | digit without 0, digits
 *   fraction = number [ "." digits ] [ "e" [ "+" | "-" ] digits ]
 *
 * Syntax is the reader's business; ranges are checked in pattern.c. */
#include <locale.h>
#include <stdlib.h>
#include <strings.h>

#include "format/pattern_fault.h"

#define SOME_PATTERNS "dense, 2:4, 4:8, 64:2:8 or panel:64@0.75"
#define LARGEST_NUMBER 1000000000000

typedef struct reader {
    const char *text; /* whole, for messages */
    const char *at;
    esp_error *error;
} reader;

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
        return PATTERN_FAULT(in->error, "pattern.missing_number", in->text,
                             "%s is missing; write %s", which, example);
    }
    if (!is_digit(*start)) {
        return PATTERN_FAULT(in->error, "pattern.bad_number", in->text,
                             "%s, \"%.20s\", must be plain digits without a sign; write %s", which,
                             start, example);
    }
    if (start[0] == '0' && is_digit(start[1])) {
        return PATTERN_FAULT(in->error, "pattern.leading_zero", in->text,
                             "%s must not begin with 0; write %s", which, example);
    }
    int64_t number = 0;
    while (is_digit(*in->at)) {
        number = number * 10 + (*in->at++ - '0');
        if (number > LARGEST_NUMBER) {
            return PATTERN_FAULT(in->error, "pattern.number_too_large", in->text,
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

static esp_status read_sparsity(reader *in, const char *example, double *sparsity)
{
    if (*in->at != '@' || in->at[1] == '\0') {
        return PATTERN_FAULT(in->error, "pattern.missing_sparsity", in->text,
                             "the sparsity (\"@\" and a fraction) is missing; write %s", example);
    }
    in->at++;
    const char *end = fraction_end(in->at);
    if (end == NULL || *end != '\0') {
        return PATTERN_FAULT(in->error, "pattern.bad_sparsity", in->text,
                             "the sparsity \"%.20s\" must be a fraction such as 0.75; write %s",
                             in->at, example);
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
    return PATTERN_FAULT(in->error, "pattern.trailing", in->text,
                         "\"%.20s\" after the end of the pattern; write %s", in->at, example);
}

/* ---- the two families: numbers, and words ---- */

static esp_status read_ratio(reader *in, esp_pattern *pattern)
{
    int64_t numbers[3];
    ESP_TRY(read_number(in, "the first number", "2:4 or 64:2:8", &numbers[0]));
    if (*in->at == '\0') {
        return PATTERN_FAULT(
            in->error, "pattern.incomplete", in->text,
            "one number alone is no pattern; write 2:4 (keep:group) or 64:2:8 (V:2:M)");
    }
    if (*in->at != ':') {
        return PATTERN_FAULT(in->error, "pattern.unexpected_character", in->text,
                             "numbers are separated by ':', not by \"%.1s\"; write 2:4 or 64:2:8",
                             in->at);
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
        return PATTERN_FAULT(in->error, "pattern.too_many_parts", in->text,
                             "at most three numbers; write 2:4 (keep:group) or 64:2:8 (V:2:M)");
    }
    ESP_TRY(expect_end(in, "64:2:8"));
    if (numbers[1] != 2) {
        return PATTERN_FAULT(in->error, "pattern.n_not_2", in->text,
                             "N is %lld, but the hardware keeps 2 of 4; write %lld:2:%lld",
                             (long long)numbers[1], (long long)numbers[0], (long long)numbers[2]);
    }
    if (numbers[0] == 0 || numbers[2] == 0) { /* 0 has another meaning inside esp_pattern */
        return PATTERN_FAULT(
            in->error, numbers[0] == 0 ? "pattern.v_too_small" : "pattern.m_too_small", in->text,
            "%s; write 64:2:8",
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
        return PATTERN_FAULT(in->error, "pattern.v_too_small", in->text,
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
            return PATTERN_FAULT(in->error, "pattern.wrong_case", in->text,
                                 "patterns are written in small letters; write %s",
                                 words[i].example);
        }
    }
    return PATTERN_FAULT(in->error, "pattern.unknown_word", in->text,
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

/* ---- the whole ---- */

esp_status esp_pattern_parse(const char *text, esp_pattern *pattern, esp_error *error)
{
    if (text[0] == '\0') {
        return esp_fail(error, ESP_BAD_ARGUMENT, "pattern.empty",
                        "the pattern is empty; write " SOME_PATTERNS);
    }
    if (text[strcspn(text, " \t\r\n\v\f")] != '\0') {
        return PATTERN_FAULT(error, "pattern.whitespace", text,
                             "a pattern holds no blanks; write " SOME_PATTERNS);
    }
    reader in = {text, text, error};
    esp_pattern parsed;
    bool word = (text[0] >= 'a' && text[0] <= 'z') || (text[0] >= 'A' && text[0] <= 'Z');
    ESP_TRY(word ? read_word(&in, &parsed) : read_ratio(&in, &parsed));
    ESP_TRY(esp_pattern_check_ranges(&parsed, text, error));
    *pattern = parsed;
    return ESP_OK;
}
