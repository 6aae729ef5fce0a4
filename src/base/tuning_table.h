/* Measured times of products: the table that a context owns. Texts only; what a device or a
 * problem is, the rooms above know.
 *
 * A group is one measurement: all kernels that were timed together for one device, one family of
 * problems (equal but for the token count) and one token count. Groups are kept or replaced whole,
 * the newest wins: a kernel that was measured once and refused later must not live on. */
#ifndef ESP_BASE_TUNING_TABLE_H
#define ESP_BASE_TUNING_TABLE_H

#include <espalier/base.h>
#include <pthread.h>

typedef struct esp_tuning_time {
    char *kernel;
    int64_t ns; /* median; at least 1 */
} esp_tuning_time;

typedef struct esp_tuning_group {
    char *device, *family;
    int64_t tokens;
    int64_t when; /* seconds since 1970, UTC */
    esp_tuning_time *times;
    int count, capacity;
} esp_tuning_group;

/* Sorted by device, family, tokens; no two groups are equal in all three. */
typedef struct esp_tuning_table {
    pthread_mutex_t lock;
    esp_tuning_group *groups;
    int64_t count, capacity;
} esp_tuning_table;

void esp_tuning_table_init(esp_tuning_table *table);
/* Frees the groups; of a shared table with the lock held. */
void esp_tuning_table_clear(esp_context *context, esp_tuning_table *table);
void esp_tuning_table_free(esp_context *context, esp_tuning_table *table);

/* An empty group; texts are copied. */
ESP_MUST_CHECK esp_status esp_tuning_group_make(esp_context *context, const char *device,
                                                const char *family, int64_t tokens, int64_t when,
                                                esp_tuning_group *group, esp_error *error);
ESP_MUST_CHECK esp_status esp_tuning_group_add(esp_context *context, esp_tuning_group *group,
                                               const char *kernel, int64_t ns, esp_error *error);
void esp_tuning_group_free(esp_context *context, esp_tuning_group *group);
/* Measured nanoseconds of a kernel; 0: none. */
int64_t esp_tuning_group_find(const esp_tuning_group *group, const char *kernel);

/* Moves all groups of `from` into the table, all or none; a group that the table has with a later
 * `when` stays. `from` is empty afterwards, also on failure. */
ESP_MUST_CHECK esp_status esp_tuning_table_merge(esp_context *context, esp_tuning_table *table,
                                                 esp_tuning_table *from, esp_error *error);
/* With the lock held: the group whose token count is nearest by ratio (of two equally near ones
 * the smaller), if it is within a factor of ESP_TUNING_REACH; else NULL. Valid while the lock is
 * held. */
#define ESP_TUNING_REACH 4
const esp_tuning_group *esp_tuning_table_near(const esp_tuning_table *table, const char *device,
                                              const char *family, int64_t tokens);

#endif
