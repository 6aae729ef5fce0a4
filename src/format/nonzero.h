/* Private to src/format: which of up to 64 neighbouring weights are not zero (+0.0 or -0.0). */
#ifndef ESP_FORMAT_NONZERO_H
#define ESP_FORMAT_NONZERO_H

#include "format/format.h"

/* Bit k is set when element first + k is not zero; count is 0..64. */
uint64_t esp_nonzero_word(const esp_tensor *dense, int64_t first, int64_t count);

#endif
