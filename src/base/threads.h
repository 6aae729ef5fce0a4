/* A pool of threads and one way to use it: a loop over [0, count) cut into pieces.
 *
 * Pieces are handed out dynamically, so a body must give the same result whatever piece and thread
 * an index lands in; then results do not depend on the thread count. */
#ifndef ESP_BASE_THREADS_H
#define ESP_BASE_THREADS_H

#include <espalier/base.h>

typedef struct esp_pool esp_pool;

ESP_MUST_CHECK esp_status esp_pool_create(esp_context *context, int threads, esp_pool **pool,
                                          esp_error *error);
void esp_pool_free(esp_context *context, esp_pool *pool);

/* thread: 0..threads-1, distinct among bodies that run at the same time: an index into per-thread
 * scratch. */
typedef void (*esp_loop_fn)(void *user, int64_t begin, int64_t end, int thread);

/* Calls body for pieces of at most `grain` indices (at least 1). Runs in the calling thread alone
 * when there is one piece, one thread, the pool is in use by another caller, or when called from a
 * body. */
void esp_parallel_for(esp_context *context, int64_t count, int64_t grain, esp_loop_fn body,
                      void *user);

#endif
