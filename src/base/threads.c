/* The pool: a worker waits for a new job, first spinning briefly (a model's layers follow each
 * other within microseconds), then asleep on a condition variable. Pieces of a job are taken from
 * an atomic counter.
 *
 * Joining is optional: a worker that gets no core in time does not hold up the job. One 64-bit word
 * holds the job's number, whether it is open, and how many workers are inside; the caller closes
 * the job when no piece is left and waits only for those inside. */
#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "base/context.h"
#include "base/error.h"
#include "base/memory.h"

#define SPINS 4000
#define INSIDE_MASK UINT64_C(0xffffffff)
#define OPEN (UINT64_C(1) << 32)
#define NEXT_JOB (UINT64_C(1) << 33)

struct esp_pool {
    int workers; /* threads besides the caller */
    pthread_t *handles;
    struct worker *records;
    pthread_mutex_t in_use; /* held by the caller whose job runs */
    pthread_mutex_t lock;   /* with wake: for sleeping only */
    pthread_cond_t wake;
    _Atomic uint64_t state; /* job number, OPEN, workers inside */
    atomic_int sleepers;
    atomic_bool quit;
    /* the job: written by the caller while no worker is inside and the job is closed */
    esp_loop_fn body;
    void *user;
    int64_t count, grain;
    _Atomic int64_t next;
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

/* Enters the open job if it is another one than `seen`. */
static bool try_join(esp_pool *pool, uint64_t *seen)
{
    uint64_t state = atomic_load(&pool->state);
    while ((state & OPEN) != 0 && state / NEXT_JOB != *seen) {
        if (atomic_compare_exchange_weak(&pool->state, &state, state + 1)) {
            *seen = state / NEXT_JOB;
            return true;
        }
    }
    return false;
}

/* Returns inside a job, or with false when the pool ends. */
static bool wait_for_job(esp_pool *pool, uint64_t *seen)
{
    for (int i = 0; i < SPINS; i++) {
        if (try_join(pool, seen)) {
            return true;
        }
        relax();
    }
    bool joined = false;
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleepers, 1); /* before the last look: see wake_workers */
    while (!(joined = try_join(pool, seen)) && !atomic_load(&pool->quit)) {
        pthread_cond_wait(&pool->wake, &pool->lock);
    }
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
    return joined;
}

static void *worker_main(void *argument)
{
    struct worker *self = argument;
    uint64_t seen = 0;
    current_thread = self->index;
    while (wait_for_job(self->pool, &seen)) {
        run_pieces(self->pool, self->index);
        atomic_fetch_sub(&self->pool->state, 1);
    }
    return NULL;
}

/* After a change that sleepers wait for. Either this sees the sleeper, or the sleeper the change.
 */
static void wake_workers(esp_pool *pool)
{
    if (atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
}

static void stop_workers(esp_pool *pool)
{
    atomic_store(&pool->quit, true);
    wake_workers(pool);
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

/* The caller holds in_use. */
static void run_shared(esp_pool *pool, int64_t count, int64_t grain, esp_loop_fn body, void *user)
{
    pool->body = body;
    pool->user = user;
    pool->count = count;
    pool->grain = grain;
    atomic_store(&pool->next, 0);
    uint64_t job = atomic_load(&pool->state) / NEXT_JOB + 1;
    atomic_store(&pool->state, job * NEXT_JOB | OPEN);
    wake_workers(pool);
    current_thread = 0;
    run_pieces(pool, 0);
    current_thread = -1;
    atomic_fetch_and(&pool->state, ~OPEN);
    for (int spins = 0; (atomic_load(&pool->state) & INSIDE_MASK) != 0; spins++) {
        if (spins < SPINS) {
            relax();
        } else {
            sched_yield(); /* a worker that lost its core is given one */
        }
    }
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
    run_shared(pool, count, grain, body, user);
    pthread_mutex_unlock(&pool->in_use);
}
