/* The inside of a checkpoint writer, shared by the files that make it. */
#ifndef ESP_IO_CHECKPOINT_WRITER_H
#define ESP_IO_CHECKPOINT_WRITER_H

#include "io/carry_over.h"
#include "io/folder.h"
#include "io/shard_set.h"
#include "io/target.h"

typedef struct esp_promised {
    esp_weight_info info; /* name is owned */
    bool has_rows;
    bool written;
    uint32_t crc;
    uint32_t shard;
    int64_t zeros; /* left out in a foreign form */
} esp_promised;

typedef enum esp_writer_state {
    ESP_WRITER_DECLARING,
    ESP_WRITER_WRITING,
    ESP_WRITER_FINISHED,
    ESP_WRITER_BROKEN
} esp_writer_state;

struct esp_checkpoint_writer {
    esp_context *context;
    esp_target target;
    esp_carry carry;
    char *config;
    esp_writer_state state;
    esp_promised *weights;
    size_t count, capacity;
    uint32_t *by_name;
    esp_shard_set shards;
    esp_folder_form form;
    esp_buffer notes; /* members of the quantization_config, each begun by a comma */
};

ESP_MUST_CHECK esp_status esp_writer_check_state(const esp_checkpoint_writer *writer,
                                                 esp_writer_state wanted, esp_error *error);
/* The name of a part in the file; *name: esp_release. */
ESP_MUST_CHECK esp_status esp_writer_part_name(const esp_checkpoint_writer *writer,
                                               const char *weight, const char *part, char **name,
                                               esp_error *error);
/* One part of a weight, as declared. */
ESP_MUST_CHECK esp_status esp_writer_write_part(esp_checkpoint_writer *writer,
                                                const esp_promised *weight,
                                                const esp_sparse_part *part, esp_error *error);

#endif
