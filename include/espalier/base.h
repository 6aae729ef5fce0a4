/* base.h - what every other header needs: status codes, errors, the context, allocator and log
 * hooks.
 *
 * Manners of the whole library:
 *  - a function that can fail returns esp_status, is must-check, and leaves its out-parameters
 *    untouched on failure; an optional esp_error* (NULL is fine) carries code and message;
 *  - nothing prints, exits or aborts; text for a person goes to the log hook of the context;
 *  - handles come in create/free or open/close pairs and freeing NULL is fine;
 *  - shapes are int64_t, byte counts size_t. */
#ifndef ESPALIER_BASE_H
#define ESPALIER_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define ESP_API __attribute__((visibility("default")))
#define ESP_MUST_CHECK __attribute__((warn_unused_result))
#define ESP_PRINTF(format_at, first_at) __attribute__((format(printf, format_at, first_at)))
#else
#define ESP_API
#define ESP_MUST_CHECK
#define ESP_PRINTF(format_at, first_at)
#endif

#define ESP_VERSION_MAJOR 0
#define ESP_VERSION_MINOR 1
#define ESP_VERSION_PATCH 0

/* "MAJOR.MINOR.PATCH" of the library that runs (not of the header that was compiled). */
ESP_API const char *esp_version(void);

typedef enum esp_status {
    ESP_OK = 0,
    ESP_FAILED,        /* none of the others: the message says what */
    ESP_BAD_ARGUMENT,  /* the caller broke a contract, or a flag or pattern is wrong */
    ESP_BAD_FILE,      /* a file from outside is not what it must be; `code` names the rule */
    ESP_UNSUPPORTED,   /* well-formed, but not something this build or machine can do */
    ESP_CHECK_FAILED,  /* a comparison or verification found a difference */
    ESP_OUT_OF_MEMORY, /* an allocation failed or a size would not fit an address space */
    ESP_IO,            /* the operating system refused: open, read, write, sync, rename */
    ESP_CANCELLED      /* a progress callback asked to stop */
} esp_status;

/* Short stable name: "ok", "bad_file"... Never NULL. */
ESP_API const char *esp_status_name(esp_status status);

/* Owned by the caller, fixed size, so that even an out-of-memory can be reported. */
typedef struct esp_error {
    esp_status status;
    char code[64]; /* stable, e.g. "safetensors.duplicate_key"; listed in docs/refused-inputs.md */
    char message[1024]; /* one line: file, place, what was expected, what to do; no control bytes */
} esp_error;

/* Both calls must be given; memory must be aligned to `alignment` (a power of two, at most 4096).
 * allocate returns NULL on failure and is never asked for 0 bytes. Called from several threads. */
typedef struct esp_allocator {
    void *(*allocate)(void *user, size_t bytes, size_t alignment);
    void (*release)(void *user, void *memory);
    void *user;
} esp_allocator;

typedef enum esp_log_level { ESP_LOG_DEBUG, ESP_LOG_INFO, ESP_LOG_WARNING } esp_log_level;
typedef void (*esp_log_fn)(void *user, esp_log_level level, const char *message);

/* Called now and then by long work, from the calling thread only. `done` of `total` in `unit`
 * ("weights", "tokens", "bytes"). Return false to cancel: the work returns ESP_CANCELLED. */
typedef bool (*esp_progress_fn)(void *user, const char *what, double done, double total,
                                const char *unit);

/* Owner of allocator, log hook, thread pool and tuning table; there is no other global state. A
 * context may be used from several threads; parallel work inside the library takes the pool in
 * turn. */
typedef struct esp_context esp_context;

typedef struct esp_context_options {
    int threads; /* worker threads including the caller; 0: one per core, at most 1024 */
    esp_allocator allocator; /* all NULL: the C library's */
    esp_log_fn log;          /* NULL: silent */
    void *log_user;
    const char *cpu_level; /* NULL or "auto": best; or not above "portable", "avx2", "avx512"... */
} esp_context_options;

/* options NULL means all defaults. */
ESP_MUST_CHECK ESP_API esp_status esp_context_create(const esp_context_options *options,
                                                     esp_context **context, esp_error *error);
/* Everything made from the context must be freed before. */
ESP_API void esp_context_free(esp_context *context);
ESP_API int esp_context_threads(const esp_context *context);

#ifdef __cplusplus
}
#endif
#endif
