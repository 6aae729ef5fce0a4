// Operands of a measurement and the comparison of its results where they lie: copying Y of thousands of
// tokens to the host for each candidate would take longer than everything else. Meaning: src/op/measure.c.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda/gpu.h"

namespace {

constexpr int THREADS = 256, BLOCKS = 1024; // the kernels stride on

__device__ int64_t place(bool by_token, int64_t features, int64_t tokens, int64_t feature,
                         int64_t token)
{
    return by_token ? token * features + feature : feature * tokens + token;
}

// Neighbouring threads write neighbouring elements.
template <class Element> __global__ void spread_kernel(const gpu_spread s)
{
    int64_t inner = s.by_token ? s.features : s.tokens, all = s.features * s.tokens;
    int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < all; i += step) {
        int64_t f = s.by_token ? i % inner : i / inner, t = s.by_token ? i / inner : i % inner;
        int64_t from = place(s.by_token, s.features, s.vectors, f, s.map[t]);
        ((Element *)s.all)[i] = ((const Element *)s.few)[from];
    }
}

__device__ float element(gpu_type type, const void *data, int64_t at)
{
    return type == GPU_F32   ? ((const float *)data)[at]
           : type == GPU_F16 ? __half2float(((const __half *)data)[at])
                             : __bfloat162float(((const __nv_bfloat16 *)data)[at]);
}

// Bits of doubles that are not negative are ordered as the numbers are, NaN above infinity.
__global__ void differ_kernel(const gpu_difference d, unsigned long long *worst)
{
    int64_t inner = d.by_token ? d.rows : d.tokens, all = d.rows * d.tokens;
    int64_t step = (int64_t)gridDim.x * THREADS;
    unsigned long long mine = 0;
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < all; i += step) {
        int64_t o = d.by_token ? i % inner : i / inner, t = d.by_token ? i / inner : i % inner;
        int64_t v = d.map[t];
        float got = element(d.type, d.all, i);
        float wanted = element(d.type, d.few, place(d.by_token, d.rows, d.vectors, o, v));
        if (got == wanted) {
            continue;
        }
        double off = d.bounds == nullptr
                         ? (double)INFINITY
                         : fabs((double)got - (double)wanted) / d.bounds[o * d.vectors + v];
        off = isnan((double)got - (double)wanted) || isnan(off) ? (double)NAN : off;
        unsigned long long bits = (unsigned long long)__double_as_longlong(fabs(off));
        mine = bits > mine ? bits : mine;
    }
    if (mine > 0) {
        atomicMax(worst, mine);
    }
}

} // namespace

static int cleared(cudaError_t error)
{
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
    }
    return error;
}

extern "C" int gpu_spread_vectors(const gpu_spread *spread)
{
    if (spread->width == 2) {
        spread_kernel<uint16_t><<<BLOCKS, THREADS>>>(*spread);
    } else {
        spread_kernel<uint32_t><<<BLOCKS, THREADS>>>(*spread);
    }
    cudaError_t error = cudaGetLastError();
    return cleared(error == cudaSuccess ? cudaDeviceSynchronize() : error);
}

extern "C" int gpu_differ(const gpu_difference *difference, double *worst)
{
    unsigned long long *bits = nullptr, found = 0;
    cudaError_t error = cudaMalloc((void **)&bits, sizeof *bits);
    if (error == cudaSuccess) {
        error = cudaMemset(bits, 0, sizeof *bits);
    }
    if (error == cudaSuccess) {
        differ_kernel<<<BLOCKS, THREADS>>>(*difference, bits);
        error = cudaGetLastError();
    }
    if (error == cudaSuccess) {
        error = cudaMemcpy(&found, bits, sizeof found, cudaMemcpyDeviceToHost);
    }
    cleared(cudaFree(bits));
    static_assert(sizeof found == sizeof *worst, "bits of a double");
    __builtin_memcpy(worst, &found, sizeof *worst);
    return cleared(error);
}
