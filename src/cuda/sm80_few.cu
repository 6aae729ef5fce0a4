// Y = epilogue(W X) for panels (2:4 is one panel without a column list) and up to 16 tokens, on every GPU from
// compute capability 8.0 on. Reference: src/ref/matmul.c.
//
// Idea. Every weight is used once, so the kernel is a stream of weights (few.cuh). They are the 16-row operand
// of mma.sp, tokens its 8 columns. A slab of 32 rows is a packed block of 32 rows or half of one of 64; in the
// latter its values are 1024 bytes of each 2048.
//
// Shared memory, bytes: 8 warps x 3 steps x 2304 of weights (in the end sums) | 8 warps x 1024 (2048 above 8
// tokens) of X: 63 or 71 KB, three blocks a multiprocessor where there are 227 KB.
//
// Tails. Weights are padded with zeros; groups of 16 rows that are all padding are not read; columns past the
// list and tokens past the end are zero and never read from X.
//
// Limit: memory bandwidth. A weight of few rows does not reach it: one multiprocessor has at least 32 rows.
#include "cuda/few.cuh"

namespace {

template <bool IS_BF16> struct panel_slab {
    static constexpr bool BF16 = IS_BF16;
    static constexpr int WARPS = 8, STAGES = 3;
    static constexpr uint32_t PART_BYTES = few::SLAB_ROWS * 32, STAGE_BYTES = few::SLAB_ROWS * GPU_ROW_BYTES;
    const gpu_panels &w;
    int64_t in;
    int steps, sixteens; // groups of 16 rows that hold anything
    int64_t list;
    const char *data; // of this slab
    uint32_t part_bytes, step_bytes, positions_at; // of the block that it is cut from
    const int32_t *rows;
    uint64_t policy;

    __device__ __forceinline__ panel_slab(const gpu_panels &weight, int slab)
        : w(weight), in(weight.in), steps(weight.steps), policy(ptx::evict_first_policy())
    {
        int slabs = w.block_rows / few::SLAB_ROWS, block = slab / slabs, part = slab % slabs;
        part_bytes = w.block_rows * 32;
        step_bytes = w.block_rows * GPU_ROW_BYTES;
        positions_at = 2 * part_bytes + part * 256 - part * PART_BYTES;
        data = (const char *)w.data + (int64_t)block * steps * step_bytes + part * PART_BYTES;
        list = (int64_t)(block / w.blocks) * steps * GPU_STEP_COLUMNS;
        rows = w.rows + (int64_t)slab * few::SLAB_ROWS;
        // Not from the table of rows: its load would be waited for before the first weights are asked for.
        int inside = (block % w.blocks * slabs + part) * few::SLAB_ROWS;
        int64_t last = w.out - (int64_t)(block / w.blocks) * w.panel_rows; // of a short last panel
        int64_t used = min(w.panel_rows, last) - inside;
        sixteens = used <= 0 ? 0 : used <= 16 ? 1 : 2;
    }

    __device__ __forceinline__ int64_t column(int step, int i) const
    {
        int64_t j = (int64_t)step * GPU_STEP_COLUMNS + i;
        if (w.columns == nullptr) {
            return j;
        }
        return w.wide ? ((const uint32_t *)w.columns)[list + j] : ((const uint16_t *)w.columns)[list + j];
    }

    static __device__ __forceinline__ int slot(int i)
    {
        return i;
    }

    // The values of 16 rows lie together in each half of the columns, and so do their positions.
    __device__ __forceinline__ void fetch(uint32_t to, int step, int lane) const
    {
        const char *from = data + (int64_t)step * step_bytes + lane * 16;
        to += lane * 16;
#pragma unroll
        for (int s = 0; s < few::SIXTEENS; s++) {
            if (s < sixteens) {
                ptx::copy_16_once(to + s * 512, from + s * 512, policy);
                ptx::copy_16_once(to + PART_BYTES + s * 512, from + part_bytes + s * 512, policy);
            }
        }
        if (lane < sixteens * 8) {
            ptx::copy_16_once(to + 2 * PART_BYTES, from + positions_at, policy);
        }
    }

    template <int PART, int EIGHTS>
    __device__ __forceinline__ void multiply_part(uint32_t weights, uint32_t x, int lane,
                                                  const uint32_t (&positions)[few::SIXTEENS],
                                                  few::warp_sums<EIGHTS> &sums) const
    {
        uint32_t b[EIGHTS][4];
#pragma unroll
        for (int e = 0; e < EIGHTS; e++) {
            ptx::load_matrices_transposed(x + e * 1024 + (PART * 32 + lane) * 16, b[e]);
        }
        uint32_t piece = lane / 8, row = lane % 8;
        uint32_t from = weights + PART * PART_BYTES + piece % 2 * 256 + piece / 2 * 128 + row * 16;
#pragma unroll
        for (int s = 0; s < few::SIXTEENS; s++) {
            if (s < sixteens) {
                uint32_t a[4];
                ptx::load_matrices(from + s * 512, a);
#pragma unroll
                for (int e = 0; e < EIGHTS; e++) {
                    ptx::sparse_product_16x8<PART, BF16>(sums[s][e], a, b[e], positions[s]);
                }
            }
        }
    }

    template <int EIGHTS>
    __device__ __forceinline__ void multiply(uint32_t weights, uint32_t x, int lane,
                                             few::warp_sums<EIGHTS> &sums) const
    {
        uint32_t positions[few::SIXTEENS];
#pragma unroll
        for (int s = 0; s < few::SIXTEENS; s++) {
            positions[s] =
                s < sixteens ? ptx::load_shared(weights + 2 * PART_BYTES + s * 128 + lane * 4) : 0;
        }
        multiply_part<0, EIGHTS>(weights, x, lane, positions, sums);
        multiply_part<1, EIGHTS>(weights, x, lane, positions, sums);
    }

    static __device__ __forceinline__ int row_in_sixteen(int group, int half) // dealt so by the packing
    {
        return group * 2 + half;
    }

    __device__ __forceinline__ int output_row(int i) const
    {
        return rows[i];
    }
};

template <int EIGHTS, bool BF16, few::reading READING>
__global__ void __launch_bounds__(panel_slab<BF16>::WARPS * 32, EIGHTS == 2 && READING == few::ANY ? 2 : 3)
    few_kernel(const __grid_constant__ gpu_product p)
{
    extern __shared__ __align__(128) unsigned char memory[];
    panel_slab<BF16> slab(p.weight, blockIdx.x);
    if (slab.sixteens > 0) {
        few::multiply_slab<panel_slab<BF16>, EIGHTS, READING>(slab, p, memory);
    }
}

template <bool BF16> struct launcher {
    template <int EIGHTS, few::reading READING> static int run(const gpu_product &p, void *stream)
    {
        constexpr uint32_t shared = few::map_of<panel_slab<BF16>, EIGHTS>::SHARED;
        static std::atomic<uint64_t> prepared;
        auto kernel = few_kernel<EIGHTS, BF16, READING>;
        int failed = gpu_prepare((const void *)kernel, shared, p.device, &prepared);
        if (failed != 0) {
            return failed;
        }
        int64_t slabs = (int64_t)p.weight.panels * p.weight.blocks * (p.weight.block_rows / few::SLAB_ROWS);
        kernel<<<(unsigned)slabs, panel_slab<BF16>::WARPS * 32, shared, (cudaStream_t)stream>>>(p);
        return cudaGetLastError();
    }
};

} // namespace

extern "C" int gpu_sm80_few(const gpu_product *product, void *stream)
{
    return product->bf16 ? few::launch_by_reading<launcher<true>>(*product, stream)
                         : few::launch_by_reading<launcher<false>>(*product, stream);
}
