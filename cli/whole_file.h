/* A file that is replaced whole: written under another name beside it, synced, renamed, so that a
 * reader finds the old one or the new one. */
#ifndef CLI_WHOLE_FILE_H
#define CLI_WHOLE_FILE_H

#include "cli.h"

#define WHOLE_FILE_PATH_MAX 4096

typedef struct whole_file {
    const char *path;
    char temporary[WHOLE_FILE_PATH_MAX + 16];
    int descriptor;
    bool failed;
} whole_file;

/* "file.unwritable" from both. */
ESP_MUST_CHECK esp_status whole_file_begin(whole_file *file, const char *path, esp_error *error);
/* An esp_write_fn; user is the whole_file. */
void whole_file_write(void *user, const char *text, size_t length);
/* Puts it in its place; with `drop` it leaves what was there. */
ESP_MUST_CHECK esp_status whole_file_end(whole_file *file, bool drop, esp_error *error);

#endif
