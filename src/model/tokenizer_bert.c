/* What BERT does to a text before it looks for words: BertNormalizer and BertPreTokenizer of the
 * Hugging Face library (after BasicTokenizer of google-research/bert).
 *
 * That library's categories of characters are those of Unicode 8, its small letters those of a
 * newer version than utf8proc's; both differences are tables here, so that ids agree on every
 * character. */
#include <utf8proc.h>

#include "model/tokenizer.h"

/* Letters whose small forms came after Unicode 15, and the one that becomes two characters. */
static const struct {
    int32_t first, last;
    int32_t add; /* to get the small letter */
} newer_capitals[] = {{0x1c89, 0x1c89, 1},      {0xa7cb, 0xa7cb, 0x264 - 0xa7cb},
                      {0xa7cc, 0xa7cc, 1},      {0xa7ce, 0xa7ce, 1},
                      {0xa7d2, 0xa7d2, 1},      {0xa7d4, 0xa7d4, 1},
                      {0xa7da, 0xa7da, 1},      {0xa7dc, 0xa7dc, 0x19b - 0xa7dc},
                      {0x10d50, 0x10d65, 0x20}, {0x16ea0, 0x16eb8, 0x1b}};
#define CAPITAL_I_WITH_DOT 0x130
#define DOT_ABOVE 0x307

static bool is_punctuation(int32_t point)
{
    if (point < 0x80) { /* all of ASCII's, + and ^ among them */
        return point > ' ' && point < 0x7f &&
               !((point >= '0' && point <= '9') || ((point | 32) >= 'a' && (point | 32) <= 'z'));
    }
    utf8proc_category_t category = utf8proc_category(point);
    bool marks = category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
    return (marks && !esp_unicode_is_newer(point)) || point == 0x166d || point == 0x111c9;
}

static bool is_mark(int32_t point)
{
    return point == 0x1734 ||
           (utf8proc_category(point) == UTF8PROC_CATEGORY_MN && !esp_unicode_is_newer(point));
}

/* Control, format and private characters, but the three of them that are white space. */
static bool is_removed(int32_t point)
{
    if (point < 0x80) {
        return (point < ' ' && point != '\t' && point != '\n' && point != '\r') || point == 0x7f;
    }
    utf8proc_category_t category = utf8proc_category(point);
    bool other = category == UTF8PROC_CATEGORY_CC || category == UTF8PROC_CATEGORY_CF ||
                 category == UTF8PROC_CATEGORY_CO;
    return point == 0xfffd || (other && !esp_unicode_is_newer(point));
}

/* Ideographs of Chinese; 2b820 to 2b91f are missing there, so they are here. */
static bool is_ideograph(int32_t point)
{
    static const int32_t ideographs[][2] = {
        {0x3400, 0x4dbf},   {0x4e00, 0x9fff},   {0xf900, 0xfaff},  {0x20000, 0x2a6df},
        {0x2a700, 0x2b81f}, {0x2b920, 0x2ceaf}, {0x2f800, 0x2fa1f}};
    for (int i = 0; i < ESP_COUNT(ideographs) && point >= ideographs[i][0]; i++) {
        if (point <= ideographs[i][1]) {
            return true;
        }
    }
    return false;
}

static int32_t small_letter(int32_t point)
{
    for (int i = 0; i < ESP_COUNT(newer_capitals) && point >= newer_capitals[0].first; i++) {
        if (point >= newer_capitals[i].first && point <= newer_capitals[i].last) {
            return point + newer_capitals[i].add;
        }
    }
    return utf8proc_tolower(point);
}

/* ---- the normalizer ---- */

static size_t remove_marks(int32_t *points, size_t count)
{
    size_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        points[kept] = points[i];
        kept += points[i] < 0x300 || !is_mark(points[i]);
    }
    return kept;
}

/* The characters of text, cleaned, ideographs apart from each other, decomposed. */
static size_t read_points(const esp_fold *fold, const char *text, size_t length, int32_t *points)
{
    size_t count = 0;
    for (size_t at = 0; at < length;) {
        int32_t point = 0;
        at += esp_utf8_next(text + at, length - at, &point);
        if (fold->clean && is_removed(point)) {
            continue;
        }
        if (fold->clean && esp_utf8_is_space(point)) {
            point = ' ';
        }
        bool apart = fold->ideographs_apart && is_ideograph(point);
        if (apart) {
            points[count++] = ' ';
        }
        if (fold->strip_marks) {
            count += esp_unicode_decompose(point, false, points + count);
        } else {
            points[count++] = point;
        }
        if (apart) {
            points[count++] = ' ';
        }
    }
    return count;
}

static void write_points(const esp_fold *fold, const int32_t *points, size_t count, esp_buffer *out)
{
    for (size_t i = 0; i < count; i++) {
        utf8proc_uint8_t bytes[4];
        int32_t point = points[i];
        if (fold->lower) {
            point = point == CAPITAL_I_WITH_DOT ? 'i' : small_letter(point);
        }
        esp_buffer_append(out, bytes, (size_t)utf8proc_encode_char(point, bytes));
        if (fold->lower && points[i] == CAPITAL_I_WITH_DOT) {
            esp_buffer_append(out, bytes, (size_t)utf8proc_encode_char(DOT_ABOVE, bytes));
        }
    }
}

esp_status esp_bert_normalize(const esp_fold *fold, const char *text, size_t length,
                              esp_buffer *out, esp_error *error)
{
    /* A character of n bytes becomes at most 2 n points; the last one may ask for more room. */
    size_t most = 2 * length + ESP_UNICODE_MOST_POINTS;
    int32_t *points = esp_alloc_array(out->context, 2 * most, sizeof *points);
    if (points == NULL) {
        return esp_fail_memory(error, length, "normalising text");
    }
    size_t count = read_points(fold, text, length, points);
    if (fold->strip_marks) {
        esp_unicode_order_marks(points, count, points + most);
        count = remove_marks(points, count);
    }
    write_points(fold, points, count, out);
    esp_release(out->context, points);
    return ESP_OK; /* the caller asks whether out failed */
}

/* ---- the pre_tokenizer ---- */

bool esp_bert_next(const char *text, size_t length, size_t *from, size_t *start, size_t *end)
{
    size_t at = *from;
    *start = length;
    while (at < length) {
        int32_t point = 0;
        size_t bytes = esp_utf8_next(text + at, length - at, &point);
        bool space = esp_utf8_is_space(point), alone = !space && is_punctuation(point);
        if (*start == length && !space) {
            *start = at;
            if (alone) {
                *end = *from = at + bytes;
                return true;
            }
        } else if (*start < length && (space || alone)) {
            break;
        }
        at += bytes;
    }
    *end = *from = at;
    return *start < length;
}
