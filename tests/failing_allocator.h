/* An allocator whose n-th allocation fails, and all behind it, for tests that try every n. Blocks
 * that live are counted, so that a leak shows. One thread only. */
#ifndef ESP_TESTS_FAILING_ALLOCATOR_H
#define ESP_TESTS_FAILING_ALLOCATOR_H

#include <stddef.h>
#include <stdlib.h>

typedef struct failing {
    long left; /* allocations that still succeed */
    long live;
} failing;

static inline void *failing_allocate(void *user, size_t bytes, size_t alignment)
{
    failing *state = user;
    if (state->left <= 0) {
        return NULL;
    }
    state->left--;
    state->live++;
    return aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

static inline void failing_release(void *user, void *memory)
{
    ((failing *)user)->live--;
    free(memory);
}

#endif
