/* A folder that is replaced whole: made beside its place under another name, then renamed into it.
 */
#ifndef ESP_IO_TARGET_H
#define ESP_IO_TARGET_H

#include "io/io.h"

typedef struct esp_target {
    esp_context *context;
    char *path;      /* where the folder will be; no symbolic link */
    char *parent;    /* the folder that holds it */
    char *temporary; /* where it grows; NULL when there is none (any more) */
    int marker;      /* open and locked marker file within temporary, or -1 */
    bool force;
    char *record; /* further members of the marker's JSON object, each after ", "; NULL: none */
    char **files; /* names written so far, "file" or "folder/file", the marker not among them */
    size_t file_count, file_capacity;
} esp_target;

/* Checks everything that can be known beforehand, removes what dead processes left, and makes the
 * temporary folder. target is filled also on failure: close it. */
ESP_MUST_CHECK esp_status esp_target_open(esp_context *context, const char *source,
                                          const char *path, bool force, esp_target *target,
                                          esp_error *error);
/* temporary/name, remembered for the marker; owned by the caller (esp_release). A folder that name
 * begins with is made. */
ESP_MUST_CHECK esp_status esp_target_add(esp_target *target, const char *name, char **path,
                                         esp_error *error);
/* A small file, written and synced. */
ESP_MUST_CHECK esp_status esp_target_write_text(esp_target *target, const char *name,
                                                const char *text, esp_error *error);
/* All files are written and synced: completes the marker and renames into place. */
ESP_MUST_CHECK esp_status esp_target_install(esp_target *target, esp_error *error);
/* Removes the temporary folder if there is one. */
void esp_target_close(esp_target *target);

/* stale.c: removes temporary folders of `name` in parent whose makers are dead. */
void esp_target_remove_stale(const char *parent, const char *name);
/* stale.c: the temporary folder's name; suffix from pid and `salt`. */
void esp_target_temporary_name(const char *name, uint64_t salt, char *text, size_t capacity);
/* stale.c: deletes a folder of plain files and folders of plain files, its marker last, so that
 * what a kill leaves behind is still recognised. */
void esp_target_remove(const char *path);

/* marker.c: the folder at path was made by espalier and holds nothing else; codes
 * "checkpoint.not_ours" and "checkpoint.foreign_files". */
ESP_MUST_CHECK esp_status esp_marker_check(esp_context *context, const char *path,
                                           esp_error *error);
/* marker.c: the text of a complete marker. */
void esp_marker_print(const esp_target *target, esp_buffer *text);

#endif
