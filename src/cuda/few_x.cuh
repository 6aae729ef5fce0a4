// How the kernels for up to 16 tokens hold what X has for one column, and lay it down for ldmatrix.
#ifndef ESP_CUDA_FEW_X_CUH
#define ESP_CUDA_FEW_X_CUH

#include "cuda/sm80_ptx.cuh"

namespace few {

// How X is read: 16 bytes at a time, one token, or any. EIGHTS: of tokens, 1 or 2.
enum reading { EIGHT, ONE, ANY };

// A word holds one or two tokens, as it was read.
template <int EIGHTS, reading READING>
constexpr int COLUMN_WORDS = READING == EIGHT ? 4 * EIGHTS : READING == ONE ? 1 : 8 * EIGHTS;

// Eights are EIGHT_BYTES apart.
template <int EIGHTS, reading READING, int EIGHT_BYTES = 1024>
__device__ __forceinline__ void lay_column(const uint32_t *word, uint32_t to)
{
#pragma unroll
    for (int e = 0; e < EIGHTS; e++) {
        uint4 eight;
        if constexpr (READING == EIGHT) {
            const uint32_t *w = word + 4 * e;
            eight = make_uint4(w[0], w[1], w[2], w[3]);
        } else if constexpr (READING == ONE) {
            eight = make_uint4(word[0], 0, 0, 0);
        } else {
            const uint32_t *w = word + 8 * e;
            eight = make_uint4(w[0] | w[1] << 16, w[2] | w[3] << 16, w[4] | w[5] << 16,
                               w[6] | w[7] << 16);
        }
        ptx::store_shared_16(to + e * EIGHT_BYTES, eight);
    }
}

} // namespace few

#endif
