/* What BERT does to a text before it looks for words: BertNormalizer and BertPreTokenizer of the
 * Hugging Face library (after BasicTokenizer of google-research/bert).
 *
 * That library's categories of characters are those of Unicode 8, its small letters those of a
 * newer version than utf8proc's; both differences are tables here, so that ids agree on every
 * character. */
#include <utf8proc.h>

#include "model/tokenizer.h"

typedef struct range {
    int32_t first, last;
} range;

/* Marks, punctuation and format characters that utf8proc (Unicode 15) knows and Unicode 8 did not,
 * or put elsewhere; what lies between them is unassigned. */
static const range newer[] = {
    {0x61d, 0x61d},     {0x7fd, 0x7fd},     {0x890, 0x89f},     {0x8ca, 0x8e2},
    {0x9fd, 0x9fe},     {0xa76, 0xa76},     {0xafa, 0xaff},     {0xb55, 0xb55},
    {0xc04, 0xc04},     {0xc3c, 0xc3c},     {0xc77, 0xc77},     {0xc84, 0xc84},
    {0xd00, 0xd00},     {0xd3b, 0xd3c},     {0xd81, 0xd81},     {0xeba, 0xeba},
    {0xece, 0xece},     {0x1715, 0x1715},   {0x180f, 0x180f},   {0x1885, 0x1886},
    {0x1abf, 0x1ace},   {0x1b7d, 0x1b7e},   {0x1df6, 0x1dfb},   {0x2e43, 0x2e4f},
    {0x2e52, 0x2e5d},   {0xa82c, 0xa82c},   {0xa8c5, 0xa8c5},   {0xa8ff, 0xa8ff},
    {0xa9bd, 0xa9bd},   {0x10d24, 0x10d27}, {0x10eab, 0x10ead}, {0x10efd, 0x10eff},
    {0x10f46, 0x10f50}, {0x10f55, 0x10f59}, {0x10f82, 0x10f89}, {0x11070, 0x11070},
    {0x11073, 0x11074}, {0x110c2, 0x110cd}, {0x111c9, 0x111c9}, {0x111cf, 0x111cf},
    {0x1123e, 0x1123e}, {0x11241, 0x11241}, {0x1133b, 0x1133b}, {0x11438, 0x1143f},
    {0x11442, 0x11444}, {0x11446, 0x11446}, {0x1144b, 0x1144f}, {0x1145a, 0x1145e},
    {0x11660, 0x1166c}, {0x116b9, 0x116b9}, {0x1182f, 0x11837}, {0x11839, 0x1183b},
    {0x11938, 0x1193e}, {0x11943, 0x11946}, {0x119d4, 0x119db}, {0x119e0, 0x119e0},
    {0x119e2, 0x119e2}, {0x11a01, 0x11a0a}, {0x11a33, 0x11a38}, {0x11a3b, 0x11a47},
    {0x11a51, 0x11a56}, {0x11a59, 0x11a5b}, {0x11a8a, 0x11a96}, {0x11a98, 0x11a9c},
    {0x11a9e, 0x11aa2}, {0x11b00, 0x11b09}, {0x11c30, 0x11c3d}, {0x11c3f, 0x11c3f},
    {0x11c41, 0x11c45}, {0x11c70, 0x11c71}, {0x11c92, 0x11ca7}, {0x11caa, 0x11cb0},
    {0x11cb2, 0x11cb3}, {0x11cb5, 0x11cb6}, {0x11d31, 0x11d45}, {0x11d47, 0x11d47},
    {0x11d90, 0x11d91}, {0x11d95, 0x11d95}, {0x11d97, 0x11d97}, {0x11ef3, 0x11ef4},
    {0x11ef7, 0x11f01}, {0x11f36, 0x11f3a}, {0x11f40, 0x11f4f}, {0x11fff, 0x11fff},
    {0x12ff1, 0x12ff2}, {0x13430, 0x13440}, {0x13447, 0x13455}, {0x16e97, 0x16e9a},
    {0x16f4f, 0x16f4f}, {0x16fe2, 0x16fe2}, {0x16fe4, 0x16ff1}, {0x1cf00, 0x1cf46},
    {0x1e000, 0x1e02a}, {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae},
    {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef}, {0x1e944, 0x1e94a}, {0x1e95e, 0x1e95f}};

/* Letters whose small forms came after Unicode 15, and the one that becomes two characters. */
static const struct {
    range capitals;
    int32_t add; /* to get the small letter */
} newer_capitals[] = {{{0x1c89, 0x1c89}, 1},      {{0xa7cb, 0xa7cb}, 0x264 - 0xa7cb},
                      {{0xa7cc, 0xa7cc}, 1},      {{0xa7ce, 0xa7ce}, 1},
                      {{0xa7d2, 0xa7d2}, 1},      {{0xa7d4, 0xa7d4}, 1},
                      {{0xa7da, 0xa7da}, 1},      {{0xa7dc, 0xa7dc}, 0x19b - 0xa7dc},
                      {{0x10d50, 0x10d65}, 0x20}, {{0x16ea0, 0x16eb8}, 0x1b}};
#define CAPITAL_I_WITH_DOT 0x130
#define DOT_ABOVE 0x307

static bool is_newer(int32_t point)
{
    int low = 0, high = ESP_COUNT(newer);
    while (low < high) {
        int middle = (low + high) / 2;
        if (newer[middle].last < point) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < ESP_COUNT(newer) && point >= newer[low].first;
}

static bool is_punctuation(int32_t point)
{
    if (point < 0x80) { /* all of ASCII's, + and ^ among them */
        return point > ' ' && point < 0x7f &&
               !((point >= '0' && point <= '9') || ((point | 32) >= 'a' && (point | 32) <= 'z'));
    }
    utf8proc_category_t category = utf8proc_category(point);
    bool marks = category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
    return (marks && !is_newer(point)) || point == 0x166d || point == 0x111c9;
}

static bool is_mark(int32_t point)
{
    return point == 0x1734 ||
           (utf8proc_category(point) == UTF8PROC_CATEGORY_MN && !is_newer(point));
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
    return point == 0xfffd || (other && !is_newer(point));
}

/* Ideographs of Chinese; 2b820 to 2b91f are missing there, so they are here. */
static bool is_ideograph(int32_t point)
{
    static const range ideographs[] = {{0x3400, 0x4dbf},   {0x4e00, 0x9fff},   {0xf900, 0xfaff},
                                       {0x20000, 0x2a6df}, {0x2a700, 0x2b81f}, {0x2b920, 0x2ceaf},
                                       {0x2f800, 0x2fa1f}};
    for (int i = 0; i < ESP_COUNT(ideographs) && point >= ideographs[i].first; i++) {
        if (point <= ideographs[i].last) {
            return true;
        }
    }
    return false;
}

static int32_t small_letter(int32_t point)
{
    for (int i = 0; i < ESP_COUNT(newer_capitals) && point >= newer_capitals[0].capitals.first;
         i++) {
        if (point >= newer_capitals[i].capitals.first && point <= newer_capitals[i].capitals.last) {
            return point + newer_capitals[i].add;
        }
    }
    return utf8proc_tolower(point);
}

/* ---- the normalizer ---- */

/* Classes, and decompositions, are those of Unicode 9. */
static int combining_class(int32_t point)
{
    static const range nine[] = {{0x8d4, 0x8e1},     {0x1dfb, 0x1dfb},   {0x11442, 0x11442},
                                 {0x11446, 0x11446}, {0x11c3f, 0x11c3f}, {0x1e000, 0x1e02a},
                                 {0x1e944, 0x1e94a}};
    bool known = !is_newer(point);
    for (int i = 0; i < ESP_COUNT(nine) && !known; i++) {
        known = point >= nine[i].first && point <= nine[i].last;
    }
    return known ? utf8proc_get_property(point)->combining_class : 0;
}

/* Appends the canonical decomposition of a character. */
static size_t decompose(int32_t point, int32_t *points)
{
    if (point < 0xc0 || is_newer(point)) {
        points[0] = point;
        return 1;
    }
    int boundary = 0;
    utf8proc_ssize_t count =
        utf8proc_decompose_char(point, points, 8, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, &boundary);
    return count > 0 ? (size_t)count : 0;
}

/* Sorts a run of marks by their classes, which keeps the order of equals. */
static void order_run(int32_t *points, size_t count, int32_t *scratch)
{
    size_t places[257] = {0};
    for (size_t i = 0; i < count; i++) {
        places[combining_class(points[i]) + 1]++;
    }
    for (int class = 1; class < 257; class ++) {
        places[class] += places[class - 1];
    }
    for (size_t i = 0; i < count; i++) {
        scratch[places[combining_class(points[i])]++] = points[i];
    }
    memcpy(points, scratch, count * sizeof *points);
}

/* The marks behind a letter stand in the order of their classes (UAX 15). */
static void order_marks(int32_t *points, size_t count, int32_t *scratch)
{
    for (size_t i = 0; i < count; i++) {
        size_t begin = i;
        while (i < count && points[i] >= 0x300 && combining_class(points[i]) != 0) {
            i++;
        }
        if (i - begin > 1) {
            order_run(points + begin, i - begin, scratch);
        }
    }
}

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
            count += decompose(point, points + count);
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
    /* A character of n bytes becomes at most 2 n points, and decompose may write 8. */
    size_t most = 2 * length + 8;
    int32_t *points = esp_alloc_array(out->context, 2 * most, sizeof *points);
    if (points == NULL) {
        return esp_fail_memory(error, length, "normalising text");
    }
    size_t count = read_points(fold, text, length, points);
    if (fold->strip_marks) {
        order_marks(points, count, points + most);
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
