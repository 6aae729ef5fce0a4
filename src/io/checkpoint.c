/* Model folders: config.json and the tensors of all their files as one list of logical weights.
 *
 * A plain tensor is a weight; in a folder of ours, or one that compressed-tensors wrote, the parts
 * of a compressed weight are gathered into one. Everything is checked when the folder is opened,
 * but for the contents of tensors, which are checked when they are read. */
#include <string.h>

#include "io/folder.h"

esp_status esp_folder_fill_plain(const esp_checkpoint *folder, esp_weight *weight, uint32_t index,
                                 esp_error *error)
{
    const esp_stored *stored = &folder->stored[index];
    if (stored->info.rank > ESP_MAX_RANK) {
        return esp_fail(error, ESP_UNSUPPORTED, "checkpoint.rank_too_high",
                        "%s: tensor \"%s\" has %d dimensions, espalier knows at most %d",
                        folder->path, esp_io_show(stored->info.name).text, stored->info.rank,
                        ESP_MAX_RANK);
    }
    weight->info = (esp_weight_info){.name = stored->info.name,
                                     .dtype = stored->info.dtype,
                                     .rank = stored->info.rank,
                                     .dense_bytes = (size_t)stored->info.bytes,
                                     .stored_bytes = (size_t)stored->info.bytes};
    memcpy(weight->info.shape, stored->info.shape,
           (size_t)stored->info.rank * sizeof *stored->info.shape);
    weight->part_count = 1;
    weight->parts[0] = index;
    return ESP_OK;
}

static esp_status list_plain(esp_checkpoint *folder, esp_error *error)
{
    folder->weights =
        esp_alloc_array(folder->context, folder->stored_count, sizeof *folder->weights);
    if (folder->weights == NULL) {
        return esp_fail_memory(error, folder->stored_count * sizeof *folder->weights,
                               "a table of weights");
    }
    for (size_t i = 0; i < folder->stored_count; i++) {
        ESP_TRY(esp_folder_fill_plain(folder, &folder->weights[i], (uint32_t)i, error));
    }
    folder->weight_count = folder->stored_count;
    return ESP_OK;
}

/* ---- orders ---- */

static int compare_places(const void *user, uint32_t a, uint32_t b)
{
    const esp_checkpoint *folder = user;
    const esp_stored *x = &folder->stored[folder->weights[a].parts[0]];
    const esp_stored *y = &folder->stored[folder->weights[b].parts[0]];
    if (x->file != y->file) {
        return x->file < y->file ? -1 : 1;
    }
    return x->index < y->index ? -1 : x->index > y->index;
}

static int compare_weight_names(const void *user, uint32_t a, uint32_t b)
{
    const esp_checkpoint *folder = user;
    return strcmp(folder->weights[a].info.name, folder->weights[b].info.name);
}

esp_status esp_folder_sort_names(esp_checkpoint *folder, esp_error *error)
{
    size_t count = folder->weight_count;
    if (folder->by_name == NULL) {
        folder->by_name = esp_alloc_array(folder->context, count, sizeof *folder->by_name);
    }
    if (folder->by_name == NULL) {
        return esp_fail_memory(error, count * sizeof *folder->by_name, "a table of weights");
    }
    for (size_t i = 0; i < count; i++) {
        folder->by_name[i] = (uint32_t)i;
    }
    return esp_io_sort(folder->context, folder->by_name, count, compare_weight_names, folder,
                       error);
}

static esp_status sort_weights(esp_checkpoint *folder, esp_error *error)
{
    size_t count = folder->weight_count;
    esp_context *context = folder->context;
    uint32_t *order = esp_alloc_array(context, count, sizeof *order);
    esp_weight *sorted = esp_alloc_array(context, count, sizeof *sorted);
    folder->by_name = order;
    if (order == NULL || sorted == NULL) {
        esp_release(context, sorted);
        return esp_fail_memory(error, count * sizeof *sorted, "a table of weights");
    }
    for (size_t i = 0; i < count; i++) {
        order[i] = (uint32_t)i;
    }
    esp_status status = esp_io_sort(context, order, count, compare_places, folder, error);
    if (status != ESP_OK) {
        esp_release(context, sorted);
        return status;
    }
    for (size_t i = 0; i < count; i++) {
        sorted[i] = folder->weights[order[i]];
    }
    esp_release(context, folder->weights);
    folder->weights = sorted;
    return esp_folder_sort_names(folder, error);
}

/* ---- open and close ---- */

esp_status esp_folder_read_config(esp_checkpoint *folder, esp_error *error)
{
    char *path = esp_io_join(folder->context, folder->path, ESP_CONFIG_FILE);
    if (path == NULL) {
        return esp_fail_memory(error, strlen(folder->path), "a path");
    }
    esp_status status;
    if (!esp_path_exists(path)) {
        status =
            esp_fail(error, ESP_BAD_FILE, "checkpoint.no_config",
                     "%s: has no config.json, which says what model this is; give the folder of "
                     "a Hugging Face model",
                     folder->path);
    } else {
        status = esp_json_load(folder->context, path, ESP_CONFIG_MAX_BYTES, &folder->config,
                               &folder->config_text, error);
    }
    esp_release(folder->context, path);
    return status;
}

static esp_status load(esp_checkpoint *folder, esp_error *error)
{
    if (esp_path_is_folder(folder->path)) {
        /* Weights first: a folder with only pickles is better told so than asked for a config. */
        ESP_TRY(esp_folder_open_files(folder, error));
        ESP_TRY(esp_folder_read_config(folder, error));
        ESP_TRY(esp_folder_read_quantization(folder, error));
    } else {
        ESP_TRY(esp_folder_open_lone(folder, error));
    }
    if (!folder->compressed && folder->form == ESP_FORM_ESPALIER) {
        ESP_TRY(list_plain(folder, error));
    }
    return sort_weights(folder, error);
}

esp_status esp_checkpoint_open(esp_context *context, const char *path, esp_checkpoint **checkpoint,
                               esp_error *error)
{
    esp_checkpoint *opened = esp_alloc_zero(context, sizeof *opened);
    if (opened == NULL) {
        return esp_fail_memory(error, sizeof *opened, "a checkpoint");
    }
    opened->context = context;
    opened->path = esp_strdup(context, path);
    esp_status status = opened->path != NULL ? load(opened, error)
                                             : esp_fail_memory(error, strlen(path) + 1, "a path");
    if (status != ESP_OK) {
        esp_checkpoint_close(opened);
        return status;
    }
    *checkpoint = opened;
    return ESP_OK;
}

void esp_checkpoint_close(esp_checkpoint *checkpoint)
{
    if (checkpoint == NULL) {
        return;
    }
    esp_context *context = checkpoint->context;
    for (int i = 0; i < checkpoint->file_count; i++) {
        esp_safetensors_close(checkpoint->files[i]);
        esp_release(context, checkpoint->file_names[i]);
    }
    for (size_t i = 0; i < checkpoint->weight_count; i++) {
        esp_release(context, checkpoint->weights[i].owned_name);
    }
    if (checkpoint->maker != NULL) {
        checkpoint->maker->release(checkpoint->maker_user);
    }
    json_decref(checkpoint->config);
    esp_release(context, checkpoint->files);
    esp_release(context, checkpoint->file_names);
    esp_release(context, checkpoint->config_text);
    esp_release(context, checkpoint->stored);
    esp_release(context, checkpoint->weights);
    esp_release(context, checkpoint->by_name);
    esp_release(context, checkpoint->path);
    esp_release(context, checkpoint);
}

/* ---- facts ---- */

const char *esp_checkpoint_path(const esp_checkpoint *checkpoint)
{
    return checkpoint->path;
}

const char *esp_checkpoint_config(const esp_checkpoint *checkpoint)
{
    return checkpoint->config_text;
}

int64_t esp_checkpoint_count(const esp_checkpoint *checkpoint)
{
    return (int64_t)checkpoint->weight_count;
}

esp_weight_info esp_checkpoint_get(const esp_checkpoint *checkpoint, int64_t index)
{
    return checkpoint->weights[index].info;
}

int64_t esp_checkpoint_find(const esp_checkpoint *checkpoint, const char *name)
{
    size_t low = 0, high = checkpoint->weight_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        uint32_t index = checkpoint->by_name[middle];
        int order = strcmp(checkpoint->weights[index].info.name, name);
        if (order == 0) {
            return index;
        }
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return -1;
}

uint64_t esp_checkpoint_file_bytes(const esp_checkpoint *checkpoint)
{
    uint64_t bytes = 0;
    for (int i = 0; i < checkpoint->file_count; i++) {
        bytes += checkpoint->files[i]->file_bytes;
    }
    return bytes;
}

bool esp_checkpoint_is_compressed(const esp_checkpoint *checkpoint)
{
    return checkpoint->compressed;
}

esp_folder_form esp_checkpoint_form(const esp_checkpoint *checkpoint)
{
    return checkpoint->form;
}

bool esp_checkpoint_is_plain(const esp_checkpoint *checkpoint, int64_t index)
{
    const esp_weight *weight = &checkpoint->weights[index];
    return weight->form == ESP_FORM_ESPALIER && weight->info.pattern.kind == ESP_PATTERN_DENSE;
}
