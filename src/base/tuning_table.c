#include "base/tuning_table.h"

#include <string.h>

#include "base/error.h"
#include "base/memory.h"

void esp_tuning_table_init(esp_tuning_table *table)
{
    *table = (esp_tuning_table){0};
    pthread_mutex_init(&table->lock, NULL);
}

void esp_tuning_table_clear(esp_context *context, esp_tuning_table *table)
{
    for (int64_t i = 0; i < table->count; i++) {
        esp_tuning_group_free(context, &table->groups[i]);
    }
    esp_release(context, table->groups);
    table->groups = NULL;
    table->count = table->capacity = 0;
}

void esp_tuning_table_free(esp_context *context, esp_tuning_table *table)
{
    esp_tuning_table_clear(context, table);
    pthread_mutex_destroy(&table->lock);
}

/* ---- groups ---- */

esp_status esp_tuning_group_make(esp_context *context, const char *device, const char *family,
                                 int64_t tokens, int64_t when, esp_tuning_group *group,
                                 esp_error *error)
{
    esp_tuning_group made = {.tokens = tokens, .when = when};
    made.device = esp_strdup(context, device);
    made.family = esp_strdup(context, family);
    if (made.device == NULL || made.family == NULL) {
        esp_tuning_group_free(context, &made);
        return esp_fail_memory(error, strlen(device), "the tuning table");
    }
    *group = made;
    return ESP_OK;
}

esp_status esp_tuning_group_add(esp_context *context, esp_tuning_group *group, const char *kernel,
                                int64_t ns, esp_error *error)
{
    if (group->count == group->capacity) {
        int capacity = 2 * group->capacity + 8;
        size_t old = (size_t)group->capacity * sizeof *group->times;
        esp_tuning_time *grown =
            esp_realloc(context, group->times, old, (size_t)capacity * sizeof *grown);
        if (grown == NULL) {
            return esp_fail_memory(error, (size_t)capacity * sizeof *grown, "the tuning table");
        }
        group->times = grown;
        group->capacity = capacity;
    }
    char *name = esp_strdup(context, kernel);
    if (name == NULL) {
        return esp_fail_memory(error, strlen(kernel), "the tuning table");
    }
    group->times[group->count++] = (esp_tuning_time){name, ns};
    return ESP_OK;
}

void esp_tuning_group_free(esp_context *context, esp_tuning_group *group)
{
    for (int i = 0; i < group->count; i++) {
        esp_release(context, group->times[i].kernel);
    }
    esp_release(context, group->times);
    esp_release(context, group->device);
    esp_release(context, group->family);
    *group = (esp_tuning_group){0};
}

int64_t esp_tuning_group_find(const esp_tuning_group *group, const char *kernel)
{
    for (int i = 0; i < group->count; i++) {
        if (strcmp(group->times[i].kernel, kernel) == 0) {
            return group->times[i].ns;
        }
    }
    return 0;
}

/* ---- the table ---- */

static int compare_family(const esp_tuning_group *group, const char *device, const char *family)
{
    int order = strcmp(group->device, device);
    return order != 0 ? order : strcmp(group->family, family);
}

/* The first group that is not before (device, family, tokens). */
static int64_t lower_bound(const esp_tuning_table *table, const char *device, const char *family,
                           int64_t tokens)
{
    int64_t low = 0, high = table->count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        const esp_tuning_group *group = &table->groups[middle];
        int order = compare_family(group, device, family);
        if (order < 0 || (order == 0 && group->tokens < tokens)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Room for `more` groups besides those there are. */
static esp_status reserve(esp_context *context, esp_tuning_table *table, int64_t more,
                          esp_error *error)
{
    if (table->count + more <= table->capacity) {
        return ESP_OK;
    }
    size_t size = sizeof *table->groups;
    int64_t capacity = 2 * table->capacity + more;
    esp_tuning_group *grown = esp_realloc(context, table->groups, (size_t)table->capacity * size,
                                          (size_t)capacity * size);
    if (grown == NULL) {
        return esp_fail_memory(error, (size_t)capacity * size, "the tuning table");
    }
    table->groups = grown;
    table->capacity = capacity;
    return ESP_OK;
}

/* Takes over the group; there is room. */
static void put(esp_context *context, esp_tuning_table *table, esp_tuning_group *group)
{
    int64_t at = lower_bound(table, group->device, group->family, group->tokens);
    esp_tuning_group *place = &table->groups[at];
    if (at < table->count && place->tokens == group->tokens &&
        compare_family(place, group->device, group->family) == 0) {
        if (place->when > group->when) {
            esp_tuning_group_free(context, group);
            return;
        }
        esp_tuning_group_free(context, place);
    } else {
        memmove(place + 1, place, (size_t)(table->count - at) * sizeof *place);
        table->count++;
    }
    *place = *group;
    *group = (esp_tuning_group){0};
}

esp_status esp_tuning_table_merge(esp_context *context, esp_tuning_table *table,
                                  esp_tuning_table *from, esp_error *error)
{
    pthread_mutex_lock(&table->lock);
    esp_status status = reserve(context, table, from->count, error);
    for (int64_t i = 0; status == ESP_OK && i < from->count; i++) {
        put(context, table, &from->groups[i]);
    }
    pthread_mutex_unlock(&table->lock);
    esp_tuning_table_clear(context, from);
    return status;
}

/* a and b are within a factor of ESP_TUNING_REACH of tokens: is a the nearer one? */
static bool is_nearer(int64_t a, int64_t b, int64_t tokens)
{
    double ratio_a = a < tokens ? (double)tokens / (double)a : (double)a / (double)tokens;
    double ratio_b = b < tokens ? (double)tokens / (double)b : (double)b / (double)tokens;
    return ratio_a < ratio_b;
}

const esp_tuning_group *esp_tuning_table_near(const esp_tuning_table *table, const char *device,
                                              const char *family, int64_t tokens)
{
    const esp_tuning_group *best = NULL;
    int64_t least = (tokens + ESP_TUNING_REACH - 1) / ESP_TUNING_REACH;
    for (int64_t i = lower_bound(table, device, family, least); i < table->count; i++) {
        const esp_tuning_group *group = &table->groups[i];
        if (compare_family(group, device, family) != 0 ||
            group->tokens > tokens * ESP_TUNING_REACH) {
            break;
        }
        best = best == NULL || is_nearer(group->tokens, best->tokens, tokens) ? group : best;
    }
    return best;
}
