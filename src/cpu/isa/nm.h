/* Columns of the stored entries of nm rows. The left ends of groups are the same for all rows and
 * found once; a row adds its positions, taken out of words that hold several. */
#ifndef ESP_CPU_ISA_NM_H
#define ESP_CPU_ISA_NM_H

#include "op/op.h"

/* bases[i] = step * left end of the group of entry first + i, for i < count. */
static inline void nm_bases(const esp_host_weight *weight, int64_t first, int64_t count,
                            uint32_t step, uint32_t *bases)
{
    for (int64_t i = 0; i < count; i++) {
        bases[i] = (uint32_t)((first + i) / weight->keep * weight->group) * step;
    }
}

/* columns[i] = bases[i] + step * position of entry first + i of the row. */
static inline void nm_columns(const esp_host_weight *weight, int64_t row, int64_t first,
                              int64_t count, uint32_t step, const uint32_t *bases,
                              uint32_t *columns)
{
    const uint8_t *positions = weight->positions + row * weight->position_bytes;
    int64_t bits = weight->position_bits;
    int64_t in_word = 56 / bits; /* up to 7 bits before the first are read too */
    uint32_t mask = (1u << bits) - 1;
    for (int64_t i = 0; i < count; i += in_word) {
        int64_t byte = (first + i) * bits / 8, left = weight->position_bytes - byte;
        uint64_t word = 0;
        if (left >= 8) {
            memcpy(&word, positions + byte, 8);
        } else {
            memcpy(&word, positions + byte, (size_t)left);
        }
        word >>= (first + i) * bits % 8;
        int64_t end = ESP_MIN(count, i + in_word);
        for (int64_t k = i; k < end; k++, word >>= bits) {
            columns[k] = bases[k] + ((uint32_t)word & mask) * step;
        }
    }
}

#endif
