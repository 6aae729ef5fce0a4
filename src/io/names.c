#include "io/names.h"

#include <stdio.h>
#include <string.h>

static bool is_continuation(unsigned char byte)
{
    return (byte & 0xc0) == 0x80;
}

/* Faults that the second byte reveals once the lead byte is known. */
static esp_utf8_fault second_byte_fault(unsigned char lead, unsigned char second)
{
    if ((lead == 0xe0 && second < 0xa0) || (lead == 0xf0 && second < 0x90)) {
        return ESP_UTF8_OVERLONG;
    }
    if (lead == 0xed && second >= 0xa0) {
        return ESP_UTF8_SURROGATE;
    }
    return lead == 0xf4 && second > 0x8f ? ESP_UTF8_BROKEN : ESP_UTF8_FINE;
}

size_t esp_io_utf8_step(const char *text, size_t length, esp_utf8_fault *fault)
{
    const unsigned char *at = (const unsigned char *)text;
    unsigned char lead = at[0];
    if (lead < 0x80) {
        return 1;
    }
    size_t need = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    *fault = ESP_UTF8_BROKEN;
    if (lead < 0xc0 || lead > 0xf4 || length < need) {
        return 0;
    }
    for (size_t i = 1; i < need; i++) {
        if (!is_continuation(at[i])) {
            return 0;
        }
    }
    *fault = lead < 0xc2 ? ESP_UTF8_OVERLONG : second_byte_fault(lead, at[1]);
    return *fault == ESP_UTF8_FINE ? need : 0;
}

bool esp_io_name_is_fine(const char *name)
{
    size_t length = strlen(name);
    if (length == 0 || length > ESP_IO_NAME_MAX || strcmp(name, "__metadata__") == 0) {
        return false;
    }
    for (size_t at = 0; at < length;) {
        esp_utf8_fault fault;
        size_t step = esp_io_utf8_step(name + at, length - at, &fault);
        if (step == 0) {
            return false;
        }
        at += step;
    }
    return true;
}

esp_shown esp_io_show(const char *name)
{
    esp_shown shown;
    size_t length = strlen(name), keep = length;
    if (length >= sizeof shown.text) {
        keep = sizeof shown.text - 4;
        while (keep > 0 && is_continuation((unsigned char)name[keep])) {
            keep--;
        }
    }
    memcpy(shown.text, name, keep);
    strcpy(shown.text + keep, keep < length ? "..." : "");
    return shown;
}

esp_status esp_io_sort(esp_context *context, uint32_t *indexes, size_t count,
                       esp_compare_fn compare, const void *user, esp_error *error)
{
    uint32_t *scratch = esp_alloc_array(context, count, sizeof *scratch);
    if (scratch == NULL) {
        return esp_fail_memory(error, count * sizeof *scratch, "sorting tensor names");
    }
    uint32_t *from = indexes, *to = scratch;
    for (size_t width = 1; width < count; width *= 2) {
        for (size_t begin = 0; begin < count; begin += 2 * width) {
            size_t middle = ESP_MIN(begin + width, count), end = ESP_MIN(middle + width, count);
            size_t left = begin, right = middle;
            for (size_t out = begin; out < end; out++) {
                bool take_left =
                    left < middle && (right == end || compare(user, from[left], from[right]) <= 0);
                to[out] = take_left ? from[left++] : from[right++];
            }
        }
        uint32_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != indexes) {
        memcpy(indexes, from, count * sizeof *indexes);
    }
    esp_release(context, scratch);
    return ESP_OK;
}

bool esp_io_ends_with(const char *text, const char *ending)
{
    size_t length = strlen(text), tail = strlen(ending);
    return length >= tail && strcmp(text + length - tail, ending) == 0;
}

char *esp_io_join(esp_context *context, const char *folder, const char *name)
{
    size_t bytes = strlen(folder) + strlen(name) + 2;
    char *path = esp_alloc(context, bytes);
    if (path != NULL) {
        snprintf(path, bytes, "%s/%s", folder, name);
    }
    return path;
}
