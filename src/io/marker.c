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
    esp_buffer_text(text, "]");
    esp_buffer_text(text, target->record != NULL ? target->record : "");
    esp_buffer_text(text, "}\n");
}

/* inner: the folder that name is in, "" for the outer one. */
static bool lists(json_t *files, const char *inner, const char *name)
{
    size_t i, length = strlen(inner);
    json_t *listed;
    json_array_foreach(files, i, listed)
    {
        const char *text = json_is_string(listed) ? json_string_value(listed) : "";
        bool within = length == 0 || (strncmp(text, inner, length) == 0 && text[length] == '/');
        if (within && strcmp(text + length + (length > 0), name) == 0) {
            return true;
        }
    }
    return false;
}

/* A listed file is in the folder `name`. */
static bool lists_folder(json_t *files, const char *name)
{
    size_t i, length = strlen(name);
    json_t *listed;
    json_array_foreach(files, i, listed)
    {
        const char *text = json_is_string(listed) ? json_string_value(listed) : "";
        if (strncmp(text, name, length) == 0 && text[length] == '/') {
            return true;
        }
    }
    return false;
}

static esp_status foreign(const char *path, const char *name, esp_error *error)
{
    return esp_fail(error, ESP_FAILED, "checkpoint.foreign_files",
                    "%s: holds \"%s\", which espalier did not put there and would delete: "
                    "move it away or choose another folder",
                    path, esp_io_show(name).text);
}

/* Everything in the folder at path is listed as inner/...; folders within only in the outer one. */
static esp_status check_files(esp_context *context, const char *path, const char *inner,
                              json_t *files, esp_error *error)
{
    const char *name = NULL;
    DIR *folder = opendir(path);
    if (folder == NULL) {
        return esp_fail_errno(error, errno, "file.unreadable", "%s: listing the folder", path);
    }
    esp_status status = esp_folder_next(folder, path, &name, error);
    while (status == ESP_OK && name != NULL) {
        bool outer = inner[0] == '\0';
        if ((outer && strcmp(name, ESP_MARKER_FILE) == 0) || lists(files, inner, name)) {
            status = ESP_OK;
        } else if (outer && lists_folder(files, name)) {
            char *within = esp_io_join(context, path, name);
            status = within == NULL               ? esp_fail_memory(error, strlen(name), "a path")
                     : esp_path_is_folder(within) ? check_files(context, within, name, files, error)
                                                  : foreign(path, name, error);
            esp_release(context, within);
        } else {
            status = foreign(path, name, error);
        }
        if (status == ESP_OK) {
            status = esp_folder_next(folder, path, &name, error);
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
        status = check_files(context, path, "", files, error);
    }
    json_decref(marker);
    return status;
}
