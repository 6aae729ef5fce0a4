// Y = epilogue(W X) for panels (2:4 is one panel without a column list) and up to 16 tokens, on Hopper.
// Reference: src/ref/matmul.c.
//
// Idea. With so few tokens every weight is used once or twice and the time is that of reading the weights, so
// the kernel is a stream: each warp has a ring of three pieces of 4608 bytes (64 rows x 64 kept columns, the
// packing of pack.cu) that bulk copies keep full, marked as not worth a place in the L2. The weights are the
// 16-row operand of mma.sp, tokens its 8 columns.
//
// Who does what. A block has one block of 64 rows; its four warps, and the blocks of a cluster, share out the
// steps of 64 kept columns in turn. A lane fetches two of the step's 64 rows of X one step ahead into
// registers and lays them down for ldmatrix, which turns them into operands. At the end partial sums meet in
// shared memory, first the warps', then the cluster's, always in the same order: results do not depend on
// timing. Each warp then finishes 16 rows.
//
// Shared memory, bytes: 4 warps x 3 x 4608 of weights (in the end partial sums) | 4 warps x 2 x 1024 (2048
// above 8 tokens) of X | barriers. Three blocks a multiprocessor: 166 KB in flight.
//
// Tails as in sm90_panel.cuh; groups of 16 rows that are all padding are not read.
//
// Limit: memory bandwidth; with few steps a warp, the time to start, to fill the ring and to add up.
#include "cuda/epilogue.cuh"
#include "cuda/launch.cuh"
#include "cuda/sm90_ptx.cuh"

namespace {

constexpr int WARPS = 4, STAGES = 3, ROW_GROUPS = 4; // groups of 16 rows
constexpr int BLOCKS_PER_SM = 3, MOST_CLUSTER = 8;
constexpr uint32_t RING_BYTES = STAGES * GPU_STEP_BYTES;
constexpr int SUM_PITCH = 20; // floats between rows of partial sums
constexpr uint32_t SUM_FLOATS = GPU_BLOCK_ROWS * SUM_PITCH;
constexpr uint32_t STRIP_FLOATS = epilogue::ROWS * epilogue::PITCH;
static_assert((WARPS + 1) * SUM_FLOATS * 4 + WARPS * STRIP_FLOATS * 4 <= WARPS * RING_BYTES,
              "partial sums do not fit where the weights were");

// EIGHTS: of tokens, 1 or 2.
template <int EIGHTS> struct map_of {
    static constexpr uint32_t X_BYTES = EIGHTS * 1024; // of one step
    static constexpr uint32_t X_AT = WARPS * RING_BYTES;
    static constexpr uint32_t BARRIERS_AT = X_AT + WARPS * 2 * X_BYTES;
    static constexpr uint32_t SHARED = BARRIERS_AT + WARPS * STAGES * 8 + 128; // 128: to align
};

// How X is read: 16 bytes at a time, one token, or any.
enum reading { EIGHT, ONE, ANY };

__device__ __forceinline__ int64_t kept_column(const gpu_panels &w, int panel, int step, int i)
{
    int64_t j = (int64_t)step * GPU_STEP_COLUMNS + i;
    if (w.columns == nullptr) {
        return j;
    }
    j += (int64_t)panel * w.steps * GPU_STEP_COLUMNS;
    return w.wide ? ((const uint32_t *)w.columns)[j] : ((const uint16_t *)w.columns)[j];
}

// What X holds for one kept column, as it was read: a word holds one or two tokens. It is put together only
// when it is laid down: doing so at once would wait for the loads.
template <int EIGHTS, reading READING> struct column_of_x {
    static constexpr int WORDS = READING == EIGHT ? 4 * EIGHTS : READING == ONE ? 1 : 8 * EIGHTS;
    uint32_t word[WORDS];

    __device__ __forceinline__ void load(const gpu_product &p, int64_t column)
    {
        bool there = column < p.weight.in;
        int64_t token_step = p.x_by_token ? p.x_stride : 1;
        const uint16_t *x = (const uint16_t *)p.x;
        x += there ? (p.x_by_token ? column : column * p.x_stride) : 0;
        if constexpr (READING == EIGHT) {
#pragma unroll
            for (int e = 0; e < EIGHTS; e++) {
                uint4 four = there ? __ldg((const uint4 *)x + e) : make_uint4(0, 0, 0, 0);
                word[4 * e] = four.x, word[4 * e + 1] = four.y;
                word[4 * e + 2] = four.z, word[4 * e + 3] = four.w;
            }
        } else {
#pragma unroll
            for (int i = 0; i < WORDS; i++) {
                word[i] = there && i < p.tokens ? __ldg(x + i * token_step) : 0;
            }
        }
    }

    __device__ __forceinline__ void lay(uint32_t to) const // eights are 1024 bytes apart
    {
#pragma unroll
        for (int e = 0; e < EIGHTS; e++) {
            uint4 eight;
            if constexpr (READING == EIGHT) {
                const uint32_t *w = word + 4 * e;
                eight = make_uint4(w[0], w[1], w[2], w[3]);
            } else if constexpr (READING == ONE) {
                eight = make_uint4(word[0], 0, 0, 0);
            } else {
                const uint32_t *w = word + 8 * e;
                eight = make_uint4(w[0] | w[1] << 16, w[2] | w[3] << 16, w[4] | w[5] << 16,
                                   w[6] | w[7] << 16);
            }
            ptx::store_shared_16(to + e * 1024, eight);
        }
    }
};

struct stream {
    const char *data; // of this block of rows
    uint32_t ring, barriers;
    uint64_t policy;
    int groups; // of 16 rows that hold anything

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
};

template <int PART, int EIGHTS, bool BF16>
__device__ __forceinline__ void multiply_part(float (&sums)[ROW_GROUPS][EIGHTS][4], uint32_t weights,
                                              uint32_t x, const uint32_t (&positions)[ROW_GROUPS],
                                              int groups, int lane)
{
    uint32_t b[EIGHTS][4];
#pragma unroll
    for (int e = 0; e < EIGHTS; e++) {
        ptx::load_matrices_transposed(x + e * 1024 + (PART * 32 + lane) * 16, b[e]);
    }
    uint32_t piece = lane / 8, row = lane % 8;
    uint32_t from = weights + PART * 2048 + piece % 2 * 256 + piece / 2 * 128 + row * 16;
#pragma unroll
    for (int g = 0; g < ROW_GROUPS; g++) {
        if (g < groups) {
            uint32_t a[4];
            ptx::load_matrices(from + g * 512, a);
#pragma unroll
            for (int e = 0; e < EIGHTS; e++) {
                ptx::sparse_product_16x8<PART, BF16>(sums[g][e], a, b[e], positions[g]);
            }
        }
    }
}

// Steps first, first + stride... of the block's rows into the warp's sums.
template <int EIGHTS, bool BF16, reading READING>
__device__ __forceinline__ void add_steps(const gpu_product &p, int panel, const stream &weights,
                                          uint32_t x_at, int first, int stride, int lane,
                                          float (&sums)[ROW_GROUPS][EIGHTS][4])
{
    using map = map_of<EIGHTS>;
    const gpu_panels &w = p.weight;
    auto column = [&](int step, int i) {
        return step < w.steps ? kept_column(w, panel, step, i) : w.in;
    };
    int64_t coming[2] = {column(first, lane), column(first, lane + 32)};
    column_of_x<EIGHTS, READING> x[2];
    x[0].load(p, coming[0]);
    x[1].load(p, coming[1]);
    coming[0] = column(first + stride, lane);
    coming[1] = column(first + stride, lane + 32);
    int turn = 0;
    for (int step = first; step < w.steps; step += stride, turn++) {
        uint32_t laid = x_at + turn % 2 * map::X_BYTES;
        x[0].lay(laid + lane * 16);
        x[1].lay(laid + (lane + 32) * 16);
        __syncwarp();
        x[0].load(p, coming[0]);
        x[1].load(p, coming[1]);
        coming[0] = column(step + 2 * stride, lane);
        coming[1] = column(step + 2 * stride, lane + 32);
        int stage = turn % STAGES;
        uint32_t at = weights.ring + stage * GPU_STEP_BYTES, positions[ROW_GROUPS];
        ptx::barrier_wait(weights.barriers + stage * 8, turn / STAGES & 1);
#pragma unroll
        for (int g = 0; g < ROW_GROUPS; g++) {
            positions[g] = g < weights.groups ? ptx::load_shared(at + 4096 + g * 128 + lane * 4) : 0;
        }
        multiply_part<0, EIGHTS, BF16>(sums, at, laid, positions, weights.groups, lane);
        multiply_part<1, EIGHTS, BF16>(sums, at, laid, positions, weights.groups, lane);
        __syncwarp();
        if (lane == 0 && step + STAGES * stride < w.steps) {
            weights.fetch(step + STAGES * stride, stage);
        }
    }
}

// Groups of 16 rows, counted from the first, up to the last that holds anything.
__device__ __forceinline__ int groups_in_use(const int32_t *rows, int lane)
{
    unsigned low = __ballot_sync(~0u, rows[lane] >= 0), high = __ballot_sync(~0u, rows[lane + 32] >= 0);
    int last = high != 0 ? 63 - __clz(high) : 31 - __clz(low);
    return max(1, last / 16 + 1);
}

template <int EIGHTS, bool BF16, reading READING>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS_PER_SM)
    few_kernel(const __grid_constant__ gpu_product p)
{
    using map = map_of<EIGHTS>;
    extern __shared__ unsigned char memory[];
    uint32_t start = ptx::shared_address(memory), base = (start + 127) & ~127u;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int cluster = (int)ptx::cluster_size(), rank = (int)ptx::cluster_rank();
    int64_t block = blockIdx.x / cluster;
    const int32_t *rows = p.weight.rows + block * GPU_BLOCK_ROWS;
    stream weights = {(const char *)p.weight.data + block * p.weight.steps * GPU_STEP_BYTES,
                      base + warp * RING_BYTES, base + map::BARRIERS_AT + warp * STAGES * 8,
                      ptx::evict_first_policy(), groups_in_use(rows, lane)};
    int first = rank * WARPS + warp, stride = cluster * WARPS;
    if (lane == 0) {
        for (int i = 0; i < STAGES; i++) {
            ptx::barrier_init(weights.barriers + i * 8, 1);
        }
        ptx::barrier_init_fence();
        for (int i = 0; i < STAGES && first + i * stride < p.weight.steps; i++) {
            weights.fetch(first + i * stride, i);
        }
    }
    __syncwarp();
    float sums[ROW_GROUPS][EIGHTS][4] = {};
    add_steps<EIGHTS, BF16, READING>(p, (int)(block / p.weight.blocks), weights,
                                     base + map::X_AT + warp * 2 * map::X_BYTES, first, stride, lane,
                                     sums);
    __syncthreads(); // rings are drained: partial sums take their place
    float *partial = (float *)(memory + (base - start)), *whole = partial + WARPS * SUM_FLOATS;
    float *mine = partial + warp * SUM_FLOATS;
#pragma unroll
    for (int g = 0; g < ROW_GROUPS; g++) {
#pragma unroll
        for (int i = 0; i < EIGHTS * 2; i++) { // rows 2 l / 4 and the next: see pack.cu
            int row = g * 16 + lane / 4 * 2 + i % 2, token = i / 2 * 8 + lane % 4 * 2;
            const float *from = sums[g][i / 2] + i % 2 * 2;
            *(float2 *)(mine + row * SUM_PITCH + token) = make_float2(from[0], from[1]);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < GPU_BLOCK_ROWS * EIGHTS * 8; i += WARPS * 32) {
        int at = i / (EIGHTS * 8) * SUM_PITCH + i % (EIGHTS * 8);
        float sum = partial[at];
        for (int w = 1; w < WARPS; w++) {
            sum += partial[w * SUM_FLOATS + at];
        }
        whole[at] = sum;
    }
    ptx::cluster_sync();
    if (warp % cluster == rank && warp < weights.groups) {
        float *strip = whole + SUM_FLOATS + warp * STRIP_FLOATS;
        for (int i = lane; i < epilogue::ROWS * EIGHTS * 8; i += 32) {
            int row = i / (EIGHTS * 8), token = i % (EIGHTS * 8);
            uint32_t at = ptx::shared_address(whole + (warp * 16 + row) * SUM_PITCH + token);
            float sum = 0;
            for (int r = 0; r < cluster; r++) {
                sum += ptx::load_cluster(at, r);
            }
            strip[row * epilogue::PITCH + token] = sum;
        }
        __syncwarp();
        epilogue::row_terms terms = epilogue::load_terms(p.epilogue, rows + warp * 16, lane);
        epilogue::finish_staged(p.epilogue, strip, terms, 0, lane);
    }
    ptx::cluster_sync(); // a neighbour may still read the sums of this block
}

// Blocks that share the steps of one block of rows: few enough rounds of blocks, few enough steps a warp.
int cluster_for(int64_t blocks, int steps, int multiprocessors)
{
    const double start = 2.5; // of a block, in steps
    int64_t slots = (int64_t)multiprocessors * BLOCKS_PER_SM;
    int best = 1;
    double least = 0;
    for (int cluster = 1; cluster <= MOST_CLUSTER; cluster++) {
        int64_t rounds = (blocks * cluster + slots - 1) / slots;
        int64_t turns = (steps + cluster * WARPS - 1) / (cluster * WARPS);
        double cost = (double)rounds * ((double)turns + start);
        if (cluster == 1 || cost < least) {
            least = cost;
            best = cluster;
        }
    }
    return best;
}

template <int EIGHTS, bool BF16, reading READING> int launch_as(const gpu_product &p, void *stream)
{
    constexpr uint32_t shared = map_of<EIGHTS>::SHARED;
    static std::atomic<uint64_t> prepared;
    int failed = gpu_prepare((const void *)few_kernel<EIGHTS, BF16, READING>, shared, p.device, &prepared);
    if (failed != 0) {
        return failed;
    }
    int64_t blocks = (int64_t)p.weight.panels * p.weight.blocks;
    int cluster = cluster_for(blocks, p.weight.steps, p.multiprocessors);
    cudaLaunchConfig_t how = {};
    how.gridDim = dim3((unsigned)(blocks * cluster));
    how.blockDim = dim3(WARPS * 32);
    how.dynamicSmemBytes = shared;
    how.stream = (cudaStream_t)stream;
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {(unsigned)cluster, 1, 1};
    how.attrs = &attribute;
    how.numAttrs = 1;
    return cudaLaunchKernelEx(&how, few_kernel<EIGHTS, BF16, READING>, p);
}

template <bool BF16> int launch(const gpu_product &p, void *stream)
{
    bool eight = p.x_aligned && !p.x_by_token && p.tokens % 8 == 0;
    if (p.tokens == 1) {
        return launch_as<1, BF16, ONE>(p, stream);
    }
    if (p.tokens <= 8) {
        return eight ? launch_as<1, BF16, EIGHT>(p, stream) : launch_as<1, BF16, ANY>(p, stream);
    }
    return eight ? launch_as<2, BF16, EIGHT>(p, stream) : launch_as<2, BF16, ANY>(p, stream);
}

} // namespace

extern "C" int gpu_sm90_few(const gpu_product *product, void *stream)
{
    return product->bf16 ? launch<true>(*product, stream) : launch<false>(*product, stream);
}
