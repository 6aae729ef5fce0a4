/* UTF-8: decoding, repair of invalid text, the normal forms. Repair puts one U+FFFD for each
 * maximal part that could have begun a character (Unicode 3.9, the practice of WHATWG and of
 * Python). */
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

esp_status esp_utf8_normalize(const char *text, size_t length, bool composed, bool compatible,
                              esp_buffer *out, esp_error *error)
{
    const utf8proc_option_t options = UTF8PROC_STABLE |
                                      (unsigned)(composed ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                                      (unsigned)(compatible ? UTF8PROC_COMPAT : 0);
    const utf8proc_uint8_t *bytes = (const utf8proc_uint8_t *)text;
    utf8proc_ssize_t needed = utf8proc_decompose(bytes, (utf8proc_ssize_t)length, NULL, 0, options);
    if (needed < 0) {
        return esp_fail(error, ESP_FAILED, "tokenizer.normalize",
                        "text could not be normalised: %s", utf8proc_errmsg(needed));
    }
    /* One more: reencode writes a final NUL. */
    utf8proc_int32_t *points =
        esp_alloc_array(out->context, (size_t)needed + 1, sizeof(utf8proc_int32_t));
    if (points == NULL) {
        return esp_fail_memory(error, (size_t)needed * sizeof(utf8proc_int32_t),
                               "normalising text");
    }
    needed = utf8proc_decompose(bytes, (utf8proc_ssize_t)length, points, needed, options);
    utf8proc_ssize_t written = utf8proc_reencode(points, needed, options);
    if (written >= 0) {
        esp_buffer_append(out, points, (size_t)written);
    }
    esp_release(out->context, points);
    if (written < 0 || out->failed) {
        return esp_fail_memory(error, length, "normalising text");
    }
    return ESP_OK;
}
