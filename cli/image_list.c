/* Which images a folder or an index names, and under which labels. */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "images.h"

#define MOST_IMAGES ((int64_t)1 << 24)

static esp_status add(image_list *list, const char *folder, const char *name, const char *label,
                      esp_error *error)
{
    if (list->count == list->capacity) {
        int64_t capacity = 2 * list->capacity + 256;
        listed_image *grown = capacity <= MOST_IMAGES
                                  ? realloc(list->images, (size_t)capacity * sizeof *grown)
                                  : NULL;
        if (grown == NULL) {
            return cli_fail_memory(error, "a list of images");
        }
        list->images = grown;
        list->capacity = capacity;
    }
    listed_image *image = &list->images[list->count];
    *image = (listed_image){0};
    bool absolute = name[0] == '/' || folder[0] == '\0';
    int printed = absolute ? asprintf(&image->path, "%s", name)
                           : asprintf(&image->path, "%s/%s", folder, name);
    if (printed < 0) {
        return cli_fail_memory(error, "a list of images");
    }
    list->count++;
    image->label = label != NULL ? strdup(label) : NULL;
    return label == NULL || image->label != NULL ? ESP_OK
                                                 : cli_fail_memory(error, "a list of images");
}

void image_list_free(image_list *list)
{
    for (int64_t i = 0; i < list->count; i++) {
        free(list->images[i].path);
        free(list->images[i].label);
    }
    free(list->images);
    *list = (image_list){0};
}

static int compare(const void *a, const void *b)
{
    const listed_image *first = a, *second = b;
    return strcmp(first->path, second->path);
}

/* ---- folders ---- */

static bool is_image_name(const char *name)
{
    const char *end = strrchr(name, '.');
    return end != NULL && (strcasecmp(end, ".png") == 0 || strcasecmp(end, ".jpg") == 0 ||
                           strcasecmp(end, ".jpeg") == 0);
}

static esp_status unreadable(const char *path, esp_error *error)
{
    return cli_fail(error, ESP_BAD_FILE, "images.unreadable",
                    "%s: %s; a folder of images or an index was expected", path, strerror(errno));
}

/* label NULL: the outer folder, whose folders are labels. */
static esp_status add_folder(image_list *list, const char *path, const char *label,
                             esp_error *error)
{
    struct dirent *entry;
    esp_status status = ESP_OK;
    DIR *folder = opendir(path);
    if (folder == NULL) {
        return unreadable(path, error);
    }
    while (status == ESP_OK && (entry = readdir(folder)) != NULL) {
        struct stat facts;
        if (entry->d_name[0] == '.' || fstatat(dirfd(folder), entry->d_name, &facts, 0) != 0) {
            continue;
        }
        if (S_ISDIR(facts.st_mode) && label == NULL) {
            char *inner = NULL;
            if (asprintf(&inner, "%s/%s", path, entry->d_name) < 0) {
                status = cli_fail_memory(error, "a list of images");
                break;
            }
            status = add_folder(list, inner, entry->d_name, error);
            free(inner);
        } else if (S_ISREG(facts.st_mode) && is_image_name(entry->d_name)) {
            status = add(list, path, entry->d_name, label, error);
        }
    }
    closedir(folder);
    return status;
}

/* ---- an index ---- */

static esp_status add_line(image_list *list, const char *folder, char *line, const char *path,
                           int64_t number, esp_error *error)
{
    char *tab = strchr(line, '\t');
    if (tab == line || (tab != NULL && (tab[1] == '\0' || strchr(tab + 1, '\t') != NULL))) {
        return cli_fail(error, ESP_BAD_FILE, "images.bad_index",
                        "%s: line %lld: a path, a tab and a label were expected", path,
                        (long long)number);
    }
    if (tab != NULL) {
        *tab = '\0';
    }
    TRY(add(list, folder, line, tab != NULL ? tab + 1 : NULL, error));
    struct stat facts;
    const char *named = list->images[list->count - 1].path;
    return stat(named, &facts) == 0
               ? ESP_OK
               : cli_fail(error, ESP_BAD_FILE, "images.bad_index",
                          "%s: line %lld: no image '%.60s%s' (%s); a path, and perhaps a "
                          "tab and a label, were expected",
                          path, (long long)number, line, strlen(line) > 60 ? "..." : "",
                          strerror(errno));
}

static esp_status add_index(image_list *list, const char *path, esp_error *error)
{
    char *text = NULL, *folder = strdup(path);
    size_t length = 0;
    esp_status status =
        folder == NULL ? cli_fail_memory(error, path) : load_text(path, &text, &length, error);
    if (status == ESP_OK && memchr(text, '\0', length) != NULL) {
        status =
            cli_fail(error, ESP_BAD_FILE, "images.bad_index",
                     "%s: this is no text; a path, a tab and a label a line were expected", path);
    }
    if (status == ESP_OK) {
        char *slash = strrchr(folder, '/');
        slash = slash != NULL ? slash : folder;
        *(slash == folder && *slash == '/' ? slash + 1 : slash) = '\0';
        char *at = text, *end = text + length;
        for (int64_t number = 1; at < end && status == ESP_OK; number++) {
            char *stop = memchr(at, '\n', (size_t)(end - at));
            char *line = strndup(at, (size_t)((stop != NULL ? stop : end) - at));
            if (line == NULL) {
                status = cli_fail_memory(error, path);
                break;
            }
            line[strcspn(line, "\r")] = '\0';
            status = line[0] != '\0' ? add_line(list, folder, line, path, number, error) : ESP_OK;
            free(line);
            at = stop != NULL ? stop + 1 : end;
        }
    }
    free(text);
    free(folder);
    return status;
}

esp_status image_list_load(const char *path, image_list *list, esp_error *error)
{
    struct stat facts;
    if (stat(path, &facts) != 0) {
        return unreadable(path, error);
    }
    if (S_ISDIR(facts.st_mode)) {
        TRY(add_folder(list, path, NULL, error));
        qsort(list->images, (size_t)list->count, sizeof *list->images, compare);
    } else {
        TRY(add_index(list, path, error));
    }
    if (list->count == 0) {
        return cli_fail(error, ESP_BAD_FILE, "images.none",
                        "%s: no .png, .jpg or .jpeg is here or one folder deeper", path);
    }
    return ESP_OK;
}
