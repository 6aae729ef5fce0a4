/* Typed reading of a header that the scan found well-formed; no check of spelling is needed here.
 */
#include <string.h>

#include "io/header_json.h"

char esp_header_peek(esp_header_json *json)
{
    esp_header_skip_space(json);
    return json->text[json->at];
}

void esp_header_enter(esp_header_json *json)
{
    json->at++;
}

bool esp_header_next(esp_header_json *json)
{
    char c = esp_header_peek(json);
    if (c == '}' || c == ']') {
        json->at++;
        return false;
    }
    if (c == ',') {
        json->at++;
        esp_header_skip_space(json);
    }
    return true;
}

static char *put_utf8(char *to, uint32_t point)
{
    if (point < 0x80) {
        *to++ = (char)point;
    } else if (point < 0x800) {
        *to++ = (char)(0xc0 | point >> 6);
        *to++ = (char)(0x80 | (point & 0x3f));
    } else if (point < 0x10000) {
        *to++ = (char)(0xe0 | point >> 12);
        *to++ = (char)(0x80 | (point >> 6 & 0x3f));
        *to++ = (char)(0x80 | (point & 0x3f));
    } else {
        *to++ = (char)(0xf0 | point >> 18);
        *to++ = (char)(0x80 | (point >> 12 & 0x3f));
        *to++ = (char)(0x80 | (point >> 6 & 0x3f));
        *to++ = (char)(0x80 | (point & 0x3f));
    }
    return to;
}

/* `at` stands behind the backslash. */
static char *decode_escape(esp_header_json *json, char *to)
{
    static const char kinds[] = "bfnrt", meanings[] = "\b\f\n\r\t";
    char kind = json->text[json->at++];
    if (kind != 'u') {
        const char *found = strchr(kinds, kind);
        *to++ = found != NULL ? meanings[found - kinds] : kind;
        return to;
    }
    uint32_t point = (uint32_t)esp_header_hex4(json, json->at);
    json->at += 4;
    if (point >= 0xd800 && point <= 0xdbff) {
        uint32_t second = (uint32_t)esp_header_hex4(json, json->at + 2);
        point = 0x10000 + ((point - 0xd800) << 10) + (second - 0xdc00);
        json->at += 6;
    }
    return put_utf8(to, point);
}

/* Decoded text is never longer than its spelling, so it is written over it. */
esp_header_string esp_header_read_string(esp_header_json *json)
{
    esp_header_skip_space(json);
    json->at++;
    char *start = json->text + json->at, *to = start;
    bool escaped = false;
    while (json->text[json->at] != '"') {
        if (json->text[json->at] == '\\') {
            escaped = true;
            json->at++;
            to = decode_escape(json, to);
        } else {
            *to++ = json->text[json->at++];
        }
    }
    json->at++;
    *to = '\0';
    return (esp_header_string){.text = start, .length = (size_t)(to - start), .escaped = escaped};
}

esp_header_string esp_header_read_key(esp_header_json *json)
{
    esp_header_string key = esp_header_read_string(json);
    esp_header_skip_space(json);
    json->at++;
    return key;
}

uint64_t esp_header_read_number(esp_header_json *json)
{
    uint64_t value = 0;
    esp_header_skip_space(json);
    while (json->text[json->at] >= '0' && json->text[json->at] <= '9') {
        value = value * 10 + (uint64_t)(json->text[json->at++] - '0');
    }
    return value;
}
