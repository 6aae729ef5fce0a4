#include "pinning.h"

#ifdef __linux__
#include <dirent.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#define MOST_THREADS 4096

static struct {
    bool active;
    cpu_set_t all;
    int cores;
    int known[MOST_THREADS], known_count;
} pins;

static void bind_to(int thread, int place)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    int seen = 0;
    for (size_t core = 0; core < CPU_SETSIZE; core++) {
        if (CPU_ISSET(core, &pins.all) && seen++ == place % pins.cores) {
            CPU_SET(core, &one);
        }
    }
    (void)!sched_setaffinity(thread, sizeof one, &one);
}

static bool is_known(int thread)
{
    for (int i = 0; i < pins.known_count; i++) {
        if (pins.known[i] == thread) {
            return true;
        }
    }
    return false;
}

/* Numbers of this process' threads grow with their age, so the order is that of their making. */
static int compare(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

static int list_threads(int *threads)
{
    DIR *folder = opendir("/proc/self/task");
    int count = 0;
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
        int thread = atoi(entry->d_name);
        if (thread > 0 && count < MOST_THREADS) {
            threads[count++] = thread;
        }
    }
    if (folder != NULL) {
        closedir(folder);
    }
    qsort(threads, (size_t)count, sizeof *threads, compare);
    return count;
}

void pinning_new_threads(void)
{
    int threads[MOST_THREADS], place = 1;
    int count = pins.active ? list_threads(threads) : 0;
    for (int i = 0; i < count; i++) {
        if (!is_known(threads[i]) && pins.known_count < MOST_THREADS) {
            pins.known[pins.known_count++] = threads[i];
            bind_to(threads[i], place++);
        }
    }
}

bool pinning_begin(int threads)
{
    if (pins.active || sched_getaffinity(0, sizeof pins.all, &pins.all) != 0) {
        return pins.active;
    }
    pins.cores = CPU_COUNT(&pins.all);
    pins.known_count = 0;
    if (threads > pins.cores) {
        return false;
    }
    pins.active = true;
    pins.known[pins.known_count++] = (int)getpid();
    bind_to((int)getpid(), 0);
    pinning_new_threads();
    return true;
}

void pinning_end(void)
{
    int threads[MOST_THREADS];
    int count = pins.active ? list_threads(threads) : 0;
    for (int i = 0; i < count; i++) {
        (void)!sched_setaffinity(threads[i], sizeof pins.all, &pins.all);
    }
    pins.active = false;
}
#else
bool pinning_begin(int threads)
{
    (void)threads;
    return false;
}
void pinning_new_threads(void)
{
}
void pinning_end(void)
{
}
#endif
