#ifndef ESP_BASE_GLOB_H
#define ESP_BASE_GLOB_H

#include <stdbool.h>

/* '*' any run, '?' any one character, '[abc]' '[a-z]' '[!a]' a set; the whole text must match.
 * Linear time in practice: one backtrack point. */
bool esp_glob_match(const char *glob, const char *text);

#endif
