#include "base/context.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "base/memory.h"
#include "base/threads.h"

#define MAX_THREADS 1024
#define HUGE_PAGE ((size_t)2 << 20)

/* Weights are read once per token: with pages of 4 KiB the walk of page tables costs as much as the
 * memory. Asking for large pages where the system leaves that to programs is a hint and may fail. */
static void *default_allocate(void *user, size_t bytes, size_t alignment)
{
    (void)user;
    if (bytes < 2 * HUGE_PAGE) {
        return aligned_alloc(alignment, bytes);
    }
    void *memory = NULL;
    if (posix_memalign(&memory, HUGE_PAGE, bytes) != 0) {
        return NULL;
    }
#ifdef MADV_HUGEPAGE
    (void)!madvise(memory, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    return memory;
}

static void default_release(void *user, void *memory)
{
    (void)user;
    free(memory);
}

const char *esp_version(void)
{
#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
    return TEXT(ESP_VERSION_MAJOR) "." TEXT(ESP_VERSION_MINOR) "." TEXT(ESP_VERSION_PATCH);
#undef TEXT
#undef TEXT_OF
}

static esp_status choose_threads(int wanted, int *threads, esp_error *error)
{
    if (wanted < 0 || wanted > MAX_THREADS) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "context.bad_threads",
                        "threads: %d is out of range; give 1..%d, or 0 for one per core", wanted,
                        MAX_THREADS);
    }
    if (wanted == 0) {
        long cores = sysconf(_SC_NPROCESSORS_ONLN);
        wanted = cores < 1 ? 1 : cores > MAX_THREADS ? MAX_THREADS : (int)cores;
    }
    *threads = wanted;
    return ESP_OK;
}

esp_status esp_context_create(const esp_context_options *options, esp_context **context,
                              esp_error *error)
{
    static const esp_context_options defaults = {0};
    const esp_context_options *use = options != NULL ? options : &defaults;
    esp_allocator allocator = use->allocator;
    if ((allocator.allocate == NULL) != (allocator.release == NULL)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "context.half_allocator",
                        "allocator: give both allocate and release, or neither");
    }
    if (allocator.allocate == NULL) {
        allocator = (esp_allocator){default_allocate, default_release, NULL};
    }
    int threads = 0;
    esp_cpu_features cpu;
    ESP_TRY(choose_threads(use->threads, &threads, error));
    ESP_TRY(esp_cpu_features_detect(use->cpu_level, &cpu, error));

    esp_context temporary = {.allocator = allocator};
    esp_context *made = esp_alloc_zero(&temporary, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "the context");
    }
    made->allocator = allocator;
    made->log = use->log;
    made->log_user = use->log_user;
    made->cpu = cpu;
    esp_status status = esp_pool_create(made, threads, &made->pool, error);
    if (status != ESP_OK) {
        esp_release(&temporary, made);
        return status;
    }
    made->threads = threads;
    esp_tuning_table_init(&made->tuning);
    *context = made;
    return ESP_OK;
}

void esp_context_free(esp_context *context)
{
    if (context == NULL) {
        return;
    }
    esp_pool_free(context, context->pool);
    esp_tuning_table_free(context, &context->tuning);
    esp_context copy = *context;
    esp_release(&copy, context);
}

int esp_context_threads(const esp_context *context)
{
    return context->threads;
}

void esp_log(const esp_context *context, esp_log_level level, const char *format, ...)
{
    if (context->log == NULL) {
        return;
    }
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    context->log(context->log_user, level, text);
}
