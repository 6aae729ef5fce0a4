/* A library in the place of NVIDIA's driver, for tests of what is said where no GPU can be used.
 * FAKE_CUDA says how: "old" (of CUDA 10.2), "empty" (no GPU), "broken" (it does not start). */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define OPEN __attribute__((visibility("default")))
#define NO_DEVICE 100
#define UNKNOWN 999

static int is(const char *how)
{
    const char *set = getenv("FAKE_CUDA");
    return set != NULL && strcmp(set, how) == 0;
}

OPEN int cuDriverGetVersion(int *version);
int cuDriverGetVersion(int *version)
{
    *version = is("old") ? 10020 : 99000;
    return 0;
}

OPEN int cuInit(unsigned flags);
int cuInit(unsigned flags)
{
    (void)flags;
    return is("broken") ? UNKNOWN : is("empty") ? NO_DEVICE : 0;
}

/* In the place of all other functions. */
static int no_device(void)
{
    return NO_DEVICE;
}

OPEN int cuGetProcAddress_v2(const char *name, void **function, int version,
                             unsigned long long flags, int *result);

/* ISO C has no conversion from function to data pointers; POSIX promises that this one works. */
static void *function_named(const char *name)
{
    int (*const others)(void) = no_device;
    int (*const start)(unsigned) = cuInit;
    int (*const version)(int *) = cuDriverGetVersion;
    int (*const find)(const char *, void **, int, unsigned long long, int *) = cuGetProcAddress_v2;
    void *found = NULL;
    if (strcmp(name, "cuInit") == 0) {
        memcpy(&found, &start, sizeof found);
    } else if (strcmp(name, "cuDriverGetVersion") == 0) {
        memcpy(&found, &version, sizeof found);
    } else if (strcmp(name, "cuGetProcAddress") == 0) {
        memcpy(&found, &find, sizeof found);
    } else {
        memcpy(&found, &others, sizeof found);
    }
    return found;
}

int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags,
                        int *result)
{
    (void)version, (void)flags;
    *function = function_named(name);
    if (result != NULL) {
        *result = 0;
    }
    return 0;
}
