/* The pool: workers wait for a new job number, first spinning briefly (a model's layers follow each
 * other within microseconds), then asleep on a condition variable. Pieces of a job are taken from
 * an atomic counter. */
#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "base/context.h"
#include "base/error.h"
#include "base/memory.h"

#define SPINS 4000

struct esp_pool {
    int workers; /* threads besides the caller */
    pthread_t *handles;
    struct worker *records;
    pthread_mutex_t in_use; /* held by the caller whose job runs */
    pthread_mutex_t lock;   /* guards sleeping and the job number's publication */
    pthread_cond_t wake;
    atomic_uint job; /* grows by one per job */
    atomic_int running;
    atomic_bool quit;
    /* the job */
    esp_loop_fn body;
    void *user;
    int64_t count, grain;
    atomic_llong next;
};

struct worker {
    esp_pool *pool;
    int index;
};

/* Set in workers and in a caller inside a loop: an inner loop runs alone, under the outer's thread
 * number, so that per-thread scratch stays distinct. -1: outside any loop. */
static _Thread_local int current_thread = -1;

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    sched_yield();
#endif
}

static void run_pieces(esp_pool *pool, int thread)
{
    for (;;) {
        int64_t begin = atomic_fetch_add_explicit(&pool->next, pool->grain, memory_order_relaxed);
        if (begin >= pool->count) {
            return;
        }
        int64_t left = pool->count - begin;
        pool->body(pool->user, begin, begin + (left < pool->grain ? left : pool->grain), thread);
    }
}

static unsigned wait_for_job(esp_pool *pool, unsigned seen)
{
    for (int i = 0; i < SPINS; i++) {
        unsigned job = atomic_load_explicit(&pool->job, memory_order_acquire);
        if (job != seen) {
            return job;
        }
        relax();
    }
    pthread_mutex_lock(&pool->lock);
    unsigned job;
    while ((job = atomic_load_explicit(&pool->job, memory_order_acquire)) == seen) {
        pthread_cond_wait(&pool->wake, &pool->lock);
    }
    pthread_mutex_unlock(&pool->lock);
    return job;
}

static void *worker_main(void *argument)
{
    struct worker *self = argument;
    esp_pool *pool = self->pool;
    unsigned seen = 0;
    current_thread = self->index;
    for (;;) {
        seen = wait_for_job(pool, seen);
        if (atomic_load_explicit(&pool->quit, memory_order_acquire)) {
            return NULL;
        }
        run_pieces(pool, self->index);
        atomic_fetch_sub_explicit(&pool->running, 1, memory_order_release);
    }
}

static void publish(esp_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add_explicit(&pool->job, 1, memory_order_release);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

static void stop_workers(esp_pool *pool)
{
    atomic_store_explicit(&pool->quit, true, memory_order_release);
    publish(pool);
    for (int i = 0; i < pool->workers; i++) {
        pthread_join(pool->handles[i], NULL);
    }
}

static esp_status start_workers(esp_pool *pool, int wanted, esp_error *error)
{
    for (int i = 0; i < wanted; i++) {
        pool->records[i] = (struct worker){pool, i + 1};
        int failed = pthread_create(&pool->handles[i], NULL, worker_main, &pool->records[i]);
        if (failed != 0) {
            stop_workers(pool);
            return esp_fail_errno(error, failed, "context.no_thread",
                                  "thread %d of %d did not start", i + 1, wanted);
        }
        pool->workers = i + 1;
    }
    return ESP_OK;
}

static void release_pool(esp_context *context, esp_pool *pool)
{
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    pthread_mutex_destroy(&pool->in_use);
    esp_release(context, pool->handles);
    esp_release(context, pool->records);
    esp_release(context, pool);
}

esp_status esp_pool_create(esp_context *context, int threads, esp_pool **pool, esp_error *error)
{
    size_t workers = (size_t)(threads - 1);
    esp_pool *made = esp_alloc_zero(context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "the thread pool");
    }
    pthread_mutex_init(&made->in_use, NULL);
    pthread_mutex_init(&made->lock, NULL);
    pthread_cond_init(&made->wake, NULL);
    made->handles = esp_alloc_array(context, workers, sizeof *made->handles);
    made->records = esp_alloc_array(context, workers, sizeof *made->records);
    esp_status status = made->handles != NULL && made->records != NULL
                            ? start_workers(made, (int)workers, error)
                            : esp_fail_memory(error, workers * sizeof(pthread_t), "thread handles");
    if (status != ESP_OK) {
        release_pool(context, made);
        return status;
    }
    *pool = made;
    return ESP_OK;
}

void esp_pool_free(esp_context *context, esp_pool *pool)
{
    if (pool == NULL) {
        return;
    }
    stop_workers(pool);
    release_pool(context, pool);
}

static void run_alone(int64_t count, int64_t grain, esp_loop_fn body, void *user)
{
    int outer = current_thread;
    int thread = outer < 0 ? 0 : outer;
    current_thread = thread;
    for (int64_t begin = 0; begin < count; begin += grain) {
        body(user, begin, count - begin < grain ? count : begin + grain, thread);
    }
    current_thread = outer;
}

void esp_parallel_for(esp_context *context, int64_t count, int64_t grain, esp_loop_fn body,
                      void *user)
{
    esp_pool *pool = context->pool;
    if (grain < 1) {
        grain = 1;
    }
    bool alone = count <= grain || pool->workers == 0 || current_thread >= 0 ||
                 pthread_mutex_trylock(&pool->in_use) != 0;
    if (alone) {
        run_alone(count, grain, body, user);
        return;
    }
    pool->body = body;
    pool->user = user;
    pool->count = count;
    pool->grain = grain;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->running, pool->workers, memory_order_relaxed);
    publish(pool);
    current_thread = 0;
    run_pieces(pool, 0);
    current_thread = -1;
    /* A worker without a core of its own is given one. */
    for (int spins = 0; atomic_load_explicit(&pool->running, memory_order_acquire) > 0; spins++) {
        if (spins < SPINS) {
            relax();
        } else {
            sched_yield();
        }
    }
    pthread_mutex_unlock(&pool->in_use);
}
