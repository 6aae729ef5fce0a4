// X for V:2:5 that is spread over all columns (src/format/spread.c), for the panel kernels
// (sm90_panel.cuh).
//
// Of each five columns a row has two weights at most, so that four of them are a group of 2:4, and
// the fifths of two fives are another one, with two places that are empty. No list is needed: every
// block of rows wants the same rows of X, and the copy engine brings them. 96 places for 80 columns
// is what that costs.
//
//   step 3 k          fifths of fives 32 k to 32 k + 31:  4, none, 9, none | 14, none, ...
//   step 3 k + 1, + 2 the first four of 16 fives each:     0, 1, 2, 3 | 5, 6, 7, 8 | ...
//
// To the engine X is [fives][5][tokens]: a box of four of a five's features, or of its fifth and
// one that does not exist, which it fills with zeros. A last five that is short would let boxes
// reach past the end of X. With four features it does not; with one the fifths are taken to be the
// first of each five, and the fours begin behind them; with two or three, whole fives and the short
// one come as boxes of their own, a strip of tokens at a time, in the one step that they share.
#ifndef ESP_CUDA_SM90_PANEL_SPREAD_CUH
#define ESP_CUDA_SM90_PANEL_SPREAD_CUH

#include "cuda/sm90_dense_ptx.cuh" // boxes of four dimensions
#include "cuda/sm90_panel.cuh"
#include "cuda/sm90_tensor.cuh"

namespace panel
{

// `x` has the fours, all strips of 64 tokens together; what has one strip is for tiles that end in
// the middle of one; `last` and `tail` are of the step in which a short five is.
struct spread_maps : maps {
    CUtensorMap fifths[MOST_SHIFT + 1], fours_strip, fifths_strip, last, tail;
};

constexpr int FIVES_OF_FIFTHS = 32, FIVES_OF_FOURS = 16; // in a step
constexpr uint32_t FOUR_BYTES = 4 * 128;                 // of a strip of 64 tokens

// The first five of a step.
__host__ __device__ __forceinline__ int first_five(int step)
{
    return step / 3 * FIVES_OF_FIFTHS + (step % 3 == 2 ? FIVES_OF_FOURS : 0);
}

// Which feature of a five is its fifth.
__host__ __device__ __forceinline__ int fifth_of(int in)
{
    return in % 5 == 1 && in > 5 ? 0 : 4;
}
__host__ __device__ __forceinline__ int first_of_four(int in)
{
    return fifth_of(in) == 0 ? 1 : 0;
}

// Features of a last five that boxes of four would reach past; 0: there is none.
__host__ __device__ __forceinline__ int short_five(int in)
{
    return in % 5 == 4 || fifth_of(in) == 0 ? 0 : in % 5;
}

template <class C>
__device__ __forceinline__ int spread_column(const gpu_product &p, int step, int row)
{
    int in = (int)p.weight.in;
    if (step % 3 == 0) {
        return row % 2 == 0 ? (first_five(step) + row / 2) * 5 + fifth_of(in) : INT_MAX;
    }
    return (first_five(step) + row / 4) * 5 + first_of_four(in) + row % 4;
}

template <class C>
__device__ __forceinline__ void load_fives(const gpu_product &p, const spread_maps &with,
                                           const tile &t, int step, uint32_t to, uint32_t barrier)
{
    int in = (int)p.weight.in, five = first_five(step), fives = in / 5;
    int tokens = C::TILE_TOKENS >> t.shift;
    bool fifths = step % 3 == 0;
    if (!fifths && short_five(in) != 0 && five + FIVES_OF_FOURS > fives) {
        int whole = fives - five;
        for (int i = 0; i < tokens; i += 64) {
            if (whole > 0) {
                ptx::tensor_copy(to + i * 128, &with.last, t.token + i, 0, five, barrier);
            }
            ptx::tensor_copy(to + i * 128 + whole * FOUR_BYTES, &with.tail, t.token + i, 0, 0,
                             barrier);
        }
        return;
    }
    if (p.tokens % 64 == 0 || t.token + tokens <= p.tokens) {
        const CUtensorMap *map = fifths ? &with.fifths[t.shift] : &with.x[t.shift];
        ptx::tensor_copy(to, map, 0, 0, five, t.token / 64, barrier);
        return;
    }
    const CUtensorMap *map = fifths ? &with.fifths_strip : &with.fours_strip;
    for (int i = 0; i < tokens; i += 64) {
        ptx::tensor_copy(to + i * 128, map, t.token + i, 0, five, barrier);
    }
}

// ---- launching ----

// Boxes of `features` x `fives` x 64 tokens: one of them anywhere, or `strips` of them that begin
// at multiples of 64 tokens, of which the whole ones are there. X begins at feature `first` and has
// `of_five` features in each of `all` fives.
struct fives_box {
    int first, of_five, all;
    cuuint32_t features, fives, strips; // strips 0: one
};

inline int describe_fives(const gpu_product &p, const fives_box &b, CUtensorMap *map)
{
    static const tensor::encode_function encode = tensor::find_encode();
    if (encode == nullptr) {
        return cudaErrorNotSupported;
    }
    cuuint64_t stride = (cuuint64_t)p.x_stride * 2, tokens = (cuuint64_t)p.tokens;
    const cuuint64_t sizes[4] = {b.strips > 0 ? 64 : tokens, (cuuint64_t)b.of_five,
                                 (cuuint64_t)b.all, tokens / 64};
    const cuuint64_t strides[3] = {stride, 5 * stride, 128};
    const cuuint32_t box[4] = {64, b.features, b.fives, b.strips}, steps[4] = {1, 1, 1, 1};
    // More of a line than a box has is no gain, and a loss where rows begin inside of one.
    void *x = (char *)p.x + (cuuint64_t)b.first * stride;
    CUresult failed =
        encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, b.strips > 0 ? 4 : 3, x, sizes, strides, box,
               steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return failed == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// The step that the short five shares with whole ones.
inline int describe_short_five(const gpu_product &p, spread_maps *with)
{
    int in = (int)p.weight.in, fives = in / 5;
    cuuint32_t whole = (cuuint32_t)(fives % FIVES_OF_FOURS);
    fives_box tail = {5 * fives, short_five(in), 1, 4, FIVES_OF_FOURS - whole, 0};
    int failed = describe_fives(p, tail, &with->tail);
    if (failed == 0 && whole > 0) {
        failed = describe_fives(p, {0, 4, fives, 4, whole, 0}, &with->last);
    }
    return failed;
}

// Where X has one strip that is not whole, or there are less than five columns, some are not
// needed.
inline int describe_fours_and_fifths(const gpu_product &p, const fives_box &fours,
                                     const fives_box &fifths, CUtensorMap *x, CUtensorMap *fifth)
{
    if (fours.strips > 0 && p.tokens < 64) {
        return cudaSuccess;
    }
    int failed = describe_fives(p, fifths, fifth);
    return failed == 0 && fours.all > 0 ? describe_fives(p, fours, x) : failed;
}

template <class C> int describe_spread(const gpu_product &p, spread_maps *with)
{
    int in = (int)p.weight.in, failed = 0;
    // Without one whole five there are no fifths: what is there instead meets no weights.
    fives_box fifths = {in < 5 ? 0 : fifth_of(in), 1, in < 5 ? 1 : (in + 4 - fifth_of(in)) / 5, 2,
                        FIVES_OF_FIFTHS,           0};
    fives_box fours = {first_of_four(in), 4, (in + 1) / 5, 4, FIVES_OF_FOURS, 0};
    for (int i = 0; failed == 0 && i < p.deal.runs; i++) {
        int shift = p.deal.run[i].shift;
        fifths.strips = fours.strips = (C::TILE_TOKENS >> shift) / 64;
        failed = describe_fours_and_fifths(p, fours, fifths, &with->x[shift], &with->fifths[shift]);
    }
    if (failed == 0 && p.tokens % 64 != 0) {
        fifths.strips = fours.strips = 0;
        failed =
            describe_fours_and_fifths(p, fours, fifths, &with->fours_strip, &with->fifths_strip);
    }
    if (failed == 0 && short_five(in) != 0) {
        failed = describe_short_five(p, with);
    }
    return failed;
}

} // namespace panel

#endif
