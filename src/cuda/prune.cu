// Which weights live, chosen on the device: bit for bit the choice of src/prune, whose order of sums is kept.
// 2:4 is one pass at the speed of memory. V:2:M chooses the columns of every panel and group first, one warp
// each: by value of all quadruples (vnm_exact.c), or by column sums and exchanges (vnm_swaps.c).
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda/dense_bits.cuh"
#include "cuda/gpu.h"

namespace {

constexpr int THREADS = 256, WARP = 32;
constexpr uint32_t NO_COLUMN = UINT32_MAX;

// ---- scores (src/prune/score.c) ----

__device__ __forceinline__ uint16_t entry_at(const gpu_dense &from, int64_t row, int64_t column)
{
    return ((const uint16_t *)from.data)[row * from.stride + column];
}

// Grows with |w|; all NaN are equal and highest.
__device__ __forceinline__ uint32_t key_of(const gpu_dense &from, uint16_t entry)
{
    uint32_t infinity = from.bf16 ? 0x7f80u : 0x7c00u, bits = entry & 0x7fffu;
    return min(bits, infinity + 1);
}

// Infinity and NaN score above every sum of finite scores.
__device__ __forceinline__ double score_of(const gpu_dense &from, bool square, int64_t row,
                                           int64_t column)
{
    uint16_t entry = entry_at(from, row, column);
    uint32_t infinity = from.bf16 ? 0x7f80u : 0x7c00u, bits = entry & 0x7fffu;
    if (bits >= infinity) {
        return bits == infinity ? 0x1p500 : 0x1p700;
    }
    double magnitude = from.bf16 ? (double)__uint_as_float(bits << 16)
                                 : (double)__half2float(__ushort_as_half((uint16_t)bits));
    return square ? __dmul_rn(magnitude, magnitude) : magnitude;
}

// ---- entries ----

// The two largest keys of up to four, as bits; equal ones: lower index.
__device__ __forceinline__ unsigned best_two(const uint32_t (&keys)[4], int count)
{
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int above = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            above += j < count && (keys[j] > keys[i] || (keys[j] == keys[i] && j < i));
        }
        bits |= (unsigned)(i < count && above < 2) << i;
    }
    return bits;
}

// The bits of a quad's columns that fall into the eight from `first` on.
__device__ __forceinline__ unsigned bits_of_quad(const gpu_dense &from, int64_t row,
                                                 const uint32_t (&columns)[4], int64_t first)
{
    uint32_t keys[4];
    int count = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) { // what is missing comes last
        bool there = columns[i] < from.in;
        keys[i] = there ? key_of(from, entry_at(from, row, columns[i])) : 0;
        count += there;
    }
    unsigned chosen = best_two(keys, count), bits = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int64_t at = (int64_t)columns[i] - first;
        bits |= (chosen >> i & 1) != 0 && at >= 0 && at < 8 ? 1u << at : 0u;
    }
    return bits;
}

// 2:4 of eight entries in registers.
__device__ __forceinline__ unsigned bits_of_eight(const gpu_dense &from, int64_t row, int64_t first)
{
    uint4 eight = eight_entries(from, row, first);
    const uint32_t word[4] = {eight.x, eight.y, eight.z, eight.w};
    unsigned bits = 0;
#pragma unroll
    for (int q = 0; q < 2; q++) {
        uint32_t keys[4] = {key_of(from, (uint16_t)word[2 * q]), key_of(from, word[2 * q] >> 16),
                            key_of(from, (uint16_t)word[2 * q + 1]),
                            key_of(from, word[2 * q + 1] >> 16)};
        int64_t left = from.in - first - 4 * q;
        bits |= best_two(keys, (int)max((int64_t)0, min((int64_t)4, left))) << 4 * q;
    }
    return bits;
}

// A thread makes a byte of the mask: eight columns of a row.
__global__ void __launch_bounds__(THREADS)
    choose_entries(const gpu_dense from, int64_t panel_rows, int m, const uint32_t *columns,
                   uint8_t *mask, int64_t mask_bytes)
{
    int64_t all = from.out * mask_bytes;
    int64_t groups = columns != nullptr ? (from.in + m - 1) / m : 0;
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < all;
         i += (int64_t)gridDim.x * THREADS) {
        int64_t row = i / mask_bytes, first = i % mask_bytes * 8;
        unsigned bits = 0;
        if (columns == nullptr) {
            bits = first < from.in ? bits_of_eight(from, row, first) : 0;
        } else {
            const uint32_t *list = columns + row / panel_rows * groups * 4;
            for (int64_t g = first / m; g < groups && g * m < first + 8; g++) {
                const uint32_t quad[4] = {list[4 * g], list[4 * g + 1], list[4 * g + 2],
                                          list[4 * g + 3]};
                bits |= bits_of_quad(from, row, quad, first);
            }
        }
        mask[i] = (uint8_t)bits;
    }
}

// ---- columns: one warp, which is a block, a group ----

struct group_of {
    int64_t row, rows, column;
    int width;
    uint32_t *kept; // where the four go
};

__device__ __forceinline__ group_of this_group(const gpu_dense &from, int64_t panel_rows, int m,
                                               uint32_t *columns)
{
    int64_t groups = (from.in + m - 1) / m, panel = blockIdx.x / groups, group = blockIdx.x % groups;
    group_of made = {panel * panel_rows, 0, group * m, 0, columns + blockIdx.x * (int64_t)4};
    made.rows = min(panel_rows, from.out - made.row);
    made.width = (int)min((int64_t)m, from.in - made.column);
    return made;
}

// A group of at most four columns keeps them all.
__device__ __forceinline__ void keep_all(const group_of &group, int lane)
{
    if (lane < 4) {
        group.kept[lane] = lane < group.width ? (uint32_t)(group.column + lane) : NO_COLUMN;
    }
}

__device__ __forceinline__ double larger(double a, double b)
{
    return a > b ? a : b;
}

// Largest value of the warp, of equal ones that of lowest order.
__device__ __forceinline__ void warp_best(double *value, int *order)
{
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) {
        double other = __shfl_xor_sync(~0u, *value, step);
        int place = __shfl_xor_sync(~0u, *order, step);
        if (other > *value || (other == *value && place < *order)) {
            *value = other;
            *order = place;
        }
    }
}

constexpr int WIDEST_EXACT = 10, CHUNK_ROWS = 64, SUMS = 8; // SUMS: row r goes to sum r % 8

// Number `index` of the quadruples of `width` columns in lexicographic order.
__device__ void quadruple(int index, int width, int (&of)[4])
{
    for (int a = 0; a < width; a++) {
        for (int b = a + 1; b < width; b++) {
            int left = width - 1 - b, pairs = left * (left - 1) / 2;
            if (index >= pairs) {
                index -= pairs;
                continue;
            }
            for (int c = b + 1; c < width; c++) {
                int last = width - 1 - c;
                if (index < last) {
                    of[0] = a, of[1] = b, of[2] = c, of[3] = c + 1 + index;
                    return;
                }
                index -= last;
            }
        }
    }
}

// What a row retains of a quadruple: its two largest.
__device__ __forceinline__ double two_largest(const double *scores, const int (&of)[4])
{
    double a = scores[of[0]], b = scores[of[1]], c = scores[of[2]], d = scores[of[3]];
    double high1 = larger(a, b), low1 = a < b ? a : b, high2 = larger(c, d), low2 = c < d ? c : d;
    double second = larger(high1 < high2 ? high1 : high2, larger(low1, low2));
    return __dadd_rn(larger(high1, high2), second);
}

__global__ void __launch_bounds__(WARP)
    choose_exact(const gpu_dense from, int64_t panel_rows, int m, bool square, uint32_t *columns)
{
    __shared__ double scores[CHUNK_ROWS * WIDEST_EXACT];
    int lane = threadIdx.x;
    group_of group = this_group(from, panel_rows, m, columns);
    if (group.width <= 4) {
        keep_all(group, lane);
        return;
    }
    int width = group.width;
    int quadruples = width * (width - 1) * (width - 2) * (width - 3) / 24, best = 0;
    double most = -1;
    for (int first = 0; first < quadruples; first += WARP) {
        int mine = min(first + lane, quadruples - 1), of[4];
        double sums[SUMS] = {}, whole = 0;
        quadruple(mine, width, of);
        for (int64_t at = 0; at < group.rows; at += CHUNK_ROWS) {
            int rows = (int)min((int64_t)CHUNK_ROWS, group.rows - at);
            if (first == 0 || group.rows > CHUNK_ROWS) { // else they are there
                __syncwarp();
                for (int i = lane; i < CHUNK_ROWS * width; i += WARP) {
                    int row = i / width;
                    scores[i] = row < rows ? score_of(from, square, group.row + at + row,
                                                      group.column + i % width)
                                           : 0;
                }
                __syncwarp();
            }
            for (int row = 0; row < rows; row += SUMS) { // rows that are missing add 0
#pragma unroll
                for (int s = 0; s < SUMS; s++) {
                    sums[s] = __dadd_rn(sums[s], two_largest(scores + (row + s) * width, of));
                }
            }
        }
#pragma unroll
        for (int s = 0; s < SUMS; s++) {
            whole = __dadd_rn(whole, sums[s]);
        }
        int order = mine;
        warp_best(&whole, &order);
        if (whole > most) {
            most = whole;
            best = order;
        }
    }
    int of[4];
    quadruple(best, width, of);
    if (lane == 0) {
        for (int i = 0; i < 4; i++) {
            group.kept[i] = (uint32_t)(group.column + of[i]);
        }
    }
}

// The four largest column sums, equal ones: lower column; ascending in kept.
__device__ void take_four_largest(const double *sums, int width, int lane, int *kept)
{
    int count = 0;
    for (int base = 0; base < width; base += WARP) {
        int c = base + lane, above = c < width ? 0 : 4;
        for (int other = 0; other < width && above < 4; other++) {
            above += sums[other] > sums[c] || (sums[other] == sums[c] && other < c);
        }
        unsigned taken = __ballot_sync(~0u, above < 4);
        if (above < 4) {
            kept[count + __popc(taken & ((1u << lane) - 1))] = c;
        }
        count += __popc(taken);
    }
    __syncwarp();
}

// values[k * width + c]: what is retained when kept[k] is exchanged for c.
__device__ void value_exchanges(const gpu_dense &from, const group_of &group, bool square, int lane,
                                const int (&kept)[4], double *values)
{
    for (int c = lane; c < group.width; c += WARP) {
        double value[4] = {};
        for (int64_t r = 0; r < group.rows; r++) {
            double scores[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                scores[k] = score_of(from, square, group.row + r, group.column + kept[k]);
            }
            double mine = score_of(from, square, group.row + r, group.column + c);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                double x = scores[(k + 1) % 4], y = scores[(k + 2) % 4], z = scores[(k + 3) % 4];
                double xy = larger(x, y), a = larger(xy, z);
                double b = larger(x < y ? x : y, xy < z ? xy : z);
                value[k] = __dadd_rn(value[k], __dadd_rn(a, larger(b, mine)));
            }
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            values[k * group.width + c] = value[k];
        }
    }
    __syncwarp();
}

// Makes the best exchange that gains; equal ones: lower kept column, then lower new one.
__device__ bool exchange_best(const double *values, int width, int lane, int (&kept)[4])
{
    const int none = 4 * 1024 + 1;
    double base = values[kept[0]], best = base;
    int order = none;
    for (int k = 0; k < 4; k++) {
        for (int c = lane; c < width; c += WARP) {
            double value = values[k * width + c];
            bool held = c == kept[0] || c == kept[1] || c == kept[2] || c == kept[3];
            if (value > best && !held) {
                best = value;
                order = k * width + c;
            }
        }
    }
    warp_best(&best, &order);
    if (order == none) {
        return false;
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
        kept[k] = order / width == k ? order % width : kept[k];
    }
#pragma unroll
    for (int pass = 0; pass < 3; pass++) { // ascending again
#pragma unroll
        for (int i = 0; i < 3; i++) {
            int low = min(kept[i], kept[i + 1]), high = max(kept[i], kept[i + 1]);
            kept[i] = low, kept[i + 1] = high;
        }
    }
    return true;
}

__global__ void __launch_bounds__(WARP)
    choose_greedy(const gpu_dense from, int64_t panel_rows, int m, bool square, bool swaps,
                  uint32_t *columns)
{
    extern __shared__ double room[]; // 4 m
    __shared__ int chosen[4];
    int lane = threadIdx.x;
    group_of group = this_group(from, panel_rows, m, columns);
    if (group.width <= 4) {
        keep_all(group, lane);
        return;
    }
    for (int c = lane; c < group.width; c += WARP) {
        double sum = 0;
        for (int64_t r = 0; r < group.rows; r++) {
            sum = __dadd_rn(sum, score_of(from, square, group.row + r, group.column + c));
        }
        room[c] = sum;
    }
    __syncwarp();
    take_four_largest(room, group.width, lane, chosen);
    int kept[4] = {chosen[0], chosen[1], chosen[2], chosen[3]};
    while (swaps) {
        __syncwarp();
        value_exchanges(from, group, square, lane, kept, room);
        swaps = exchange_best(room, group.width, lane, kept);
    }
    if (lane < 4) {
        int mine = lane == 0 ? kept[0] : lane == 1 ? kept[1] : lane == 2 ? kept[2] : kept[3];
        group.kept[lane] = (uint32_t)(group.column + mine);
    }
}

} // namespace

extern "C" int gpu_choose_columns(const gpu_dense *from, int64_t panel_rows, int64_t m, bool square,
                                  gpu_search search, uint32_t *columns, void *stream)
{
    int64_t panels = (from->out + panel_rows - 1) / panel_rows, groups = (from->in + m - 1) / m;
    cudaStream_t in = (cudaStream_t)stream;
    unsigned blocks = (unsigned)(panels * groups);
    if (search == GPU_EXACT) {
        choose_exact<<<blocks, WARP, 0, in>>>(*from, panel_rows, (int)m, square, columns);
    } else {
        choose_greedy<<<blocks, WARP, 4 * (size_t)m * sizeof(double), in>>>(
            *from, panel_rows, (int)m, square, search == GPU_SWAPS, columns);
    }
    return cudaGetLastError();
}

extern "C" int gpu_choose_entries(const gpu_dense *from, int64_t panel_rows, int64_t m,
                                  const uint32_t *columns, uint8_t *mask, int64_t mask_bytes,
                                  void *stream)
{
    int64_t all = from->out * mask_bytes, blocks = (all + THREADS - 1) / THREADS;
    choose_entries<<<(unsigned)min(blocks, (int64_t)1 << 20), THREADS, 0, (cudaStream_t)stream>>>(
        *from, panel_rows, (int)m, columns, mask, mask_bytes);
    return cudaGetLastError();
}
