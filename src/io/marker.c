/* espalier.json: the file by which a folder is known as ours, with the names of everything that was
 * put into it. Only such a folder may be replaced, and only while it holds nothing else. */
#include <dirent.h>
#include <errno.h>
#include <string.h>

#include "io/names.h"
#include "io/target.h"

#define MADE_BY "espalier "
#define MARKER_MAX_BYTES ((size_t)1 << 20)

void esp_marker_print(const esp_target *target, esp_buffer *text)
{
    esp_buffer_printf(text,
                      "{\"made_by\": \"" MADE_BY "%s\", \"format_version\": %d,\n \"files\": [",
                      esp_version(), ESP_FOLDER_FORMAT_VERSION);
    for (size_t i = 0; i < target->file_count; i++) {
        esp_buffer_text(text, i > 0 ? ", " : "");
        esp_buffer_json_string(text, target->files[i]);
    }
    esp_buffer_text(text, "]}\n");
}

static bool lists(json_t *files, const char *name)
{
    size_t i;
    json_t *listed;
    json_array_foreach(files, i, listed)
    {
        if (json_is_string(listed) && strcmp(json_string_value(listed), name) == 0) {
            return true;
        }
    }
    return false;
}

/* Everything in the folder is listed. */
static esp_status check_files(const char *path, json_t *files, esp_error *error)
{
    const char *name = NULL;
    DIR *folder = opendir(path);
    if (folder == NULL) {
        return esp_fail_errno(error, errno, "file.unreadable", "%s: listing the folder", path);
    }
    esp_status status = esp_folder_next(folder, path, &name, error);
    while (status == ESP_OK && name != NULL) {
        if (strcmp(name, ESP_MARKER_FILE) == 0 || lists(files, name)) {
            status = esp_folder_next(folder, path, &name, error);
        } else {
            status =
                esp_fail(error, ESP_FAILED, "checkpoint.foreign_files",
                         "%s: holds \"%s\", which espalier did not put there and would delete: "
                         "move it away or choose another folder",
                         path, esp_io_show(name).text);
        }
    }
    closedir(folder);
    return status;
}

esp_status esp_marker_check(esp_context *context, const char *path, esp_error *error)
{
    json_t *marker = NULL;
    char *file = esp_io_join(context, path, ESP_MARKER_FILE);
    if (file == NULL) {
        return esp_fail_memory(error, strlen(path), "a path");
    }
    esp_error local = {0};
    esp_status status = esp_json_load(context, file, MARKER_MAX_BYTES, &marker, NULL, &local);
    esp_release(context, file);
    if (status == ESP_OUT_OF_MEMORY || status == ESP_IO) {
        return esp_fail(error, status, local.code, "%s", local.message);
    }
    const char *maker = json_string_value(json_object_get(marker, "made_by"));
    json_t *files = json_object_get(marker, "files");
    if (maker == NULL || strncmp(maker, MADE_BY, strlen(MADE_BY)) != 0 || !json_is_array(files)) {
        status = esp_fail(error, ESP_FAILED, "checkpoint.not_ours",
                          "%s: is there and was not made by espalier (no valid " ESP_MARKER_FILE
                          "), so it is not replaced: remove it yourself or choose another folder",
                          path);
    } else {
        status = check_files(path, files, error);
    }
    json_decref(marker);
    return status;
}
