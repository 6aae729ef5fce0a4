/* Compares bits, not numbers: shifting out the sign leaves zero for both zeros alone. Flags of
 * eight elements are gathered as bytes first, which compilers turn into vector code. */
#include "format/nonzero.h"

#include <string.h>

static uint64_t pack_flags(const unsigned char flags[64])
{
    uint64_t word = 0;
    for (int i = 0; i < 8; i++) {
        uint64_t bytes;
        memcpy(&bytes, flags + 8 * i, sizeof bytes);
        /* byte j (0 or 1) of `bytes` to bit j: the product's top byte gathers them */
        word |= (bytes * 0x0102040810204080u >> 56) << 8 * i;
    }
    return word;
}

static void flag_halves(const char *data, int64_t count, unsigned char *flags)
{
    for (int64_t k = 0; k < count; k++) {
        uint16_t bits;
        memcpy(&bits, data + 2 * k, sizeof bits);
        flags[k] = (bits & 0x7fffu) != 0;
    }
}

static void flag_floats(const char *data, int64_t count, unsigned char *flags)
{
    for (int64_t k = 0; k < count; k++) {
        uint32_t bits;
        memcpy(&bits, data + 4 * k, sizeof bits);
        flags[k] = (bits & 0x7fffffffu) != 0;
    }
}

uint64_t esp_nonzero_word(const esp_tensor *dense, int64_t first, int64_t count)
{
    unsigned char flags[64] = {0};
    bool wide = dense->dtype == ESP_F32;
    const char *data = (const char *)dense->data + (wide ? 4 : 2) * first;
    if (count == 64) { /* a constant count lets the compiler unroll */
        wide ? flag_floats(data, 64, flags) : flag_halves(data, 64, flags);
    } else {
        wide ? flag_floats(data, count, flags) : flag_halves(data, count, flags);
    }
    return pack_flags(flags);
}
