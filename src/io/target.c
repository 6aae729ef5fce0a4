/* The way of a folder into its place. Everything is written into a sibling on the same file system;
 * one rename makes it visible. So after a kill at any moment the target is the old folder, the new
 * one, or absent if it never was. */
#include "io/target.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "io/names.h"

/* ---- where it goes ---- */

static esp_status bad_target(const char *path, const char *why, esp_error *error)
{
    return esp_fail(error, ESP_BAD_ARGUMENT, "checkpoint.bad_target",
                    "%s: %s; name a new folder inside one that exists", path, why);
}

/* path without trailing slashes, a link resolved; into text of PATH_MAX bytes. */
static esp_status plain_path(const char *path, char *text, esp_error *error)
{
    struct stat facts;
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') {
        length--;
    }
    if (length == 0 || length >= PATH_MAX) {
        return bad_target(path, "is no path for a folder", error);
    }
    memcpy(text, path, length);
    text[length] = '\0';
    bool there = lstat(text, &facts) == 0;
    if (!there && errno != ENOENT && errno != ENOTDIR && errno != ENAMETOOLONG) {
        return esp_fail_errno(error, errno, "file.unreadable", "%s", path);
    }
    if (there && S_ISLNK(facts.st_mode)) {
        char real[PATH_MAX];
        if (realpath(text, real) == NULL) {
            return bad_target(path, "is a symbolic link that leads nowhere", error);
        }
        strcpy(text, real);
    }
    const char *slash = strrchr(text, '/');
    const char *name = slash != NULL ? slash + 1 : text;
    if (name[0] == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        return bad_target(path, "does not end in a folder's name", error);
    }
    return strlen(name) <= NAME_MAX ? ESP_OK : bad_target(path, "has too long a name", error);
}

static esp_status split(esp_target *target, char *text, esp_error *error)
{
    char real[PATH_MAX];
    char *slash = strrchr(text, '/');
    const char *name = slash != NULL ? slash + 1 : text;
    const char *parent = slash == NULL ? "." : slash == text ? "/" : text;
    if (slash != NULL && slash != text) {
        *slash = '\0';
    }
    if (realpath(parent, real) == NULL || !esp_path_is_folder(real)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "checkpoint.no_parent",
                        "%s: there is no such folder to put \"%s\" into; make it first", parent,
                        esp_io_show(name).text);
    }
    if (faccessat(AT_FDCWD, real, W_OK | X_OK, AT_EACCESS) != 0) {
        return esp_fail_errno(error, errno, "checkpoint.parent_not_writable",
                              "%s: nothing may be written there; choose another place", real);
    }
    target->parent = esp_strdup(target->context, real);
    target->path = esp_io_join(target->context, strcmp(real, "/") == 0 ? "" : real, name);
    return target->parent != NULL && target->path != NULL
               ? ESP_OK
               : esp_fail_memory(error, strlen(real), "a path");
}

static const char *name_of(const esp_target *target)
{
    return strrchr(target->path, '/') + 1;
}

/* The source must not be, nor lie in, what will be replaced. */
static esp_status check_source(const esp_target *target, const char *source, esp_error *error)
{
    struct stat from, to;
    char real[PATH_MAX];
    if (stat(source, &from) != 0 || stat(target->path, &to) != 0) {
        bool gone = errno == ENOENT || errno == ENOTDIR || errno == ELOOP;
        return gone ? ESP_OK : esp_fail_errno(error, errno, "file.unreadable", "%s", target->path);
    }
    size_t length = strlen(target->path);
    bool inside = realpath(source, real) != NULL && strncmp(real, target->path, length) == 0 &&
                  real[length] == '/';
    if ((from.st_dev == to.st_dev && from.st_ino == to.st_ino) || inside) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "checkpoint.same_folder",
                        "%s: is %s the folder being read; choose another one to write",
                        target->path, inside ? "the parent of" : "itself");
    }
    return ESP_OK;
}

/* Whatever is at the target now may be replaced; true when there is something. */
static esp_status check_place(const esp_target *target, bool *exists, esp_error *error)
{
    *exists = esp_path_exists(target->path);
    if (!*exists) {
        return ESP_OK;
    }
    if (!esp_path_is_folder(target->path)) {
        return esp_fail(error, ESP_FAILED, "checkpoint.not_a_folder",
                        "%s: is there and is no folder; choose another name", target->path);
    }
    if (!target->force) {
        return esp_fail(
            error, ESP_FAILED, "checkpoint.exists",
            "%s: exists already; choose another name, or --force to replace a folder that "
            "espalier made",
            target->path);
    }
    return esp_marker_check(target->context, target->path, error);
}

/* ---- the temporary folder ---- */

static uint64_t make_salt(void)
{
    uint64_t salt;
    struct timespec now;
    if (getrandom(&salt, sizeof salt, GRND_NONBLOCK) == (ssize_t)sizeof salt) {
        return salt;
    }
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_nsec << 32 ^ (uint64_t)now.tv_sec;
}

static esp_status make_temporary(esp_target *target, esp_error *error)
{
    char name[256];
    esp_target_temporary_name(name_of(target), make_salt(), name, sizeof name);
    char *path = esp_io_join(target->context, target->parent, name);
    if (path == NULL) {
        return esp_fail_memory(error, sizeof name, "a path");
    }
    esp_status status = esp_folder_create(path, error);
    if (status != ESP_OK) {
        esp_release(target->context, path);
        return status;
    }
    target->temporary = path;
    return ESP_OK;
}

static esp_status begin_marker(esp_target *target, esp_error *error)
{
    static const char text[] = "{}";
    char *path = esp_io_join(target->context, target->temporary, ESP_MARKER_FILE);
    if (path == NULL) {
        return esp_fail_memory(error, strlen(target->temporary), "a path");
    }
    esp_status status = esp_file_create(path, &target->marker, error);
    if (status == ESP_OK) {
        (void)flock(target->marker, LOCK_EX | LOCK_NB); /* file systems without locks: pid alone */
        status = esp_file_write_at(target->marker, path, text, sizeof text - 1, 0, error);
    }
    esp_release(target->context, path);
    return status;
}

/* Replacing needs an exchange in one step; better to know before hours of work. */
static esp_status probe_exchange(esp_target *target, esp_error *error)
{
    char *paths[2] = {esp_io_join(target->context, target->temporary, "probe-a"),
                      esp_io_join(target->context, target->temporary, "probe-b")};
    esp_status status =
        paths[0] != NULL && paths[1] != NULL ? ESP_OK : esp_fail_memory(error, 64, "a path");
    for (int i = 0; i < 2 && status == ESP_OK; i++) {
        status = esp_folder_create(paths[i], error);
    }
    if (status == ESP_OK) {
        status = esp_rename_exchange(paths[0], paths[1], error);
    }
    for (int i = 0; i < 2; i++) {
        if (paths[i] != NULL && rmdir(paths[i]) != 0 && status == ESP_OK) {
            /* what stays would be a foreign thing in the finished folder */
            status = esp_fail_errno(error, errno, "file.rename_failed", "removing %s", paths[i]);
        }
        esp_release(target->context, paths[i]);
    }
    return status;
}

esp_status esp_target_open(esp_context *context, const char *source, const char *path, bool force,
                           esp_target *target, esp_error *error)
{
    char text[PATH_MAX];
    bool exists;
    *target = (esp_target){.context = context, .marker = -1, .force = force};
    ESP_TRY(plain_path(path, text, error));
    ESP_TRY(split(target, text, error));
    ESP_TRY(check_source(target, source, error));
    ESP_TRY(check_place(target, &exists, error));
    esp_target_remove_stale(target->parent, name_of(target));
    ESP_TRY(make_temporary(target, error));
    ESP_TRY(begin_marker(target, error));
    return exists ? probe_exchange(target, error) : ESP_OK;
}

static esp_status remember(esp_target *target, const char *name, esp_error *error)
{
    if (target->file_count == target->file_capacity) {
        size_t old = target->file_capacity, capacity = old != 0 ? 2 * old : 16;
        char **grown = esp_realloc(target->context, target->files, old * sizeof *grown,
                                   capacity * sizeof *grown);
        if (grown == NULL) {
            return esp_fail_memory(error, capacity * sizeof *grown, "a list of files");
        }
        target->files = grown;
        target->file_capacity = capacity;
    }
    char *copy = esp_strdup(target->context, name);
    if (copy == NULL) {
        return esp_fail_memory(error, strlen(name) + 1, "a file name");
    }
    target->files[target->file_count++] = copy;
    return ESP_OK;
}

/* The folder of "folder/file" within path, which ends in that, unless it is there. */
static esp_status make_inner(const char *name, char *path, esp_error *error)
{
    char *slash = strrchr(path, '/');
    if (strchr(name, '/') == NULL) {
        return ESP_OK;
    }
    *slash = '\0';
    esp_status status = esp_path_is_folder(path) ? ESP_OK : esp_folder_create(path, error);
    *slash = '/';
    return status;
}

esp_status esp_target_add(esp_target *target, const char *name, char **path, esp_error *error)
{
    ESP_TRY(remember(target, name, error));
    char *made = esp_io_join(target->context, target->temporary, name);
    if (made == NULL) {
        return esp_fail_memory(error, strlen(name), "a path");
    }
    esp_status status = make_inner(name, made, error);
    if (status != ESP_OK) {
        esp_release(target->context, made);
        return status;
    }
    *path = made;
    return ESP_OK;
}

esp_status esp_target_write_text(esp_target *target, const char *name, const char *text,
                                 esp_error *error)
{
    int descriptor = -1;
    char *path = NULL;
    ESP_TRY(esp_target_add(target, name, &path, error));
    esp_status status = esp_file_create(path, &descriptor, error);
    if (status == ESP_OK) {
        status = esp_file_write_at(descriptor, path, text, strlen(text), 0, error);
        if (status == ESP_OK) {
            status = esp_file_sync_close(descriptor, path, error);
        } else {
            esp_file_close(descriptor);
        }
    }
    esp_release(target->context, path);
    return status;
}

/* ---- into place ---- */

/* The marker stays open, and so locked, until the folder has its place. */
static esp_status complete_marker(esp_target *target, esp_error *error)
{
    esp_buffer text;
    esp_buffer_init(&text, target->context);
    esp_marker_print(target, &text);
    esp_status status = text.failed ? esp_fail_memory(error, text.length, ESP_MARKER_FILE)
                                    : esp_file_write_at(target->marker, ESP_MARKER_FILE, text.data,
                                                        text.length, 0, error);
    esp_buffer_free(&text);
    if (status != ESP_OK) {
        return status;
    }
    int copy = fcntl(target->marker, F_DUPFD_CLOEXEC, 0);
    return copy >= 0 ? esp_file_sync_close(copy, ESP_MARKER_FILE, error)
                     : esp_fail_errno(error, errno, "file.sync_failed", ESP_MARKER_FILE);
}

static void forget_temporary(esp_target *target)
{
    esp_release(target->context, target->temporary);
    target->temporary = NULL;
}

static esp_status rename_new(const esp_target *target, esp_error *error)
{
    esp_error local = {0};
    esp_status status = esp_rename_new(target->temporary, target->path, &local);
    if (status != ESP_OK) {
        bool appeared = strcmp(local.code, "file.exists") == 0;
        return esp_fail(error, appeared ? ESP_FAILED : status,
                        appeared ? "checkpoint.exists" : local.code, "%s%s", local.message,
                        appeared ? " (it was made while this was being written)" : "");
    }
    return ESP_OK;
}

/* The renaming is not known to be on disk. Where it cannot be taken back either, both folders stay:
 * each is complete, and the old one may be the only one on disk. */
static void take_back(esp_target *target, bool exists)
{
    esp_status status = exists ? esp_rename_exchange(target->temporary, target->path, NULL)
                               : esp_rename_new(target->path, target->temporary, NULL);
    if (status != ESP_OK) {
        forget_temporary(target);
    }
}

static esp_status move_into_place(esp_target *target, bool exists, esp_error *error)
{
    ESP_TRY(exists ? esp_rename_exchange(target->temporary, target->path, error)
                   : rename_new(target, error));
    esp_status status = esp_folder_sync(target->parent, error);
    if (status != ESP_OK) {
        take_back(target, exists);
        return status;
    }
    if (exists) {
        esp_target_remove(target->temporary); /* now the old one */
    }
    forget_temporary(target);
    return ESP_OK;
}

/* The folders within, each once or more. */
static esp_status sync_inner(const esp_target *target, esp_error *error)
{
    esp_status status = ESP_OK;
    for (size_t i = 0; i < target->file_count && status == ESP_OK; i++) {
        const char *name = target->files[i], *slash = strchr(name, '/');
        if (slash == NULL) {
            continue;
        }
        char *path = esp_io_join(target->context, target->temporary, name);
        if (path == NULL) {
            return esp_fail_memory(error, strlen(name), "a path");
        }
        *strrchr(path, '/') = '\0';
        status = esp_folder_sync(path, error);
        esp_release(target->context, path);
    }
    return status;
}

esp_status esp_target_install(esp_target *target, esp_error *error)
{
    bool exists;
    ESP_TRY(complete_marker(target, error));
    ESP_TRY(sync_inner(target, error));
    ESP_TRY(esp_folder_sync(target->temporary, error));
    ESP_TRY(check_place(target, &exists, error)); /* it may have changed meanwhile */
    return move_into_place(target, exists, error);
}

void esp_target_close(esp_target *target)
{
    if (target->context == NULL) {
        return;
    }
    if (target->temporary != NULL) {
        esp_target_remove(target->temporary);
    }
    esp_file_close(target->marker);
    for (size_t i = 0; i < target->file_count; i++) {
        esp_release(target->context, target->files[i]);
    }
    esp_release(target->context, target->files);
    esp_release(target->context, target->temporary);
    esp_release(target->context, target->path);
    esp_release(target->context, target->parent);
    esp_release(target->context, target->record);
    *target = (esp_target){.marker = -1};
}
