/* xoshiro256** (Blackman and Vigna), seeded by splitmix64: small, fast, the same on every machine.
 */
#ifndef ESP_BASE_RANDOM_H
#define ESP_BASE_RANDOM_H

#include <stdint.h>

typedef struct esp_random {
    uint64_t state[4];
} esp_random;

static inline uint64_t esp_splitmix64(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static inline void esp_random_seed(esp_random *random, uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        random->state[i] = esp_splitmix64(&seed);
    }
}

static inline uint64_t esp_random_u64(esp_random *random)
{
    uint64_t *s = random->state;
    uint64_t scrambled = s[1] * 5;
    uint64_t result = (scrambled << 7 | scrambled >> 57) * 9;
    uint64_t shifted = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= shifted;
    s[3] = s[3] << 45 | s[3] >> 19;
    return result;
}

/* [0, 1), 53 bits. */
static inline double esp_random_uniform(esp_random *random)
{
    return (double)(esp_random_u64(random) >> 11) * 0x1p-53;
}

/* [0, bound), bound > 0; the bias of the multiply is below 2^-32 for bounds below 2^32. */
static inline uint64_t esp_random_below(esp_random *random, uint64_t bound)
{
    return (uint64_t)((unsigned __int128)esp_random_u64(random) * bound >> 64);
}

#endif
