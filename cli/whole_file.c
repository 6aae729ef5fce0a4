#include "whole_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static esp_status unwritable(const char *path, const char *what, esp_error *error)
{
    return cli_fail(error, ESP_IO, "file.unwritable", "%s: %s (%s)", path, what, strerror(errno));
}

esp_status whole_file_begin(whole_file *file, const char *path, esp_error *error)
{
    file->path = path;
    file->failed = false;
    if (strlen(path) >= WHOLE_FILE_PATH_MAX) {
        errno = ENAMETOOLONG;
        return unwritable("the file", "its name is too long", error);
    }
    snprintf(file->temporary, sizeof file->temporary, "%s.XXXXXX", path);
    file->descriptor = mkostemp(file->temporary, O_CLOEXEC);
    if (file->descriptor < 0) {
        return unwritable(path, "no file can be made beside it", error);
    }
    mode_t mask = umask(0);
    umask(mask);
    (void)fchmod(file->descriptor, 0644 & ~mask); /* else its owner alone could read it */
    return ESP_OK;
}

void whole_file_write(void *user, const char *text, size_t length)
{
    whole_file *file = user;
    while (length > 0 && !file->failed) {
        ssize_t done = write(file->descriptor, text, length);
        if (done < 0 && errno == EINTR) {
            continue;
        }
        file->failed = done <= 0;
        text += done > 0 ? done : 0;
        length -= done > 0 ? (size_t)done : 0;
    }
}

static void sync_folder(const char *path)
{
    char folder[WHOLE_FILE_PATH_MAX];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash != NULL) {
        slash[slash == folder] = '\0';
    }
    int descriptor = open(slash != NULL ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor >= 0) {
        (void)fsync(descriptor);
        close(descriptor);
    }
}

esp_status whole_file_end(whole_file *file, bool drop, esp_error *error)
{
    bool written = !file->failed && fsync(file->descriptor) == 0;
    written = close(file->descriptor) == 0 && written;
    if (drop || !written || rename(file->temporary, file->path) != 0) {
        esp_status status =
            drop ? (esp_status)ESP_OK : unwritable(file->path, "it cannot be written", error);
        unlink(file->temporary);
        return status;
    }
    sync_folder(file->path);
    return ESP_OK;
}
