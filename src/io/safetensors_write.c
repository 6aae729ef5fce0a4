/* One file of tensors, whole or not at all: written under another name beside its place, synced,
 * and renamed. */
#include <stdio.h>
#include <unistd.h>

#include "io/io.h"

static esp_status write_tensors(esp_safetensors_writer *writer, const char *path,
                                const char *const *names, const esp_tensor *tensors, int count,
                                esp_error *error)
{
    uint64_t bytes;
    for (int i = 0; i < count; i++) {
        ESP_TRY(esp_safetensors_writer_declare(writer, names[i], &tensors[i], error));
    }
    ESP_TRY(esp_safetensors_writer_place(writer, &bytes, error));
    ESP_TRY(esp_safetensors_writer_begin(writer, path, error));
    for (int i = 0; i < count; i++) {
        ESP_TRY(esp_safetensors_writer_write(writer, names[i], tensors[i].data, error));
    }
    return esp_safetensors_writer_finish(writer, error);
}

esp_status esp_safetensors_write(esp_context *context, const char *path, const char *const *names,
                                 const esp_tensor *tensors, int count, esp_error *error)
{
    esp_safetensors_writer *writer = NULL;
    esp_buffer beside;
    if (esp_path_exists(path)) {
        return esp_fail(error, ESP_IO, "file.exists", "%s: is there already; name a new file",
                        path);
    }
    esp_buffer_init(&beside, context);
    esp_buffer_printf(&beside, "%s.new-%ld", path, (long)getpid());
    if (beside.failed) {
        esp_buffer_free(&beside);
        return esp_fail_memory(error, strlen(path), "a path");
    }
    esp_status status = esp_safetensors_writer_create(context, &writer, error);
    if (status == ESP_OK) {
        status = write_tensors(writer, beside.data, names, tensors, count, error);
        esp_safetensors_writer_free(writer);
        status = status == ESP_OK ? esp_rename_new(beside.data, path, error) : status;
        if (status != ESP_OK) {
            esp_file_remove(beside.data);
        }
    }
    esp_buffer_free(&beside);
    return status;
}
