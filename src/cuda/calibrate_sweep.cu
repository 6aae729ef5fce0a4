// SparseGPT's sweep over a block of columns (src/prune/sparse_gpt.c): a warp to a row, which goes
// from left to right while its lanes update what lies to the right within the block. What lies
// behind it is one product.
#include <cuda_runtime.h>

#include "cuda/calibrate_block.cuh"
#include "cuda/gpu_calibrate.h"

using namespace calibrate;

namespace {

constexpr int MOST_WORDS = GPU_SWEEP_GROUP / WARP; // of one group's choice

// Grows with |w / U_jj|; all NaN are equal and highest, as esp_score_keys has it.
__device__ __forceinline__ uint32_t key_of(const gpu_sweep &s, const double *row, int64_t column)
{
    double u = s.factor[column * s.in + column], w = row[column];
    uint32_t bits = __float_as_uint((float)(w * w / (u * u))) & 0x7fffffffu;
    return min(bits, 0x7f800001u);
}

// The `keep` largest of columns at..at + size, of equals the first ones; chosen: bit i is column at
// + i.
__device__ void choose(const gpu_sweep &s, const double *row, int64_t at, int size, int lane,
                       uint32_t *chosen)
{
    for (int first = 0; first < size; first += WARP) {
        int mine = first + lane, above = 0;
        uint32_t key = mine < size ? key_of(s, row, at + mine) : 0;
        for (int i = 0; i < size; i++) {
            uint32_t other = key_of(s, row, at + i);
            above += other > key || (other == key && i < mine);
        }
        uint32_t bits = __ballot_sync(~0u, mine < size && above < s.keep);
        if (lane == 0) {
            chosen[first / WARP] = bits;
        }
    }
    __syncwarp();
}

__device__ void put_bits(uint64_t *words, int64_t at, uint32_t bits)
{
    words[at / 64] |= (uint64_t)bits << at % 64;
    if (at % 64 > 64 - WARP && (uint64_t)bits >> (64 - at % 64) != 0) {
        words[at / 64 + 1] |= (uint64_t)bits >> (64 - at % 64);
    }
}

__global__ void sweep(gpu_sweep s)
{
    __shared__ uint32_t choices[WARPS][MOST_WORDS];
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int64_t r = (int64_t)blockIdx.x * WARPS + warp, block = s.end - s.begin;
    if (r >= s.rows) {
        return;
    }
    double *row = s.weights + r * s.in;
    uint64_t *words = s.mask + r * s.mask_words;
    int64_t first_bit = 64 * s.mask_first;
    uint32_t *chosen = choices[warp];
    int64_t group = s.keep > 0 ? s.group : s.stop - s.first;
    for (int64_t at = s.first; at < s.stop; at += group) {
        int64_t end = min(at + group, s.stop);
        if (s.keep > 0) {
            choose(s, row, at, (int)(end - at), lane, chosen);
            for (int64_t i = 0; lane == 0 && i < end - at; i += WARP) {
                put_bits(words, at + i - first_bit, chosen[i / WARP]);
            }
        }
        for (int64_t j = at; j < end; j++) {
            bool live = s.keep > 0 ? (chosen[(j - at) / WARP] >> (j - at) % WARP & 1) != 0
                                   : (words[(j - first_bit) / 64] >> j % 64 & 1) != 0;
            const double *factor = s.factor + j * s.in;
            double e = live ? 0 : row[j] / factor[j];
            __syncwarp(); // all have read it
            if (lane == 0) {
                s.errors[r * block + j - s.begin] = e;
                row[j] = live ? row[j] : 0;
            }
            for (int64_t k = j + 1 + lane; k < s.end && e != 0; k += WARP) {
                row[k] -= e * factor[k];
            }
            __syncwarp();
        }
    }
}

__global__ void score(gpu_sweep s, int64_t width, float *scores)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < s.rows * width) {
        int64_t row = i / width, column = s.first + i % width;
        double u = s.factor[column * s.in + column], w = s.weights[row * s.in + column];
        scores[i] = (float)(w * w / (u * u));
    }
}

} // namespace

extern "C" int gpu_sweep_columns(const gpu_sweep *of, void *stream)
{
    sweep<<<(unsigned)((of->rows + WARPS - 1) / WARPS), THREADS, 0, (cudaStream_t)stream>>>(*of);
    return cudaGetLastError();
}

extern "C" int gpu_sweep_scores(const gpu_sweep *of, int64_t width, float *scores, void *stream)
{
    int64_t count = of->rows * width;
    score<<<(unsigned)((count + THREADS - 1) / THREADS), THREADS, 0, (cudaStream_t)stream>>>(
        *of, width, scores);
    return cudaGetLastError();
}
