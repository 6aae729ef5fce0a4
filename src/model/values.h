/* Where the values of attention lie: the rows of v that make a head's channels, and the columns of
 * o that read them, once for each query head that shares them. */
#ifndef ESP_MODEL_VALUES_H
#define ESP_MODEL_VALUES_H

#include <espalier/checkpoint.h>
#include <espalier/device.h>

#include "prune/prune.h"

/* Of one layer. Names are of weights, and live as long as the places do. */
typedef struct esp_value_heads {
    const char *v, *o;            /* NULL: no such layer */
    bool has_bias;                /* of v */
    int64_t heads, head;          /* key-value heads, channels of one */
    esp_space_part values, mixed; /* channel u of all heads: rows of v, columns of o */
} esp_value_heads;

typedef struct esp_value_places esp_value_places;

/* Refusals as esp_permutation_search. */
ESP_MUST_CHECK esp_status esp_value_places_find(esp_device *device,
                                                const esp_checkpoint *checkpoint,
                                                esp_value_places **places, esp_error *error);
void esp_value_places_free(esp_value_places *places);
esp_value_heads esp_value_places_of(const esp_value_places *places, int64_t layer);

#endif
