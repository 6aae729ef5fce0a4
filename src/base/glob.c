#include "base/glob.h"

#include <stddef.h>

/* *set stands behind '['; returns whether c is in the set and moves *set behind ']'. A set without
 * an end matches nothing. */
static bool in_set(const char **set, char c)
{
    const char *at = *set;
    bool negated = *at == '!';
    bool found = false;
    at += negated;
    for (bool first = true; *at != '\0' && (first || *at != ']'); first = false) {
        if (at[1] == '-' && at[2] != ']' && at[2] != '\0') {
            found |= at[0] <= c && c <= at[2];
            at += 3;
        } else {
            found |= *at++ == c;
        }
    }
    if (*at != ']') {
        return false;
    }
    *set = at + 1;
    return found != negated;
}

/* Matches one glob element against c and moves *glob behind it. */
static bool match_one(const char **glob, char c)
{
    char element = *(*glob)++;
    if (element == '[') {
        return in_set(glob, c);
    }
    return element == '?' || element == c;
}

bool esp_glob_match(const char *glob, const char *text)
{
    const char *star = NULL, *resume = NULL;
    while (*text != '\0') {
        if (*glob == '*') {
            star = ++glob;
            resume = text;
            continue;
        }
        const char *next = glob;
        if (*glob != '\0' && match_one(&next, *text)) {
            glob = next;
            text++;
        } else if (star != NULL) {
            glob = star;
            text = ++resume;
        } else {
            return false;
        }
    }
    while (*glob == '*') {
        glob++;
    }
    return *glob == '\0';
}
