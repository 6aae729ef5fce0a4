/* Damage to bytes as transfers, disks, editors and hostile people do it: seeded, so that a mutant
 * is known by its number. */
#ifndef ESP_TESTS_MUTATE_H
#define ESP_TESTS_MUTATE_H

#include <string.h>

#include "base/base.h"

typedef struct mutant {
    unsigned char *bytes;
    size_t length, capacity;
} mutant;

/* length bytes at `at` become `put` bytes of `with`; too long a result stays as it was. */
static inline void mutant_splice(mutant *on, size_t at, size_t length, const void *with, size_t put)
{
    unsigned char copy[4096];
    if (at > on->length || length > on->length - at || put > sizeof copy ||
        on->length - length + put > on->capacity) {
        return;
    }
    memcpy(copy, with, put); /* it may lie in what moves */
    memmove(on->bytes + at + put, on->bytes + at + length, on->length - at - length);
    memcpy(on->bytes + at, copy, put);
    on->length += put - length;
}

static inline size_t mutant_below(esp_random *random, size_t limit)
{
    return limit == 0 ? 0 : (size_t)esp_random_below(random, limit);
}

static inline bool mutant_is_number(unsigned char byte)
{
    return (byte >= '0' && byte <= '9') || byte == '-' || byte == '.';
}

static inline void mutant_edit_number(mutant *on, esp_random *random)
{
    static const char *const numbers[] = {"0",     "-1",         "1",
                                          "2",     "4294967296", "2147483647",
                                          "65536", "1e308",      "9223372036854775807",
                                          "1.5",   "-0",         "18446744073709551615",
                                          "3",     "1000000",    "99999999999999999999999",
                                          "01",    "1e-5",       "7"};
    size_t at = mutant_below(random, on->length), end;
    while (at < on->length && !mutant_is_number(on->bytes[at])) {
        at++;
    }
    for (end = at; end < on->length && mutant_is_number(on->bytes[end]);) {
        end++;
    }
    const char *number = numbers[mutant_below(random, ESP_COUNT(numbers))];
    if (mutant_below(random, 3) == 0 && at < on->length) { /* off by little */
        on->bytes[end - 1] = (unsigned char)('0' + mutant_below(random, 10));
    } else {
        mutant_splice(on, at, end - at, number, strlen(number));
    }
}

/* A quoted string, quotes included; false when there is none behind a random place. */
static inline bool mutant_find_string(const mutant *on, esp_random *random, size_t *at,
                                      size_t *length)
{
    size_t begin = mutant_below(random, on->length), end;
    while (begin < on->length && on->bytes[begin] != '"') {
        begin++;
    }
    for (end = begin + 1; end < on->length && on->bytes[end] != '"';) {
        end++;
    }
    *at = begin;
    *length = end + 1 - begin;
    return end < on->length && *length <= 512;
}

static inline void mutant_swap_tokens(mutant *on, esp_random *random)
{
    size_t a, b, a_length, b_length;
    unsigned char copy[512];
    if (!mutant_find_string(on, random, &a, &a_length) ||
        !mutant_find_string(on, random, &b, &b_length) || a == b) {
        return;
    }
    if (a > b) {
        size_t at = a, length = a_length;
        a = b, a_length = b_length;
        b = at, b_length = length;
    }
    if (a + a_length > b) {
        return;
    }
    memcpy(copy, on->bytes + b, b_length);
    mutant_splice(on, b, b_length, on->bytes + a, a_length);
    mutant_splice(on, a, a_length, copy, b_length);
}

static inline void mutant_insert(mutant *on, esp_random *random)
{
    static const char *const texts[] = {"null", "{}", "[]", "[[[[[[[[[[[[", "\"\"", ",",   ":",
                                        "}",    "{",  "]",  "\\u0000",      "\xff", "1e9", "true",
                                        "\"",   "//", "\\", "\xed\xa0\x80", " "};
    unsigned char noise[16];
    const char *text = texts[mutant_below(random, ESP_COUNT(texts))];
    size_t length = 1 + mutant_below(random, sizeof noise);
    for (size_t i = 0; i < length; i++) {
        noise[i] = (unsigned char)mutant_below(random, 256);
    }
    bool is_text = mutant_below(random, 2) == 0;
    mutant_splice(on, mutant_below(random, on->length + 1), 0, is_text ? (const void *)text : noise,
                  is_text ? strlen(text) : length);
}

static inline void mutate_once(mutant *on, esp_random *random)
{
    size_t at = mutant_below(random, on->length);
    size_t length = 1 + mutant_below(random, mutant_below(random, 4) == 0 ? 200 : 8);
    length = on->length - at < length ? on->length - at : length;
    switch (mutant_below(random, 12)) { /* above 8: numbers and tokens, which stay well-formed */
    case 0:
    case 1:
        if (on->length > 0) {
            on->bytes[at] ^= (unsigned char)(1u << mutant_below(random, 8));
        }
        break;
    case 2:
        if (on->length > 0) {
            on->bytes[at] = (unsigned char)mutant_below(random, 256);
        }
        break;
    case 3:
        mutant_splice(on, at, length, "", 0);
        break;
    case 4:
        on->length = mutant_below(random, 4) == 0 ? at : on->length;
        break;
    case 5:
    case 9:
    case 10:
        mutant_edit_number(on, random);
        break;
    case 6:
    case 11:
        mutant_swap_tokens(on, random);
        break;
    case 7:
        mutant_splice(on, mutant_below(random, on->length + 1), 0, on->bytes + at, length);
        break;
    default:
        mutant_insert(on, random);
    }
}

static inline void mutate(mutant *on, esp_random *random)
{
    size_t times = 1 + mutant_below(random, 1 + mutant_below(random, 3)); /* mostly one */
    for (size_t i = 0; i < times; i++) {
        mutate_once(on, random);
    }
}

/* A safetensors file: its length field, its header or its data; the length field follows a changed
 * header half the time, so that damage gets past it. */
static inline void mutate_safetensors(mutant *on, esp_random *random)
{
    uint64_t header = 0;
    for (int i = 7; i >= 0; i--) {
        header = header << 8 | on->bytes[i];
    }
    size_t rest = on->length - 8 - (size_t)header, kind = mutant_below(random, 10);
    mutant part = {on->bytes + 8, (size_t)header, (size_t)header};
    static unsigned char text[1 << 16];
    if (kind == 0 || sizeof text < header + 4096) {
        mutate(on, random);
    } else if (kind < 3) {
        part = (mutant){on->bytes + 8 + header, rest, on->capacity - 8 - (size_t)header};
        mutate(&part, random);
        on->length = 8 + (size_t)header + part.length;
    } else {
        memcpy(text, on->bytes + 8, (size_t)header);
        part = (mutant){text, (size_t)header, (size_t)header + 1024};
        mutate(&part, random);
        if (8 + part.length + rest > on->capacity) {
            return;
        }
        memmove(on->bytes + 8 + part.length, on->bytes + 8 + header, rest);
        memcpy(on->bytes + 8, text, part.length);
        on->length = 8 + part.length + rest;
        for (int i = 0; i < 8 && kind < 8; i++) {
            on->bytes[i] = (unsigned char)((uint64_t)part.length >> 8 * i);
        }
    }
}

#endif
