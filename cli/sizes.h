/* Numbers for people. Bytes are decimal: 1 MB is 10^6 bytes. */
#ifndef CLI_SIZES_H
#define CLI_SIZES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIZE_TEXT_MAX 32

/* "812 B", "19.40 MB". Returns text. */
const char *size_bytes(double bytes, char text[SIZE_TEXT_MAX]);
/* "812", "12.3 K", "7.02 G". */
const char *size_count(double count, char text[SIZE_TEXT_MAX]);
/* Three significant digits, no exponent for usual values: "1234", "56.7", "0.123". */
const char *size_number(double value, char text[SIZE_TEXT_MAX]);

/* "500MB", "4.5GB", "2GiB", "4096B": a decimal number and one of the units B, KB, MB, GB, TB
 * (powers of 1000), KiB, MiB, GiB, TiB (of 1024). False for anything else, and below one byte. */
bool size_parse(const char *text, uint64_t *bytes);

#define SHAPE_TEXT_MAX 176
/* "128x256", "scalar" for rank 0. */
const char *size_shape(int rank, const int64_t *shape, char text[SHAPE_TEXT_MAX]);

#endif
