/* Every system call on files that the library makes, so that faults can be injected in one place:
 * short transfers and EINTR are dealt with here. */
#ifndef ESP_BASE_FILE_H
#define ESP_BASE_FILE_H

#include <dirent.h>
#include <espalier/base.h>

/* Opens a regular file for reading, following symbolic links. Codes: "file.not_found",
 * "file.unreadable", "file.not_regular" (folder, FIFO, device), "file.symlink_loop". */
ESP_MUST_CHECK esp_status esp_file_open(const char *path, int *descriptor, uint64_t *bytes,
                                        esp_error *error);
/* Exactly `bytes` from `offset`; "file.shrunk" when the file ends before that. */
ESP_MUST_CHECK esp_status esp_file_read_at(int descriptor, const char *path, void *buffer,
                                           size_t bytes, uint64_t offset, esp_error *error);
/* A new file; "file.exists" if it is there. */
ESP_MUST_CHECK esp_status esp_file_create(const char *path, int *descriptor, esp_error *error);
ESP_MUST_CHECK esp_status esp_file_write_at(int descriptor, const char *path, const void *data,
                                            size_t bytes, uint64_t offset, esp_error *error);
/* fsync and close; the descriptor is gone also when this fails. */
ESP_MUST_CHECK esp_status esp_file_sync_close(int descriptor, const char *path, esp_error *error);
void esp_file_close(int descriptor);

/* Whole file into context memory, NUL-terminated behind *length bytes; code_too_large above max. */
ESP_MUST_CHECK esp_status esp_file_read_all(esp_context *context, const char *path,
                                            size_t max_bytes, const char *code_too_large,
                                            char **text, size_t *length, esp_error *error);

ESP_MUST_CHECK esp_status esp_folder_create(const char *path, esp_error *error);
ESP_MUST_CHECK esp_status esp_folder_sync(const char *path, esp_error *error);
/* The next name in an open folder, but "." and ".."; *name is NULL at its end. The end and a fault
 * look the same to readdir: a folder that cannot be read to its end must not pass for a short one.
 */
ESP_MUST_CHECK esp_status esp_folder_next(DIR *folder, const char *path, const char **name,
                                          esp_error *error);
/* Deletes a folder of plain files (no sub-folders); best effort, says nothing. */
void esp_folder_remove(const char *path);
/* Deletes a file; best effort, says nothing. */
void esp_file_remove(const char *path);
/* Renames onto nothing: "file.exists" if the target is there. */
ESP_MUST_CHECK esp_status esp_rename_new(const char *from, const char *to, esp_error *error);
/* Swaps two existing paths in one step; ESP_UNSUPPORTED "file.no_exchange" where the system can't.
 */
ESP_MUST_CHECK esp_status esp_rename_exchange(const char *a, const char *b, esp_error *error);
ESP_MUST_CHECK esp_status esp_free_disk(const char *path, uint64_t *bytes, esp_error *error);
/* Also for a dangling link, and when the system cannot tell: whoever opens it learns why. */
bool esp_path_exists(const char *path);
bool esp_path_is_folder(const char *path);

#endif
