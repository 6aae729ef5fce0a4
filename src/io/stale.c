/* Temporary folders: their names, their removal, and cleaning up after processes that were killed.
 *
 * A name is ".NAME.espalier-PID-SALT". One that was left behind is removed only when its process is
 * gone, its marker file is there and nobody holds the lock on it: process numbers mean little
 * across containers that share a disk, a lock does. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "io/target.h"

#define NAME_KEPT 180 /* bytes of NAME: the whole must stay below 255 */

static int prefix_of(const char *name, char *text, size_t capacity)
{
    return snprintf(text, capacity, ".%.*s.espalier-", NAME_KEPT, name);
}

void esp_target_temporary_name(const char *name, uint64_t salt, char *text, size_t capacity)
{
    int used = prefix_of(name, text, capacity);
    if (used > 0 && (size_t)used < capacity) {
        snprintf(text + used, capacity - (size_t)used, "%ld-%016" PRIx64, (long)getpid(), salt);
    }
}

/* inner: of a folder within, which has no marker and no folders. */
static void remove_content(int folder, bool inner)
{
    int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = copy >= 0 ? fdopendir(copy) : NULL;
    struct dirent *entry;
    if (list == NULL) {
        esp_file_close(copy);
        return;
    }
    while ((entry = readdir(list)) != NULL) {
        const char *name = entry->d_name;
        bool keep = strcmp(name, ".") == 0 || strcmp(name, "..") == 0 ||
                    (!inner && strcmp(name, ESP_MARKER_FILE) == 0);
        if (keep || unlinkat(folder, name, 0) == 0 || inner) {
            continue;
        }
        int within = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (within >= 0) {
            remove_content(within, true);
            esp_file_close(within);
        }
        unlinkat(folder, name, AT_REMOVEDIR);
    }
    closedir(list);
}

void esp_target_remove(const char *path)
{
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder >= 0) {
        remove_content(folder, false);
        unlinkat(folder, ESP_MARKER_FILE, 0);
        close(folder);
    }
    rmdir(path);
}

/* The process number in a temporary folder's name, if it is one with this prefix; else 0. */
static long maker_of(const char *entry, const char *prefix)
{
    size_t length = strlen(prefix);
    if (strncmp(entry, prefix, length) != 0) {
        return 0;
    }
    const char *at = entry + length;
    char *end;
    if (*at < '1' || *at > '9') {
        return 0;
    }
    errno = 0;
    long pid = strtol(at, &end, 10);
    bool fits = errno == 0 && pid > 0 && pid <= INT32_MAX && *end == '-' &&
                strspn(end + 1, "0123456789abcdef") == 16 && end[17] == '\0';
    return fits ? pid : 0;
}

static void remove_if_abandoned(int parent, const char *parent_path, const char *entry)
{
    char path[4096];
    int folder = openat(parent, entry, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder < 0) {
        return;
    }
    int marker = openat(folder, ESP_MARKER_FILE, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    int length = snprintf(path, sizeof path, "%s/%s", parent_path, entry);
    if (marker < 0) {
        unlinkat(parent, entry, AT_REMOVEDIR); /* killed before its first file: goes if empty */
    } else if (flock(marker, LOCK_EX | LOCK_NB) == 0 && length > 0 &&
               (size_t)length < sizeof path) {
        esp_target_remove(path);
    }
    esp_file_close(marker);
    close(folder);
}

void esp_target_remove_stale(const char *parent, const char *name)
{
    char prefix[256];
    struct dirent *entry;
    DIR *folder = opendir(parent);
    if (folder == NULL) {
        return;
    }
    prefix_of(name, prefix, sizeof prefix);
    while ((entry = readdir(folder)) != NULL) {
        long pid = maker_of(entry->d_name, prefix);
        if (pid > 0 && kill((pid_t)pid, 0) != 0 && errno == ESRCH) {
            remove_if_abandoned(dirfd(folder), parent, entry->d_name);
        }
    }
    closedir(folder);
}
