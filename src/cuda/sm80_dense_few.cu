// Y = epilogue(W X) for dense weights of 16 bits and up to 16 tokens, on every GPU from compute capability 8.0
// on. Reference: src/ref/matmul.c.
//
// Idea. A stream of weights (few.cuh), tokens as the 8 columns of mma. W lies as its user gave it, [out][in];
// a lane copies 16 bytes of a row, eight features, and is itself the one that reads them back, so the ring
// needs no order but its own. Eight features of a lane are the operands of two products: which feature is
// which column of a product does not matter, as long as X follows, and ldmatrix lets each lane name the row
// of X that it wants.
//
// Shared memory, bytes: 4 warps x 4 steps x 4096 of weights (in the end sums) | 4 warps x 1024 (2048 above 8
// tokens) of X: 68 or 72 KB, three blocks a multiprocessor where there are 227 KB. Row k of a step's X is at
// k ^ (k / 8 % 4 * 2), so that the rows that one ldmatrix picks, two of each eight, lie in different banks.
//
// Tails. Rows past the end, features past `in` and tokens past the end are zero and never read. Rows that do
// not begin at 16 bytes (in no multiple of 8) are loaded element by element, several times slower.
//
// Limit: memory bandwidth. A weight of few rows does not reach it: one multiprocessor has at least 32 rows.
#include "cuda/few.cuh"

namespace {

// A step of 64 features is 8 pieces of 512 bytes: [2 groups of 16 rows][upper, lower 8][2 halves of features],
// 16 bytes a lane; lane 4 r + q has features 8 q.. of row r.
template <bool IS_BF16, bool WHOLE> struct dense_slab {
    static constexpr bool BF16 = IS_BF16;
    static constexpr int WARPS = 4, STAGES = 4, PIECES = 8;
    static constexpr uint32_t STAGE_BYTES = few::SLAB_ROWS * GPU_STEP_COLUMNS * 2;
    const uint16_t *weight; // first row of the slab
    int64_t in;
    int steps, first_row, rows; // rows of the slab
    uint64_t policy;

    __device__ __forceinline__ dense_slab(const gpu_dense_product &p, int slab)
        : weight((const uint16_t *)p.weight + (int64_t)slab * few::SLAB_ROWS * p.in), in(p.in),
          steps((int)((p.in + GPU_STEP_COLUMNS - 1) / GPU_STEP_COLUMNS)), first_row(slab * few::SLAB_ROWS),
          rows((int)min((int64_t)few::SLAB_ROWS, p.out - first_row)), policy(ptx::evict_first_policy())
    {
    }

    __device__ __forceinline__ int64_t column(int step, int i) const
    {
        return (int64_t)step * GPU_STEP_COLUMNS + i;
    }

    static __device__ __forceinline__ int slot(int i)
    {
        return i ^ (i / 8 % 4 * 2);
    }

    static __device__ __forceinline__ int row_of(int piece, int lane)
    {
        return piece / 4 * 16 + piece / 2 % 2 * 8 + lane / 4;
    }

    __device__ __forceinline__ void fetch(uint32_t to, int step, int lane) const
    {
        int64_t first = (int64_t)step * GPU_STEP_COLUMNS;
        to += lane * 16;
        if (WHOLE && first + GPU_STEP_COLUMNS <= in && rows == few::SLAB_ROWS) {
            const uint16_t *from = weight + (lane / 4) * in + first + lane % 4 * 8;
#pragma unroll
            for (int i = 0; i < PIECES; i++) {
                ptx::copy_16_once(to + i * 512, from + (row_of(i, lane) - lane / 4) * in + i % 2 * 32,
                                  policy);
            }
            return;
        }
#pragma unroll 1
        for (int i = 0; i < PIECES; i++) {
            int row = row_of(i, lane);
            int64_t feature = first + i % 2 * 32 + lane % 4 * 8;
            fetch_eight(to + i * 512, weight + row * in + feature, row < rows ? in - feature : 0);
        }
    }

    // Eight features, of which `there` exist.
    __device__ __forceinline__ void fetch_eight(uint32_t to, const uint16_t *from, int64_t there) const
    {
        if constexpr (WHOLE) {
            ptx::copy_16(to, there > 0 ? from : weight, there > 0 ? 16 : 0);
        } else {
            uint32_t word[4] = {};
#pragma unroll
            for (int i = 0; i < 8; i++) {
                word[i / 2] |= there > i ? (uint32_t)__ldg(from + i) << (i % 2 * 16) : 0;
            }
            ptx::store_shared_16(to, make_uint4(word[0], word[1], word[2], word[3]));
        }
    }

    template <int EIGHTS>
    __device__ __forceinline__ void multiply(uint32_t weights, uint32_t x, int lane,
                                             few::warp_sums<EIGHTS> &sums) const
    {
        // Lane 8 m + i names row i of matrix m: features 2 m and 2 m + 1 of each eight.
        int wanted = lane % 8 / 2 * 8 + lane / 8 * 2 + lane % 2;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t b[EIGHTS][4];
#pragma unroll
            for (int e = 0; e < EIGHTS; e++) {
                ptx::load_matrices_transposed(x + e * 1024 + slot(half * 32 + wanted) * 16, b[e]);
            }
#pragma unroll
            for (int s = 0; s < few::SIXTEENS; s++) {
                uint32_t from = weights + (s * 4 + half) * 512 + lane * 16;
                uint4 upper = ptx::load_shared_16(from), lower = ptx::load_shared_16(from + 2 * 512);
#pragma unroll
                for (int e = 0; e < EIGHTS; e++) {
                    ptx::product_16x8<BF16>(sums[s][e], upper.x, lower.x, upper.y, lower.y, b[e][0],
                                            b[e][1]);
                    ptx::product_16x8<BF16>(sums[s][e], upper.z, lower.z, upper.w, lower.w, b[e][2],
                                            b[e][3]);
                }
            }
        }
    }

    static __device__ __forceinline__ int row_in_sixteen(int group, int half)
    {
        return group + half * 8;
    }

    __device__ __forceinline__ int output_row(int i) const
    {
        return i < rows ? first_row + i : -1;
    }
};

template <int EIGHTS, bool BF16, few::reading READING, bool WHOLE>
__global__ void __launch_bounds__(dense_slab<BF16, WHOLE>::WARPS * 32, 3)
    dense_few_kernel(const __grid_constant__ gpu_dense_product p)
{
    extern __shared__ __align__(128) unsigned char memory[];
    dense_slab<BF16, WHOLE> slab(p, blockIdx.x);
    few::multiply_slab<dense_slab<BF16, WHOLE>, EIGHTS, READING>(slab, p, memory);
}

template <bool BF16, bool WHOLE> struct launcher {
    template <int EIGHTS, few::reading READING> static int run(const gpu_dense_product &p, void *stream)
    {
        using slab = dense_slab<BF16, WHOLE>;
        constexpr uint32_t shared = few::map_of<slab, EIGHTS>::SHARED;
        static std::atomic<uint64_t> prepared;
        auto kernel = dense_few_kernel<EIGHTS, BF16, READING, WHOLE>;
        int failed = gpu_prepare((const void *)kernel, shared, p.device, &prepared);
        if (failed != 0) {
            return failed;
        }
        unsigned slabs = (unsigned)((p.out + few::SLAB_ROWS - 1) / few::SLAB_ROWS);
        kernel<<<slabs, slab::WARPS * 32, shared, (cudaStream_t)stream>>>(p);
        return cudaGetLastError();
    }
};

template <bool BF16> int launch(const gpu_dense_product &p, void *stream)
{
    bool whole = p.in % 8 == 0 && (uintptr_t)p.weight % 16 == 0;
    return whole ? few::launch_by_reading<launcher<BF16, true>>(p, stream)
                 : few::launch_by_reading<launcher<BF16, false>>(p, stream);
}

} // namespace

extern "C" int gpu_sm80_dense_few(const gpu_dense_product *product, void *stream)
{
    return product->bf16 ? launch<true>(*product, stream) : launch<false>(*product, stream);
}
