/* Checkpoints whose weights are made when they are read: a config.json and a list of tensors, and
 * nothing behind them but a maker. */
#include <string.h>

#include "io/folder.h"

static esp_status begin(esp_checkpoint *made, const char *folder, esp_error *error)
{
    made->path = esp_strdup(made->context, folder);
    if (made->path == NULL) {
        return esp_fail_memory(error, strlen(folder) + 1, "a path");
    }
    ESP_TRY(esp_folder_read_config(made, error));
    return esp_folder_sort_names(made, error);
}

esp_status esp_checkpoint_make(esp_context *context, const char *folder,
                               const esp_weight_maker *maker, void *user,
                               esp_checkpoint **checkpoint, esp_error *error)
{
    esp_checkpoint *made = esp_alloc_zero(context, sizeof *made);
    if (made == NULL) {
        maker->release(user);
        return esp_fail_memory(error, sizeof *made, "a checkpoint");
    }
    made->context = context;
    made->maker = maker;
    made->maker_user = user;
    esp_status status = begin(made, folder, error);
    if (status != ESP_OK) {
        esp_checkpoint_close(made);
        return status;
    }
    *checkpoint = made;
    return ESP_OK;
}

esp_status esp_checkpoint_set_weights(esp_checkpoint *checkpoint, const esp_weight_info *infos,
                                      int64_t count, esp_error *error)
{
    esp_context *context = checkpoint->context;
    checkpoint->weights = esp_alloc_array(context, (size_t)count, sizeof *checkpoint->weights);
    if (checkpoint->weights == NULL) {
        return esp_fail_memory(error, (size_t)count * sizeof *checkpoint->weights,
                               "a table of weights");
    }
    for (int64_t i = 0; i < count; i++) {
        esp_weight *weight = &checkpoint->weights[i];
        weight->info = infos[i];
        weight->owned_name = esp_strdup(context, infos[i].name);
        weight->info.name = weight->owned_name;
        checkpoint->weight_count++;
        if (weight->owned_name == NULL) {
            return esp_fail_memory(error, strlen(infos[i].name) + 1, "a name");
        }
    }
    esp_release(context, checkpoint->by_name);
    checkpoint->by_name = NULL;
    return esp_folder_sort_names(checkpoint, error);
}

bool esp_checkpoint_is_made(const esp_checkpoint *checkpoint)
{
    return checkpoint->maker != NULL;
}

esp_status esp_checkpoint_set_pattern(esp_checkpoint *checkpoint, int64_t index,
                                      const esp_pattern *pattern, esp_error *error)
{
    esp_weight_info *info = &checkpoint->weights[index].info;
    info->pattern = *pattern;
    return esp_sparse_layout_bytes(pattern, info->dtype, info->shape[0], info->shape[1], false,
                                   &info->stored_bytes, error);
}
