// The dense kernel for some hundred tokens; what it does is said in sm90_dense_split.cuh.
#include "cuda/gpu_dense.h"
#include "cuda/sm90_dense_split_end.cuh"

namespace dense_split
{

template <class C>
__device__ __forceinline__ void consume(const gpu_product &p, const task &mine, uint32_t base)
{
    int warp = __shfl_sync(~0u, (int)threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    exchange<C> all(base, mine, warp, lane);
    ending<C> item = {p.epilogue};
    item.place(p, mine, all, threadIdx.x);
    ptx::stream_order_wait();
    ptx::launch_next();
    item.load(); // memory is far
    float sums[C::N / 2];
    multiply<C>(sums, base, mine.steps.end - mine.steps.first, warp, lane);
    all.send(sums, lane);
    all.wait();
    int items = all.bands * 8 * C::EIGHTS;
    for (int i = threadIdx.x;;) {
        item.finish(all);
        i += C::CONSUMERS;
        if (i >= items) {
            break;
        }
        item.place(p, mine, all, i);
        item.load();
    }
}

template <class C>
__global__ void __launch_bounds__(C::THREADS, C::BLOCKS)
    kernel(const __grid_constant__ gpu_product p, const __grid_constant__ maps with)
{
    extern __shared__ unsigned char memory[];
    uint32_t base = (ptx::shared_address(memory) + 1023) & ~1023u;
    task mine = task::of<C>(p);
    loader<C> loads(p, with, mine, base);
    bool loading = threadIdx.x >= C::CONSUMERS;
    if (threadIdx.x == C::CONSUMERS) {
        for (int i = 0; i < C::STAGES; i++) {
            ptx::barrier_init(C::full(base, i), 1);
            ptx::barrier_init(C::empty(base, i), BANDS);
        }
        exchange<C>::start(base, mine);
        loads.begin();
    }
    __syncthreads();
    ptx::cluster_has_come();
    ptx::cluster_wait(); // all blocks of the cluster have their barriers
    if (!loading) {
        consume<C>(p, mine, base);
        return;
    }
    if (threadIdx.x == C::CONSUMERS) {
        ptx::stream_order_wait();
        ptx::launch_next();
        loads.load();
    }
}

// ---- launching ----

template <class C> int launch(const gpu_product &p, void *stream)
{
    static std::atomic<uint64_t> prepared;
    maps with = {};
    int failed = gpu_prepare((const void *)kernel<C>, C::SHARED, p.device, &prepared);
    if (failed == 0) {
        failed = dense::describe_weights(p.weight, &with.weights);
    }
    if (failed == 0) {
        tensor::description x = {CU_TENSOR_MAP_DATA_TYPE_UINT16,
                                 2,
                                 (void *)p.x,
                                 {(cuuint64_t)p.tokens, (cuuint64_t)p.weight.in},
                                 {(cuuint64_t)p.x_stride * 2},
                                 {64, GPU_STEP_COLUMNS},
                                 CU_TENSOR_MAP_SWIZZLE_128B};
        failed = tensor::describe(x, &with.x);
    }
    if (failed != 0) {
        return failed;
    }
    return gpu_launch_clusters(kernel<C>, (unsigned)(p.deal.multiprocessors * p.deal.split),
                               (unsigned)p.deal.split, C::THREADS, C::SHARED, true, stream, p,
                               with);
}

template <bool BF16> int launch_tile(const gpu_product &p, int tile_tokens, void *stream)
{
    return tile_tokens == 128 ? launch<config<BF16, 128, 4, true>>(p, stream)
                              : launch<config<BF16, 64, 4, false>>(p, stream);
}

} // namespace dense_split

extern "C" int gpu_sm90_dense_split(const gpu_product *product, int tile_tokens, void *stream)
{
    return product->bf16 ? dense_split::launch_tile<true>(*product, tile_tokens, stream)
                         : dense_split::launch_tile<false>(*product, tile_tokens, stream);
}
