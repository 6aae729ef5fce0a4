/* The tuning file. It is replaced whole: a temporary beside it, fsync, rename, so that a reader
 * sees the old or the new one (whole_file.c). Writers take turns by a lock on a second file that is
 * never replaced, and merge with what the file holds by then, so that none loses what another
 * measured.
 */
#include "tuning_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "whole_file.h"

bool tuning_path(char path[TUNING_PATH_MAX])
{
    const char *own = getenv("ESPALIER_TUNING"), *cache = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    int length;
    if (own != NULL) {
        length = snprintf(path, TUNING_PATH_MAX, "%s", own);
    } else if (cache != NULL && cache[0] == '/') { /* a relative one is to be ignored */
        length = snprintf(path, TUNING_PATH_MAX, "%s/espalier/tuning", cache);
    } else if (home != NULL && home[0] == '/') {
        length = snprintf(path, TUNING_PATH_MAX, "%s/.cache/espalier/tuning", home);
    } else {
        return false;
    }
    return length > 0 && length < TUNING_PATH_MAX - 16; /* room for endings */
}

/* ---- reading ---- */

static esp_status system_failed(const char *path, const char *what, esp_error *error)
{
    return cli_fail(error, ESP_IO, "tuning.system", "%s: %s: %s", path, what, strerror(errno));
}

/* *text stays NULL when there is no file. */
static esp_status read_open(int descriptor, const char *path, char **text, size_t *length,
                            esp_error *error)
{
    struct stat facts;
    if (fstat(descriptor, &facts) != 0 || !S_ISREG(facts.st_mode)) {
        return cli_fail(error, ESP_BAD_FILE, "tuning.not_tuning_file",
                        "%s: tuning: it is not a regular file", path);
    }
    if ((uint64_t)facts.st_size > ESP_TUNING_MAX_BYTES) {
        return cli_fail(error, ESP_BAD_FILE, "tuning.too_large",
                        "%s: tuning: it is larger than a tuning table ever is", path);
    }
    size_t size = (size_t)facts.st_size, used = 0;
    char *data = malloc(size + 1);
    if (data == NULL) {
        return cli_fail_memory(error, path);
    }
    while (used < size) {
        ssize_t got = read(descriptor, data + used, size - used);
        if (got < 0 && errno == EINTR && !interrupted()) {
            continue;
        }
        if (got < 0) {
            free(data);
            return system_failed(path, "it cannot be read", error);
        }
        if (got == 0) { /* shrunk: the checksum will tell */
            break;
        }
        used += (size_t)got;
    }
    *text = data;
    *length = used;
    return ESP_OK;
}

static esp_status read_file(const char *path, char **text, size_t *length, esp_error *error)
{
    /* Not to wait for a writer of a FIFO. */
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) {
        return errno == ENOENT || errno == ENOTDIR
                   ? (esp_status)ESP_OK
                   : system_failed(path, "it cannot be opened", error);
    }
    esp_status status = read_open(descriptor, path, text, length, error);
    close(descriptor);
    return status;
}

/* Into the table. */
static esp_status take_over(cli_state *cli, const char *path, esp_error *error)
{
    char *text = NULL;
    size_t length = 0;
    TRY(read_file(path, &text, &length, error));
    esp_status status = ESP_OK;
    esp_error inner = {0};
    if (text != NULL) {
        status = esp_tuning_read(cli->context, text, length, &inner);
    }
    free(text);
    return status == ESP_OK ? ESP_OK
                            : cli_fail(error, status, inner.code, "%s: %s", path, inner.message);
}

static void warn(const cli_state *cli, const esp_error *error)
{
    if (!cli->common.quiet) {
        fprintf(stderr,
                "espalier: warning: %s; the file is ignored: remove it or name another by "
                "ESPALIER_TUNING [%s]\n",
                error->message, error->code);
    }
}

void tuning_load(cli_state *cli)
{
    char path[TUNING_PATH_MAX];
    esp_error error = {0};
    if (tuning_path(path) && take_over(cli, path, &error) != ESP_OK) {
        warn(cli, &error);
    }
}

/* ---- writing ---- */

/* The folders above the file, private as XDG wants it. */
static void make_folders(const char *path)
{
    char above[TUNING_PATH_MAX];
    snprintf(above, sizeof above, "%s", path);
    for (char *at = strchr(above + 1, '/'); at != NULL; at = strchr(at + 1, '/')) {
        *at = '\0';
        (void)mkdir(above, 0700); /* what is missing shows when the file is made */
        *at = '/';
    }
}

static esp_status replace(cli_state *cli, const char *path, esp_error *error)
{
    whole_file file;
    TRY(whole_file_begin(&file, path, error));
    esp_status status = esp_tuning_write(cli->context, whole_file_write, &file, error);
    esp_status ended = whole_file_end(&file, status != ESP_OK, status == ESP_OK ? error : NULL);
    return status != ESP_OK ? status : ended;
}

static esp_status merge_and_replace(cli_state *cli, const char *path, esp_error *error)
{
    esp_error found = {0};
    esp_status status = take_over(cli, path, &found);
    bool ours =
        strcmp(found.code, "tuning.damaged") == 0 || strcmp(found.code, "tuning.bad_line") == 0;
    if (status != ESP_OK && !ours) {
        return cli_fail(error, status, found.code,
                        "%s; it is not replaced: remove it or name another by ESPALIER_TUNING",
                        found.message);
    }
    return replace(cli, path, error);
}

esp_status tuning_save(cli_state *cli, esp_error *error)
{
    char path[TUNING_PATH_MAX], lock_path[TUNING_PATH_MAX + 16];
    if (!tuning_path(path)) {
        return cli_fail(error, ESP_IO, "tuning.no_place",
                        "there is no place for the tuning file: set ESPALIER_TUNING to a path");
    }
    make_folders(path);
    snprintf(lock_path, sizeof lock_path, "%s.lock", path);
    int lock = open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (lock < 0) {
        return system_failed(lock_path, "the lock of the tuning file cannot be made", error);
    }
    while (flock(lock, LOCK_EX) != 0) {
        if (errno != EINTR || interrupted()) {
            close(lock);
            return system_failed(lock_path, "the tuning file cannot be locked", error);
        }
    }
    esp_status status = merge_and_replace(cli, path, error);
    close(lock);
    return status;
}
