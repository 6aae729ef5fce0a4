#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/error.h"
#include "base/memory.h"

#define MAX_TRANSFER ((size_t)1 << 30)
#define LARGE_TRANSFER ((size_t)1 << 20)
#define WRITE_PIECE ((size_t)16 << 20) /* between two hints */

static esp_status open_failed(esp_error *error, const char *path, int why)
{
    if (why == ENOENT || why == ENOTDIR) {
        return esp_fail(error, ESP_BAD_FILE, "file.not_found", "%s: there is no such file", path);
    }
    if (why == ELOOP) {
        return esp_fail(error, ESP_BAD_FILE, "file.symlink_loop",
                        "%s: symbolic links lead in a circle; point the link at a real file", path);
    }
    if (why == EACCES || why == EPERM) {
        return esp_fail(error, ESP_BAD_FILE, "file.unreadable",
                        "%s: may not be read (permission denied); check its mode and owner", path);
    }
    return esp_fail_errno(error, why, "file.unreadable", "%s: could not be opened", path);
}

esp_status esp_file_open(const char *path, int *descriptor, uint64_t *bytes, esp_error *error)
{
    /* O_NONBLOCK: a FIFO must not hang the open. */
    int opened;
    do {
        opened = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    } while (opened < 0 && errno == EINTR);
    if (opened < 0) {
        return open_failed(error, path, errno);
    }
    struct stat facts;
    if (fstat(opened, &facts) != 0) {
        esp_status status = esp_fail_errno(error, errno, "file.unreadable", "%s: stat", path);
        close(opened);
        return status;
    }
    if (!S_ISREG(facts.st_mode)) {
        close(opened);
        return esp_fail(error, ESP_BAD_FILE, "file.not_regular",
                        "%s: is %s; a regular file was expected", path,
                        S_ISDIR(facts.st_mode)    ? "a folder"
                        : S_ISFIFO(facts.st_mode) ? "a FIFO"
                                                  : "a device or socket");
    }
    *descriptor = opened;
    *bytes = (uint64_t)facts.st_size;
    return ESP_OK;
}

/* Hints, so that the disk works while we compute; a failed one changes nothing. A large read is
 * expected to be followed by its neighbour of the same size, which is fetched meanwhile; what was
 * written goes on its way at once, instead of all of it in the end when somebody waits. */
static void hint_read(int descriptor, uint64_t offset, size_t bytes)
{
#ifdef POSIX_FADV_WILLNEED
    if (bytes >= LARGE_TRANSFER && bytes <= INT64_MAX / 2) {
        (void)!posix_fadvise(descriptor, (off_t)offset, (off_t)(2 * bytes), POSIX_FADV_WILLNEED);
    }
#else
    (void)descriptor, (void)offset, (void)bytes;
#endif
}

static void hint_written(int descriptor, uint64_t offset, size_t bytes)
{
#ifdef SYNC_FILE_RANGE_WRITE
    if (bytes >= LARGE_TRANSFER) {
        (void)!sync_file_range(descriptor, (off_t)offset, (off_t)bytes, SYNC_FILE_RANGE_WRITE);
    }
#else
    (void)descriptor, (void)offset, (void)bytes;
#endif
}

esp_status esp_file_read_at(int descriptor, const char *path, void *buffer, size_t bytes,
                            uint64_t offset, esp_error *error)
{
    char *at = buffer;
    hint_read(descriptor, offset, bytes);
    while (bytes > 0) {
        size_t piece = bytes < MAX_TRANSFER ? bytes : MAX_TRANSFER;
        ssize_t got = pread(descriptor, at, piece, (off_t)offset);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return esp_fail_errno(error, errno, "file.read_failed", "%s: reading at byte %llu",
                                  path, (unsigned long long)offset);
        }
        if (got == 0) {
            return esp_fail(
                error, ESP_BAD_FILE, "file.shrunk",
                "%s: ends at byte %llu, %zu bytes earlier than its size said when it was "
                "opened; do not change a file while it is read",
                path, (unsigned long long)offset, bytes);
        }
        at += got;
        offset += (uint64_t)got;
        bytes -= (size_t)got;
    }
    return ESP_OK;
}

esp_status esp_file_create(const char *path, int *descriptor, esp_error *error)
{
    int opened;
    do {
        opened = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (opened < 0 && errno == EINTR);
    if (opened < 0) {
        return errno == EEXIST
                   ? esp_fail(error, ESP_IO, "file.exists", "%s: exists already", path)
                   : esp_fail_errno(error, errno, "file.create_failed", "%s: creating", path);
    }
    *descriptor = opened;
    return ESP_OK;
}

esp_status esp_file_write_at(int descriptor, const char *path, const void *data, size_t bytes,
                             uint64_t offset, esp_error *error)
{
    const char *at = data;
    while (bytes > 0) {
        size_t piece = bytes < WRITE_PIECE ? bytes : WRITE_PIECE;
        ssize_t put = pwrite(descriptor, at, piece, (off_t)offset);
        if (put < 0 && errno == EINTR) {
            continue;
        }
        if (put <= 0) {
            return esp_fail_errno(error, put < 0 ? errno : EIO, "file.write_failed",
                                  "%s: writing at byte %llu", path, (unsigned long long)offset);
        }
        hint_written(descriptor, offset, (size_t)put);
        at += put;
        offset += (uint64_t)put;
        bytes -= (size_t)put;
    }
    return ESP_OK;
}

esp_status esp_file_sync_close(int descriptor, const char *path, esp_error *error)
{
    int synced;
    do {
        synced = fsync(descriptor);
    } while (synced != 0 && errno == EINTR);
    int why = synced != 0 ? errno : 0;
    if (close(descriptor) != 0 && why == 0 && errno != EINTR) {
        why = errno;
    }
    return why == 0 ? ESP_OK
                    : esp_fail_errno(error, why, "file.sync_failed", "%s: bringing to disk", path);
}

void esp_file_close(int descriptor)
{
    if (descriptor >= 0) {
        close(descriptor);
    }
}

esp_status esp_file_read_all(esp_context *context, const char *path, size_t max_bytes,
                             const char *code_too_large, char **text, size_t *length,
                             esp_error *error)
{
    int descriptor;
    uint64_t bytes;
    ESP_TRY(esp_file_open(path, &descriptor, &bytes, error));
    if (bytes > max_bytes) {
        close(descriptor);
        return esp_fail(error, ESP_BAD_FILE, code_too_large,
                        "%s: is %llu bytes; at most %zu were expected of such a file", path,
                        (unsigned long long)bytes, max_bytes);
    }
    char *content = esp_alloc(context, (size_t)bytes + 1);
    esp_status status = content == NULL
                            ? esp_fail_memory(error, (size_t)bytes + 1, path)
                            : esp_file_read_at(descriptor, path, content, (size_t)bytes, 0, error);
    close(descriptor);
    if (status != ESP_OK) {
        esp_release(context, content);
        return status;
    }
    content[bytes] = '\0';
    *text = content;
    *length = (size_t)bytes;
    return ESP_OK;
}

esp_status esp_folder_create(const char *path, esp_error *error)
{
    if (mkdir(path, 0777) == 0) {
        return ESP_OK;
    }
    return errno == EEXIST
               ? esp_fail(error, ESP_IO, "file.exists", "%s: exists already", path)
               : esp_fail_errno(error, errno, "file.create_failed", "%s: making the folder", path);
}

esp_status esp_folder_sync(const char *path, esp_error *error)
{
    int descriptor;
    do {
        descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    } while (descriptor < 0 && errno == EINTR);
    if (descriptor < 0) {
        return esp_fail_errno(error, errno, "file.sync_failed", "%s: opening the folder", path);
    }
    return esp_file_sync_close(descriptor, path, error);
}

esp_status esp_folder_next(DIR *folder, const char *path, const char **name, esp_error *error)
{
    struct dirent *entry;
    do {
        errno = 0;
        entry = readdir(folder);
    } while (entry != NULL &&
             (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0));
    if (entry == NULL && errno != 0) {
        return esp_fail_errno(error, errno, "file.read_failed", "%s: listing the folder", path);
    }
    *name = entry != NULL ? entry->d_name : NULL;
    return ESP_OK;
}

void esp_file_remove(const char *path)
{
    (void)unlink(path);
}

void esp_folder_remove(const char *path)
{
    DIR *folder = opendir(path);
    if (folder != NULL) {
        struct dirent *entry;
        while ((entry = readdir(folder)) != NULL) {
            if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
                unlinkat(dirfd(folder), entry->d_name, 0);
            }
        }
        closedir(folder);
    }
    rmdir(path);
}

esp_status esp_rename_new(const char *from, const char *to, esp_error *error)
{
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0) {
        return ESP_OK;
    }
    if (errno == EEXIST) {
        return esp_fail(error, ESP_IO, "file.exists", "%s: exists already", to);
    }
    if ((errno == EINVAL || errno == ENOSYS) && !esp_path_exists(to) && rename(from, to) == 0) {
        return ESP_OK; /* a file system without the flag: a folder never replaces a full folder */
    }
    return esp_fail_errno(error, errno, "file.rename_failed", "renaming %s to %s", from, to);
}

esp_status esp_rename_exchange(const char *a, const char *b, esp_error *error)
{
    if (renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE) == 0) {
        return ESP_OK;
    }
    if (errno == EINVAL || errno == ENOSYS) {
        return esp_fail(
            error, ESP_UNSUPPORTED, "file.no_exchange",
            "%s: this file system cannot exchange two folders in one step; write to a new "
            "name and move it yourself",
            b);
    }
    return esp_fail_errno(error, errno, "file.rename_failed", "exchanging %s and %s", a, b);
}

esp_status esp_free_disk(const char *path, uint64_t *bytes, esp_error *error)
{
    struct statvfs facts;
    int known;
    do {
        known = statvfs(path, &facts);
    } while (known != 0 && errno == EINTR);
    if (known != 0) {
        return esp_fail_errno(error, errno, "file.no_disk_facts", "%s: asking for free disk", path);
    }
    *bytes = (uint64_t)facts.f_bavail * facts.f_frsize;
    return ESP_OK;
}

bool esp_path_exists(const char *path)
{
    struct stat facts;
    return lstat(path, &facts) == 0 ||
           (errno != ENOENT && errno != ENOTDIR && errno != ENAMETOOLONG);
}

bool esp_path_is_folder(const char *path)
{
    struct stat facts;
    return stat(path, &facts) == 0 && S_ISDIR(facts.st_mode);
}
