// Y = epilogue(W X) for panels (2:4 is one panel without a column list) and up to 16 tokens, on Hopper.
// Reference: src/ref/matmul.c.
//
// Idea. With so few tokens every weight is used once or twice and the time is that of reading the weights, so
// the kernel is a stream: each warp has a ring of pieces of 4608 bytes (64 rows x 64 kept columns, the
// packing of pack.cu) that bulk copies keep full, marked as not worth a place in the L2. The weights are the
// 16-row operand of mma.sp, tokens its 8 columns.
//
// Launches overlap. Weights, column lists and row tables are complete before a product may be given to a
// stream, so a launch does not wait for the one before it: its blocks start while the last ones of that one
// are still running, fill their rings, and wait for it (`stream_order_wait`) before they touch X or Y.
//
// Who does what. A block has one block of 64 rows; its warps, and the blocks of a cluster, share out the
// steps of 64 kept columns in turn. A lane fetches two of a step's 64 rows of X into registers, one step ahead
// (a single token: as many as the ring has pieces; more tokens so far ahead only crowd the L2), and lays them
// down for ldmatrix, which turns them into operands. In the end
// every warp sends its sums of each 16 rows, as they lie in its registers, to the block of the cluster that
// finishes those rows; there one warp adds them in the order of senders, so results do not depend on timing,
// and writes them from its registers.
//
// X may be normed or gated on its way (sm90_few.cuh). Where gates and what they open are the halves of the rows, a block
// has a block of rows of each, half of its warps one: the pairs' sums meet where they end.
//
// Shared memory, bytes: WARPS x STAGES x 4608 of weights | WARPS x 1024 (2048 above 8 tokens) of X |
// barriers | a float a warp for a norm | received sums, 512 (1024) a sender and 16 rows.
//
// Tails as in sm90_panel.cuh; groups of 16 rows that are all padding are not read.
//
// Limit: memory bandwidth; where nothing overlaps, the time to start, to fill the ring and to add up.
#include "cuda/sm90_few.cuh"

namespace {

using namespace streamed;

// What an empty device has room for is not there where launches overlap: of 448 blocks in clusters
// of seven the last began 8 us after the first (one H200, o and down of Llama-2-7B in 64:2:5; a
// layer 65 us, with clusters of five and six 59).
constexpr int LARGEST_CLUSTER = 6, LOST_PLACES = 1;

// EIGHTS: of tokens, 1 or 2.
template <int EIGHTS, int STAGES> struct map_of {
    static constexpr uint32_t RING_BYTES = STAGES * GPU_STEP_BYTES; // of a warp
    static constexpr uint32_t X_BYTES = EIGHTS * 1024;              // of one step
    static constexpr uint32_t SUM_BYTES = EIGHTS * 512;             // of 16 rows
    static constexpr uint32_t X_AT = WARPS * RING_BYTES;
    static constexpr uint32_t BARRIERS_AT = X_AT + WARPS * X_BYTES;
    static constexpr uint32_t ARRIVED_AT = BARRIERS_AT + WARPS * STAGES * 8; // one a group of rows
    static constexpr uint32_t SQUARES_AT = ARRIVED_AT + ROW_GROUPS * 8;
    static constexpr uint32_t SUMS_AT = (SQUARES_AT + WARPS * 4 + 127) / 128 * 128;
    static_assert(WARPS >= ROW_GROUPS, "a group of rows has a warp to finish it");

    static constexpr uint32_t shared(int cluster)
    {
        int owned = (ROW_GROUPS + cluster - 1) / cluster;
        return SUMS_AT + owned * cluster * WARPS * SUM_BYTES + 128; // 128: to align
    }
};

__device__ __forceinline__ uint32_t kept_column(const gpu_panels &w, int panel, int step, int i)
{
    int64_t j = (int64_t)step * GPU_STEP_COLUMNS + i;
    if (w.columns == nullptr) {
        return (uint32_t)j;
    }
    j += (int64_t)panel * w.steps * GPU_STEP_COLUMNS;
    return w.wide ? ((const uint32_t *)w.columns)[j] : ((const uint16_t *)w.columns)[j];
}

// Steps first, first + stride... of one block of rows, through the ring of one warp.
template <int STAGES> struct stream {
    const char *data; // of this block of rows
    uint32_t ring, barriers;
    uint64_t policy;
    int groups; // of 16 rows that hold anything
    int first, stride, steps;

    // By one lane. The values of the first 16 g rows lie together in each half, and so do their positions.
    __device__ __forceinline__ void fetch(int step, int stage) const
    {
        const char *from = data + (int64_t)step * GPU_STEP_BYTES;
        uint32_t to = ring + stage * GPU_STEP_BYTES, barrier = barriers + stage * 8;
        if (groups == ROW_GROUPS) {
            ptx::barrier_expect(barrier, GPU_STEP_BYTES);
            ptx::bulk_copy_once(to, from, GPU_STEP_BYTES, barrier, policy);
            return;
        }
        ptx::barrier_expect(barrier, groups * (512 + 512 + 128));
        ptx::bulk_copy_once(to, from, groups * 512, barrier, policy);
        ptx::bulk_copy_once(to + 2048, from + 2048, groups * 512, barrier, policy);
        ptx::bulk_copy_once(to + 4096, from + 4096, groups * 128, barrier, policy);
    }

    __device__ __forceinline__ void start() const // by one lane
    {
        for (int i = 0; i < STAGES; i++) {
            ptx::barrier_init(barriers + i * 8, 1);
        }
        ptx::barrier_init_fence();
#pragma unroll 1
        for (int i = 0; i < STAGES && first + i * stride < steps; i++) {
            fetch(first + i * stride, i);
        }
    }
};

// WHOLE: all groups are in use. Without branches a step's pieces are read one behind the other.
template <int PART, int EIGHTS, bool BF16, bool WHOLE>
__device__ __forceinline__ void multiply_part(sums_of<EIGHTS> &sums, uint32_t weights, uint32_t x,
                                              const uint32_t (&positions)[ROW_GROUPS], int groups,
                                              int lane)
{
    uint32_t a[ROW_GROUPS][4], b[EIGHTS][4];
#pragma unroll
    for (int e = 0; e < EIGHTS; e++) {
        ptx::load_matrices_transposed(x + e * 1024 + (PART * 32 + lane) * 16, b[e]);
    }
    uint32_t piece = lane / 8, row = lane % 8;
    uint32_t from = weights + PART * 2048 + piece % 2 * 256 + piece / 2 * 128 + row * 16;
#pragma unroll
    for (int g = 0; g < ROW_GROUPS; g++) {
        if (WHOLE || g < groups) {
            ptx::load_matrices(from + g * 512, a[g]);
        }
    }
#pragma unroll
    for (int g = 0; g < ROW_GROUPS; g++) {
        if (WHOLE || g < groups) {
#pragma unroll
            for (int e = 0; e < EIGHTS; e++) {
                ptx::sparse_product_16x8<PART, BF16>(sums.of[g][e], a[g], b[e], positions[g]);
            }
        }
    }
}

template <int EIGHTS, bool BF16, bool WHOLE>
__device__ __forceinline__ void multiply_step(sums_of<EIGHTS> &sums, uint32_t weights, uint32_t x, int groups,
                                              int lane)
{
    uint32_t positions[ROW_GROUPS];
#pragma unroll
    for (int g = 0; g < ROW_GROUPS; g++) {
        positions[g] = WHOLE || g < groups ? ptx::load_shared(weights + 4096 + g * 128 + lane * 4) : 0;
    }
    multiply_part<0, EIGHTS, BF16, WHOLE>(sums, weights, x, positions, groups, lane);
    multiply_part<1, EIGHTS, BF16, WHOLE>(sums, weights, x, positions, groups, lane);
}

// The columns of a lane in one step: in the list's order lane and lane + 32.
struct two_columns {
    uint32_t at[2];
};

__device__ __forceinline__ two_columns columns_of(const gpu_panels &w, int panel, int step, int lane)
{
    if (step >= w.steps) {
        return {UINT32_MAX, UINT32_MAX};
    }
    return {kept_column(w, panel, step, lane), kept_column(w, panel, step, lane + 32)};
}

// Of the first steps, which are loaded before X may be read, and of the one after them.
template <int AHEAD> struct first_columns {
    two_columns of[AHEAD + 1];

    template <int STAGES>
    __device__ __forceinline__ void load(const gpu_panels &w, int panel, const stream<STAGES> &weights,
                                         int lane)
    {
#pragma unroll
        for (int i = 0; i <= AHEAD; i++) {
            of[i] = columns_of(w, panel, weights.first + i * weights.stride, lane);
        }
        if (w.columns == nullptr) {
            return;
        }
        int64_t first = (int64_t)panel * w.steps, bytes = GPU_STEP_COLUMNS * (w.wide ? 4 : 2);
        int step = weights.first + (AHEAD + 1 + lane) * weights.stride;
        for (; step < w.steps; step += 32 * weights.stride) { // the others: as far as the L2
            ptx::prefetch_l2((const char *)w.columns + (first + step) * bytes);
        }
    }
};

template <int EIGHTS, bool BF16, reading READING, prologue PROLOGUE, int AHEAD, int STAGES>
__device__ __forceinline__ void add_steps(const gpu_product &p, int panel,
                                          const stream<STAGES> &weights,
                                          const first_columns<AHEAD> &columns, uint32_t laid,
                                          uint32_t squares, int lane, sums_of<EIGHTS> &sums)
{
    static_assert(AHEAD == 1 || AHEAD == STAGES, "X is found by the stage");
    const gpu_panels &w = p.weight;
    step_of_x<EIGHTS, READING, PROLOGUE, BF16, true> x[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
        x[i].load(p, columns.of[i].at[0], columns.of[i].at[1], lane);
    }
    two_columns coming = columns.of[AHEAD];
    float scale = PROLOGUE == NORMED ? norm_scale<BF16, WARPS>(p, squares) : 1.0f;
    int step = weights.first;
    for (uint32_t parity = 0; step < w.steps; parity ^= 1) {
#pragma unroll
        for (int stage = 0; stage < STAGES; stage++, step += weights.stride) {
            if (step >= w.steps) {
                break;
            }
            auto &now = x[stage % AHEAD];
            now.lay(laid, lane, scale);
            __syncwarp();
            now.load(p, coming.at[0], coming.at[1], lane);
            coming = columns_of(w, panel, step + (AHEAD + 1) * weights.stride, lane);
            uint32_t at = weights.ring + stage * GPU_STEP_BYTES;
            ptx::barrier_wait(weights.barriers + stage * 8, parity);
            weights.groups == ROW_GROUPS
                ? multiply_step<EIGHTS, BF16, true>(sums, at, laid, weights.groups, lane)
                : multiply_step<EIGHTS, BF16, false>(sums, at, laid, weights.groups, lane);
            __syncwarp();
            if (lane == 0 && step + STAGES * weights.stride < w.steps) {
                weights.fetch(step + STAGES * weights.stride, stage);
            }
        }
    }
}

// Groups of 16 rows of a block that hold stored rows. From sizes alone: the first copies of weights must not
// wait for a table.
__device__ __forceinline__ int groups_in_use(const gpu_panels &w, int64_t panel, int64_t block)
{
    int64_t inside = (block - panel * w.blocks) * GPU_BLOCK_ROWS;
    int64_t rows = min(w.panel_rows, w.out - panel * w.panel_rows) - inside;
    return (int)max((int64_t)1, min((int64_t)ROW_GROUPS, (rows + 15) / 16));
}

template <int EIGHTS, bool BF16, reading READING, prologue PROLOGUE, int STAGES>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS_PER_SM)
    few_kernel(const __grid_constant__ gpu_product p)
{
    using map = map_of<EIGHTS, STAGES>;
    extern __shared__ unsigned char memory[];
    uint32_t base = (ptx::shared_address(memory) + 127) & ~127u;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int cluster = (int)ptx::cluster_size(), rank = (int)ptx::cluster_rank();
    bool gates = READING != ONE && p.gates;
    int halves = gates ? 2 : 1, of_half = WARPS / halves, half = warp / of_half;
    int64_t block = blockIdx.x / cluster + half * (gridDim.x / cluster);
    int panel = (int)(block / p.weight.blocks);
    const int32_t *rows = p.weight.rows + blockIdx.x / cluster * GPU_BLOCK_ROWS; // those of the first half
    stream<STAGES> weights = {(const char *)p.weight.data + block * p.weight.steps * GPU_STEP_BYTES,
                              base + warp * map::RING_BYTES,
                              base + map::BARRIERS_AT + warp * STAGES * 8,
                              ptx::evict_first_policy(),
                              groups_in_use(p.weight, panel, block),
                              rank * of_half + warp % of_half,
                              cluster * of_half,
                              p.weight.steps};
    exchange<EIGHTS, WARPS> finish = {base + map::SUMS_AT, base + map::ARRIVED_AT, cluster, rank, warp};
    ptx::launch_next();
    if (lane == 0) {
        weights.start();
    }
    if (threadIdx.x == 0) {
        finish.start();
    }
    constexpr int AHEAD = READING == ONE ? STAGES : 1;
    first_columns<AHEAD> columns;
    columns.load(p.weight, panel, weights, lane);
    bool mine = warp < weights.groups && finish.finishes(warp);
    two_rows<EIGHTS, READING == ONE> ends(-1, -1);
    if (mine) {
        int2 two = *(const int2 *)(rows + warp * 16 + lane / 4 * 2);
        ends.row[0] = two.x, ends.row[1] = two.y;
    }
    __syncwarp();
    ptx::cluster_has_come();
    if (lane == 0) {
        ask_ahead<WARPS>(p.ahead);
    }
    __syncwarp();
    ptx::stream_order_wait();
    ends.load_terms(p.epilogue, lane);
    sums_of<EIGHTS> sums = {};
    add_steps<EIGHTS, BF16, READING, PROLOGUE>(p, panel, weights, columns,
                                               base + map::X_AT + warp * map::X_BYTES,
                                               base + map::SQUARES_AT, lane, sums);
    ptx::cluster_wait(); // all blocks of the cluster have their barriers
    finish.send(sums, weights.groups, lane);
    if (mine && gates) {
        float4 openers[EIGHTS], others[EIGHTS];
        finish.receive_halves(warp, lane, openers, others);
        ends.finish_halves(p.epilogue, openers, others, lane);
    } else if (mine) {
        float4 whole[EIGHTS];
        finish.receive(warp, lane, whole);
        ends.finish(p.epilogue, whole, lane);
    }
}

// ---- launching ----

// Of rows, or of pairs of them.
int64_t blocks_of(const gpu_product &p)
{
    return (int64_t)p.weight.panels * p.weight.blocks / (p.gates ? 2 : 1);
}

template <int EIGHTS, bool BF16, reading READING, prologue PROLOGUE, int STAGES>
int consider(const gpu_product &p, launching *best)
{
    auto kernel = (const void *)few_kernel<EIGHTS, BF16, READING, PROLOGUE, STAGES>;
    using map = map_of<EIGHTS, STAGES>;
    static std::atomic<uint64_t> prepared;
    static residency known;
    int failed = gpu_prepare(kernel, map::shared(MOST_CLUSTER), p.device, &prepared);
    if (failed == 0) {
        int halves = p.gates ? 2 : 1;
        find_cluster<map>(&known, kernel, p.device, blocks_of(p), (int64_t)p.weight.steps * halves,
                          best, 1, LARGEST_CLUSTER, LOST_PLACES);
    }
    return failed;
}

template <bool BF16> struct launcher {
    template <int EIGHTS, reading READING, prologue PROLOGUE>
    static int run(const gpu_product &p, void *stream)
    {
        launching best = {};
        int failed = 0;
        if constexpr (EIGHTS == 1) { // more would leave room for two blocks a multiprocessor only
            failed = consider<EIGHTS, BF16, READING, PROLOGUE, 3>(p, &best);
        }
        if (failed == 0) {
            failed = consider<EIGHTS, BF16, READING, PROLOGUE, 2>(p, &best);
        }
        if (failed != 0) {
            return failed;
        }
        gpu_product copy = p;
        return launch_cluster(best, blocks_of(p), stream, &copy);
    }
};

} // namespace

extern "C" int gpu_sm90_few(const gpu_product *product, void *stream)
{
    return product->bf16 ? launch_by_reading<launcher<true>>(*product, stream)
                         : launch_by_reading<launcher<false>>(*product, stream);
}
