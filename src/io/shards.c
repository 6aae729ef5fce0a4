/* The safetensors files of a folder: one, or several that an index lists.
 *
 * The index is untrusted: shard names are plain names of files in the folder and never paths, and
 * index and shards must agree about every tensor. Afterwards all tensors lie in one table sorted by
 * name. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "io/folder.h"

#define AGAIN "download the model's files again"

/* ---- the table of all tensors ---- */

static int compare_stored(const void *user, uint32_t a, uint32_t b)
{
    const esp_stored *stored = user;
    return strcmp(stored[a].info.name, stored[b].info.name);
}

esp_stored *esp_folder_find_stored(const esp_checkpoint *folder, const char *name)
{
    size_t low = 0, high = folder->stored_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(folder->stored[middle].info.name, name);
        if (order == 0) {
            return &folder->stored[middle];
        }
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return NULL;
}

static void list_stored(const esp_checkpoint *folder, esp_stored *list)
{
    size_t at = 0;
    for (int i = 0; i < folder->file_count; i++) {
        for (int64_t k = 0; k < esp_safetensors_count(folder->files[i]); k++) {
            list[at++] = (esp_stored){
                .info = esp_safetensors_get(folder->files[i], k), .file = i, .index = k};
        }
    }
}

static esp_status sort_stored(esp_checkpoint *folder, const esp_stored *list, size_t count,
                              esp_error *error)
{
    uint32_t *order = esp_alloc_array(folder->context, count, sizeof *order);
    folder->stored = esp_alloc_array(folder->context, count, sizeof *folder->stored);
    esp_status status = order != NULL && folder->stored != NULL
                            ? ESP_OK
                            : esp_fail_memory(error, count * sizeof *list, "a table of tensors");
    if (status == ESP_OK) {
        for (size_t i = 0; i < count; i++) {
            order[i] = (uint32_t)i;
        }
        status = esp_io_sort(folder->context, order, count, compare_stored, list, error);
    }
    for (size_t i = 0; status == ESP_OK && i < count; i++) {
        folder->stored[i] = list[order[i]];
        folder->stored_count = i + 1;
    }
    esp_release(folder->context, order);
    return status;
}

static esp_status check_once(const esp_checkpoint *folder, esp_error *error)
{
    for (size_t i = 1; i < folder->stored_count; i++) {
        const esp_stored *a = &folder->stored[i - 1], *b = &folder->stored[i];
        if (strcmp(a->info.name, b->info.name) == 0) {
            return esp_fail(
                error, ESP_BAD_FILE, "sharded.tensor_twice",
                "%s: tensor \"%s\" is in %s and in %s; each must be in one shard only; " AGAIN,
                folder->path, esp_io_show(b->info.name).text,
                esp_io_show(folder->file_names[a->file]).text,
                esp_io_show(folder->file_names[b->file]).text);
        }
    }
    return ESP_OK;
}

static esp_status collect(esp_checkpoint *folder, esp_error *error)
{
    size_t count = 0;
    for (int i = 0; i < folder->file_count; i++) {
        count += (size_t)esp_safetensors_count(folder->files[i]);
    }
    if (count >= UINT32_MAX) {
        return esp_fail(error, ESP_BAD_FILE, "sharded.too_many_tensors",
                        "%s: %zu tensors in all shards together; fewer than 2^32 were expected",
                        folder->path, count);
    }
    esp_stored *list = esp_alloc_array(folder->context, count, sizeof *list);
    if (list == NULL) {
        return esp_fail_memory(error, count * sizeof *list, "a table of tensors");
    }
    list_stored(folder, list);
    esp_status status = sort_stored(folder, list, count, error);
    esp_release(folder->context, list);
    return status == ESP_OK ? check_once(folder, error) : status;
}

/* ---- files ---- */

static esp_status make_file_table(esp_checkpoint *folder, size_t count, esp_error *error)
{
    folder->files = esp_alloc_array(folder->context, count, sizeof *folder->files);
    folder->file_names = esp_alloc_array(folder->context, count, sizeof *folder->file_names);
    return folder->files != NULL && folder->file_names != NULL
               ? ESP_OK
               : esp_fail_memory(error, count * sizeof *folder->files, "a table of files");
}

/* name: for messages; path: where it is. */
static esp_status add_file(esp_checkpoint *folder, const char *name, const char *path,
                           esp_error *error)
{
    char *copy = esp_strdup(folder->context, name);
    if (copy == NULL) {
        return esp_fail_memory(error, strlen(name) + 1, "a file name");
    }
    esp_safetensors *file = NULL;
    esp_status status = esp_safetensors_open(folder->context, path, &file, error);
    if (status != ESP_OK) {
        esp_release(folder->context, copy);
        return status;
    }
    folder->files[folder->file_count] = file;
    folder->file_names[folder->file_count++] = copy;
    return ESP_OK;
}

static esp_status add_file_of_folder(esp_checkpoint *folder, const char *name, esp_error *error)
{
    char *path = esp_io_join(folder->context, folder->path, name);
    if (path == NULL) {
        return esp_fail_memory(error, strlen(name), "a path");
    }
    esp_status status = add_file(folder, name, path, error);
    esp_release(folder->context, path);
    return status;
}

esp_status esp_folder_open_lone(esp_checkpoint *folder, esp_error *error)
{
    ESP_TRY(esp_foreign_refuse_file(folder->path, error));
    ESP_TRY(make_file_table(folder, 1, error));
    ESP_TRY(add_file(folder, folder->path, folder->path, error));
    return collect(folder, error);
}

/* ---- the index ---- */

static esp_status bad_shard_name(const esp_checkpoint *folder, const char *code, const char *shard,
                                 const char *why, esp_error *error)
{
    return esp_fail(error, ESP_BAD_FILE, code,
                    "%s/%s: weight_map names the shard \"%s\", which %s; a plain file name such as "
                    "model-00001-of-00002.safetensors was expected; " AGAIN,
                    folder->path, ESP_INDEX_FILE, esp_io_show(shard).text, why);
}

static esp_status check_shard_name(const esp_checkpoint *folder, const char *shard,
                                   esp_error *error)
{
    if (shard[0] == '/') {
        return bad_shard_name(folder, "index.shard_absolute", shard, "is an absolute path", error);
    }
    if (strcmp(shard, "..") == 0 || strncmp(shard, "../", 3) == 0 ||
        strstr(shard, "/../") != NULL || esp_io_ends_with(shard, "/..")) {
        return bad_shard_name(folder, "index.shard_parent", shard, "leads out of the folder",
                              error);
    }
    if (strchr(shard, '/') != NULL || strchr(shard, '\\') != NULL) {
        return bad_shard_name(folder, "index.shard_slash", shard, "is a path", error);
    }
    if (strlen(shard) > 255 || !esp_io_ends_with(shard, ".safetensors")) {
        return bad_shard_name(folder, "index.shard_not_safetensors", shard,
                              "is no .safetensors file's name", error);
    }
    return ESP_OK;
}

static int compare_texts(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Distinct shard names, sorted. names: room for all entries of the map; they belong to the map. */
static esp_status list_shards(const esp_checkpoint *folder, json_t *map, const char **names,
                              size_t *count, esp_error *error)
{
    const char *tensor;
    json_t *shard;
    json_t *seen = json_object();
    esp_status status = seen != NULL ? ESP_OK : esp_fail_memory(error, 64, "an index");
    *count = 0;
    json_object_foreach(map, tensor, shard)
    {
        if (status != ESP_OK) {
            break;
        }
        if (!json_is_string(shard)) {
            status = esp_fail(error, ESP_BAD_FILE, "index.entry_not_string",
                              "%s/%s: weight_map \"%s\" must be the name of a shard; " AGAIN,
                              folder->path, ESP_INDEX_FILE, esp_io_show(tensor).text);
            break;
        }
        const char *name = json_string_value(shard);
        if (json_object_get(seen, name) != NULL) {
            continue;
        }
        status = check_shard_name(folder, name, error);
        if (status == ESP_OK && *count == ESP_MAX_SHARDS) {
            status = esp_fail(error, ESP_BAD_FILE, "index.too_many_shards",
                              "%s/%s: more than %d shards; " AGAIN, folder->path, ESP_INDEX_FILE,
                              ESP_MAX_SHARDS);
        }
        if (status == ESP_OK && json_object_set_new(seen, name, json_true()) != 0) {
            status = esp_fail_memory(error, 64, "an index");
        }
        if (status == ESP_OK) {
            names[(*count)++] = name;
        }
    }
    json_decref(seen);
    if (status == ESP_OK) {
        qsort(names, *count, sizeof *names, compare_texts);
    }
    return status;
}

static esp_status open_shards(esp_checkpoint *folder, const char *const *names, size_t count,
                              esp_error *error)
{
    ESP_TRY(make_file_table(folder, count, error));
    for (size_t i = 0; i < count; i++) {
        esp_error local = {0};
        esp_status status = add_file_of_folder(folder, names[i], &local);
        if (status != ESP_OK && strcmp(local.code, "file.not_found") == 0) {
            return esp_fail(
                error, ESP_BAD_FILE, "sharded.shard_missing",
                "%s: the index names %s, which is not in the folder (shard %zu of %zu); "
                "download it",
                folder->path, names[i], i + 1, count);
        }
        if (status != ESP_OK) {
            return esp_fail(error, status, local.code, "%s", local.message);
        }
    }
    return ESP_OK;
}

/* Every listed tensor is in its shard. */
static esp_status check_listed(const esp_checkpoint *folder, json_t *map, esp_error *error)
{
    const char *tensor;
    json_t *shard;
    json_object_foreach(map, tensor, shard)
    {
        const char *listed = json_string_value(shard);
        const esp_stored *stored = esp_folder_find_stored(folder, tensor);
        if (stored == NULL) {
            return esp_fail(
                error, ESP_BAD_FILE, "sharded.tensor_absent",
                "%s: the index lists tensor \"%s\" in %s, which does not hold it; " AGAIN,
                folder->path, esp_io_show(tensor).text, listed);
        }
        if (strcmp(folder->file_names[stored->file], listed) != 0) {
            return esp_fail(error, ESP_BAD_FILE, "sharded.wrong_shard",
                            "%s: the index lists tensor \"%s\" in %s, but it is in %s; " AGAIN,
                            folder->path, esp_io_show(tensor).text, listed,
                            folder->file_names[stored->file]);
        }
    }
    return ESP_OK;
}

/* Every tensor of a shard is listed. */
static esp_status check_unlisted(const esp_checkpoint *folder, json_t *map, esp_error *error)
{
    for (size_t i = 0; i < folder->stored_count; i++) {
        const esp_stored *stored = &folder->stored[i];
        if (json_object_get(map, stored->info.name) == NULL) {
            return esp_fail(error, ESP_BAD_FILE, "sharded.tensor_unlisted",
                            "%s: %s holds tensor \"%s\", which the index does not list; " AGAIN,
                            folder->path, folder->file_names[stored->file],
                            esp_io_show(stored->info.name).text);
        }
    }
    return ESP_OK;
}

/* A wrong total is harmless and seen in the wild: it only warns. */
static void compare_total(const esp_checkpoint *folder, json_t *index)
{
    json_t *total = json_object_get(json_object_get(index, "metadata"), "total_size");
    uint64_t bytes = 0;
    for (size_t i = 0; i < folder->stored_count; i++) {
        bytes += folder->stored[i].info.bytes;
    }
    if (json_is_number(total) && json_number_value(total) != (double)bytes) {
        esp_log(folder->context, ESP_LOG_WARNING,
                "%s/%s: total_size is %.0f, the tensors have %" PRIu64 " bytes", folder->path,
                ESP_INDEX_FILE, json_number_value(total), bytes);
    }
}

static esp_status open_by_map(esp_checkpoint *folder, json_t *map, esp_error *error)
{
    size_t entries = json_object_size(map), count = 0;
    const char **names = esp_alloc_array(folder->context, entries, sizeof *names);
    if (names == NULL) {
        return esp_fail_memory(error, entries * sizeof *names, "an index");
    }
    esp_status status = list_shards(folder, map, names, &count, error);
    if (status == ESP_OK) {
        status = open_shards(folder, names, count, error);
    }
    esp_release(folder->context, (void *)names);
    if (status == ESP_OK) {
        status = collect(folder, error);
    }
    if (status == ESP_OK) {
        status = check_listed(folder, map, error);
    }
    return status == ESP_OK ? check_unlisted(folder, map, error) : status;
}

static esp_status open_index(esp_checkpoint *folder, const char *path, esp_error *error)
{
    char *text = NULL;
    size_t length = 0;
    json_t *index = NULL;
    ESP_TRY(esp_file_read_all(folder->context, path, ESP_INDEX_MAX_BYTES, "index.too_large", &text,
                              &length, error));
    esp_status status = esp_json_parse(text, length, path, &index, error);
    esp_release(folder->context, text);
    if (status != ESP_OK) {
        return status;
    }
    json_t *map = json_object_get(index, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0) {
        status =
            esp_fail(error, ESP_BAD_FILE, "index.no_weight_map",
                     "%s: needs a \"weight_map\" from tensor names to shard names; " AGAIN, path);
    } else {
        status = open_by_map(folder, map, error);
    }
    if (status == ESP_OK) {
        compare_total(folder, index);
    }
    json_decref(index);
    return status;
}

esp_status esp_folder_open_files(esp_checkpoint *folder, esp_error *error)
{
    char *single = esp_io_join(folder->context, folder->path, ESP_WEIGHTS_FILE);
    char *index = esp_io_join(folder->context, folder->path, ESP_INDEX_FILE);
    esp_status status;
    if (single == NULL || index == NULL) {
        status = esp_fail_memory(error, strlen(folder->path), "a path");
    } else if (esp_path_exists(single)) {
        if (esp_path_exists(index)) {
            esp_log(folder->context, ESP_LOG_WARNING, "%s: has both %s and %s; the first is read",
                    folder->path, ESP_WEIGHTS_FILE, ESP_INDEX_FILE);
        }
        status = make_file_table(folder, 1, error);
        if (status == ESP_OK) {
            status = add_file_of_folder(folder, ESP_WEIGHTS_FILE, error);
        }
        if (status == ESP_OK) {
            status = collect(folder, error);
        }
    } else if (esp_path_exists(index)) {
        status = open_index(folder, index, error);
    } else {
        status = esp_foreign_refuse_folder(folder->path, error);
    }
    esp_release(folder->context, single);
    esp_release(folder->context, index);
    return status;
}
