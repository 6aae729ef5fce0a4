/* Every call on files that the library makes, led through one place where the n-th one can fail or
 * do less than it was asked (the linker's --wrap; see test_faults_io.wrap). fsync never waits for a
 * disk here. */
#ifndef ESP_TESTS_FILE_LAYER_H
#define ESP_TESTS_FILE_LAYER_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

typedef enum file_call {
    CALL_OPEN,
    CALL_CREATE,
    CALL_OPENAT,
    CALL_FSTAT,
    CALL_STAT,
    CALL_LSTAT,
    CALL_FSTATAT,
    CALL_STATVFS,
    CALL_REALPATH,
    CALL_FACCESSAT,
    CALL_PREAD,
    CALL_PWRITE,
    CALL_FSYNC,
    CALL_CLOSE,
    CALL_FCNTL,
    CALL_FLOCK,
    CALL_MKDIR,
    CALL_RENAME,
    CALL_RENAMEAT2,
    CALL_OPENDIR,
    CALL_FDOPENDIR,
    CALL_READDIR,
    CALL_UNLINKAT,
    CALL_RMDIR,
    CALL_COUNT
} file_call;

static const char *const call_names[CALL_COUNT] = {
    "open",     "create",    "openat",    "fstat",   "stat",      "lstat",   "fstatat",  "statvfs",
    "realpath", "faccessat", "pread",     "pwrite",  "fsync",     "close",   "fcntl",    "flock",
    "mkdir",    "rename",    "renameat2", "opendir", "fdopendir", "readdir", "unlinkat", "rmdir"};

#define MAX_CALLS 4000
#define STRIKE_DEAD (-1) /* an "errno": the process is killed instead of making the call */

static struct {
    bool armed;
    long count;      /* calls so far */
    long at;         /* the one that is struck; -1: none */
    bool persist;    /* and all behind it that can take this fault */
    int error;       /* errno; 0: a transfer of one byte */
    long struck;     /* how many were */
    bool in_removal; /* one of the struck calls was part of removing files */
    unsigned char kinds[MAX_CALLS];
} files_layer = {.at = -1};

/* Which calls an error may come from: as the system's pages say. */
static bool can_take(file_call call, int error)
{
    switch (error) {
    case 0:
        return call == CALL_PREAD || call == CALL_PWRITE;
    case EINTR:
        return call == CALL_OPEN || call == CALL_CREATE || call == CALL_PREAD ||
               call == CALL_PWRITE || call == CALL_FSYNC || call == CALL_CLOSE ||
               call == CALL_STATVFS || call == CALL_OPENAT;
    case ENOSPC:
        return call == CALL_CREATE || call == CALL_PWRITE || call == CALL_FSYNC ||
               call == CALL_MKDIR || call == CALL_RENAME || call == CALL_RENAMEAT2;
    case EINVAL:
        return call == CALL_RENAMEAT2;
    case ENOMEM:
        return call == CALL_OPENDIR || call == CALL_FDOPENDIR || call == CALL_OPEN ||
               call == CALL_CREATE || call == CALL_STAT || call == CALL_LSTAT ||
               call == CALL_REALPATH;
    case EMFILE:
        return call == CALL_OPEN || call == CALL_CREATE || call == CALL_OPENAT ||
               call == CALL_OPENDIR || call == CALL_FDOPENDIR || call == CALL_FCNTL;
    default:
        return true;
    }
}

/* True when this call is to fail (errno is set) or to do less. */
static bool strike(file_call call)
{
    if (!files_layer.armed) {
        return false;
    }
    long number = files_layer.count++;
    if (number < MAX_CALLS) {
        files_layer.kinds[number] = (unsigned char)call;
    }
    bool chosen = files_layer.at >= 0 &&
                  (number == files_layer.at || (files_layer.persist && number > files_layer.at));
    if (!chosen || !can_take(call, files_layer.error)) {
        return false;
    }
    if (files_layer.error == STRIKE_DEAD) {
        kill(getpid(), SIGKILL);
    }
    files_layer.struck++;
    files_layer.in_removal |= call == CALL_UNLINKAT || call == CALL_RMDIR ||
                              call == CALL_FDOPENDIR || call == CALL_OPENAT ||
                              call == CALL_READDIR || call == CALL_OPEN;
    errno = files_layer.error;
    return true;
}

#define WRAP(type, name, parameters, arguments, call, failed)                                      \
    type __real_##name parameters;                                                                 \
    type __wrap_##name parameters;                                                                 \
    type __wrap_##name parameters                                                                  \
    {                                                                                              \
        return strike(call) ? failed : __real_##name arguments;                                    \
    }

WRAP(int, fstat, (int file, struct stat *facts), (file, facts), CALL_FSTAT, -1)
WRAP(int, stat, (const char *path, struct stat *facts), (path, facts), CALL_STAT, -1)
WRAP(int, lstat, (const char *path, struct stat *facts), (path, facts), CALL_LSTAT, -1)
WRAP(int, fstatat, (int at, const char *path, struct stat *facts, int flags),
     (at, path, facts, flags), CALL_FSTATAT, -1)
WRAP(int, statvfs, (const char *path, struct statvfs *facts), (path, facts), CALL_STATVFS, -1)
WRAP(char *, realpath, (const char *path, char *real), (path, real), CALL_REALPATH, NULL)
WRAP(int, faccessat, (int at, const char *path, int mode, int flags), (at, path, mode, flags),
     CALL_FACCESSAT, -1)
WRAP(int, flock, (int file, int how), (file, how), CALL_FLOCK, -1)
WRAP(int, mkdir, (const char *path, mode_t mode), (path, mode), CALL_MKDIR, -1)
WRAP(int, rename, (const char *from, const char *to), (from, to), CALL_RENAME, -1)
WRAP(int, renameat2, (int a, const char *from, int b, const char *to, unsigned flags),
     (a, from, b, to, flags), CALL_RENAMEAT2, -1)
WRAP(DIR *, opendir, (const char *path), (path), CALL_OPENDIR, NULL)
WRAP(DIR *, fdopendir, (int file), (file), CALL_FDOPENDIR, NULL)
WRAP(struct dirent *, readdir, (DIR * folder), (folder), CALL_READDIR, NULL)
WRAP(int, unlinkat, (int at, const char *path, int flags), (at, path, flags), CALL_UNLINKAT, -1)
WRAP(int, rmdir, (const char *path), (path), CALL_RMDIR, -1)

/* Those of another form. */
int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __real_openat(int at, const char *path, int flags, ...);
int __wrap_openat(int at, const char *path, int flags, ...);
int __real_fcntl(int file, int command, ...);
int __wrap_fcntl(int file, int command, ...);
int __real_close(int file);
int __wrap_close(int file);
int __wrap_fsync(int file);
ssize_t __real_pread(int file, void *data, size_t bytes, off_t offset);
ssize_t __wrap_pread(int file, void *data, size_t bytes, off_t offset);
ssize_t __real_pwrite(int file, const void *data, size_t bytes, off_t offset);
ssize_t __wrap_pwrite(int file, const void *data, size_t bytes, off_t offset);

int __wrap_open(const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = (flags & O_CREAT) != 0 ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return strike((flags & O_CREAT) != 0 ? CALL_CREATE : CALL_OPEN)
               ? -1
               : __real_open(path, flags, mode);
}

int __wrap_openat(int at, const char *path, int flags, ...)
{
    return strike(CALL_OPENAT) ? -1 : __real_openat(at, path, flags);
}

int __wrap_fcntl(int file, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    int argument = va_arg(arguments, int);
    va_end(arguments);
    return strike(CALL_FCNTL) ? -1 : __real_fcntl(file, command, argument);
}

/* The descriptor is gone whatever close says, as on Linux. */
int __wrap_close(int file)
{
    bool struck = strike(CALL_CLOSE);
    int error = errno;
    int closed = __real_close(file);
    if (struck) {
        errno = error;
        return -1;
    }
    return closed;
}

int __wrap_fsync(int file)
{
    (void)file;
    return strike(CALL_FSYNC) ? -1 : 0;
}

ssize_t __wrap_pread(int file, void *data, size_t bytes, off_t offset)
{
    bool struck = strike(CALL_PREAD);
    return struck && files_layer.error != 0 ? -1
                                            : __real_pread(file, data, struck ? 1 : bytes, offset);
}

ssize_t __wrap_pwrite(int file, const void *data, size_t bytes, off_t offset)
{
    bool struck = strike(CALL_PWRITE);
    return struck && files_layer.error != 0 ? -1
                                            : __real_pwrite(file, data, struck ? 1 : bytes, offset);
}

#endif
