#ifndef ESP_BASE_BIJECTION_H
#define ESP_BASE_BIJECTION_H

#include <stdbool.h>
#include <stdint.h>

/* Whether order holds each of 0..count-1 once. seen: [ceil(count / 64)], zero; it is used up. */
static inline bool esp_is_bijection(const uint32_t *order, int64_t count, uint64_t *seen)
{
    for (int64_t i = 0; i < count; i++) {
        uint64_t bit = (uint64_t)1 << order[i] % 64;
        if (order[i] >= count || (seen[order[i] / 64] & bit) != 0) {
            return false;
        }
        seen[order[i] / 64] |= bit;
    }
    return true;
}

#endif
