/* The safetensors files of a folder that is being written: one, or several and their index. */
#ifndef ESP_IO_SHARD_SET_H
#define ESP_IO_SHARD_SET_H

#include "io/target.h"

typedef struct esp_shard_entry {
    char *name; /* of a stored tensor */
    uint32_t shard;
} esp_shard_entry;

typedef struct esp_shard_set {
    esp_context *context;
    uint64_t limit; /* tensor bytes of one file; 0: one file takes all */
    esp_safetensors_writer **shards;
    size_t count, capacity;
    uint64_t filled, total; /* tensor bytes of the last shard, of all */
    esp_shard_entry *entries;
    uint32_t *by_name; /* indexes into entries, sorted by name */
    size_t entry_count, entry_capacity;
} esp_shard_set;

ESP_MUST_CHECK esp_status esp_shards_open(esp_context *context, esp_shard_set *set,
                                          esp_error *error);
/* A weight whose parts have so many bytes comes next: *shard is where they go. */
ESP_MUST_CHECK esp_status esp_shards_next(esp_shard_set *set, uint64_t bytes, uint32_t *shard,
                                          esp_error *error);
/* One part of that weight. */
ESP_MUST_CHECK esp_status esp_shards_declare(esp_shard_set *set, const char *name,
                                             const esp_tensor *tensor, esp_error *error);
/* Everything is declared. *bytes: of all files. */
ESP_MUST_CHECK esp_status esp_shards_place(esp_shard_set *set, uint64_t *bytes, esp_error *error);
/* Makes the files. */
ESP_MUST_CHECK esp_status esp_shards_begin(esp_shard_set *set, esp_target *target,
                                           esp_error *error);
ESP_MUST_CHECK esp_status esp_shards_write(esp_shard_set *set, uint32_t shard, const char *name,
                                           const void *data, esp_error *error);
/* Brings the files to disk and writes the index, if there are several. */
ESP_MUST_CHECK esp_status esp_shards_finish(esp_shard_set *set, esp_target *target,
                                            esp_error *error);
void esp_shards_free(esp_shard_set *set);

#endif
