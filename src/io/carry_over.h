/* The small files of a model folder that go along unchanged when its weights are written anew. */
#ifndef ESP_IO_CARRY_OVER_H
#define ESP_IO_CARRY_OVER_H

#include "io/target.h"

typedef struct esp_carry {
    esp_context *context;
    char *source; /* folder */
    char **names;
    size_t count, capacity;
    uint64_t bytes; /* of all together */
} esp_carry;

/* What there is to carry, sorted by name. carry is filled also on failure: free it. */
ESP_MUST_CHECK esp_status esp_carry_list(esp_context *context, const char *source, esp_carry *carry,
                                         esp_error *error);
/* Copies and syncs all of them. */
ESP_MUST_CHECK esp_status esp_carry_copy(const esp_carry *carry, esp_target *target,
                                         esp_error *error);
void esp_carry_free(esp_carry *carry);

#endif
