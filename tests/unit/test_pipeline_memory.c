/* prune under a metered allocator: how much memory a checkpoint takes, and what happens when the
 * n-th allocation fails. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "safetensors_bytes.h"
#include "unit/pipeline_tools.h"

typedef struct metered {
    atomic_llong now, peak, calls;
    long long fail_at; /* 0: never */
} metered;

static void *metered_allocate(void *user, size_t bytes, size_t alignment)
{
    metered *meter = user;
    if (atomic_fetch_add(&meter->calls, 1) + 1 == meter->fail_at) {
        return NULL;
    }
    size_t head = alignment > 64 ? alignment : 64;
    char *memory = aligned_alloc(head, (bytes + head + head - 1) / head * head);
    if (memory == NULL) {
        return NULL;
    }
    memcpy(memory, &bytes, sizeof bytes);
    memcpy(memory + sizeof bytes, &head, sizeof head);
    long long now = atomic_fetch_add(&meter->now, (long long)bytes) + (long long)bytes;
    long long peak = atomic_load(&meter->peak);
    while (now > peak && !atomic_compare_exchange_weak(&meter->peak, &peak, now)) {
    }
    return memory + head;
}

static void metered_release(void *user, void *memory)
{
    metered *meter = user;
    size_t bytes, head = 64; /* the library asks for at most 64 */
    char *block = (char *)memory - head;
    memcpy(&bytes, block, sizeof bytes);
    atomic_fetch_sub(&meter->now, (long long)bytes);
    free(block);
}

/* 12 matrices of 512 x 768 bf16: 9.4 MB, the largest 0.8 MB. */
static const char *write_many(test_run *run)
{
    enum { COUNT = 12, BYTES = 512 * 768 * 2 };
    const char *folder = test_path(test_folder(run), "many");
    char header[4096] = "{";
    for (int i = 0; i < COUNT; i++) {
        size_t used = strlen(header);
        snprintf(
            header + used, sizeof header - used,
            "%s\"layers.%d.weight\":{\"dtype\":\"BF16\",\"shape\":[512,768],\"data_offsets\":[%d,"
            "%d]}",
            i > 0 ? "," : "", i, i * BYTES, (i + 1) * BYTES);
    }
    strcat(header, "}");
    uint16_t *values = malloc((size_t)COUNT * BYTES);
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (size_t i = 0; values != NULL && i < (size_t)COUNT * BYTES / 2; i++) {
        values[i] = esp_bf16_of_float((float)esp_random_uniform(&random) - 0.5f);
    }
    CHECK_OK(esp_folder_create(folder, error));
    write_safetensors(run, test_path(folder, "model.safetensors"), header, values,
                      (size_t)COUNT * BYTES);
    write_text(run, test_path(folder, "config.json"), "{\"architectures\": [\"None\"]}");
    free(values);
    return folder;
}

static void peak_memory_follows_the_largest_tensor(test_run *run)
{
    static const char *const measured[] = {"2:4",     "64:2:8", "128:2:5",
                                           "64:2:16", "4:8",    "panel:64@0.75"};
    const char *folder = write_many(run), *out = test_path(test_folder(run), "many-out");
    double largest = 512 * 768 * 2;
    for (int i = 0; i < ESP_COUNT(measured); i++) {
        test_sub(run, "%s", measured[i]);
        metered meter = {0};
        esp_context_options context_options = {
            .threads = 2, .allocator = {metered_allocate, metered_release, &meter}};
        esp_context *context = NULL;
        REQUIRE_OK(esp_context_create(&context_options, &context, error));
        esp_prune_options options = with_pattern(run, measured[i]);
        options.force = true;
        CHECK_OK(esp_prune_checkpoint(context, folder, out, &options, NULL, error));
        esp_context_free(context);
        CHECK_INT(atomic_load(&meter.now), 0);
        double ratio = (double)atomic_load(&meter.peak) / largest;
        if (ratio > 4.25) {
            test_fail(run, __FILE__, __LINE__, "peak is %.2f times the largest tensor", ratio);
        }
    }
}

/* The n-th allocation fails, for every n: no leak, no half folder, the right status. */
static void every_failed_allocation(test_run *run)
{
    const char *dense = tiny_dense(run), *folder = test_folder(run);
    const char *out = test_path(folder, "starved");
    int before = test_entries(folder);
    bool done = false;
    for (long long n = 1; n < 20000 && !done && !test_failed(run); n++) {
        metered meter = {.fail_at = n};
        esp_context_options context_options = {
            .threads = 1, .allocator = {metered_allocate, metered_release, &meter}};
        esp_context *context = NULL;
        esp_error error = {0};
        esp_status status = esp_context_create(&context_options, &context, &error);
        if (status == ESP_OK) {
            esp_prune_options options = with_pattern(run, "64:2:8");
            status = esp_prune_checkpoint(context, dense, out, &options, NULL, &error);
            esp_context_free(context);
        }
        done = status == ESP_OK;
        CHECK(done || status == ESP_OUT_OF_MEMORY);
        CHECK(done || error.message[0] != '\0');
        CHECK_INT(atomic_load(&meter.now), 0);
        CHECK_INT(test_entries(folder), before + done);
    }
    CHECK(done);
}

static const test_case cases[] = {
    {"peak memory follows the largest tensor", peak_memory_follows_the_largest_tensor},
    {"every failed allocation", every_failed_allocation},
};
TEST_MAIN(cases)
