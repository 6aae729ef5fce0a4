#include "io/carry_over.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "io/names.h"

#define LARGE ((uint64_t)1 << 30)  /* vocabularies and tokenizers */
#define SMALL ((uint64_t)16 << 20) /* anything else that is text */
#define COPY_BYTES ((size_t)1 << 20)

/* The first row that matches decides. Weights in any form stay behind, because they would be those
 * of the model before it was pruned; config.json and our own marker are written anew. */
static const struct {
    const char *glob;
    uint64_t max_bytes; /* 0: never */
} rules[] = {
    {"config.json", 0},
    {ESP_MARKER_FILE, 0},
    {"*.safetensors", 0},
    {"*.index.json", 0},
    {"*.bin", 0},
    {"*.pt", 0},
    {"*.pth", 0},
    {"*.ckpt", 0},
    {"*.gguf", 0},
    {"*.h5", 0},
    {"*.msgpack", 0},
    {"*.onnx", 0},
    {"tokenizer.json", LARGE},
    {"tokenizer_config.json", LARGE},
    {"special_tokens_map.json", LARGE},
    {"added_tokens.json", LARGE},
    {"vocab.*", LARGE},
    {"merges.txt", LARGE},
    {"*.model", LARGE}, /* SentencePiece */
    {"*.tiktoken", LARGE},
    {"chat_template*", LARGE},
    {"generation_config.json", LARGE},
    {"preprocessor_config.json", LARGE},
    {"processor_config.json", LARGE},
    {"README*", SMALL},
    {"LICENSE*", SMALL},
    {"LICENCE*", SMALL},
    {"NOTICE*", SMALL},
    {"USE_POLICY*", SMALL},
    {"*.json", SMALL},
    {"*.txt", SMALL},
    {"*.md", SMALL},
    {"*.jinja", SMALL},
};

static uint64_t limit_of(const char *name)
{
    for (int i = 0; i < ESP_COUNT(rules); i++) {
        if (esp_glob_match(rules[i].glob, name)) {
            return rules[i].max_bytes;
        }
    }
    return 0;
}

static esp_status add(esp_carry *carry, const char *name, uint64_t bytes, esp_error *error)
{
    if (carry->count == carry->capacity) {
        size_t old = carry->capacity, capacity = old != 0 ? 2 * old : 16;
        char **grown = esp_realloc(carry->context, carry->names, old * sizeof *grown,
                                   capacity * sizeof *grown);
        if (grown == NULL) {
            return esp_fail_memory(error, capacity * sizeof *grown, "a list of files");
        }
        carry->names = grown;
        carry->capacity = capacity;
    }
    char *copy = esp_strdup(carry->context, name);
    if (copy == NULL) {
        return esp_fail_memory(error, strlen(name) + 1, "a file name");
    }
    carry->names[carry->count++] = copy;
    carry->bytes += bytes;
    return ESP_OK;
}

static esp_status unreadable(const esp_carry *carry, const char *name, esp_error *error)
{
    bool dangling = errno == ENOENT || errno == ENOTDIR || errno == ELOOP;
    return dangling ? ESP_OK
                    : esp_fail_errno(error, errno, "file.unreadable", "%s/%s", carry->source,
                                     esp_io_show(name).text);
}

static esp_status add_small(esp_carry *carry, const char *name, const struct stat *facts,
                            uint64_t limit, esp_error *error)
{
    if (!S_ISREG(facts->st_mode)) {
        return ESP_OK;
    }
    if ((uint64_t)facts->st_size > limit) {
        esp_log(carry->context, ESP_LOG_WARNING, "%s/%s: is too large to be carried along",
                carry->source, name);
        return ESP_OK;
    }
    return add(carry, name, (uint64_t)facts->st_size, error);
}

/* Modules of sentence-transformers: folders like "1_Pooling" with a config.json. */
static bool is_module(const char *name)
{
    return name[0] >= '0' && name[0] <= '9' && name[1] == '_';
}

static esp_status consider_module(esp_carry *carry, int folder, const char *name, esp_error *error)
{
    struct stat facts;
    char *path = esp_io_join(carry->context, name, "config.json");
    if (path == NULL) {
        return esp_fail_memory(error, strlen(name), "a path");
    }
    esp_status status = fstatat(folder, path, &facts, 0) == 0
                            ? add_small(carry, path, &facts, SMALL, error)
                            : unreadable(carry, path, error);
    esp_release(carry->context, path);
    return status;
}

static esp_status consider(esp_carry *carry, int folder, const char *name, esp_error *error)
{
    struct stat facts;
    uint64_t limit = limit_of(name);
    if ((limit == 0 && !is_module(name)) || !esp_io_name_is_fine(name)) {
        return ESP_OK;
    }
    if (fstatat(folder, name, &facts, 0) != 0) {
        return unreadable(carry, name, error);
    }
    if (S_ISDIR(facts.st_mode)) {
        return is_module(name) ? consider_module(carry, folder, name, error) : ESP_OK;
    }
    return limit > 0 ? add_small(carry, name, &facts, limit, error) : ESP_OK;
}

static int compare_texts(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

esp_status esp_carry_list(esp_context *context, const char *source, esp_carry *carry,
                          esp_error *error)
{
    *carry = (esp_carry){.context = context, .source = esp_strdup(context, source)};
    if (carry->source == NULL) {
        return esp_fail_memory(error, strlen(source) + 1, "a path");
    }
    DIR *folder = opendir(source);
    if (folder == NULL) {
        return esp_fail_errno(error, errno, "file.unreadable", "%s: listing the folder", source);
    }
    const char *name = NULL;
    esp_status status = esp_folder_next(folder, source, &name, error);
    while (status == ESP_OK && name != NULL) {
        status = consider(carry, dirfd(folder), name, error);
        if (status == ESP_OK) {
            status = esp_folder_next(folder, source, &name, error);
        }
    }
    closedir(folder);
    if (status == ESP_OK && carry->count > 0) {
        qsort(carry->names, carry->count, sizeof *carry->names, compare_texts);
    }
    return status;
}

/* ---- copying ---- */

static esp_status copy_bytes(esp_context *context, int from, uint64_t bytes, const char *from_path,
                             int to, const char *to_path, esp_error *error)
{
    char *piece = esp_alloc(context, COPY_BYTES);
    esp_status status = piece != NULL ? ESP_OK : esp_fail_memory(error, COPY_BYTES, "copying");
    for (uint64_t at = 0; status == ESP_OK && at < bytes; at += COPY_BYTES) {
        size_t size = (size_t)ESP_MIN(bytes - at, (uint64_t)COPY_BYTES);
        status = esp_file_read_at(from, from_path, piece, size, at, error);
        if (status == ESP_OK) {
            status = esp_file_write_at(to, to_path, piece, size, at, error);
        }
    }
    esp_release(context, piece);
    return status;
}

static esp_status copy_file(esp_context *context, const char *from_path, const char *to_path,
                            esp_error *error)
{
    int from = -1, to = -1;
    uint64_t bytes = 0;
    ESP_TRY(esp_file_open(from_path, &from, &bytes, error));
    esp_status status = esp_file_create(to_path, &to, error);
    if (status == ESP_OK) {
        status = copy_bytes(context, from, bytes, from_path, to, to_path, error);
        if (status == ESP_OK) {
            status = esp_file_sync_close(to, to_path, error);
        } else {
            esp_file_close(to);
        }
    }
    esp_file_close(from);
    return status;
}

esp_status esp_carry_copy(const esp_carry *carry, esp_target *target, esp_error *error)
{
    esp_status status = ESP_OK;
    for (size_t i = 0; i < carry->count && status == ESP_OK; i++) {
        char *to = NULL;
        char *from = esp_io_join(carry->context, carry->source, carry->names[i]);
        status = from != NULL ? esp_target_add(target, carry->names[i], &to, error)
                              : esp_fail_memory(error, strlen(carry->names[i]), "a path");
        if (status == ESP_OK) {
            status = copy_file(carry->context, from, to, error);
        }
        esp_release(carry->context, from);
        esp_release(carry->context, to);
    }
    return status;
}

void esp_carry_free(esp_carry *carry)
{
    if (carry->context == NULL) {
        return;
    }
    for (size_t i = 0; i < carry->count; i++) {
        esp_release(carry->context, carry->names[i]);
    }
    esp_release(carry->context, carry->names);
    esp_release(carry->context, carry->source);
    *carry = (esp_carry){0};
}
