// Rotary positions and the caches of keys and values. Reference: src/nn/rope.c and src/ref/ops.c (rope,
// cache_append, cache_scatter).
//
// Idea. One launch does all that lies between the products for q, k, v and attention. A block has one head, of q, k
// or v, and up to 64 tokens: q is turned where it is; k is turned on its way into shared memory, v goes there as
// it is, and from there both leave as the caches' rows of head_dim. Products of a pair are f32 sums of two f32
// products, each rounded, as the reference has them.
//
// Limit: memory bandwidth; for a single token, the way to the L2 and back.
#include "cuda/ops.cuh"

namespace {

constexpr int THREADS = 256, TILE = 64; // tokens

// ---- angles ----

__device__ __forceinline__ int64_t position_of(const gpu_positions &p, int64_t token)
{
    return p.base + (p.at != nullptr ? p.at[token * p.step] : 0) + (p.running ? token : 0);
}

__global__ void __launch_bounds__(THREADS)
    angles_kernel(const float *frequencies, const gpu_positions positions, int64_t half,
                  int64_t tokens, float *cosines, float *sines, int64_t stride)
{
    ops::begin();
    int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < half * tokens; i += step) {
        int64_t pair = i / tokens, token = i % tokens;
        float angle = __fmul_rn(frequencies[pair], (float)position_of(positions, token));
        float sine, cosine;
        sincosf(angle, &sine, &cosine);
        cosines[pair * stride + token] = cosine;
        sines[pair * stride + token] = sine;
    }
}

__global__ void advance_kernel(gpu_place *places, int64_t count, int32_t by)
{
    ops::begin();
    int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x;
    if (i < count) {
        places[i].past += by;
    }
}

// ---- rotating and remembering ----

struct append_task {
    gpu_rope_append of;
    bool vector; // 16-byte accesses to q, k, v are in order, and to the angles
};

template <class T>
__device__ __forceinline__ T *row_of(const append_task &a, bool values, int64_t head, int64_t token)
{
    const gpu_rope_append &o = a.of;
    int64_t row = o.past + token, capacity = o.capacity;
    T *cache = (T *)(values ? o.values : o.keys);
    if (o.places != nullptr) {
        const gpu_place &place = o.places[token];
        row = place.past, capacity = place.capacity;
        cache = (T *)(values ? place.values : place.keys);
        cache += 2 * o.layer * o.kv_heads * capacity * o.head_dim;
    } else if (o.past_at != nullptr) {
        row += *o.past_at;
    }
    return row >= 0 && row < capacity ? cache + (head * capacity + row) * o.head_dim : nullptr;
}

template <bool VECTOR>
__device__ __forceinline__ void load_angles(const float *from, int left, float (&v)[8])
{
    if constexpr (VECTOR) {
        float4 a = ((const float4 *)from)[0], b = ((const float4 *)from)[1];
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
        v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[i] = i < left ? from[i] : 0.0f;
        }
    }
}

// Features `pair` and `pair + half` of a head, eight tokens from `token` on. VECTOR: all are there and accesses of 16
// bytes are in order, so that no branch keeps loads apart.
template <class T, bool VECTOR> struct turned_pair {
    float low[8], high[8];
    int left;

    __device__ __forceinline__ void load(const append_task &a, const T *head, int64_t half,
                                         int64_t pair, int64_t token, bool turn)
    {
        const gpu_rope_append &o = a.of;
        const T *at = head + pair * o.stride + token;
        left = VECTOR ? 8 : (int)min((int64_t)8, o.tokens - token);
        uint4 lows = ops::load_eight(at, left, VECTOR);
        uint4 highs = ops::load_eight(at + half * o.stride, left, VECTOR);
        float cosine[8], sine[8];
        if (turn) {
            load_angles<VECTOR>(o.cosines + pair * o.angle_stride + token, left, cosine);
            load_angles<VECTOR>(o.sines + pair * o.angle_stride + token, left, sine);
        }
        ops::widen_eight<T>(lows, low);
        ops::widen_eight<T>(highs, high);
        if (!turn) {
            return;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float x = low[i], y = high[i];
            low[i] = __fsub_rn(__fmul_rn(x, cosine[i]), __fmul_rn(y, sine[i]));
            high[i] = __fadd_rn(__fmul_rn(y, cosine[i]), __fmul_rn(x, sine[i]));
        }
    }
};

template <class T, bool VECTOR>
__device__ __forceinline__ void turn_head(const append_task &a, T *head, int64_t token0)
{
    const gpu_rope_append &o = a.of;
    int half = (int)(o.head_dim / 2);
    int eights = (int)min((int64_t)TILE, o.tokens - token0 + 7) / 8;
#pragma unroll 2
    for (int i = threadIdx.x; i < half * eights; i += THREADS) {
        int pair = i / eights;
        int64_t token = token0 + i % eights * 8;
        turned_pair<T, VECTOR> v;
        v.load(a, head, half, pair, token, true);
        T *to = head + pair * o.stride + token;
        ops::store_eight(to, ops::narrow_eight<T>(v.low), v.left, VECTOR);
        ops::store_eight(to + half * o.stride, ops::narrow_eight<T>(v.high), v.left, VECTOR);
    }
}

// Into rows of `memory`, `pitch` apart, and from there into the cache's.
template <class T, bool VECTOR>
__device__ __forceinline__ void remember_head(const append_task &a, const T *head, int64_t number,
                                              bool values, int64_t token0, T *memory)
{
    const gpu_rope_append &o = a.of;
    int dim = (int)o.head_dim, half = dim / 2, pitch = dim + 2;
    int tokens = (int)min((int64_t)TILE, o.tokens - token0);
    int eights = (tokens + 7) / 8;
    bool turn = !values && o.cosines != nullptr;
#pragma unroll 2
    for (int i = threadIdx.x; i < half * eights; i += THREADS) {
        int pair = i / eights, t = i % eights * 8;
        turned_pair<T, VECTOR> v;
        v.load(a, head, half, pair, token0 + t, turn);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            if (k < v.left) {
                memory[(t + k) * pitch + pair] = ops::narrow<T>(v.low[k]);
                memory[(t + k) * pitch + pair + half] = ops::narrow<T>(v.high[k]);
            }
        }
    }
    __syncthreads();
    for (int t = threadIdx.x / 32; t < tokens; t += THREADS / 32) { // a warp has a row
        T *row = row_of<T>(a, values, number, token0 + t);
        bool paired = (uintptr_t)row % 4 == 0;
        for (int d = threadIdx.x % 32 * 2; d < dim && row != nullptr; d += 64) {
            ops::store_pair(row + d, memory[t * pitch + d], memory[t * pitch + d + 1], 2, paired);
        }
    }
}

template <class T> __global__ void __launch_bounds__(THREADS) append_kernel(const __grid_constant__ append_task a)
{
    extern __shared__ uint4 memory[];
    const gpu_rope_append &o = a.of;
    int64_t token0 = (int64_t)blockIdx.x * TILE, head = blockIdx.y;
    int64_t heads = o.q != nullptr && o.cosines != nullptr ? o.heads : 0, size = o.head_dim * o.stride;
    ops::begin();
    bool whole = a.vector && o.tokens % 8 == 0, values = head >= heads + o.kv_heads;
    if (head < heads) {
        T *q = (T *)o.q + head * size;
        whole ? turn_head<T, true>(a, q, token0) : turn_head<T, false>(a, q, token0);
        return;
    }
    head -= heads + (values ? o.kv_heads : 0);
    const T *from = (const T *)(values ? o.v : o.k) + head * size;
    whole ? remember_head<T, true>(a, from, head, values, token0, (T *)memory)
          : remember_head<T, false>(a, from, head, values, token0, (T *)memory);
}

template <class T> int append(const gpu_rope_append &o, void *stream)
{
    bool vector = ops::aligned_to(o.q, o.stride, 2, 16) && ops::aligned_to(o.k, o.stride, 2, 16) &&
                  ops::aligned_to(o.v, o.stride, 2, 16) &&
                  (o.cosines == nullptr || (ops::aligned_to(o.cosines, o.angle_stride, 4, 16) &&
                                            ops::aligned_to(o.sines, o.angle_stride, 4, 16)));
    append_task task = {o, vector};
    int64_t turned = o.q != nullptr && o.cosines != nullptr ? o.heads : 0;
    dim3 grid((unsigned)ops::divide_up(o.tokens, TILE), (unsigned)(turned + 2 * o.kv_heads));
    int tokens = (int)(o.tokens < TILE ? o.tokens : TILE);
    return ops::launch_with(append_kernel<T>, grid, THREADS, 1,
                            (size_t)tokens * (size_t)(o.head_dim + 2) * sizeof(T), stream, task);
}

} // namespace

extern "C" int gpu_rope_angles(const float *frequencies, const gpu_positions *positions,
                               int64_t head_dim, int64_t tokens, float *cosines, float *sines,
                               int64_t stride, void *stream)
{
    int64_t half = head_dim / 2;
    if (half <= 0 || tokens <= 0) {
        return cudaSuccess;
    }
    dim3 grid(ops::at_most(ops::divide_up(half * tokens, THREADS), 1 << 16));
    return ops::launch(angles_kernel, grid, THREADS, 1, stream, frequencies, *positions, half,
                       tokens, cosines, sines, stride);
}

extern "C" int gpu_advance(gpu_place *places, int64_t count, int32_t by, void *stream)
{
    if (count <= 0) {
        return cudaSuccess;
    }
    dim3 grid(ops::at_most(ops::divide_up(count, THREADS), INT32_MAX));
    return ops::launch(advance_kernel, grid, THREADS, 1, stream, places, count, by);
}

extern "C" int gpu_rope_append_run(const gpu_rope_append *append_, void *stream)
{
    const gpu_rope_append &o = *append_;
    if (o.head_dim <= 0 || o.head_dim % 2 != 0 || o.head_dim > GPU_MOST_HEAD_DIM ||
        o.heads + 2 * o.kv_heads > ops::MOST_BLOCKS_Y || o.tokens > (int64_t)INT32_MAX * TILE) {
        return cudaErrorInvalidValue;
    }
    if (o.tokens <= 0 || o.kv_heads <= 0) {
        return cudaSuccess;
    }
    switch (o.type) {
    case GPU_F16:
        return append<__half>(o, stream);
    case GPU_BF16:
        return append<__nv_bfloat16>(o, stream);
    default:
        return cudaErrorInvalidValue;
    }
}
