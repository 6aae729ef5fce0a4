/* By bits, threaded: an IEEE number with all exponent bits set is a NaN or an infinity, one with
 * all bits but the sign clear is a zero. */
#include <stdatomic.h>
#include <string.h>

#include "tensor/tensor.h"

typedef struct count_state {
    const unsigned char *data;
    size_t width;
    uint64_t sign, exponent;
    atomic_llong zeros, negative_zeros, nans, infinities, first_bad;
} count_state;

static uint64_t element(const unsigned char *data, size_t width)
{
    uint16_t half;
    uint32_t single;
    uint64_t twice;
    switch (width) {
    case 2:
        memcpy(&half, data, 2);
        return half;
    case 4:
        memcpy(&single, data, 4);
        return single;
    default:
        memcpy(&twice, data, 8);
        return twice;
    }
}

static void lower_first_bad(count_state *state, long long index)
{
    long long seen = atomic_load(&state->first_bad);
    while ((seen < 0 || index < seen) &&
           !atomic_compare_exchange_weak(&state->first_bad, &seen, index)) {
    }
}

static void count_piece(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    count_state *state = user;
    int64_t zeros = 0, negative_zeros = 0, nans = 0, infinities = 0, first_bad = -1;
    for (int64_t i = begin; i < end; i++) {
        uint64_t bits = element(state->data + (size_t)i * state->width, state->width);
        uint64_t magnitude = bits & (state->sign - 1);
        if (magnitude == 0) {
            zeros++;
            negative_zeros += bits != 0;
        } else if (magnitude >= state->exponent) {
            infinities += magnitude == state->exponent;
            nans += magnitude != state->exponent;
            first_bad = first_bad < 0 ? i : first_bad;
        }
    }
    atomic_fetch_add(&state->zeros, zeros);
    atomic_fetch_add(&state->negative_zeros, negative_zeros);
    atomic_fetch_add(&state->nans, nans);
    atomic_fetch_add(&state->infinities, infinities);
    if (first_bad >= 0) {
        lower_first_bad(state, first_bad);
    }
}

static bool describe(esp_dtype dtype, count_state *state)
{
    switch (dtype) {
    case ESP_F16:
        *state = (count_state){.width = 2, .sign = 0x8000, .exponent = 0x7c00};
        return true;
    case ESP_BF16:
        *state = (count_state){.width = 2, .sign = 0x8000, .exponent = 0x7f80};
        return true;
    case ESP_F32:
        *state = (count_state){.width = 4, .sign = 0x80000000u, .exponent = 0x7f800000u};
        return true;
    case ESP_F64:
        *state =
            (count_state){.width = 8, .sign = (uint64_t)1 << 63, .exponent = (uint64_t)0x7ff << 52};
        return true;
    default:
        return false;
    }
}

esp_value_counts esp_count_values(esp_context *context, const esp_tensor *tensor)
{
    count_state state;
    size_t bytes;
    if (!describe(tensor->dtype, &state) || esp_tensor_size(tensor, NULL, &bytes, NULL) != ESP_OK) {
        return (esp_value_counts){.first_bad = -1};
    }
    state.data = tensor->data;
    state.first_bad = -1;
    esp_parallel_for(context, (int64_t)(bytes / state.width), 1 << 16, count_piece, &state);
    return (esp_value_counts){.zeros = state.zeros,
                              .negative_zeros = state.negative_zeros,
                              .nans = state.nans,
                              .infinities = state.infinities,
                              .first_bad = state.first_bad};
}
