// Sums and choices of a block of threads, in an order that does not depend on timing.
#ifndef ESP_CUDA_CALIBRATE_BLOCK_CUH
#define ESP_CUDA_CALIBRATE_BLOCK_CUH

#include <cuda_runtime.h>
#include <stdint.h>

namespace calibrate {

constexpr int THREADS = 256, WARP = 32, WARPS = THREADS / WARP;

__device__ __forceinline__ double warp_sum(double value)
{
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        value += __shfl_xor_sync(~0u, value, offset);
    }
    return value;
}

// The sum over THREADS threads, for all of them; room: [WARPS]. Ends with all having read it.
__device__ __forceinline__ double block_sum(double value, double *room)
{
    value = warp_sum(value);
    if (threadIdx.x % WARP == 0) {
        room[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    double sum = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) {
        sum += room[warp];
    }
    __syncthreads();
    return sum;
}

// A cost and what it is of; of equal costs the lower number.
struct offer {
    double cost;
    int32_t of, with;
};

__device__ __forceinline__ bool is_better(const offer &a, const offer &b)
{
    return a.cost < b.cost || (a.cost == b.cost && a.of < b.of);
}

__device__ __forceinline__ offer warp_best(offer mine)
{
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        offer other = {__shfl_xor_sync(~0u, mine.cost, offset),
                       __shfl_xor_sync(~0u, mine.of, offset),
                       __shfl_xor_sync(~0u, mine.with, offset)};
        mine = is_better(other, mine) ? other : mine;
    }
    return mine;
}

// The least cost of COUNT warps, for all their threads; room: [COUNT].
template <int COUNT> __device__ __forceinline__ offer block_best(offer mine, offer *room)
{
    mine = warp_best(mine);
    if (threadIdx.x % WARP == 0) {
        room[threadIdx.x / WARP] = mine;
    }
    __syncthreads();
    offer best = room[0];
#pragma unroll
    for (int warp = 1; warp < COUNT; warp++) {
        best = is_better(room[warp], best) ? room[warp] : best;
    }
    __syncthreads();
    return best;
}

} // namespace calibrate

#endif
