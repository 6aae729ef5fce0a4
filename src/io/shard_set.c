/* Weights fill one file after the other in the order in which they are declared. Which file takes a
 * weight is known at once; how many files there are, and so their names, when all is declared.
 * Several files get the index that transformers expects; a single one keeps its plain name. */
#include "io/shard_set.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "io/folder.h"

static esp_status add_shard(esp_shard_set *set, esp_error *error)
{
    if (set->count == ESP_MAX_SHARDS) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "checkpoint.too_many_shards",
                        "more than %d files of %" PRIu64 " bytes would be needed; choose a larger "
                        "shard size",
                        ESP_MAX_SHARDS, set->limit);
    }
    if (set->count == set->capacity) {
        size_t capacity = set->capacity != 0 ? 2 * set->capacity : 4;
        esp_safetensors_writer **grown = esp_realloc(
            set->context, set->shards, set->count * sizeof *grown, capacity * sizeof *grown);
        if (grown == NULL) {
            return esp_fail_memory(error, capacity * sizeof *grown, "a table of files");
        }
        set->shards = grown;
        set->capacity = capacity;
    }
    ESP_TRY(esp_safetensors_writer_create(set->context, &set->shards[set->count], error));
    set->count++;
    set->filled = 0;
    return ESP_OK;
}

esp_status esp_shards_open(esp_context *context, esp_shard_set *set, esp_error *error)
{
    *set = (esp_shard_set){.context = context};
    return add_shard(set, error);
}

esp_status esp_shards_next(esp_shard_set *set, uint64_t bytes, uint32_t *shard, esp_error *error)
{
    if (!esp_add_u64(set->total, bytes, &set->total)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "safetensors.too_large",
                        "all tensors together are more than any disk can hold");
    }
    bool full = set->filled > 0 && (set->filled >= set->limit || bytes > set->limit - set->filled);
    if (set->limit > 0 && full) {
        ESP_TRY(add_shard(set, error));
    }
    set->filled += bytes;
    *shard = (uint32_t)set->count - 1;
    return ESP_OK;
}

/* The index wants all names; with one file nobody asks. */
static esp_status remember(esp_shard_set *set, const char *name, esp_error *error)
{
    if (set->entry_count == set->entry_capacity) {
        size_t capacity = set->entry_capacity != 0 ? 2 * set->entry_capacity : 64;
        esp_shard_entry *grown = esp_realloc(
            set->context, set->entries, set->entry_count * sizeof *grown, capacity * sizeof *grown);
        if (grown == NULL) {
            return esp_fail_memory(error, capacity * sizeof *grown, "an index");
        }
        set->entries = grown;
        set->entry_capacity = capacity;
    }
    char *copy = esp_strdup(set->context, name);
    if (copy == NULL) {
        return esp_fail_memory(error, strlen(name) + 1, "a tensor name");
    }
    set->entries[set->entry_count++] = (esp_shard_entry){copy, (uint32_t)set->count - 1};
    return ESP_OK;
}

esp_status esp_shards_declare(esp_shard_set *set, const char *name, const esp_tensor *tensor,
                              esp_error *error)
{
    ESP_TRY(esp_safetensors_writer_declare(set->shards[set->count - 1], name, tensor, error));
    return set->limit > 0 ? remember(set, name, error) : ESP_OK;
}

/* ---- placing ---- */

static int compare_entries(const void *user, uint32_t a, uint32_t b)
{
    const esp_shard_entry *entries = user;
    return strcmp(entries[a].name, entries[b].name);
}

/* Each file checks its own names; here names of different files meet. */
static esp_status sort_entries(esp_shard_set *set, esp_error *error)
{
    set->by_name = esp_alloc_array(set->context, set->entry_count, sizeof *set->by_name);
    if (set->by_name == NULL) {
        return esp_fail_memory(error, set->entry_count * sizeof *set->by_name, "an index");
    }
    for (size_t i = 0; i < set->entry_count; i++) {
        set->by_name[i] = (uint32_t)i;
    }
    ESP_TRY(esp_io_sort(set->context, set->by_name, set->entry_count, compare_entries, set->entries,
                        error));
    for (size_t i = 1; i < set->entry_count; i++) {
        const char *name = set->entries[set->by_name[i]].name;
        if (strcmp(set->entries[set->by_name[i - 1]].name, name) == 0) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "safetensors.declared_twice",
                            "two tensors would be stored under the name \"%s\"",
                            esp_io_show(name).text);
        }
    }
    return ESP_OK;
}

esp_status esp_shards_place(esp_shard_set *set, uint64_t *bytes, esp_error *error)
{
    uint64_t all = 0, one = 0;
    for (size_t i = 0; i < set->count; i++) {
        ESP_TRY(esp_safetensors_writer_place(set->shards[i], &one, error));
        if (!esp_add_u64(all, one, &all)) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "safetensors.too_large",
                            "all files together are more than any disk can hold");
        }
    }
    *bytes = all;
    return set->count > 1 ? sort_entries(set, error) : ESP_OK;
}

/* ---- writing ---- */

#define SHARD_NAME_BYTES 64
static void shard_name(const esp_shard_set *set, size_t index, char name[SHARD_NAME_BYTES])
{
    if (set->count == 1) {
        snprintf(name, SHARD_NAME_BYTES, "%s", ESP_WEIGHTS_FILE);
    } else {
        snprintf(name, SHARD_NAME_BYTES, "model-%05zu-of-%05zu.safetensors", index + 1, set->count);
    }
}

esp_status esp_shards_begin(esp_shard_set *set, esp_target *target, esp_error *error)
{
    for (size_t i = 0; i < set->count; i++) {
        char name[SHARD_NAME_BYTES], *path = NULL;
        shard_name(set, i, name);
        ESP_TRY(esp_target_add(target, name, &path, error));
        esp_status status = esp_safetensors_writer_begin(set->shards[i], path, error);
        esp_release(set->context, path);
        ESP_TRY(status);
    }
    return ESP_OK;
}

esp_status esp_shards_write(esp_shard_set *set, uint32_t shard, const char *name, const void *data,
                            esp_error *error)
{
    return esp_safetensors_writer_write(set->shards[shard], name, data, error);
}

static void print_index(const esp_shard_set *set, esp_buffer *text)
{
    esp_buffer_printf(text,
                      "{\n  \"metadata\": {\n    \"total_size\": %" PRIu64 "\n  },\n"
                      "  \"weight_map\": {",
                      set->total);
    for (size_t i = 0; i < set->entry_count; i++) {
        const esp_shard_entry *entry = &set->entries[set->by_name[i]];
        char name[SHARD_NAME_BYTES];
        shard_name(set, entry->shard, name);
        esp_buffer_text(text, i > 0 ? ",\n    " : "\n    ");
        esp_buffer_json_string(text, entry->name);
        esp_buffer_printf(text, ": \"%s\"", name);
    }
    esp_buffer_text(text, "\n  }\n}\n");
}

static esp_status write_index(const esp_shard_set *set, esp_target *target, esp_error *error)
{
    esp_buffer text;
    esp_buffer_init(&text, set->context);
    print_index(set, &text);
    esp_status status = text.failed
                            ? esp_fail_memory(error, text.length, ESP_INDEX_FILE)
                            : esp_target_write_text(target, ESP_INDEX_FILE, text.data, error);
    esp_buffer_free(&text);
    return status;
}

esp_status esp_shards_finish(esp_shard_set *set, esp_target *target, esp_error *error)
{
    for (size_t i = 0; i < set->count; i++) {
        ESP_TRY(esp_safetensors_writer_finish(set->shards[i], error));
    }
    return set->count > 1 ? write_index(set, target, error) : ESP_OK;
}

void esp_shards_free(esp_shard_set *set)
{
    if (set->context == NULL) {
        return;
    }
    for (size_t i = 0; i < set->count; i++) {
        esp_safetensors_writer_free(set->shards[i]);
    }
    for (size_t i = 0; i < set->entry_count; i++) {
        esp_release(set->context, set->entries[i].name);
    }
    esp_release(set->context, set->shards);
    esp_release(set->context, set->entries);
    esp_release(set->context, set->by_name);
    *set = (esp_shard_set){0};
}
