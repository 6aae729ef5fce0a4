/* keep:group weights for few tokens: dot products over vectors of LANES stored values, whose
 * positions are taken out of the bit stream all at once: 8 positions are a byte-aligned piece of at
 * most 64 bits (groups of up to 256), broadcast and shifted by a different count in each lane.
 *
 * The columns of LANES neighbours in the list lie in a few neighbouring groups. Where those span no
 * more than 2 * LANES columns, x comes by one permutation; up to 4 * LANES by two; else by a
 * gather. Limit: about twenty instructions a vector; the gather where it is needed. */
#ifndef ESP_CPU_ISA_NM_FEW_H
#define ESP_CPU_ISA_NM_FEW_H

#include "cpu/isa/few.h"
#include "cpu/isa/nm.h"
#include "cpu/isa/vec.h"
#include "cpu/level.h"

typedef enum nm_reach { NM_ONE_PICK, NM_TWO_PICKS, NM_GATHER } nm_reach;

typedef uint64_t nm_words __attribute__((vector_size(64)));
typedef uint32_t nm_eight __attribute__((vector_size(32)));

/* Up to 8 bytes of positions, from byte `at` of `all`; zero behind them. */
ALWAYS_INLINE uint64_t nm_word(const uint8_t *positions, int64_t at, int64_t all)
{
    uint64_t word = 0;
    if (at + 8 <= all) {
        memcpy(&word, positions + at, 8);
    } else if (at < all) {
        memcpy(&word, positions + at, (size_t)(all - at));
    }
    return word;
}

/* Positions of entries j .. j + LANES - 1 of a row; j a multiple of LANES, and no less than 8 bits
 * before the end. */
ALWAYS_INLINE uvec nm_positions(const uint8_t *positions, int64_t j, int64_t bits, int64_t all)
{
    nm_words shifts;
    for (unsigned i = 0; i < 8; i++) {
        shifts[i] = i * (uint64_t)bits;
    }
    uint64_t mask = (UINT64_C(1) << bits) - 1;
    uint64_t word = nm_word(positions, j * bits / 8, all);
#if LANES == 4
    word >>= j * bits % 8;
#endif
    nm_words low = ((nm_words){0} + word) >> shifts & mask;
    nm_eight eight = __builtin_convertvector(low, nm_eight);
    uvec found;
#if LANES == 16
    word = nm_word(positions, (j + 8) * bits / 8, all);
    nm_words high = ((nm_words){0} + word) >> shifts & mask;
    nm_eight more = __builtin_convertvector(high, nm_eight);
    found = (uvec)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)eight), (__m256i)more, 1);
#else
    memcpy(&found, &eight, sizeof found);
#endif
    return found;
}

/* x[first + index[i]]. */
ALWAYS_INLINE vec nm_take(nm_reach reach, const float *x, uint32_t first, uvec index)
{
    if (reach == NM_GATHER) {
        return vec_gather(x + first, index);
    }
    vec near = vec_pick(x + first, index & (2 * LANES - 1));
    if (reach == NM_ONE_PICK) {
        return near;
    }
    vec far = vec_pick(x + first + 2 * LANES, index & (2 * LANES - 1));
    uvec is_far = (uvec)(index >= 2 * LANES);
    return (vec)(((uvec)near & ~is_far) | ((uvec)far & is_far));
}

/* bases: left ends of the groups of all entries. */
ALWAYS_INLINE void nm_dots(const cpu_piece *piece, esp_dtype dtype, nm_reach reach, int tokens,
                           const uint32_t *bases, int64_t r)
{
    const esp_host_weight *weight = piece->weight;
    int64_t row = piece->row + r, all = weight->row_values;
    const uint8_t *positions = weight->positions + row * weight->position_bytes;
    vec sum[CPU_FEW_TOKENS] = {0};
    for (int64_t j = 0; j < all; j += LANES) {
        int64_t at = row * all + j;
        uvec base, outside = {0};
        memcpy(&base, bases + j, sizeof base);
        uvec index = nm_positions(positions, j, weight->position_bits, weight->position_bytes);
        index += base - bases[j];
        bool whole = j + LANES <= all;
        vec w = whole ? vec_load_weights(dtype, weight->values, at)
                      : load_last_weights(dtype, weight->values, at, all - j);
        vec_prefetch(dtype, weight->values, at, VEC_AHEAD);
        if (!whole) { /* x of nothing is zero, not some column that may hold Inf */
            outside = (uvec)(vec_lanes() >= (uint32_t)(all - j));
            index &= ~outside;
        }
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) {
            vec x = nm_take(reach, piece->x + t * piece->x_stride, bases[j], index);
            x = whole ? x : (vec)((uvec)x & ~outside);
            sum[t] = vec_fma(w, x, sum[t]);
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < tokens; t++) {
        piece->sums[r * piece->sums_stride + t] = vec_sum(sum[t]);
    }
}

/* Groups of more than 256 columns: positions one by one. */
static void nm_wide_dots(const cpu_piece *piece, const uint32_t *bases, int64_t r)
{
    const esp_host_weight *weight = piece->weight;
    int64_t row = piece->row + r, all = weight->row_values;
    float sum[CPU_FEW_TOKENS] = {0};
    for (int64_t j = 0; j < all; j++) {
        float w = esp_weight_at(weight->dtype, weight->values, row * all + j);
        int64_t column =
            bases[j] + esp_host_nm_position(weight->positions + row * weight->position_bytes, j,
                                            weight->position_bits);
        for (int64_t t = 0; t < piece->tokens; t++) {
            sum[t] += w * piece->x[t * piece->x_stride + column];
        }
    }
    memcpy(piece->sums + r * piece->sums_stride, sum, (size_t)piece->tokens * sizeof *sum);
}

static nm_reach nm_reach_of(const esp_host_weight *weight)
{
    int64_t keep = weight->keep;
    int64_t groups = LANES % keep == 0   ? LANES / keep
                     : keep % LANES == 0 ? 1
                                         : (LANES - 1 + keep - 1) / keep + 1;
    int64_t span = groups * weight->group;
    return span <= 2 * LANES ? NM_ONE_PICK : span <= 4 * LANES ? NM_TWO_PICKS : NM_GATHER;
}

ALWAYS_INLINE void nm_rows(const cpu_piece *piece, esp_dtype dtype, nm_reach reach,
                           const uint32_t *bases)
{
    for (int64_t r = 0; r < piece->rows; r++) {
        switch (piece->tokens) {
        case 1:
            nm_dots(piece, dtype, reach, 1, bases, r);
            break;
        case 2:
            nm_dots(piece, dtype, reach, 2, bases, r);
            break;
        case 3:
            nm_dots(piece, dtype, reach, 3, bases, r);
            break;
        default:
            nm_dots(piece, dtype, reach, 4, bases, r);
        }
    }
}

#define FEW_NM(name, dtype)                                                                        \
    static void name(const cpu_piece *piece, const uint32_t *bases)                                \
    {                                                                                              \
        switch (nm_reach_of(piece->weight)) {                                                      \
        case NM_ONE_PICK:                                                                          \
            nm_rows(piece, dtype, NM_ONE_PICK, bases);                                             \
            break;                                                                                 \
        case NM_TWO_PICKS:                                                                         \
            nm_rows(piece, dtype, NM_TWO_PICKS, bases);                                            \
            break;                                                                                 \
        default:                                                                                   \
            nm_rows(piece, dtype, NM_GATHER, bases);                                               \
        }                                                                                          \
    }

FEW_NM(few_nm_f32, ESP_F32)
FEW_NM(few_nm_f16, ESP_F16)
FEW_NM(few_nm_bf16, ESP_BF16)

static void few_nm(const cpu_piece *piece)
{
    static void (*const functions[3])(const cpu_piece *,
                                      const uint32_t *) = {few_nm_f32, few_nm_f16, few_nm_bf16};
    const esp_host_weight *weight = piece->weight;
    uint32_t *bases = (uint32_t *)(void *)piece->scratch;
    int64_t all = weight->row_values;
    nm_bases(weight, 0, all, 1, bases);
    for (int64_t j = all; j % LANES != 0; j++) {
        bases[j] = bases[all - 1];
    }
    if (weight->position_bits <= 8) {
        functions[few_type(weight->dtype)](piece, bases);
        return;
    }
    for (int64_t r = 0; r < piece->rows; r++) {
        nm_wide_dots(piece, bases, r);
    }
}

#endif
