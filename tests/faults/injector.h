/* An allocator that counts what is asked, held and ever held, and fails where it is told to. It
 * serves a context and, by json_set_alloc_funcs, jansson; one of the two is the one that fails. */
#ifndef ESP_TESTS_INJECTOR_H
#define ESP_TESTS_INJECTOR_H

#include <jansson.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "test.h"

typedef enum injected { INJECT_CONTEXT = 0, INJECT_JSON, INJECT_NEVER } injected;

typedef struct injector {
    injected source;
    long fail_at; /* this allocation fails, counted from 0; -1: none */
    bool persist; /* and all behind it */
    atomic_long asked, failed;
    atomic_long live; /* blocks, of both sources */
    atomic_llong live_bytes, peak_bytes;
} injector;

/* One for the program: jansson's hooks carry no user pointer. */
static injector injecting = {.fail_at = -1};

static inline void *injector_take(injected source, size_t bytes, size_t alignment)
{
    if (source == injecting.source && injecting.fail_at >= 0) {
        long number = atomic_fetch_add(&injecting.asked, 1);
        if (number == injecting.fail_at || (injecting.persist && number > injecting.fail_at)) {
            atomic_fetch_add(&injecting.failed, 1);
            return NULL;
        }
    }
    void *memory = alignment != 0 ? aligned_alloc(alignment, bytes) : malloc(bytes);
    if (memory == NULL) {
        return NULL;
    }
    long long size = (long long)malloc_usable_size(memory);
    memset(memory, 0xa5, (size_t)bytes < 4096 ? bytes : 4096); /* nothing may rely on zeros */
    atomic_fetch_add(&injecting.live, 1);
    long long held = atomic_fetch_add(&injecting.live_bytes, size) + size;
    long long peak = atomic_load(&injecting.peak_bytes);
    while (held > peak && !atomic_compare_exchange_weak(&injecting.peak_bytes, &peak, held)) {
    }
    return memory;
}

static inline void injector_drop(void *memory)
{
    if (memory != NULL) {
        atomic_fetch_sub(&injecting.live, 1);
        atomic_fetch_sub(&injecting.live_bytes, (long long)malloc_usable_size(memory));
        free(memory);
    }
}

static inline void *injector_allocate(void *user, size_t bytes, size_t alignment)
{
    (void)user;
    return injector_take(INJECT_CONTEXT, bytes, alignment);
}

static inline void injector_release(void *user, void *memory)
{
    (void)user;
    injector_drop(memory);
}

/* jansson 2.14 does not look whether its token buffer could grow (to 32, 64, ... bytes) and writes
 * on; there the test lets it have the memory. */
static inline void *injector_json_allocate(size_t bytes)
{
    bool is_growth = bytes >= 32 && (bytes & (bytes - 1)) == 0;
    return injector_take(is_growth ? INJECT_NEVER : INJECT_JSON, bytes, 0);
}

/* Before anything is parsed. */
static inline void injector_hook_json(void)
{
    json_set_alloc_funcs(injector_json_allocate, injector_drop);
}

static inline void injector_arm(injected source, long fail_at, bool persist)
{
    injecting.source = source;
    injecting.persist = persist;
    atomic_store(&injecting.asked, 0);
    atomic_store(&injecting.failed, 0);
    injecting.fail_at = fail_at;
}

/* How many allocations failed. */
static inline long injector_disarm(void)
{
    injecting.fail_at = -1;
    return atomic_load(&injecting.failed);
}

static inline esp_status injector_context(int threads, esp_context **context, esp_error *error)
{
    esp_context_options options = {.threads = threads,
                                   .allocator = {injector_allocate, injector_release, NULL},
                                   .cpu_level = getenv("ESPALIER_CPU")};
    return esp_context_create(&options, context, error);
}

#endif
