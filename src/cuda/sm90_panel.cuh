// Y = epilogue(W X) for panels (2:4 is one panel without a column list), many tokens, on Hopper.
// Reference: src/ref/matmul.c.
//
// Idea. Inside its kept columns a panel is an ordinary 2:4 matrix, so the sparse warpgroup product
// (wgmma.sp, 64 rows x N tokens x 32 columns) computes it once the kept rows of X lie side by side
// in shared memory. Choosing columns thus costs nothing but the way in which X is loaded.
//
// Who does what. One block a multiprocessor walks over tiles of rows x tokens. One warpgroup loads
// (sm90_panel_load.cuh), two multiply (sm90_panel_multiply.cuh) and let sums leave
// (sm90_panel_leave.cuh, _strips). The stages of a ring in shared memory hold 64 kept
// columns each:
//   weights  by one tensor copy, packed in just the form that the product reads (pack.cu)
//   X        GATHER: rows of X picked by the panel's list, 16-byte cp.async, any columns in any
//   order
//            FEATURES, TOKENS: 2:4 has no list, so the tensor copy engine fetches boxes of X,
//            whichever way it lies
//            SPREAD: V:2:5 as 2:4 over all columns in another order (sm90_panel_spread.cuh)
// The copies of a stage arrive at its `full` barrier by themselves. Consumers keep one product in
// flight and free a stage (`empty`) when the next but one is issued.
//
// Shared memory, bytes: STAGES x TILE_TOKENS * 128 of X | STAGES x TILE_BLOCKS * 4608 of weights |
// barriers | sums on their way out, terms of norms. Registers: 128 accumulators a thread (232 in
// all), 40 a loader; 64 accumulators leave more to the loaders.
//
// Tails. Weights are padded with zeros; columns past the list, features past `in` and tokens past
// the end are written as zero into shared memory and never read from X, so that NaN there does no
// harm; rows past the end have no output row. X at addresses that 16-byte accesses cannot take is
// loaded element by element.
//
// Limits: docs/kernels-gpu.md. In short: a product reads 18 KB of shared memory in 144 clocks,
// which is all that shared memory can give, and what fills the ring competes with it.
#ifndef ESP_CUDA_SM90_PANEL_CUH
#define ESP_CUDA_SM90_PANEL_CUH

#include "cuda/sm90_panel_ahead.cuh"
#include "cuda/sm90_panel_load.cuh"
#include "cuda/sm90_panel_multiply.cuh"
#include "cuda/sm90_panel_split.cuh"
#include "cuda/sm90_panel_stagger.cuh"
#include "cuda/sm90_panel_strips.cuh"
#include "cuda/sm90_tensor.cuh"

namespace panel
{

// A warpgroup's share of a tile.
struct share {
    int panel, block, blocks; // `blocks` of the panel, from `block` on, are left; none: <= 0
    int token, width;
};

// Its first row in Y; for weights whose rows are in their order.
__device__ __forceinline__ int first_row(const gpu_panels &w, const share &s)
{
    return (int)(s.panel * w.panel_rows) + s.block * GPU_BLOCK_ROWS;
}

template <class C>
__device__ __forceinline__ void leave_by_strips(const gpu_tiled &tiled,
                                                const float (&sums)[C::BLOCKS][C::N / 2],
                                                const share &s, float *strip, int thread)
{
    const gpu_panels &w = tiled.product.weight;
    const int32_t *rows = w.rows + ((int64_t)s.panel * w.blocks + s.block) * GPU_BLOCK_ROWS;
#pragma unroll
    for (int i = 0; i < C::BLOCKS; i++) {
        if (i < s.blocks) {
            const int32_t *mine = rows + i * GPU_BLOCK_ROWS + thread / 32 * 16;
            leave<C::N>(tiled.product.epilogue, sums[i], mine, s.token, s.token + s.width, strip,
                        thread % 32);
        }
    }
}

template <class C, way WAY>
__device__ __forceinline__ void leave_tile(const gpu_tiled &tiled, consumer<C, WAY> &self,
                                           const float (&sums)[C::BLOCKS][C::N / 2], const share &s,
                                           int row, const row_terms &terms, float *strip)
{
    if constexpr (WAY == BY_ENGINE) {
        leave_at_once<C>(tiled.product, self.leaving, sums, row, s.token, s.width, terms,
                         self.thread);
    } else {
        leave_by_strips<C>(tiled, sums, s, strip, self.thread);
    }
}

template <class C, way WAY>
__device__ __forceinline__ void consume(const gpu_tiled &tiled, const maps &with,
                                        const shared_map<C> &at, unsigned char *memory, int group,
                                        int thread)
{
    const gpu_product &p = tiled.product;
    constexpr bool CAN_SPLIT = C::SHARING != IN_TURNS;
    departures<C> leaving = {&with, p, tiled, at.chunks(group), 1 + group};
    consumer<C, WAY> self = {at, C::SHARING == BY_ROWS ? group * C::BLOCKS : 0, 0, thread, leaving,
                             {}};
    float *strip = (float *)(memory + C::LEAVING_AT) + (group * 4 + thread / 32) * STRIP_FLOATS;
    float sums[C::BLOCKS][C::N / 2];
    stretch steps = steps_of(p);
    split_sums<C> all = {at,    p.deal.split, (int)blockIdx.x % p.deal.split,
                         group, thread,       least_share(p)};
    int count = steps.end - steps.first;
    if (C::SHARING == IN_TURNS && group == 1) {
        ptx::named_barrier_arrive(TURN_BARRIER, 256);
    }
    constexpr bool turns = C::SHARING == IN_TURNS;
    walk<C> tiles = {p.deal};
    tile t, coming, later; // in turns `coming` is the other's
    bool there = tiles.next(&t);
    if (turns && group == 1) {
        self.place.skip(count);
        there = there && tiles.next(&t);
    }
    bool follows = there && tiles.next(&coming), more = false;
    const x_ahead<C> ahead = {p, turns ? thread : group * 128 + thread};
    if (there) {
        ahead.ask(t);
    }
    ptx::stream_order_wait();
    while (there) {
        int width = C::N >> t.shift; // of this consumer
        self.token = C::SHARING == BY_TOKENS ? group * width : 0;
        share mine = {t.panel, t.block + self.block, p.weight.blocks - t.block - self.block,
                      t.token + self.token, width};
        if (CAN_SPLIT && p.deal.split > 1) {
            all.mine(&mine.token, &mine.width);
            mine.blocks = mine.width == 0 ? 0 : mine.blocks;
        }
        int row = first_row(p.weight, mine);
        row_terms terms;
        bool adds = WAY == BY_ENGINE && !C::NORMS &&
                    (C::LEAVES || (p.epilogue.bits & ESP_EP_RESIDUAL) != 0);
        leaving.residual = residual_ahead<C>();
        if (adds && mine.blocks > 0) {
            leaving.residual.begin(p, row, mine.token, mine.width, count, thread);
        }
        if constexpr (C::NORMS) {
            leaving.norm.begin(tiled.normed, mine.token, mine.width, p.tokens, thread);
        }
        self.multiply_tile(sums, t.shift, count, group, turns && follows, [&] {
            if (WAY != BY_STRIPS) {
                terms.template load<C::NORMS>(tiled, row, thread, at.norms(group));
            }
            if constexpr (C::NORMS) {
                leaving.norm.finish(tiled.normed, at.norms(group), thread);
            }
            if (adds) {
                leaving.residual.load_first(p.epilogue);
            }
            more = follows && tiles.next(&later);
            if (more && ahead.worthwhile(count)) {
                ahead.ask(later);
            }
        });
        if (turns) {
            self.place.skip(count);
        }
        if (CAN_SPLIT && p.deal.split > 1) {
            all.share(sums[0], width);
            if (mine.blocks > 0) {
                leave_tile<C, WAY>(tiled, self, sums, mine, row, terms, strip);
            }
            break; // no other follows, which spares the products sums that are not theirs
        }
        if (mine.blocks > 0) {
            leave_tile<C, WAY>(tiled, self, sums, mine, row, terms, strip);
        }
        there = turns ? more : follows;
        t = turns ? later : coming;
        if (turns) {
            follows = more && tiles.next(&coming);
        } else {
            follows = more, coming = later;
        }
    }
    leaving.send_all(thread);
    if (thread == 0) {
        ptx::bulk_wait_all();
    }
}

template <class C, way WAY>
__device__ __forceinline__ void consume_as(const gpu_tiled &tiled, const maps &with,
                                           const shared_map<C> &at, unsigned char *memory,
                                           int group, int thread)
{
    if constexpr (C::STAGGERED) {
        consume_staggered<C, WAY>(tiled, with, at, memory, group, thread);
    } else {
        consume<C, WAY>(tiled, with, at, memory, group, thread);
    }
}

template <class C>
__global__ void __launch_bounds__(C::THREADS, 1)
    kernel(const __grid_constant__ gpu_tiled tiled, const __grid_constant__ maps_of<C> with)
{
    const gpu_product &p = tiled.product;
    extern __shared__ unsigned char memory[];
    uint32_t start = ptx::shared_address(memory), aligned = (start + 1023) & ~1023u;
    shared_map<C> at = {aligned};
    // The same in all lanes of a warp, and known to be.
    int group = __shfl_sync(~0u, (int)threadIdx.x / 128, 0), thread = threadIdx.x % 128;
    if (threadIdx.x == 0) {
        // the announcement, and the copies: none but the engine's, one a thread, or one a warp
        int copies = p.x_aligned ? (C::LOADING == GATHER ? LOADERS : 0) : LOADER_WARPS;
        for (int i = 0; i < C::STAGES; i++) {
            ptx::barrier_init(at.full(i), 1 + copies);
            ptx::barrier_init(at.empty(i), C::READERS);
        }
        ptx::barrier_init_fence();
    }
    __syncthreads();
    ptx::launch_next();
    if (group == C::GROUPS) {
        ptx::give_registers<C::LOADER_REGISTERS>();
        if (!p.x_aligned) {
            load_elements<C>(p, with, at, thread);
        } else if constexpr (C::LOADING == GATHER) {
            if (p.weight.wide) {
                load_gathered<C, true>(p, with, at, thread);
            } else {
                load_gathered<C, false>(p, with, at, thread);
            }
        } else if (thread == 0) {
            load_by_engine<C>(p, with, at);
        }
        if (p.deal.split > 1) {
            meet_cluster();
        }
    } else {
        ptx::take_registers<C::CONSUMER_REGISTERS>();
        unsigned char *here = memory + (aligned - start);
        if constexpr (C::BARE || C::AROUND != around::NOTHING) {
            consume_as<C, BY_ENGINE>(tiled, with, at, here, group, thread);
        } else if (!p.y_by_engine) {
            consume_as<C, BY_STRIPS>(tiled, with, at, here, group, thread);
        } else {
            consume_as<C, BY_ENGINE>(tiled, with, at, here, group, thread);
        }
    }
    if (p.deal.split > 1) {
        meet_cluster();
    }
}

// ---- launching ----

using tensor::describe;
using tensor::description;

// Steps of all blocks, each as 4 x 1152 bytes: a box may have 256 elements along each side.
template <class C> int describe_weights(const gpu_panels &w, CUtensorMap *map)
{
    constexpr cuuint32_t PART = GPU_STEP_BYTES / 4;
    return describe({CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
                     3,
                     (void *)w.data,
                     {PART / 8, (cuuint64_t)w.steps * 4, (cuuint64_t)w.panels * w.blocks},
                     {PART, (cuuint64_t)w.steps * GPU_STEP_BYTES},
                     {PART / 8, 4, C::TILE_BLOCKS},
                     CU_TENSOR_MAP_SWIZZLE_NONE},
                    map);
}

// For tiles of `width` tokens.
template <class C> int describe_x(const gpu_product &p, cuuint32_t width, CUtensorMap *map)
{
    cuuint64_t in = p.weight.in, tokens = p.tokens, stride = (cuuint64_t)p.x_stride * 2;
    description d = {CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, (void *)p.x, {}, {stride, 128}, {64},
                     CU_TENSOR_MAP_SWIZZLE_128B};
    if (C::LOADING == TOKENS) {
        d.sizes[0] = in, d.sizes[1] = tokens, d.box[1] = width;
    } else if (p.tokens % 64 == 0) { // strips of 64 tokens, so that one copy brings them all
        d.rank = 3;
        d.sizes[0] = 64, d.sizes[1] = in, d.sizes[2] = tokens / 64;
        d.box[1] = 64, d.box[2] = width / 64;
    } else {
        d.sizes[0] = tokens, d.sizes[1] = in, d.box[1] = 64;
    }
    return describe(d, map);
}

// Y in chunks (sm90_panel_chunk.cuh). By feature, even rows and odd rows: the order in which a warp
// has them; swiglu leaves one of the two.
inline int describe_y(const gpu_product &p, CUtensorMap *map)
{
    const gpu_epilogue &e = p.epilogue;
    bool pairs = (e.bits & ESP_EP_SWIGLU) != 0, by_token = e.token_step != 1;
    cuuint64_t rows = (cuuint64_t)p.weight.out / (pairs ? 2 : 1), tokens = (cuuint64_t)e.tokens;
    cuuint64_t stride = (cuuint64_t)(by_token ? e.token_step : e.feature_step) * 2;
    description d = {CU_TENSOR_MAP_DATA_TYPE_UINT16, 3, e.y, {}, {stride, stride}, {}, {}};
    if (by_token) {
        d.sizes[0] = rows, d.sizes[1] = tokens, d.sizes[2] = 1;
    } else if (pairs) {
        d.sizes[0] = tokens, d.sizes[1] = rows, d.sizes[2] = 1;
    } else {
        d.sizes[0] = tokens, d.sizes[1] = rows / 2, d.sizes[2] = 2;
        d.strides[0] = stride * 2;
    }
    bool wide = by_token != pairs; // lines of 128 bytes
    d.box[0] = wide ? 64 : 32;
    d.box[1] = by_token && pairs ? 64 : 32;
    d.box[2] = (cuuint32_t)d.sizes[2];
    d.swizzle = wide ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
    return describe(d, map);
}

template <class C> int describe_all(const gpu_product &p, maps_of<C> *with)
{
    int failed = describe_weights<C>(p.weight, &with->weights);
    if constexpr (C::LOADING == SPREAD) {
        if (failed == 0 && p.x_aligned) {
            failed = describe_spread<C>(p, with);
        }
    } else if (C::LOADING != GATHER && p.x_aligned) {
        for (int i = 0; failed == 0 && i < p.deal.runs; i++) {
            int shift = p.deal.run[i].shift;
            failed = describe_x<C>(p, C::TILE_TOKENS >> shift, &with->x[shift]);
        }
    }
    if (failed == 0 && p.y_by_engine) {
        failed = describe_y(p, &with->y);
    }
    return failed;
}

template <class C> int launch(const gpu_tiled &tiled, void *stream)
{
    const gpu_product &p = tiled.product;
    static std::atomic<uint64_t> prepared;
    int failed = gpu_prepare((const void *)kernel<C>, C::SHARED, p.device, &prepared);
    maps_of<C> with = {};
    if (failed == 0) {
        failed = describe_all<C>(p, &with);
    }
    if (failed != 0) {
        return failed;
    }
    cudaLaunchAttribute attributes[2];
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {(unsigned)p.deal.split, 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t how = {};
    how.gridDim = dim3((unsigned)(p.deal.multiprocessors * p.deal.split));
    how.blockDim = dim3(C::THREADS);
    how.dynamicSmemBytes = C::SHARED;
    how.stream = (cudaStream_t)stream;
    how.attrs = attributes;
    how.numAttrs = p.deal.overlaps ? 2 : 1;
    return cudaLaunchKernelEx(&how, kernel<C>, tiled, with);
}

// By the kernel for what is around the product.
template <bool BF16, int BLOCKS, int N, sharing SHARING, int STAGES, int CHUNKS, loading LOADING,
          bool STAGGERED = false>
int launch_around(const gpu_tiled &tiled, void *stream)
{
    if constexpr (LOADING != TOKENS) {
        if (tiled.normed.moments != nullptr) {
            return launch<config<BF16, BLOCKS, N, SHARING, STAGES, CHUNKS, LOADING, STAGGERED,
                                 false, around::NORMS>>(tiled, stream);
        }
        if (tiled.moments != nullptr) {
            return launch<config<BF16, BLOCKS, N, SHARING, STAGES, CHUNKS, LOADING, STAGGERED,
                                 false, around::LEAVES>>(tiled, stream);
        }
    }
    return launch<config<BF16, BLOCKS, N, SHARING, STAGES, CHUNKS, LOADING, STAGGERED>>(tiled,
                                                                                       stream);
}

template <bool BF16> int launch_staggered(const gpu_tiled &tiled, void *stream)
{
    const gpu_product &p = tiled.product;
    bool bare = p.y_by_engine && p.epilogue.bits == 0 && p.epilogue.token_step == 1 &&
                tiled.normed.moments == nullptr;
    return bare ? launch<config<BF16, 2, 128, BY_ROWS, 6, 2, GATHER, true, true>>(tiled, stream)
                : launch_around<BF16, 2, 128, BY_ROWS, 6, 2, GATHER, true>(tiled, stream);
}

template <bool BF16> int launch_gathered(const gpu_tiled &tiled, gpu_tile tile, void *stream)
{
    switch (tile) {
    case GPU_TILE_128X256:
        return launch_around<BF16, 1, 256, BY_ROWS, 4, 7, GATHER>(tiled, stream);
    case GPU_TILE_128X128:
        return launch_around<BF16, 1, 128, BY_ROWS, 7, 4, GATHER>(tiled, stream);
    case GPU_STAGGERED_256X128:
        return launch_staggered<BF16>(tiled, stream);
    case GPU_TILE_64X512:
        return launch_around<BF16, 1, 256, BY_TOKENS, 3, 2, GATHER>(tiled, stream);
    case GPU_TILE_64X256:
        return launch_around<BF16, 1, 256, IN_TURNS, 5, 4, GATHER>(tiled, stream);
    default:
        return cudaErrorInvalidValue;
    }
}

template <bool BF16, loading LOADING>
int launch_whole(const gpu_tiled &tiled, gpu_tile tile, void *stream)
{
    return tile == GPU_TILE_128X128
               ? launch_around<BF16, 1, 128, BY_ROWS, 7, 4, LOADING>(tiled, stream)
               : launch_around<BF16, 1, 256, BY_ROWS, 4, 7, LOADING>(tiled, stream);
}

} // namespace panel

#endif
