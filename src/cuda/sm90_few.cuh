// What the kernels for up to 16 tokens share on Hopper, where a cluster of blocks shares out the steps of 64
// rows: X of a column, the way of sums through the cluster, the end of a row, and launches that overlap.
//
// Every warp sends its sums of each 16 rows, as they lie in its registers, to the block of the cluster that
// finishes those rows; there one warp adds them in the order of senders, so results do not depend on timing,
// and writes them from its registers. No barrier of a whole block or cluster stands in the way.
#ifndef ESP_CUDA_SM90_FEW_CUH
#define ESP_CUDA_SM90_FEW_CUH

#include "cuda/epilogue.cuh"
#include "cuda/few_x.cuh"
#include "cuda/launch.cuh"
#include "cuda/sm90_ptx.cuh"

namespace streamed {

using few::ANY;
using few::EIGHT;
using few::ONE;
using few::reading;

constexpr int ROW_GROUPS = 4; // groups of 16 rows
constexpr int MOST_CLUSTER = 8;
constexpr int WARPS = 4, BLOCKS_PER_SM = 3, MOST_DEVICES = 64;

// What X holds for one column, as it was read: a word holds one or two tokens. It is put together only
// when it is laid down: doing so at once would wait for the loads. X may have been written while this grid
// was running, so it is read from the L2.
template <int EIGHTS, reading READING> struct column_of_x {
    static constexpr int WORDS = few::COLUMN_WORDS<EIGHTS, READING>;
    uint32_t word[WORDS];

    template <class P> __device__ __forceinline__ void load(const P &p, uint32_t column)
    {
        bool there = column < p.weight.in;
        int64_t token_step = p.x_by_token ? p.x_stride : 1;
        const uint16_t *x = (const uint16_t *)p.x;
        x += there ? (p.x_by_token ? (int64_t)column : column * p.x_stride) : 0;
        if constexpr (READING == EIGHT) {
#pragma unroll
            for (int e = 0; e < EIGHTS; e++) {
                uint4 four = there ? __ldcg((const uint4 *)x + e) : make_uint4(0, 0, 0, 0);
                word[4 * e] = four.x, word[4 * e + 1] = four.y;
                word[4 * e + 2] = four.z, word[4 * e + 3] = four.w;
            }
        } else {
#pragma unroll
            for (int i = 0; i < WORDS; i++) {
                word[i] = there && i < p.tokens ? __ldcg(x + i * token_step) : 0;
            }
        }
    }

    template <int EIGHT_BYTES = 1024> __device__ __forceinline__ void lay(uint32_t to) const
    {
        few::lay_column<EIGHTS, READING, EIGHT_BYTES>(word, to);
    }
};

template <int EIGHTS> struct sums_of {
    float of[ROW_GROUPS][EIGHTS][4];
};

// Sums on their way from the warps of a cluster to those that finish them. Group g of rows is finished by
// warp g of block g % cluster; a sender's piece of it is what lies in the sender's registers, lane by lane.
template <int EIGHTS, int WARPS> struct exchange {
    uint32_t sums, arrived; // of this block
    int cluster, rank, warp;

    __device__ __forceinline__ uint32_t place(int group, int sender) const
    {
        return sums + (group / cluster * cluster * WARPS + sender) * EIGHTS * 512;
    }
    __device__ __forceinline__ void start() const // by one thread
    {
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
    __device__ __forceinline__ void send(const sums_of<EIGHTS> &mine, int groups, int lane) const
    {
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
    // The sums of a group as a sender had them; by the warp that finishes it.
    __device__ __forceinline__ void receive(int group, int lane, float4 (&sums)[EIGHTS]) const
    {
        ptx::barrier_wait(arrived + group * 8, 0);
#pragma unroll
        for (int e = 0; e < EIGHTS; e++) {
            uint32_t from = place(group, 0) + e * 512 + lane * 16;
            float4 sum = ptx::load_shared_4(from);
#pragma unroll 4
            for (int s = 1; s < cluster * WARPS; s++) {
                float4 more = ptx::load_shared_4(from + s * EIGHTS * 512);
                sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
            }
            sums[e] = sum;
        }
    }
};

// The end of a group of 16 rows, of which a lane has two neighbours (see pack.cu) and two tokens of each
// eight: rows 2 l / 4 and the next, tokens 2 l % 4 and the next.
struct two_rows {
    int row[2]; // of Y, -1: none
    float scale[2], bias[2];

    __device__ __forceinline__ void load_terms(const gpu_epilogue &e)
    {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            epilogue::row_terms terms = epilogue::terms_of(e, row[i]);
            scale[i] = terms.scale;
            bias[i] = terms.bias;
        }
    }

    __device__ __forceinline__ void finish(const gpu_epilogue &e, float first, float second,
                                           int token) const
    {
        if (token >= e.tokens) {
            return;
        }
        float v[2] = {epilogue::linear(e, first, scale[0], bias[0]),
                      epilogue::linear(e, second, scale[1], bias[1])};
        int64_t at = token * e.token_step;
        if ((e.bits & ESP_EP_SWIGLU) != 0) {
            if (row[0] >= 0) {
                float gated = epilogue::silu(v[0]) * v[1];
                epilogue::finish_one(e, row[0] / 2 * e.feature_step + at, gated);
            }
            return;
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (row[i] >= 0) {
                float active = epilogue::activate(e.bits, v[i]);
                epilogue::finish_one(e, row[i] * e.feature_step + at, active);
            }
        }
    }
};

// ---- launching ----

// How many clusters of each size a device can run at a time: fewer than its multiprocessors have room for,
// because a cluster stays inside one part of the chip. Asked for once; 0: not yet.
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

// One way to launch a product: a depth of the ring, and how many blocks share the steps of a block of rows.
struct launching {
    const void *kernel;
    int cluster;
    uint32_t shared;
    double cost; // rounds of clusters, each of a start and the steps of a warp
};

// `blocks` of 64 rows, or whatever a cluster takes, each of so many steps. `map` has the kernel's shared memory.
template <class map>
void find_cluster(residency *known, const void *kernel, int device, int64_t blocks, int64_t steps,
                  launching *best, int least = 1)
{
    const double start = 2.5; // of a block, in steps
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeClusterDimension;
    cudaLaunchConfig_t how = {};
    how.blockDim = dim3(WARPS * 32);
    how.attrs = &attribute;
    how.numAttrs = 1;
    for (int cluster = least; cluster <= MOST_CLUSTER; cluster++) {
        how.gridDim = dim3((unsigned)(blocks * cluster));
        how.dynamicSmemBytes = map::shared(cluster);
        attribute.val.clusterDim = {(unsigned)cluster, 1, 1};
        int64_t room = resident(known, kernel, how, device, cluster);
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

} // namespace streamed

#endif
