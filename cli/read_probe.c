#include "read_probe.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cli.h"

#define CHUNK ((size_t)256 << 10) /* bytes that a thread takes at a time */
#define PIECE ((size_t)128 << 20) /* bytes of one run, at most */
#define MOST_STREAMS 8

typedef struct read_way {
    int streams, ahead; /* ahead: bytes, 0: no prefetches */
} read_way;

static const read_way ways[] = {{1, 0},    {1, 1024}, {1, 4096}, {4, 0},   {4, 1024},
                                {4, 4096}, {8, 0},    {8, 512},  {8, 2048}};

typedef uint64_t line __attribute__((vector_size(64)));

struct read_probe {
    int threads, workers; /* workers: threads besides the caller that were started */
    char *buffer;
    size_t bytes, piece, next;
    read_way way;
    bool wide; /* the processor has AVX-512 */
    char way_text[64];
    pthread_t *handles;
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    uint64_t job; /* number of the run */
    int busy;
    bool quit;
    const char *from; /* the run's piece */
    _Atomic size_t taken;
    _Atomic uint64_t sink; /* keeps the loads */
};

/* ---- reading ---- */

/* Inlined for constant streams and distances. */
static inline __attribute__((always_inline)) uint64_t read_streams(const char *from, int streams,
                                                                   int ahead)
{
    line sums[MOST_STREAMS] = {{0}};
    size_t stream = CHUNK / (size_t)streams;
    for (size_t at = 0; at < stream; at += 64) {
        for (int s = 0; s < streams; s++) {
            const char *address = from + (size_t)s * stream + at;
            if (ahead > 0) {
                __builtin_prefetch(address + ahead, 0, 3);
            }
            sums[s] |= *(const line *)(const void *)address;
        }
    }
    uint64_t sum = 0;
    for (int s = 0; s < streams; s++) {
        for (int i = 0; i < 8; i++) {
            sum |= sums[s][i];
        }
    }
    return sum;
}

static inline __attribute__((always_inline)) uint64_t read_chunk(const char *from, read_way way)
{
    switch (way.streams) {
    case 1:
        return way.ahead == 0 ? read_streams(from, 1, 0) : read_streams(from, 1, way.ahead);
    case 4:
        return way.ahead == 0 ? read_streams(from, 4, 0) : read_streams(from, 4, way.ahead);
    default:
        return way.ahead == 0 ? read_streams(from, 8, 0) : read_streams(from, 8, way.ahead);
    }
}

#ifdef __x86_64__
__attribute__((target("avx512f"))) static uint64_t read_wide(const char *from, read_way way)
{
    return read_chunk(from, way);
}

static bool has_wide_loads(void)
{
    return __builtin_cpu_supports("avx512f");
}
#else
static uint64_t read_wide(const char *from, read_way way)
{
    return read_chunk(from, way);
}

static bool has_wide_loads(void)
{
    return false;
}
#endif

static uint64_t read_narrow(const char *from, read_way way)
{
    return read_chunk(from, way);
}

static void read_share(read_probe *probe)
{
    uint64_t sum = 0;
    for (size_t at; (at = atomic_fetch_add(&probe->taken, CHUNK)) + CHUNK <= probe->piece;) {
        sum |= probe->wide ? read_wide(probe->from + at, probe->way)
                           : read_narrow(probe->from + at, probe->way);
    }
    atomic_fetch_or(&probe->sink, sum);
}

/* ---- threads ---- */

static void *worker_main(void *user)
{
    read_probe *probe = user;
    uint64_t seen = 0;
    pthread_mutex_lock(&probe->lock);
    for (;;) {
        while (probe->job == seen && !probe->quit) {
            pthread_cond_wait(&probe->wake, &probe->lock);
        }
        if (probe->quit) {
            break;
        }
        seen = probe->job;
        pthread_mutex_unlock(&probe->lock);
        read_share(probe);
        pthread_mutex_lock(&probe->lock);
        if (--probe->busy == 0) {
            pthread_cond_signal(&probe->done);
        }
    }
    pthread_mutex_unlock(&probe->lock);
    return NULL;
}

esp_status read_probe_run(void *user, esp_error *error)
{
    (void)error;
    read_probe *probe = user;
    pthread_mutex_lock(&probe->lock);
    probe->from = probe->buffer + probe->next;
    probe->next = probe->next + 2 * probe->piece <= probe->bytes ? probe->next + probe->piece : 0;
    atomic_store(&probe->taken, 0);
    probe->busy = probe->workers;
    probe->job++;
    pthread_cond_broadcast(&probe->wake);
    pthread_mutex_unlock(&probe->lock);
    read_share(probe);
    pthread_mutex_lock(&probe->lock);
    while (probe->busy > 0) {
        pthread_cond_wait(&probe->done, &probe->lock);
    }
    pthread_mutex_unlock(&probe->lock);
    return ESP_OK;
}

/* ---- open, tune, close ---- */

static double time_way(read_probe *probe, read_way way)
{
    probe->way = way;
    double start = seconds_now();
    for (size_t done = 0; done < probe->bytes; done += probe->piece) {
        (void)!read_probe_run(probe, NULL);
    }
    return seconds_now() - start;
}

void read_probe_tune(read_probe *probe)
{
    double best_s = 0;
    read_way best = ways[0];
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < COUNT(ways); i++) {
            double s = time_way(probe, ways[i]);
            if (best_s == 0 || s < best_s) {
                best_s = s;
                best = ways[i];
            }
        }
    }
    probe->way = best;
    snprintf(probe->way_text, sizeof probe->way_text,
             best.ahead > 0 ? "%d streams a thread, prefetch %d bytes ahead"
                            : "%d streams a thread",
             best.streams, best.ahead);
}

static esp_status start_threads(read_probe *probe, esp_error *error)
{
    for (int i = 0; i + 1 < probe->threads; i++) {
        if (pthread_create(&probe->handles[i], NULL, worker_main, probe) != 0) {
            return cli_fail(error, ESP_FAILED, "bench.no_thread",
                            "thread %d of %d of the bandwidth probe did not start", i + 1,
                            probe->threads);
        }
        probe->workers++;
    }
    return ESP_OK;
}

esp_status read_probe_open(int threads, size_t bytes, read_probe **probe, esp_error *error)
{
    size_t unit = CHUNK * (size_t)threads;
    read_probe *made = calloc(1, sizeof *made);
    if (made == NULL) {
        return cli_fail_memory(error, "the bandwidth probe");
    }
    pthread_mutex_init(&made->lock, NULL);
    pthread_cond_init(&made->wake, NULL);
    pthread_cond_init(&made->done, NULL);
    made->threads = threads;
    made->wide = has_wide_loads();
    made->bytes = bytes < unit ? unit : bytes / unit * unit;
    made->piece = made->bytes < PIECE ? made->bytes : PIECE / unit * unit;
    made->piece = made->piece > 0 ? made->piece : unit;
    made->way = ways[0];
    made->handles = calloc((size_t)threads, sizeof *made->handles);
    made->buffer = aligned_alloc((size_t)2 << 20, (made->bytes + (2 << 20)) >> 21 << 21);
    esp_status status = made->handles == NULL || made->buffer == NULL
                            ? cli_fail_memory(error, "the bandwidth probe")
                            : ESP_OK;
    if (status == ESP_OK) {
#ifdef MADV_HUGEPAGE
        (void)!madvise(made->buffer, made->bytes, MADV_HUGEPAGE);
#endif
        memset(made->buffer, 1, made->bytes);
        status = start_threads(made, error);
    }
    if (status != ESP_OK) {
        read_probe_close(made);
        return status;
    }
    *probe = made;
    return ESP_OK;
}

size_t read_probe_piece_bytes(const read_probe *probe)
{
    return probe->piece;
}

const char *read_probe_way(const read_probe *probe)
{
    return probe->way_text;
}

void read_probe_close(read_probe *probe)
{
    if (probe == NULL) {
        return;
    }
    pthread_mutex_lock(&probe->lock);
    probe->quit = true;
    pthread_cond_broadcast(&probe->wake);
    pthread_mutex_unlock(&probe->lock);
    for (int i = 0; i < probe->workers; i++) {
        pthread_join(probe->handles[i], NULL);
    }
    pthread_cond_destroy(&probe->wake);
    pthread_cond_destroy(&probe->done);
    pthread_mutex_destroy(&probe->lock);
    free(probe->handles);
    free(probe->buffer);
    free(probe);
}
