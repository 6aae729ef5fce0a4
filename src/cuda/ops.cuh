// What the kernels of ops_*.cu share: numbers of 16 bits, eight of them at a time, and launches that overlap.
#ifndef ESP_CUDA_OPS_CUH
#define ESP_CUDA_OPS_CUH

#include <atomic>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda/gpu_ops.h"
#include "cuda/mma_ptx.cuh"

namespace ops {

// ---- numbers ----

__device__ __forceinline__ float widen(float v)
{
    return v;
}
__device__ __forceinline__ float widen(__half v)
{
    return __half2float(v);
}
__device__ __forceinline__ float widen(__nv_bfloat16 v)
{
    return __bfloat162float(v);
}

template <class T> __device__ __forceinline__ T narrow(float v);
template <> __device__ __forceinline__ float narrow<float>(float v)
{
    return v;
}
template <> __device__ __forceinline__ __half narrow<__half>(float v)
{
    return __float2half_rn(v);
}
template <> __device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float v)
{
    return __float2bfloat16_rn(v);
}

__device__ __forceinline__ float2 widen_pair(uint32_t pair, __half)
{
    return __half22float2(*(__half2 *)&pair);
}
__device__ __forceinline__ float2 widen_pair(uint32_t pair, __nv_bfloat16)
{
    return __bfloat1622float2(*(__nv_bfloat162 *)&pair);
}
template <class T> __device__ __forceinline__ uint32_t pack(T low, T high)
{
    return (uint32_t) * (uint16_t *)&low | (uint32_t) * (uint16_t *)&high << 16;
}

template <class T> __device__ __forceinline__ void widen_eight(const uint4 &packed, float (&v)[8])
{
    const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 pair = widen_pair(words[i], T());
        v[2 * i] = pair.x, v[2 * i + 1] = pair.y;
    }
}
template <class T> __device__ __forceinline__ uint4 narrow_eight(const float (&v)[8])
{
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        words[i] = pack(narrow<T>(v[2 * i]), narrow<T>(v[2 * i + 1]));
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// Eight numbers side by side, of which `left` are there (the others are 0, and not stored); `vector`: 16-byte
// accesses are in order.
template <class T>
__device__ __forceinline__ uint4 load_eight(const T *from, int left, bool vector)
{
    if (vector && left >= 8) {
        return *(const uint4 *)from;
    }
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t low = 2 * i < left ? ((const uint16_t *)from)[2 * i] : 0;
        uint32_t high = 2 * i + 1 < left ? ((const uint16_t *)from)[2 * i + 1] : 0;
        words[i] = low | high << 16;
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}
template <class T>
__device__ __forceinline__ void store_eight(T *to, const uint4 &packed, int left, bool vector)
{
    if (vector && left >= 8) {
        *(uint4 *)to = packed;
        return;
    }
    const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (i < left) {
            ((uint16_t *)to)[i] = (uint16_t)(words[i / 2] >> i % 2 * 16);
        }
    }
}

// Two numbers side by side, of which one or two are there; `paired`: 4-byte accesses are in order.
template <class T>
__device__ __forceinline__ void store_pair(T *to, T low, T high, int left, bool paired)
{
    if (paired && left >= 2) {
        *(uint32_t *)to = pack(low, high);
        return;
    }
    if (left >= 1) {
        to[0] = low;
    }
    if (left >= 2) {
        to[1] = high;
    }
}

// ---- on the host ----

inline int64_t divide_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}
inline unsigned at_most(int64_t count, int64_t most)
{
    return (unsigned)(count < most ? count : most);
}
constexpr int64_t MOST_BLOCKS_Y = 65535;

// Whether rows of `width`-byte elements begin at multiples of `bytes`.
inline bool aligned_to(const void *base, int64_t stride, int width, int bytes)
{
    return (uintptr_t)base % (uintptr_t)bytes == 0 && stride * width % bytes == 0;
}

// Whether the machine code that runs is Hopper's: clusters are there, and kernels wait for the one before. Code
// for Ampere has no such wait, also where a later GPU runs it, so it must not be launched early.
inline bool on_hopper()
{
    static std::atomic<int8_t> known[64]; // 0: not asked yet, 1: no, 2: yes
    int device = 0, major = 0, minor = 0;
    if (cudaGetDevice(&device) != cudaSuccess) {
        return false;
    }
    int8_t answer = device < 64 ? known[device].load(std::memory_order_relaxed) : (int8_t)0;
    if (answer == 0) {
        bool failed =
            cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) !=
                cudaSuccess ||
            cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) !=
                cudaSuccess;
        answer = !failed && major == 9 && minor == 0 ? (int8_t)2 : (int8_t)1;
        if (!failed && device < 64) {
            known[device].store(answer, std::memory_order_relaxed);
        }
    }
    return answer == 2;
}

// `cluster` blocks of neighbouring x share their memory; 1: none. The kernel calls begin().
template <class... P, class... A>
int launch_with(void (*kernel)(P...), dim3 grid, int threads, int cluster, size_t shared,
                void *stream, A... arguments)
{
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t how = {};
    how.gridDim = grid;
    how.blockDim = dim3((unsigned)threads);
    how.dynamicSmemBytes = shared;
    how.stream = (cudaStream_t)stream;
    how.attrs = attributes;
    if (on_hopper()) {
        attributes[how.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[how.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
        attributes[how.numAttrs].id = cudaLaunchAttributeClusterDimension;
        attributes[how.numAttrs++].val.clusterDim = {(unsigned)cluster, 1, 1};
    }
    return cudaLaunchKernelEx(&how, kernel, P(arguments)...);
}

template <class... P, class... A>
int launch(void (*kernel)(P...), dim3 grid, int threads, int cluster, void *stream, A... arguments)
{
    return launch_with(kernel, grid, threads, cluster, 0, stream, arguments...);
}

// The first statement of a kernel that reads nothing before all work in front of it is done.
__device__ __forceinline__ void begin()
{
    mma::let_next_launch_begin();
    mma::wait_for_launch_before();
}

} // namespace ops

#endif
