/* UTF-8: decoding, repair of invalid text, the normal forms (with the differences of unicode.c).
 * Repair puts one U+FFFD for each maximal part that could have begun a character (Unicode 3.9, the
 * practice of WHATWG and of Python). */
#include <utf8proc.h>

#include "model/tokenizer.h"

/* Bytes of the character at text, or minus the bytes of the maximal invalid part. */
static int utf8_measure(const unsigned char *text, size_t length)
{
    unsigned char lead = text[0];
    if (lead < 0x80) {
        return 1;
    }
    int bytes = lead >= 0xc2 && lead <= 0xdf ? 2 : (lead & 0xf0) == 0xe0 ? 3 : 4;
    if (lead < 0xc2 || lead > 0xf4) {
        return -1;
    }
    unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    for (int i = 1; i < bytes; i++) {
        if ((size_t)i >= length || text[i] < low || text[i] > high) {
            return -i;
        }
        low = 0x80;
        high = 0xbf;
    }
    return bytes;
}

bool esp_utf8_valid(const char *text, size_t length)
{
    const unsigned char *bytes = (const unsigned char *)text;
    for (size_t at = 0; at < length;) {
        int step = utf8_measure(bytes + at, length - at);
        if (step < 0) {
            return false;
        }
        at += (size_t)step;
    }
    return true;
}

void esp_utf8_repair(const char *text, size_t length, esp_buffer *out)
{
    const unsigned char *bytes = (const unsigned char *)text;
    size_t good = 0;
    for (size_t at = 0; at < length;) {
        int step = utf8_measure(bytes + at, length - at);
        if (step < 0) {
            esp_buffer_append(out, text + good, at - good);
            esp_buffer_text(out, "\xef\xbf\xbd");
            good = at + (size_t)-step;
        }
        at += (size_t)(step < 0 ? -step : step);
    }
    esp_buffer_append(out, text + good, length - good);
}

bool esp_utf8_is_space(int32_t point)
{
    return (point >= 9 && point <= 13) || point == ' ' || point == 0x85 || point == 0xa0 ||
           point == 0x1680 || (point >= 0x2000 && point <= 0x200a) || point == 0x2028 ||
           point == 0x2029 || point == 0x202f || point == 0x205f || point == 0x3000;
}

size_t esp_utf8_next(const char *text, size_t length, int32_t *code_point)
{
    utf8proc_ssize_t bytes =
        utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)length, code_point);
    return bytes > 0 ? (size_t)bytes : 1;
}

/* The decomposed characters of text, counted, and kept where points is not NULL. */
static size_t decompose(const char *text, size_t length, bool compatible, int32_t *points)
{
    int32_t some[ESP_UNICODE_MOST_POINTS];
    size_t count = 0;
    for (size_t at = 0; at < length;) {
        int32_t point = 0;
        at += esp_utf8_next(text + at, length - at, &point);
        count += esp_unicode_decompose(point, compatible, points != NULL ? points + count : some);
    }
    return count;
}

/* Appends points, which may be written over. Newer characters without a class are no part of a
 * composed one, and let nothing behind them be part of one before them. */
static void append_points(int32_t *points, size_t count, bool composed, esp_buffer *out)
{
    for (size_t at = 0; at < count;) {
        size_t end = at;
        while (end < count && (!composed || !esp_unicode_is_newer(points[end]) ||
                               esp_unicode_class(points[end]) != 0)) {
            end++;
        }
        utf8proc_ssize_t left = (utf8proc_ssize_t)(end - at);
        if (composed && left > 0) { /* cannot fail with these options */
            left = utf8proc_normalize_utf32(points + at, left, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        }
        points[at + (size_t)left] = end < count ? points[end] : 0;
        left += end < count;
        for (size_t i = at; i < at + (size_t)left; i++) {
            utf8proc_uint8_t bytes[4];
            esp_buffer_append(out, bytes, (size_t)utf8proc_encode_char(points[i], bytes));
        }
        at = end + 1;
    }
}

esp_status esp_utf8_normalize(const char *text, size_t length, bool composed, bool compatible,
                              esp_buffer *out, esp_error *error)
{
    size_t count = decompose(text, length, compatible, NULL);
    size_t most = count + ESP_UNICODE_MOST_POINTS; /* room for what the last call may write */
    int32_t *points = esp_alloc_array(out->context, 2 * most, sizeof *points);
    if (points == NULL) {
        return esp_fail_memory(error, count * sizeof *points, "normalising text");
    }
    (void)decompose(text, length, compatible, points);
    esp_unicode_order_marks(points, count, points + most);
    append_points(points, count, composed, out);
    esp_release(out->context, points);
    return out->failed ? esp_fail_memory(error, length, "normalising text") : ESP_OK;
}
