// What the kernels for up to 16 tokens share on Hopper, where a cluster of blocks shares out the
// steps of 64 rows: X of a column, the way of sums through the cluster, and launches that overlap;
// how a row ends is sm90_few_rows.cuh.
//
// Every warp sends its sums of each 16 rows, as they lie in its registers, to the block of the
// cluster that finishes those rows; there one warp adds them in the order of senders, so results do
// not depend on timing, and writes them from its registers. No barrier of a whole block or cluster
// stands in the way.
#ifndef ESP_CUDA_SM90_FEW_CUH
#define ESP_CUDA_SM90_FEW_CUH

#include "cuda/epilogue.cuh"
#include "cuda/few_x.cuh"
#include "cuda/launch.cuh"
#include "cuda/quick_silu.cuh"
#include "cuda/sm90_few_rows.cuh"
#include "cuda/sm90_ptx.cuh"

namespace ptx {

// As cluster_arrive where nothing but barriers, which a fence has shown, is to be seen by the others: releasing what
// this thread wrote would wait for memory.
__device__ __forceinline__ void cluster_has_come()
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

} // namespace ptx

namespace streamed
{

using few::ANY;
using few::EIGHT;
using few::ONE;
using few::reading;

constexpr int ROW_GROUPS = 4; // groups of 16 rows
constexpr int MOST_CLUSTER = 8;
constexpr int WARPS = 4, BLOCKS_PER_SM = 3, MOST_DEVICES = 64;

// What happens to X on its way to the products: nothing; it is normed; or it is a gate, and
// silu(gate) * up is what the weight multiplies. Rounded as the operations round that would stand
// before the product otherwise.
enum prologue { PLAIN, NORMED, GATED };

template <class P> __device__ __forceinline__ int64_t in_of(const P &p)
{
    return p.weight.in;
}
__device__ __forceinline__ int64_t in_of(const gpu_dense_product &p)
{
    return p.in;
}

template <class P> __device__ __forceinline__ int64_t feature_step(const P &p)
{
    return p.x_by_token ? 1 : p.x_stride;
}

// One or two numbers of 16 bits.
template <prologue PROLOGUE, bool BF16>
__device__ __forceinline__ uint32_t prepared(uint32_t x, uint32_t beside, float scale)
{
    constexpr gpu_type TYPE = BF16 ? GPU_BF16 : GPU_F16;
    float2 v = epilogue::widen_pair(TYPE, x);
    if constexpr (PROLOGUE == NORMED) {
        float weight = __uint_as_float(beside);
        return epilogue::round_pair(TYPE, __fmul_rn(__fmul_rn(v.x, scale), weight), 0);
    } else if constexpr (PROLOGUE == GATED) {
        float2 up = epilogue::widen_pair(TYPE, beside);
        return epilogue::round_pair(TYPE, activate::quick_silu(v.x) * up.x,
                                    activate::quick_silu(v.y) * up.y);
    } else {
        return x;
    }
}

// What X holds for one column, as it was read: a word holds one or two tokens. It is put together
// only when it is laid down: doing so at once would wait for the loads. X may have been written
// while this grid was running, so it is read from the L2.
template <int EIGHTS, reading READING, prologue PROLOGUE = PLAIN, bool BF16 = false>
struct column_of_x {
    static constexpr int WORDS = few::COLUMN_WORDS<EIGHTS, READING>;
    static_assert(PROLOGUE != NORMED || READING == ONE, "there is one scale");
    uint32_t word[WORDS], beside[PROLOGUE == GATED ? WORDS : 1]; // up, or the norm's weight

    // From `token` on.
    template <class P>
    __device__ __forceinline__ void load(const P &p, uint32_t column, int token = 0)
    {
        bool there = column < in_of(p);
        int64_t token_step = p.x_by_token ? p.x_stride : 1,
                at = there ? column * feature_step(p) + token : 0;
        load_words((const uint16_t *)p.x + at, there, p.tokens, token_step, word);
        if constexpr (PROLOGUE == GATED) {
            load_words((const uint16_t *)p.prologue.up + at, there, p.tokens, token_step, beside);
        } else if constexpr (PROLOGUE == NORMED) {
            beside[0] = there ? __float_as_uint(__ldg(p.prologue.weight + column)) : 0;
        }
    }

    static __device__ __forceinline__ void load_words(const uint16_t *x, bool there, int tokens,
                                                      int64_t token_step, uint32_t (&to)[WORDS])
    {
        if constexpr (READING == EIGHT) {
#pragma unroll
            for (int e = 0; e < EIGHTS; e++) {
                uint4 four = there ? __ldcg((const uint4 *)x + e) : make_uint4(0, 0, 0, 0);
                to[4 * e] = four.x, to[4 * e + 1] = four.y;
                to[4 * e + 2] = four.z, to[4 * e + 3] = four.w;
            }
        } else {
#pragma unroll
            for (int i = 0; i < WORDS; i++) {
                to[i] = there && i < tokens ? __ldcg(x + i * token_step) : 0;
            }
        }
    }

    // scale: of a norm.
    template <int EIGHT_BYTES = 1024>
    __device__ __forceinline__ void lay(uint32_t to, float scale = 1) const
    {
        if constexpr (PROLOGUE == PLAIN) {
            few::lay_column<EIGHTS, READING, EIGHT_BYTES>(word, to);
        } else {
            uint32_t made[WORDS];
#pragma unroll
            for (int i = 0; i < WORDS; i++) {
                made[i] =
                    prepared<PROLOGUE, BF16>(word[i], beside[PROLOGUE == GATED ? i : 0], scale);
            }
            few::lay_column<EIGHTS, READING, EIGHT_BYTES>(made, to);
        }
    }
};

// X of a step's 64 columns in a warp, whose lanes know the numbers of two each: lane and lane + 32.
// Sixteen tokens of a column are 32 bytes, what the L2 gives at a time. A lane that read them 16 at
// a time would ask for each piece twice, so where columns lie apart two lanes share one.
template <int EIGHTS, reading READING, prologue PROLOGUE, bool BF16, bool APART> struct step_of_x {
    static constexpr bool SHARED = APART && EIGHTS == 2 && READING == EIGHT;
    static constexpr int PIECES = SHARED ? 4 : 2;
    column_of_x<SHARED ? 1 : EIGHTS, READING, PROLOGUE, BF16> piece[PIECES];

    template <class P>
    __device__ __forceinline__ void load(const P &p, uint32_t first, uint32_t second, int lane)
    {
        if constexpr (SHARED) {
            uint32_t columns[PIECES];
#pragma unroll
            for (int i = 0; i < PIECES; i++) {
                columns[i] = __shfl_sync(~0u, i < 2 ? first : second, i % 2 * 16 + lane / 2);
            }
#pragma unroll
            for (int i = 0; i < PIECES; i++) {
                piece[i].load(p, columns[i], lane % 2 * 8);
            }
        } else {
            piece[0].load(p, first);
            piece[1].load(p, second);
        }
    }

    // Where ldmatrix finds them: 16 bytes a column, eights of tokens 1024 bytes apart.
    __device__ __forceinline__ void lay(uint32_t to, int lane, float scale) const
    {
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            uint32_t at = SHARED ? (i * 16 + lane / 2) * 16 + lane % 2 * 1024 : (i * 32 + lane) * 16;
            piece[i].lay(to + at, scale);
        }
    }
};

// 1 / sqrt(mean of x^2 + eps) of the one token, found by each block for itself: x is small, and so
// no launch stands between the product that wrote it and this one. All threads call it; `room` is
// shared memory, a float a warp.
template <bool BF16, int WARPS, class P> __device__ float norm_scale(const P &p, uint32_t room)
{
    constexpr gpu_type TYPE = BF16 ? GPU_BF16 : GPU_F16;
    const uint16_t *x = (const uint16_t *)p.x;
    int64_t in = in_of(p), step = feature_step(p), done = 0;
    float squares = 0;
    if (step == 1 && (uintptr_t)x % 16 == 0) {
        done = in / 8 * 8;
#pragma unroll 4
        for (int64_t i = threadIdx.x * 8; i < done; i += WARPS * 32 * 8) {
            uint4 eight = __ldcg((const uint4 *)(x + i));
            const uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float2 v = epilogue::widen_pair(TYPE, words[k]);
                squares = fmaf(v.x, v.x, fmaf(v.y, v.y, squares));
            }
        }
    }
    for (int64_t i = done + threadIdx.x; i < in; i += WARPS * 32) {
        float v = epilogue::widen_pair(TYPE, __ldcg(x + i * step)).x;
        squares = fmaf(v, v, squares);
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        squares += __shfl_xor_sync(~0u, squares, mask);
    }
    if (threadIdx.x % 32 == 0) {
        ptx::store_shared_f32(room + threadIdx.x / 32 * 4, squares);
    }
    __syncthreads();
    squares = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        squares += ptx::load_shared_f32(room + w * 4);
    }
    return 1.0f / sqrtf(squares / (float)in + p.prologue.eps);
}

template <int EIGHTS> struct sums_of {
    float of[ROW_GROUPS][EIGHTS][4];
};

// Sums on their way from the warps of a cluster to those that finish them. Group g of rows is
// finished by warp g of block g % cluster; a sender's piece of it is what lies in the sender's
// registers, lane by lane. A block alone (cluster 1) has no place in a cluster that the copies of
// `send` could go to: its warps store as usual, and all of them wait for one another.
template <int EIGHTS, int WARPS> struct exchange {
    uint32_t sums, arrived; // of this block
    int cluster, rank, warp;

    __device__ __forceinline__ uint32_t place(int group, int sender) const
    {
        return sums + (group / cluster * cluster * WARPS + sender) * EIGHTS * 512;
    }
    __device__ __forceinline__ void start() const // by one thread
    {
        if (cluster == 1) {
            return;
        }
        for (int g = 0; g < ROW_GROUPS; g++) {
            ptx::barrier_init(arrived + g * 8, 1);
        }
        ptx::barrier_init_fence();
        for (int g = 0; g < ROW_GROUPS; g++) {
            ptx::barrier_expect(arrived + g * 8, cluster * WARPS * EIGHTS * 512);
        }
    }
    __device__ __forceinline__ bool finishes(int group) const
    {
        return group % cluster == rank;
    }
    // By all threads.
    __device__ __forceinline__ void send(const sums_of<EIGHTS> &mine, int groups, int lane) const
    {
        if (cluster == 1) {
            keep(mine, groups, lane);
            return;
        }
#pragma unroll
        for (int g = 0; g < ROW_GROUPS; g++) {
            uint32_t to = ptx::in_cluster(place(g, rank * WARPS + warp) + lane * 16, g % cluster);
            uint32_t barrier = ptx::in_cluster(arrived + g * 8, g % cluster);
#pragma unroll
            for (int e = 0; e < EIGHTS; e++) {
                if (g < groups) {
                    ptx::send_16(to + e * 512, mine.of[g][e], barrier);
                }
            }
        }
    }
    __device__ __forceinline__ void keep(const sums_of<EIGHTS> &mine, int groups, int lane) const
    {
#pragma unroll
        for (int g = 0; g < ROW_GROUPS; g++) {
#pragma unroll
            for (int e = 0; e < EIGHTS; e++) {
                if (g < groups) {
                    ptx::store_shared_4(place(g, warp) + lane * 16 + e * 512, mine.of[g][e]);
                }
            }
        }
        __syncthreads();
    }
    // Until all that `barrier` counts has been sent.
    __device__ __forceinline__ void wait(uint32_t barrier) const
    {
        if (cluster > 1) {
            ptx::barrier_wait(barrier, 0);
        }
    }
    // The sums of a group as a sender had them; by the warp that finishes it.
    __device__ __forceinline__ void receive(int group, int lane, float4 (&sums)[EIGHTS]) const
    {
        wait(arrived + group * 8);
        add(group, 0, 1, lane, sums);
    }
    // The same where a block's first half of warps has gates and the other what they open.
    __device__ __forceinline__ void receive_halves(int group, int lane, float4 (&gates)[EIGHTS],
                                                   float4 (&others)[EIGHTS]) const
    {
        wait(arrived + group * 8);
        add(group, 0, 2, lane, gates);
        add(group, 1, 2, lane, others);
    }
    // Of the senders that are the half `which` of each block's warps, or, of one half, all.
    __device__ __forceinline__ void add(int group, int which, int halves, int lane,
                                        float4 (&sums)[EIGHTS]) const
    {
        int of_block = WARPS / halves;
#pragma unroll
        for (int e = 0; e < EIGHTS; e++) {
            uint32_t from = place(group, which * of_block) + e * 512 + lane * 16;
            float4 sum = ptx::load_shared_4(from);
#pragma unroll 4
            for (int s = 1; s < cluster * of_block; s++) {
                int sender = halves == 1 ? s : s / of_block * WARPS + s % of_block;
                float4 more = ptx::load_shared_4(from + sender * EIGHTS * 512);
                sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
            }
            sums[e] = sum;
        }
    }
};

// ---- what comes after ----

// Memory has nothing to do while a launch waits for another that reads little, as attention does:
// the blocks that wait ask the L2 for the start of the weight that is read next, this much in all.
// Attention waits for what is asked for before it: twice as much made layers 1 to 2 % slower.
constexpr uint32_t MOST_AHEAD = 8 << 20;

// By one lane of each warp.
template <int WARPS> __device__ __forceinline__ void ask_ahead(const gpu_ahead &ahead)
{
    uint32_t warps = gridDim.x * WARPS, warp = blockIdx.x * WARPS + threadIdx.x / 32;
    uint64_t bytes = min((uint64_t)ahead.bytes, (uint64_t)MOST_AHEAD);
    uint64_t each = (bytes / warps + 127) / 128 * 128, from = warp * each;
    if (ahead.data != nullptr && from < bytes) {
        uint32_t mine = (uint32_t)min(each, bytes - from) / 16 * 16;
        if (mine > 0) {
            ptx::bulk_prefetch_l2((const char *)ahead.data + from, mine);
        }
    }
}

// ---- launching ----

// How many clusters of each size a device can run at a time: fewer than its multiprocessors have
// room for, because a cluster stays inside one part of the chip. Asked for once; 0: not yet.
struct residency {
    std::atomic<int> clusters[MOST_DEVICES][MOST_CLUSTER + 1];
};

inline int resident(residency *known, const void *kernel, const cudaLaunchConfig_t &how, int device,
                    int cluster)
{
    std::atomic<int> *slot = device < MOST_DEVICES ? &known->clusters[device][cluster] : nullptr;
    int count = slot != nullptr ? slot->load(std::memory_order_relaxed) : 0;
    if (count == 0) {
        if (cudaOccupancyMaxActiveClusters(&count, kernel, &how) != cudaSuccess || count < 1) {
            (void)cudaGetLastError();
            count = 1;
        }
        if (slot != nullptr) {
            slot->store(count, std::memory_order_relaxed);
        }
    }
    return count;
}

// One way to launch a product: a depth of the ring, and how many blocks share the steps of a block
// of rows.
struct launching {
    const void *kernel;
    int cluster;
    uint32_t shared;
    double cost; // rounds of clusters, each of a start and the steps of a warp
};

// `blocks` of 64 rows, or whatever a cluster takes, each of so many steps. `map` has the kernel's
// shared memory. Clusters of `least` to `most` blocks; of the places for those of four or more,
// `lost` in sixteen are not found while blocks of the launch before leave one by one.
template <class map>
void find_cluster(residency *known, const void *kernel, int device, int64_t blocks, int64_t steps,
                  launching *best, int least = 1, int most = MOST_CLUSTER, int lost = 0)
{
    const double start = 2.5; // of a block, in steps
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeClusterDimension;
    cudaLaunchConfig_t how = {};
    how.blockDim = dim3(WARPS * 32);
    how.attrs = &attribute;
    how.numAttrs = 1;
    for (int cluster = least; cluster <= most; cluster++) {
        how.gridDim = dim3((unsigned)(blocks * cluster));
        how.dynamicSmemBytes = map::shared(cluster);
        attribute.val.clusterDim = {(unsigned)cluster, 1, 1};
        int64_t room = resident(known, kernel, how, device, cluster);
        room -= cluster > 3 ? room * lost / 16 : 0;
        int64_t turns = (steps + cluster * WARPS - 1) / (cluster * WARPS);
        double cost = (double)((blocks + room - 1) / room) * ((double)turns + start);
        if (best->kernel == nullptr || cost < best->cost) {
            *best = {kernel, cluster, map::shared(cluster), cost};
        }
    }
}

// May begin before the launch before it in the stream has ended.
inline int launch_cluster(const launching &how, int64_t blocks, void *stream, void *product)
{
    cudaLaunchAttribute attributes[2];
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {(unsigned)how.cluster, 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(blocks * how.cluster));
    config.blockDim = dim3(WARPS * 32);
    config.dynamicSmemBytes = how.shared;
    config.stream = (cudaStream_t)stream;
    config.attrs = attributes;
    config.numAttrs = 2;
    void *arguments[] = {product};
    return cudaLaunchKernelExC(&config, how.kernel, arguments);
}

// How a product's X is read and prepared, as template arguments of `Launcher::run<EIGHTS, READING,
// PROLOGUE>(p, stream)`.
template <class Launcher, prologue PROLOGUE, class P> int launch_as_read(const P &p, void *stream)
{
    bool eight = p.x_aligned && !p.x_by_token && p.tokens % 8 == 0;
    if (p.tokens == 1) {
        return Launcher::template run<1, ONE, PROLOGUE>(p, stream);
    }
    if (p.tokens <= 8) {
        return eight ? Launcher::template run<1, EIGHT, PROLOGUE>(p, stream)
                     : Launcher::template run<1, ANY, PROLOGUE>(p, stream);
    }
    return eight ? Launcher::template run<2, EIGHT, PROLOGUE>(p, stream)
                 : Launcher::template run<2, ANY, PROLOGUE>(p, stream);
}

template <class Launcher, class P> int launch_by_reading(const P &p, void *stream)
{
    switch (p.prologue.kind) {
    case GPU_RMS_NORM:
        return p.tokens == 1 ? Launcher::template run<1, ONE, NORMED>(p, stream)
                             : cudaErrorInvalidValue;
    case GPU_SWIGLU:
        return launch_as_read<Launcher, GATED>(p, stream);
    default:
        return launch_as_read<Launcher, PLAIN>(p, stream);
    }
}

} // namespace streamed

#endif
