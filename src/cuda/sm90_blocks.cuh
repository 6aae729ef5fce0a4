// Y = epilogue(W X) for block-sparse W, many tokens, on Hopper. Reference: src/ref/matmul.c.
//
// Idea. A stored block is a small dense matrix, so the tensor cores are not the first limit: that is the way
// of X from the L2 into the multiprocessor, since a block of R rows uses what it loads R times only. So rows
// of blocks that share columns are brought together in bands of 128 rows (blocks_order.c), a tile is a band x
// T tokens, and each piece of X that any row of the band needs is loaded once.
//
// Who does what. One block a multiprocessor walks over tiles. One warp loads: a stage of the ring in shared
// memory is a step of 64 columns (pieces of 16, 32 or 64, wherever they lie in X), fetched by tensor copies,
// and its weights, two bulk copies, one for each half of the band. Two warpgroups multiply, each a half:
// weights go to registers (a fragment is 16 bytes a lane; where a block is missing, zeros), X is read from
// shared memory. 16 columns for which a half has no fragment are skipped. Sums of 16-bit types leave by
// tensor stores, which go on while the next tile begins; everything else through a strip of f32. Activations
// and residuals have kernels of their own (sm90_blocks_finish.cuh): in one with bare sums they outgrow the
// instruction cache and cost those a fifth.
//
// Balance. Bands differ in length. They are sorted, the longest first, and dealt to the multiprocessors back
// and forth: for random weights 3 to 7 % above the mean load, and it needs no counter in memory.
//
// 0 * Inf. Rows of blocks smaller than 64 share a product with rows that lack the block, for which a zero
// stands in. That is right unless X is not finite there; then the sums are not finite either, which is seen
// before they leave, and such strips are computed again, fragment by fragment (`leave_exactly`).
//
// Shared memory, bytes, T = 256: 4 stages x (32768 of X + 16384 of weights) | 8 warps x 4096 of leaving sums |
// 4 x 4 of masks | barriers. With activations or residuals 3 stages, 8 warps x 8192. Registers: 128 sums and
// 2 x 16 of weights a thread (232 in all), 40 a loader.
//
// Tails. Tensor copies write zeros for columns and tokens past the end of X; columns of padding are such.
//
// Limit: the L2, which gave 27 bytes a clock and multiprocessor here; docs/kernels-gpu.md.
#ifndef ESP_CUDA_SM90_BLOCKS_CUH
#define ESP_CUDA_SM90_BLOCKS_CUH

#include "cuda/blocks_launch.cuh"
#include "cuda/sm90_blocks_load.cuh"
#include "cuda/sm90_blocks_multiply.cuh"

namespace blocks {

// What a warp has to know of a tile; asked for a tile ahead.
struct tile_facts {
    int begin, end; // steps
    int row;        // of Y, the first of the warp's strip; the others follow; -1: none

    __device__ __forceinline__ void load(const gpu_blocks &w, const tiles &all, int index,
                                         int count, int warp)
    {
        if (index < count) {
            int band = band_at(all, index);
            begin = __ldg(w.band_steps + band);
            end = __ldg(w.band_steps + band + 1);
            row = __ldg(w.rows + band * GPU_BAND_ROWS + warp * GPU_STRIP_ROWS);
        }
    }
};

template <class C>
__device__ __forceinline__ void consume(const gpu_block_product &p, const tiles &all,
                                        const maps *with, const shared_map<C> &at, float *strip)
{
    int lane = threadIdx.x % 32, warp = uniform(threadIdx.x / 32);
    const gpu_epilogue &e = p.epilogue;
    bool engine = C::WHOLE || (is_plain(e) && goes_by_engine(p));
    bool pairs = ending::of<C>(e).gates();
    departures<C> leaving = {with, e, at.staging(warp), at.residual(warp),
                             C::WHOLE && ending::of<C>(e).adds()};
    consumer<C> self = {at, warp / 4, warp % 4, lane, leaving, {}, 0, {}};
    self.set_unit(p.weight.unit);
    int count = all.bands * all.tokens;
    tile_facts facts, coming = {};
    coming.load(p.weight, all, dealt(0), count, warp);
    mma::wait_for_launch_before();
    for (int round = 0, index = dealt(0); index < count; index = dealt(++round)) {
        tile t = tile_at<C>(all, index);
        facts = coming;
        coming.load(p.weight, all, dealt(round + 1), count, warp);
        int steps = uniform(facts.end - facts.begin);
        two_terms terms; // loaded ahead where nothing else covers the way from memory
        float sums[C::TOKENS / 2];
#pragma unroll
        for (int i = 0; i < C::TOKENS / 2; i++) {
            sums[i] = 0;
        }
        if constexpr (C::WHOLE) {
            self.leaving.announce(pairs && facts.row > 0 ? facts.row / 2 : facts.row, t.token, steps);
            terms.load(e, facts.row >= 0 ? facts.row + lane / 4 * 2 : -1, p.weight.out);
        }
        self.multiply(sums, steps);
        if constexpr (C::WHOLE) {
            self.leaving.settle(lane);
        }
        if (p.weight.narrow && !all_finite(sums)) {
            leave_exactly<C>(p, t.band, warp, t.token, strip, lane);
            if constexpr (C::WHOLE) { // the engine may write there next
                ptx::async_fence();
                __syncwarp();
            }
        } else if constexpr (C::WHOLE) {
            leave_finished<C>(p, self.leaving, sums, terms, lane);
        } else if (engine) {
            leave_by_engine<C>(p, &with->y, sums, facts.row, t.token, at.staging(warp), lane);
        } else {
            const int32_t *rows = p.weight.rows + t.band * GPU_BAND_ROWS + warp * GPU_STRIP_ROWS;
            leave_by_strip<C>(e, sums, rows, t.token, strip, lane);
        }
    }
    if constexpr (C::WHOLE) {
        self.leaving.announce(-1, 0, 0);
        self.leaving.settle(lane);
    }
    if (lane == 0) {
        ptx::store_wait_read<0>();
    }
}

template <class C>
__global__ void __launch_bounds__(THREADS, 1)
    kernel(const __grid_constant__ gpu_block_product p, const tiles all,
           const __grid_constant__ maps with)
{
    extern __shared__ unsigned char memory[];
    uint32_t start = ptx::shared_address(memory), aligned = (start + 1023) & ~1023u;
    shared_map<C> at = {aligned};
    mma::let_next_launch_begin();
    if (threadIdx.x == 0) {
        for (int i = 0; i < C::STAGES; i++) {
            ptx::barrier_init(at.full(i), 1);
            ptx::barrier_init(at.empty(i), WARPS * 32);
        }
        for (int i = 0; i < WARPS; i++) {
            ptx::barrier_init(at.residual(i), 1);
        }
        ptx::barrier_init_fence();
    }
    __syncthreads();
    int warp = uniform(threadIdx.x / 32);
    if (warp >= WARPS) {
        ptx::give_registers<40>();
        if (warp == WARPS) {
            load<C>(p, all, &with.x, at, threadIdx.x % 32);
        }
    } else {
        ptx::take_registers<232>();
        float *strip = (float *)(memory + (at.staging(warp) - start));
        consume<C>(p, all, &with, at, strip);
    }
}

// ---- launching ----

using encode_function = CUresult (*)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                     const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                     const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                     CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

inline encode_function find_encode()
{
    void *function = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaError_t failed = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                          12000, cudaEnableDefault, &found);
    return failed == cudaSuccess ? (encode_function)function : nullptr;
}

// A tensor of 16-bit elements; sizes and box in elements, strides in elements too.
struct description {
    void *data;
    int rank;
    int64_t sizes[3], strides[2];
    int box[3];
    bool swizzled; // over the length of the box's rows
};

inline int describe(const description &d, CUtensorMap *map)
{
    static const encode_function encode = find_encode();
    if (encode == nullptr) {
        return cudaErrorNotSupported;
    }
    cuuint64_t sizes[3], strides[2];
    cuuint32_t box[3];
    const cuuint32_t steps[3] = {1, 1, 1};
    for (int i = 0; i < d.rank; i++) {
        sizes[i] = (cuuint64_t)d.sizes[i];
        box[i] = (cuuint32_t)d.box[i];
        strides[i % 2] = i < 2 ? (cuuint64_t)d.strides[i] * 2 : strides[i % 2];
    }
    CUtensorMapSwizzle swizzle = !d.swizzled      ? CU_TENSOR_MAP_SWIZZLE_NONE
                                 : d.box[0] == 64 ? CU_TENSOR_MAP_SWIZZLE_128B
                                 : d.box[0] == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                  : CU_TENSOR_MAP_SWIZZLE_32B;
    CUresult failed =
        encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, (cuuint32_t)d.rank, d.data, sizes, strides, box,
               steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return failed == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <class C> int describe_x(const gpu_block_product &p, const tiles &all, CUtensorMap *map)
{
    int64_t in = p.weight.in, stride = p.x_stride;
    void *x = (void *)p.x;
    int unit = p.weight.unit;
    if (C::BY_TOKEN) {
        return describe({x, 2, {in, p.tokens}, {stride}, {unit, C::TOKENS}, true}, map);
    }
    if (all.whole_boxes) { // strips of 64 tokens, so that one copy brings them all
        return describe({x, 3, {64, in, p.tokens / 64}, {stride, 64}, {64, unit, C::TOKENS / 64}, true},
                        map);
    }
    return describe({x, 2, {p.tokens, in}, {stride}, {64, unit}, true}, map);
}

// `data`: Y or the residual, which lies likewise. Boxes are a strip's rows, of which swiglu leaves half.
inline int describe_y(const gpu_block_product &p, const void *data, CUtensorMap *map)
{
    const gpu_epilogue &e = p.epilogue;
    bool pairs = (e.bits & ESP_EP_SWIGLU) != 0;
    int64_t out = pairs ? p.weight.out / 2 : p.weight.out;
    int rows = pairs ? GPU_STRIP_ROWS / 2 : GPU_STRIP_ROWS;
    void *y = (void *)data;
    return e.token_step == 1 ? describe({y, 2, {e.tokens, out}, {e.feature_step}, {64, rows}, true}, map)
                             : describe({y, 2, {out, e.tokens}, {e.token_step}, {rows, 64}, false}, map);
}

template <class C> int describe_all(const gpu_block_product &p, const tiles &all, maps *with)
{
    int failed = describe_x<C>(p, all, &with->x);
    if (failed == 0 && goes_by_engine(p)) {
        failed = describe_y(p, p.epilogue.y, &with->y);
        if (failed == 0 && (p.epilogue.bits & ESP_EP_RESIDUAL) != 0) {
            failed = describe_y(p, p.epilogue.residual, &with->residual);
        }
    }
    return failed;
}

// A slab of X fills at most 3 / 8 of the L2, whose halves each keep a copy. For blocks of 128 rows
// 8 tiles of tokens were a fifth faster than 4; for smaller blocks the width made little difference.
template <class C> tiles tiles_of(const gpu_block_product &p)
{
    tiles all = {p.weight.bands, (p.tokens + C::TOKENS - 1) / C::TOKENS, 1, p.tokens % 64 == 0};
    int64_t most = p.l2_bytes * 3 / 8 / (p.weight.in * (int64_t)C::TOKENS * 2);
    int64_t slabs = most < 1 ? all.tokens : (all.tokens + most - 1) / most;
    all.slab = (int)((all.tokens + slabs - 1) / slabs);
    return all;
}

template <class C> int launch_as(const gpu_block_product &p, void *stream)
{
    static std::atomic<uint64_t> prepared;
    int failed = gpu_prepare((const void *)kernel<C>, C::SHARED, p.device, &prepared);
    tiles all = tiles_of<C>(p);
    maps with = {};
    if (failed == 0) {
        failed = describe_all<C>(p, all, &with);
    }
    if (failed != 0) {
        return failed;
    }
    int64_t count = (int64_t)all.bands * all.tokens;
    dim3 grid((unsigned)(count < p.multiprocessors ? count : p.multiprocessors));
    return launch_beside(p.overlaps, kernel<C>, grid, THREADS, C::SHARED, stream, p, all, with);
}

template <bool BF16, bool BY_TOKEN, unsigned ENDING = 0>
int launch_whole(const gpu_block_product &p, int tile_tokens, void *stream)
{
    return tile_tokens == 256
               ? launch_as<config<BF16, BY_TOKEN, 256, 3, true, ENDING>>(p, stream)
               : launch_as<config<BF16, BY_TOKEN, 128, 6, true, ENDING>>(p, stream);
}

template <bool BF16, bool BY_TOKEN>
int launch_tile(const gpu_block_product &p, int tile_tokens, void *stream)
{
    const gpu_epilogue &e = p.epilogue;
    if (is_plain(e) || !goes_by_engine(p)) {
        return tile_tokens == 256 ? launch_as<config<BF16, BY_TOKEN, 256, 4, false>>(p, stream)
                                  : launch_as<config<BF16, BY_TOKEN, 128, 6, false>>(p, stream);
    }
    if constexpr (!BY_TOKEN) { // the endings that models ask for
        bool usual = e.token_step == 1 && e.type == (BF16 ? GPU_BF16 : GPU_F16);
        unsigned ending = e.bits & ~(unsigned)(ESP_EP_SCALE | ESP_EP_BIAS);
        if (usual && ending == ESP_EP_GELU) {
            return launch_whole<BF16, false, ESP_EP_GELU>(p, tile_tokens, stream);
        }
        if (usual && ending == ESP_EP_RESIDUAL) {
            return launch_whole<BF16, false, ESP_EP_RESIDUAL>(p, tile_tokens, stream);
        }
    }
    return launch_whole<BF16, BY_TOKEN>(p, tile_tokens, stream);
}

template <bool BF16> int launch(const gpu_block_product &p, int tile_tokens, void *stream)
{
    return p.x_by_token ? launch_tile<BF16, true>(p, tile_tokens, stream)
                        : launch_tile<BF16, false>(p, tile_tokens, stream);
}

} // namespace blocks

#endif
