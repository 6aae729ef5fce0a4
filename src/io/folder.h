/* The inside of an open model folder, shared by the files of this room that fill it. */
#ifndef ESP_IO_FOLDER_H
#define ESP_IO_FOLDER_H

#include "io/names.h"
#include "io/safetensors.h"

#define ESP_CONFIG_FILE "config.json"
#define ESP_WEIGHTS_FILE "model.safetensors"
#define ESP_INDEX_FILE "model.safetensors.index.json"
#define ESP_CONFIG_MAX_BYTES ((size_t)16 << 20)
#define ESP_INDEX_MAX_BYTES ((size_t)64 << 20)
#define ESP_MAX_SHARDS 8192

/* One tensor of one of the files. */
typedef struct esp_stored {
    esp_tensor_info info;
    int file;
    int64_t index;
    bool used; /* belongs to a weight already */
} esp_stored;

typedef struct esp_weight {
    esp_weight_info info;
    bool has_rows;        /* one of the parts is the row order */
    esp_folder_form form; /* other than ours: parts are those of a bitmask */
    char *owned_name;     /* info.name, where no stored tensor has that name; else NULL */
    int part_count;
    uint32_t parts[ESP_SPARSE_MAX_PARTS]; /* indexes into stored, in layout order */
} esp_weight;

struct esp_checkpoint {
    esp_context *context;
    char *path;
    char *config_text; /* NULL for a lone file */
    json_t *config;
    bool compressed;
    esp_folder_form form;
    esp_safetensors **files;
    char **file_names; /* plain names within the folder; for a lone file its path */
    int file_count;
    esp_stored *stored; /* all tensors of all files, sorted by name, each name once */
    size_t stored_count;
    esp_weight *weights; /* sorted by file, then by offset of the first part */
    size_t weight_count;
    uint32_t *by_name;             /* indexes into weights, sorted by name */
    const esp_weight_maker *maker; /* made.c; NULL: weights are in the files */
    void *maker_user;
};

/* shards.c: opens the file or files of the folder and fills files and stored. */
ESP_MUST_CHECK esp_status esp_folder_open_lone(esp_checkpoint *folder, esp_error *error);
ESP_MUST_CHECK esp_status esp_folder_open_files(esp_checkpoint *folder, esp_error *error);
/* NULL when there is none. */
esp_stored *esp_folder_find_stored(const esp_checkpoint *folder, const char *name);

/* checkpoint.c: a stored tensor that is a weight as it is. */
ESP_MUST_CHECK esp_status esp_folder_fill_plain(const esp_checkpoint *folder, esp_weight *weight,
                                                uint32_t index, esp_error *error);

/* Fills config and config_text; sorts weights, which are in order otherwise, by name. */
ESP_MUST_CHECK esp_status esp_folder_read_config(esp_checkpoint *folder, esp_error *error);
ESP_MUST_CHECK esp_status esp_folder_sort_names(esp_checkpoint *folder, esp_error *error);

/* quantization.c: the weights of a compressed folder, from its quantization_config. Fills weights
 * (unsorted) and compressed; a folder without that key is left alone. */
ESP_MUST_CHECK esp_status esp_folder_read_quantization(esp_checkpoint *folder, esp_error *error);

/* foreign.c: fails when path is named like a weight file of another kind. */
ESP_MUST_CHECK esp_status esp_foreign_refuse_file(const char *path, esp_error *error);
/* Always fails: the folder has no safetensors weights; names what it has instead. */
esp_status esp_foreign_refuse_folder(const char *path, esp_error *error);

#endif
