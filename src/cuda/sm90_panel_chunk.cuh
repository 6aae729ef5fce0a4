// Chunks of the panel kernels' sums (sm90_panel_leave.cuh): 4096 bytes of shared memory, as the
// copy engine stores them, its swizzle of 16-byte pieces included.
//
//                         lines                                 a line
//   Y by feature          32 even rows, 32 odd rows             32 tokens, 64 bytes
//   Y by token            32 tokens                             64 features, 128 bytes
//   swiglu, by feature    32 rows                               64 tokens, 128 bytes
//   swiglu, by token      64 tokens                             32 features, 64 bytes
//
// A warp has 16 rows of the sums, a thread rows 2 g and 2 g + 1 of them (dealt so by the packing)
// and two tokens of each eight.
#ifndef ESP_CUDA_SM90_PANEL_CHUNK_CUH
#define ESP_CUDA_SM90_PANEL_CHUNK_CUH

#include "cuda/sm90_activate.cuh"
#include "cuda/sm90_panel_normed.cuh"

namespace panel
{

// Scale and bias of the two rows of a thread, and what norms take.
struct row_terms {
    float scale[2], bias[2];
    float minus_sums[2]; // of the row's weights, times -1
    uint32_t tokens;     // {mean, 1 / deviation} of each, in shared memory

    // `row`: the block's first. To be called before they are needed: memory is far.
    template <bool NORMS>
    __device__ __forceinline__ void load(const gpu_tiled &tiled, int row, int thread,
                                         uint32_t norms)
    {
        const gpu_product &p = tiled.product;
        const gpu_epilogue &e = p.epilogue;
        tokens = norms;
        int mine = row + thread / 32 * 16 + thread % 32 / 4 * 2;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            bool there = mine + i < p.weight.out;
            scale[i] = there && (e.bits & ESP_EP_SCALE) != 0 ? e.scale[mine + i] : 1.0f;
            bias[i] = there && (e.bits & ESP_EP_BIAS) != 0 ? e.bias[mine + i] : 0.0f;
            bool sums = NORMS && there && tiled.normed.row_sums != nullptr;
            minus_sums[i] = sums ? -tiled.normed.row_sums[mine + i] : 0.0f;
        }
    }
    // Exact where there is neither.
    __device__ __forceinline__ float apply(float sum, int i) const
    {
        return fmaf(sum, scale[i], bias[i]);
    }
    // Of the thread's two tokens of an eight.
    __device__ __forceinline__ float4 of_tokens(int eight, int thread) const
    {
        return ptx::load_shared_4(tokens + eight * 64 + thread % 4 * 16);
    }
    // A sum of the first or the second of these, without a scale.
    __device__ __forceinline__ float norm(float sum, int i, const float4 &both, int which) const
    {
        float mean = which == 0 ? both.x : both.z, factor = which == 0 ? both.y : both.w;
        return fmaf(fmaf(minus_sums[i], mean, sum), factor, bias[i]);
    }
};

// What is done to sums in passing, known to the compiler.
enum class passing {
    BARE,
    LINEAR, // scale and bias, as in all that follow
    RELU,
    GELU,
    GATE, // silu or gelu_tanh
    ADD,  // a residual, no activation
    PAIRS // swiglu: the two rows of a thread are joined
};

template <passing WHAT> __device__ __forceinline__ float pass(float v, const activate::gate &gate)
{
    return WHAT == passing::RELU   ? activate::at_least(v, 0.0f)
           : WHAT == passing::GELU ? activate::gelu(v)
           : WHAT == passing::GATE ? gate.apply(v)
                                   : v;
}

// A thread's words of a chunk: by feature two tokens of a row, by token both rows of a token. Four
// belong to 16 tokens, those of `half`: word i is of eight i / 2 and of row or token i % 2.
template <bool BY_TOKEN> struct chunk_words {
    uint32_t first, second; // by feature: of either half; by token: of either token

    __device__ __forceinline__ chunk_words(uint32_t chunk, int thread)
    {
        int warp = thread / 32, lane = thread % 32;
        if constexpr (BY_TOKEN) {
            int token = lane % 4 * 2, piece = warp * 2 + lane / 16;
            first = chunk + token * 128 + ((piece ^ token) << 4) + lane / 4 % 4 * 4;
            second = (first + 128) ^ 16;
        } else { // where the lane's line of a matrix is
            int line = lane / 8 % 2 * 32 + warp * 8 + lane % 8;
            first = chunk + line * 64 + ((lane / 16 ^ lane % 8 >> 1) << 4);
            second = first ^ 32;
        }
    }
    __device__ __forceinline__ uint32_t of_token(int half, int i) const
    {
        return (i % 2 == 0 ? first : second) + (half * 2 + i / 2) * 1024;
    }
    __device__ __forceinline__ void read(int half, uint32_t (&words)[4]) const
    {
        if constexpr (BY_TOKEN) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                words[i] = ptx::load_shared(of_token(half, i));
            }
        } else {
            ptx::load_matrices(half == 0 ? first : second, words);
        }
    }
    __device__ __forceinline__ void write(int half, const uint32_t (&words)[4]) const
    {
        if constexpr (BY_TOKEN) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                ptx::store_shared_u32(of_token(half, i), words[i]);
            }
        } else {
            ptx::store_matrices(half == 0 ? first : second, words);
        }
    }
};

// 32 tokens of a warp into a chunk, which for ADD has the residual. NORMED: by feature, neither
// BARE nor ADD.
template <int N, passing WHAT, bool BY_TOKEN, bool NORMED = false>
__device__ __forceinline__ void write_chunk(const gpu_epilogue &e, const float (&sums)[N / 2],
                                            int c, uint32_t chunk, const row_terms &terms,
                                            int thread)
{
    const activate::gate gate = activate::gate::of((e.bits & ESP_EP_GELU_TANH) != 0);
    const chunk_words<BY_TOKEN> mine(chunk, thread);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t words[4], more[4];
        float4 tokens[2];
        if constexpr (WHAT == passing::ADD) {
            mine.read(half, more);
        }
        if constexpr (NORMED) {
            tokens[0] = terms.of_tokens(c * 4 + half * 2, thread);
            tokens[1] = terms.of_tokens(c * 4 + half * 2 + 1, thread);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            // of the four sums of an eight: row 0, tokens 0 and 1, row 1, tokens 0 and 1
            int from = (c * 4 + half * 2 + i / 2) * 4;
            int at = BY_TOKEN ? i % 2 : i % 2 * 2, next = BY_TOKEN ? at + 2 : at + 1;
            float low = sums[from + at], high = sums[from + next];
            if constexpr (NORMED) {
                low = pass<WHAT>(terms.norm(low, i % 2, tokens[i / 2], 0), gate);
                high = pass<WHAT>(terms.norm(high, i % 2, tokens[i / 2], 1), gate);
            } else if constexpr (WHAT != passing::BARE) {
                low = pass<WHAT>(terms.apply(low, at / 2), gate);
                high = pass<WHAT>(terms.apply(high, next / 2), gate);
            }
            if constexpr (WHAT == passing::ADD) {
                float2 pair = epilogue::widen_pair(e.type, more[i]);
                low += pair.x, high += pair.y;
            }
            words[i] = epilogue::round_pair(e.type, low, high);
        }
        mine.write(half, words);
    }
}

// Swiglu of 64 tokens of a warp into a chunk.
template <int N, bool BY_TOKEN, bool NORMED = false>
__device__ __forceinline__ void write_pairs(const gpu_epilogue &e, const float (&sums)[N / 2],
                                            int c, uint32_t chunk, const row_terms &terms,
                                            int thread)
{
    const activate::gate silu = activate::gate::of(false);
    int warp = thread / 32, lane = thread % 32;
    uint32_t to = BY_TOKEN ? chunk + lane * 64 + ((warp ^ lane / 2 % 4) << 4)
                           : chunk + (warp * 8 + lane % 8) * 128 + ((lane / 8 ^ lane % 8) << 4);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int at = (c * 8 + half * 4 + i) * 4;
            float4 tokens;
            if constexpr (NORMED) {
                tokens = terms.of_tokens(at / 4, thread);
            }
            float both[2];
#pragma unroll
            for (int k = 0; k < 2; k++) {
                float left = sums[at + k], right = sums[at + 2 + k];
                left = NORMED ? terms.norm(left, 0, tokens, k) : terms.apply(left, 0);
                right = NORMED ? terms.norm(right, 1, tokens, k) : terms.apply(right, 1);
                both[k] = silu.apply(left) * right;
            }
            words[i] = epilogue::round_pair(e.type, both[0], both[1]);
        }
        if constexpr (BY_TOKEN) {
            ptx::store_matrices_transposed(to + half * 2048, words);
        } else {
            ptx::store_matrices(to ^ (uint32_t)half * 64, words); // swizzled by an exclusive or
        }
    }
}

} // namespace panel

#endif
