#ifndef ESP_BASE_CRC32C_H
#define ESP_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* CRC-32C (Castagnoli, as in RFC 3720). Start with crc 0 and feed the result back to go on. */
uint32_t esp_crc32c(uint32_t crc, const void *data, size_t bytes);
/* The same without the processor's instruction for it. */
uint32_t esp_crc32c_by_tables(uint32_t crc, const void *data, size_t bytes);

#endif
