// Y = epilogue(W X) for dense W on Hopper, X and Y with tokens side by side. Reference:
// src/ref/matmul.c.
//
// Idea. The skeleton, the deal of tiles and above all the way out of the panel kernels
// (sm90_panel.cuh), with the ordinary warpgroup product between them: a library's product is as
// fast, but its bias runs along the wrong side of a Y with tokens side by side, so that bias and
// activation would cost a pass over Y.
//
// Who does what. One block a multiprocessor walks over tiles of 128 rows x N tokens. One thread
// asks the copy engine for boxes of W and X, 64 columns a stage; two warpgroups multiply 64 rows
// each and let sums leave (sm90_panel_leave.cuh, _strips) while the other still multiplies.
//
// The panel kernels' way out wants rows 2 i and 2 i + 1 in one thread, which has rows r and r + 8
// of its warp's sixteen. So the box of W takes each sixteen rows' even ones before the odd ones: as
// a tensor, W is [out / 16][2][8][in] with steps of 16, 1 and 2 rows. That needs `out` to be a
// multiple of 16.
//
// Shared memory, bytes: STAGES x 128 N of X | STAGES x 16384 of W, both in pieces of 16 bytes
// swizzled over 128 | sums on their way out | barriers | terms of norms.
//
// Tails. The engine writes zeros for columns past `in`, rows past `out` and tokens past the end,
// so that NaN behind them does no harm. X that the engine cannot take is loaded element by element;
// Y that it cannot take leaves by strips.
//
// Limits: docs/kernels-gpu.md. In short: 256 tokens' stage takes the tensor cores 1024 clocks, the
// way from the L2 some 800, and shared memory 1024 if it is read and written one after the other.
#ifndef ESP_CUDA_SM90_DENSE_CUH
#define ESP_CUDA_SM90_DENSE_CUH

#include "cuda/sm90_dense_ptx.cuh"
#include "cuda/sm90_dense_residual.cuh"
#include "cuda/sm90_panel.cuh"

namespace dense
{

using panel::ring;
using panel::shared_map;
using panel::tile;
using panel::walk;

// How the copy engine sees the operands.
struct maps {
    panel::maps panel;
    CUtensorMap residual;
};

// CHUNKS of each consumer may be on their way out.
template <bool BF16_, int N_, int STAGES_, int CHUNKS_, panel::around AROUND_ = panel::around::NOTHING>
struct config {
    static constexpr bool NORMS = AROUND_ == panel::around::NORMS;
    static constexpr bool LEAVES = AROUND_ == panel::around::LEAVES;
    static constexpr bool BF16 = BF16_;
    static constexpr int BLOCKS = 1, N = N_, STAGES = STAGES_, CHUNKS = CHUNKS_;
    static constexpr panel::sharing SHARING = panel::BY_ROWS;
    static constexpr panel::loading LOADING = panel::FEATURES;
    static constexpr int GROUPS = 2, WARPS = 4 * GROUPS, THREADS = 128 * GROUPS + panel::LOADERS;
    static constexpr int TILE_BLOCKS = 2, TILE_TOKENS = N;
    static constexpr int SHIFT = N == 256 ? 2 : 1; // halvings down to 64 tokens
    static constexpr int CONSUMER_REGISTERS = 232, LOADER_REGISTERS = 40;
    static constexpr uint32_t X_BYTES = TILE_TOKENS * 128, W_BYTES = TILE_BLOCKS * 64 * 128;
    static constexpr uint32_t W_AT = STAGES * X_BYTES;
    static constexpr uint32_t LEAVING_AT = W_AT + STAGES * W_BYTES;
    static constexpr uint32_t ROWS_AT = LEAVING_AT + WARPS * panel::STRIP_FLOATS * 4; // of strips
    static constexpr uint32_t STRIP_BYTES = WARPS * (panel::STRIP_FLOATS + 16) * 4;
    static constexpr uint32_t CHUNKS_BYTES = GROUPS * CHUNKS * panel::CHUNK_BYTES;
    static constexpr uint32_t LEAVING_BYTES =
        CHUNKS_BYTES > STRIP_BYTES ? CHUNKS_BYTES : STRIP_BYTES;
    static constexpr uint32_t BARRIERS_AT = LEAVING_AT + LEAVING_BYTES;
    static constexpr uint32_t RESIDUALS_AT = BARRIERS_AT + STAGES * 16; // barriers
    static constexpr uint32_t NORMS_AT = RESIDUALS_AT + GROUPS * 8;
    static constexpr uint32_t SHARED = NORMS_AT + GROUPS * N * 8 + 1024 - 128; // to align
    static_assert(SHARED <= 232448, "more shared memory than a block can have");
};

// ---- loading ----

// By one thread. W of the first steps is asked for before the launches of the stream before this
// one are done; X must wait for those.
template <class C> struct weight_loader {
    const CUtensorMap *map;
    const shared_map<C> &at;
    int early = 0; // steps whose W was asked for ahead

    __device__ __forceinline__ void ask(const tile &t, int step, int stage, uint32_t x_bytes)
    {
        ptx::barrier_expect(at.full(stage), C::W_BYTES + x_bytes);
        ptx::tensor_copy(at.weights(stage), map, step * GPU_STEP_COLUMNS, 0, 0, t.block * 4,
                         at.full(stage));
    }
    __device__ __forceinline__ void begin(const tile &t, const panel::stretch &mine,
                                          uint32_t x_bytes)
    {
        for (; early < min(C::STAGES, mine.end - mine.first); early++) {
            ask(t, mine.first + early, early, x_bytes);
        }
    }
    __device__ __forceinline__ void load(const tile &t, int step, int stage, uint32_t x_bytes)
    {
        if (early > 0) {
            early--;
        } else {
            ask(t, step, stage, x_bytes);
        }
    }
};

template <class C>
__device__ __forceinline__ void load_by_engine(const gpu_product &p, const maps &with,
                                               const shared_map<C> &at)
{
    weight_loader<C> weights = {&with.panel.weights, at};
    ring<C::STAGES> place;
    panel::stretch mine = panel::steps_of(p);
    walk<C> tiles = {p.deal};
    tile t;
    bool there = tiles.next(&t);
    if (there) {
        weights.begin(t, mine, C::X_BYTES >> t.shift);
    }
    ptx::stream_order_wait();
    for (; there; there = tiles.next(&t)) {
        for (int step = mine.first; step < mine.end; step++) {
            ptx::barrier_wait(at.empty(place.stage), place.parity ^ 1);
            weights.load(t, step, place.stage, C::X_BYTES >> t.shift);
            panel::load_boxes<C>(p, with.panel, t, step, at, place.stage);
            place.next();
        }
    }
}

template <class C>
__device__ __forceinline__ void load_elements(const gpu_product &p, const maps &with,
                                              const shared_map<C> &at, int thread)
{
    weight_loader<C> weights = {&with.panel.weights, at};
    ring<C::STAGES> place;
    panel::stretch mine = panel::steps_of(p);
    walk<C> tiles = {p.deal};
    ptx::stream_order_wait();
    for (tile t; tiles.next(&t);) {
        for (int step = mine.first; step < mine.end; step++) {
            ptx::barrier_wait(at.empty(place.stage), place.parity ^ 1);
            if (thread == 0) {
                weights.load(t, step, place.stage, 0);
            }
            __syncwarp();
            panel::copy_elements<C>(p, t, step, at.x(place.stage), thread / 32, thread % 32);
            ptx::async_fence();
            __syncwarp();
            if (thread % 32 == 0) {
                ptx::barrier_arrive(at.full(place.stage));
            }
            place.next();
        }
    }
}

// ---- multiplying ----

template <class C> struct consumer {
    const shared_map<C> &at;
    int group, thread; // thread: of the warpgroup
    departures<C> &leaving;
    arrivals<C> &residual;
    ring<C::STAGES> place;

    __device__ __forceinline__ void release(int stage)
    {
        if (thread % 32 == 0) {
            ptx::barrier_arrive(at.empty(stage));
        }
    }

    // One step; the one before it may still run when this returns.
    template <int N>
    __device__ __forceinline__ void multiply_step(float (&sums)[C::N / 2], bool first)
    {
        ptx::barrier_wait(at.full(place.stage), place.parity);
        uint64_t a = ptx::descriptor(at.weights(place.stage) + group * 8192, 16, 1024, 1);
        uint64_t b = ptx::descriptor(at.x(place.stage), 8192, 1024, 1);
        ptx::product_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) { // of 16 columns: 32 bytes of a row of W, 16 rows of X
            ptx::whole_product<N, C::BF16>::run(sums, a + k * (32 >> 4), b + k * (2048 >> 4),
                                                !first || k > 0);
        }
        ptx::product_commit();
        ptx::product_wait<1>();
        if (!first) {
            release(place.before());
        }
        place.next();
    }

    // `meanwhile` is called when the last product has been given out.
    template <int N, bool BY_ENGINE, class Call>
    __device__ __forceinline__ void multiply(float (&sums)[C::N / 2], int steps,
                                             const Call &meanwhile)
    {
        int step = 0;
        do {
            multiply_step<N>(sums, step == 0);
            if (BY_ENGINE) {
                residual.step(leaving, thread);
                if constexpr (C::NORMS) {
                    leaving.norm.step(leaving.tiled.normed);
                }
            }
        } while (++step < steps);
        meanwhile();
        ptx::product_wait<0>();
        ptx::sums_arrive(sums);
        release(place.before());
    }
    template <bool BY_ENGINE, class Call>
    __device__ __forceinline__ void multiply_tile(float (&sums)[C::N / 2], int shift, int steps,
                                                  const Call &meanwhile)
    {
        if (shift == 0) {
            multiply<C::N, BY_ENGINE>(sums, steps, meanwhile);
        } else if (C::SHIFT == 1 || shift == 1) {
            multiply<C::N / 2, BY_ENGINE>(sums, steps, meanwhile);
        } else if constexpr (C::SHIFT == 2) {
            multiply<C::N / 4, BY_ENGINE>(sums, steps, meanwhile);
        }
    }
};

// A warp's sixteen rows by its strip.
template <class C>
__device__ __forceinline__ void
leave_by_strips(const gpu_tiled &tiled, const float (&sums)[C::N / 2], int row, int token,
                int width, unsigned char *memory, int warp, int lane)
{
    float *strip = (float *)(memory + C::LEAVING_AT) + warp * panel::STRIP_FLOATS;
    int32_t *rows = (int32_t *)(memory + C::ROWS_AT) + warp * 16;
    int mine = row + warp % 4 * 16 + lane;
    if (lane < 16) {
        rows[lane] = mine < tiled.product.weight.out ? mine : -1;
    }
    __syncwarp();
    panel::leave<C::N>(tiled.product.epilogue, sums, rows, token, token + width, strip, lane);
    __syncwarp();
}

template <class C, bool BY_ENGINE>
__device__ __forceinline__ void consume(const gpu_tiled &tiled, const maps &with,
                                        const shared_map<C> &at, unsigned char *memory, int group,
                                        int thread)
{
    const gpu_product &p = tiled.product;
    departures<C> leaving = {&with.panel, p, tiled, at.chunks(group), 1 + group};
    arrivals<C> residual = {&with.residual, at.base + C::RESIDUALS_AT + group * 8};
    consumer<C> self = {at, group, thread, leaving, residual, {}};
    panel::split_sums<C> all = {at,    p.deal.split, (int)blockIdx.x % p.deal.split,
                                group, thread,       panel::least_share(p)};
    float sums[1][C::N / 2];
    panel::stretch steps = panel::steps_of(p);
    walk<C> tiles = {p.deal};
    tile t, coming;
    bool there = tiles.next(&t), adds = BY_ENGINE && !C::NORMS && (p.epilogue.bits & ESP_EP_RESIDUAL) != 0;
    ptx::stream_order_wait();
    for (; there; t = coming) {
        int row = (t.block + group) * GPU_BLOCK_ROWS, token = t.token, width = C::N >> t.shift;
        if (p.deal.split > 1) {
            all.mine(&token, &width);
        }
        bool leaves = row < p.weight.out && width > 0;
        row_terms terms;
        residual.begin(leaving, row, token, adds && leaves ? width : 0);
        if constexpr (C::NORMS) {
            leaving.norm.begin(tiled.normed, token, width, p.tokens, thread);
        }
        self.template multiply_tile<BY_ENGINE>(sums[0], t.shift, steps.end - steps.first, [&] {
            if (BY_ENGINE) {
                terms.template load<C::NORMS>(tiled, row, thread, at.norms(group));
            }
            if constexpr (C::NORMS) {
                leaving.norm.finish(tiled.normed, at.norms(group), thread);
            }
            there = tiles.next(&coming);
        });
        if (p.deal.split > 1) {
            all.share(sums[0], C::N >> t.shift);
        }
        if (leaves && adds) {
            leave_added<C>(p, leaving, residual, sums[0], terms, thread);
        } else if (leaves && BY_ENGINE) {
            panel::leave_at_once<C>(p, leaving, sums, row, token, width, terms, thread);
        } else if (leaves) {
            dense::leave_by_strips<C>(tiled, sums[0], row, token, width, memory,
                                      group * 4 + thread / 32, thread % 32);
        }
        if (p.deal.split > 1) {
            break; // no other follows, which spares the products sums that are not theirs
        }
    }
    leaving.send_all(thread);
    if (thread == 0) {
        ptx::bulk_wait_all();
    }
}

template <class C>
__global__ void __launch_bounds__(C::THREADS, 1)
    kernel(const __grid_constant__ gpu_tiled tiled, const __grid_constant__ maps with)
{
    const gpu_product &p = tiled.product;
    extern __shared__ __align__(128) unsigned char memory[];
    uint32_t start = ptx::shared_address(memory), aligned = (start + 1023) & ~1023u;
    shared_map<C> at = {aligned};
    // The same in all lanes of a warp, and known to be.
    int group = __shfl_sync(~0u, (int)threadIdx.x / 128, 0), thread = threadIdx.x % 128;
    if (threadIdx.x == 0) {
        for (int i = 0; i < C::STAGES; i++) {
            ptx::barrier_init(at.full(i), 1 + (p.x_aligned ? 0 : panel::LOADER_WARPS));
            ptx::barrier_init(at.empty(i), C::WARPS);
        }
        for (int i = 0; i < C::GROUPS; i++) {
            ptx::barrier_init(aligned + C::RESIDUALS_AT + i * 8, 1);
        }
        ptx::barrier_init_fence();
    }
    __syncthreads();
    ptx::launch_next();
    if (group == C::GROUPS) {
        ptx::give_registers<C::LOADER_REGISTERS>();
        if (!p.x_aligned) {
            dense::load_elements<C>(p, with, at, thread);
        } else if (thread == 0) {
            dense::load_by_engine<C>(p, with, at);
        }
        if (p.deal.split > 1) {
            panel::meet_cluster();
        }
    } else {
        ptx::take_registers<C::CONSUMER_REGISTERS>();
        unsigned char *here = memory + (aligned - start);
        if constexpr (C::NORMS || C::LEAVES) {
            consume<C, true>(tiled, with, at, here, group, thread);
        } else if (p.y_by_engine) {
            consume<C, true>(tiled, with, at, here, group, thread);
        } else {
            consume<C, false>(tiled, with, at, here, group, thread);
        }
    }
    if (p.deal.split > 1) {
        panel::meet_cluster();
    }
}

// ---- launching ----

// Boxes of 128 rows x 64 columns, of each sixteen rows the even ones first.
inline int describe_weights(const gpu_panels &w, CUtensorMap *map)
{
    static const tensor::encode_function encode = tensor::find_encode();
    if (encode == nullptr) {
        return cudaErrorNotSupported;
    }
    cuuint64_t row = (cuuint64_t)w.in * 2;
    const cuuint64_t sizes[4] = {(cuuint64_t)w.in, 8, 2, (cuuint64_t)w.out / 16};
    const cuuint64_t strides[3] = {2 * row, row, 16 * row};
    const cuuint32_t box[4] = {GPU_STEP_COLUMNS, 8, 2, 8}, steps[4] = {1, 1, 1, 1};
    CUresult failed = encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, (void *)w.data, sizes, strides,
                             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return failed == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// The residual lies as Y does.
template <class C> int describe_all(const gpu_product &p, maps *with)
{
    int failed = describe_weights(p.weight, &with->panel.weights);
    for (int i = 0; failed == 0 && p.x_aligned && i < p.deal.runs; i++) {
        int shift = p.deal.run[i].shift;
        failed = panel::describe_x<C>(p, C::TILE_TOKENS >> shift, &with->panel.x[shift]);
    }
    if (failed == 0 && p.y_by_engine) {
        failed = panel::describe_y(p, &with->panel.y);
    }
    if (failed == 0 && p.y_by_engine && (p.epilogue.bits & ESP_EP_RESIDUAL) != 0) {
        gpu_product residual = p;
        residual.epilogue.y = (void *)p.epilogue.residual;
        failed = panel::describe_y(residual, &with->residual);
    }
    return failed;
}

template <class C> int launch(const gpu_tiled &tiled, void *stream)
{
    const gpu_product &p = tiled.product;
    static std::atomic<uint64_t> prepared;
    maps with = {};
    int failed = gpu_prepare((const void *)kernel<C>, C::SHARED, p.device, &prepared);
    if (failed == 0) {
        failed = dense::describe_all<C>(p, &with);
    }
    if (failed != 0) {
        return failed;
    }
    return gpu_launch_clusters(kernel<C>, (unsigned)(p.deal.multiprocessors * p.deal.split),
                               (unsigned)p.deal.split, C::THREADS, C::SHARED, p.deal.overlaps,
                               stream, tiled, with);
}

template <bool BF16, int N, int STAGES, int CHUNKS>
int launch_around(const gpu_tiled &tiled, void *stream)
{
    using panel::around;
    return tiled.normed.moments != nullptr
               ? launch<config<BF16, N, STAGES, CHUNKS, around::NORMS>>(tiled, stream)
           : tiled.moments != nullptr
               ? launch<config<BF16, N, STAGES, CHUNKS, around::LEAVES>>(tiled, stream)
               : launch<config<BF16, N, STAGES, CHUNKS>>(tiled, stream);
}

// The smaller tile has the deeper ring: few tokens are bound by the way to memory.
template <bool BF16> int launch_tile(const gpu_tiled &tiled, gpu_tile tile, void *stream)
{
    return tile == GPU_TILE_128X128 ? launch_around<BF16, 128, 6, 4>(tiled, stream)
                                    : launch_around<BF16, 256, 3, 8>(tiled, stream);
}

} // namespace dense

#endif
