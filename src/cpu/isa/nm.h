/* Columns of the stored entries of an nm row. */
#ifndef ESP_CPU_ISA_NM_H
#define ESP_CPU_ISA_NM_H

#include "op/op.h"

/* columns[i] = step * column of entry first + i of the row, for i < count. Groups are counted, not
 * divided for. */
static inline void nm_columns(const esp_host_weight *weight, int64_t row, int64_t first,
                              int64_t count, uint32_t step, uint32_t *columns)
{
    const uint8_t *positions = weight->positions + row * weight->position_bytes;
    unsigned bits = weight->position_bits;
    uint32_t keep = (uint32_t)weight->keep, group = (uint32_t)weight->group;
    uint32_t inside = (uint32_t)(first % weight->keep);
    uint32_t base = (uint32_t)(first / weight->keep) * group;
    for (int64_t i = 0; i < count; i++) {
        columns[i] = (base + esp_host_nm_position(positions, first + i, bits)) * step;
        if (++inside == keep) {
            inside = 0;
            base += group;
        }
    }
}

#endif
