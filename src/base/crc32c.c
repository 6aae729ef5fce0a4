#include "base/crc32c.h"

#include <pthread.h>
#include <string.h>

#define POLYNOMIAL 0x82f63b78u /* reflected */

static uint32_t tables[8][256];
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

static void make_tables(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
        }
        tables[0][i] = crc;
    }
    for (int k = 1; k < 8; k++) {
        for (int i = 0; i < 256; i++) {
            tables[k][i] = tables[k - 1][i] >> 8 ^ tables[0][tables[k - 1][i] & 0xff];
        }
    }
}

#if defined(__x86_64__) && defined(__GNUC__)
/* The processor has this polynomial's step as an instruction. */
static __attribute__((target("sse4.2"))) uint32_t by_instruction(uint32_t crc, const void *data,
                                                                 size_t bytes)
{
    const unsigned char *at = data;
    uint64_t sum = ~crc;
    for (; bytes >= 8; bytes -= 8, at += 8) {
        uint64_t word;
        memcpy(&word, at, sizeof word);
        sum = __builtin_ia32_crc32di(sum, word);
    }
    crc = (uint32_t)sum;
    for (; bytes > 0; bytes--, at++) {
        crc = __builtin_ia32_crc32qi(crc, *at);
    }
    return ~crc;
}
#endif

uint32_t esp_crc32c(uint32_t crc, const void *data, size_t bytes)
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("sse4.2")) {
        return by_instruction(crc, data, bytes);
    }
#endif
    return esp_crc32c_by_tables(crc, data, bytes);
}

/* Eight bytes a step, one table each ("slicing by eight"). */
uint32_t esp_crc32c_by_tables(uint32_t crc, const void *data, size_t bytes)
{
    pthread_once(&tables_once, make_tables);
    const unsigned char *at = data;
    crc = ~crc;
    for (; bytes >= 8; bytes -= 8, at += 8) {
        uint64_t word;
        memcpy(&word, at, sizeof word);
        word ^= crc;
        crc = 0;
        for (int k = 0; k < 8; k++) {
            crc ^= tables[7 - k][word >> 8 * k & 0xff];
        }
    }
    for (; bytes > 0; bytes--, at++) {
        crc = crc >> 8 ^ tables[0][(crc ^ *at) & 0xff];
    }
    return ~crc;
}
