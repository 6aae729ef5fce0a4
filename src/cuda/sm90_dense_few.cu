// Y = epilogue(W X) for dense weights of 16 bits and up to 16 tokens, on Hopper. Reference: src/ref/matmul.c.
//
// Idea. That of sm90_few.cu: a stream of weights, whose launches overlap. W lies as its user gave it, [out][in]; a
// tensor copy brings 64 rows x 64 features, 8192 bytes, swizzled as ldmatrix likes it. A cluster has one block of 64
// rows, and its warps take the steps of 64 features in turn, so that neighbouring warps read neighbouring pieces of
// the same rows. Weights are the 16-row operand of mma, tokens its 8 columns.
//
// Rows are dealt to the upper and the lower half of 16 in turn, as ldmatrix lets each lane name its row: so rows 2 i
// and 2 i + 1 end in one thread, as packed panels have them, and sums and results go the same way (sm90_few.cuh).
//
// Shared memory, bytes: WARPS x STAGES x 8192 of weights | WARPS x 1024 (2048 above 8 tokens) of X | barriers | a
// float a warp for a norm | received sums, 512 (1024) a sender and 16 rows.
//
// Tails. What lies past the last row or feature arrives as zeros, X beyond is not read. Rows begin at 16 bytes (in is
// a multiple of 8): others are left to sm80_dense_few.cu.
//
// Limit: memory bandwidth.
#include "cuda/sm90_few.cuh"
#include "cuda/sm90_tensor.cuh"

namespace {

using namespace streamed;

constexpr int BLOCK_ROWS = 64, STEP_FEATURES = 64, DENSE_BLOCKS_PER_SM = 2;
constexpr uint32_t TILE_BYTES = BLOCK_ROWS * STEP_FEATURES * 2, ROW_BYTES = STEP_FEATURES * 2;
constexpr uint32_t SWIZZLED = 1024; // what tiles are aligned to

// EIGHTS: of tokens, 1 or 2.
template <int EIGHTS> struct map_of {
    static constexpr int STAGES = EIGHTS == 1 ? 3 : 2;
    static constexpr uint32_t RING_BYTES = STAGES * TILE_BYTES; // of a warp
    static constexpr uint32_t X_BYTES = EIGHTS * 1024;          // of one step
    static constexpr uint32_t X_AT = WARPS * RING_BYTES;
    static constexpr uint32_t BARRIERS_AT = X_AT + WARPS * X_BYTES;
    static constexpr uint32_t ARRIVED_AT = BARRIERS_AT + WARPS * STAGES * 8; // one a group of rows
    static constexpr uint32_t SQUARES_AT = ARRIVED_AT + ROW_GROUPS * 8;
    static constexpr uint32_t SUMS_AT = (SQUARES_AT + WARPS * 4 + 127) / 128 * 128;

    static constexpr uint32_t shared(int cluster)
    {
        int owned = (ROW_GROUPS + cluster - 1) / cluster;
        return SUMS_AT + owned * cluster * WARPS * EIGHTS * 512 + SWIZZLED;
    }
};

struct task {
    CUtensorMap weights; // boxes of a step
    gpu_dense_product product;
};

// Steps first, first + stride... of one block of rows, through the ring of one warp.
template <int STAGES> struct stream {
    const CUtensorMap *weights;
    uint32_t ring, barriers;
    uint64_t policy;
    int row, first, stride, steps;

    __device__ __forceinline__ void fetch(int step, int stage) const // by one lane
    {
        uint32_t barrier = barriers + stage * 8;
        ptx::barrier_expect(barrier, TILE_BYTES);
        ptx::tensor_copy_once(ring + stage * TILE_BYTES, weights, step * STEP_FEATURES, row, barrier,
                              policy);
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

// 32 features of a step, `part` 0 or 1. WHOLE: all groups are in use; without branches pieces are read one behind the
// other.
template <int EIGHTS, bool BF16, bool WHOLE>
__device__ __forceinline__ void multiply_part(sums_of<EIGHTS> &sums, uint32_t tile, uint32_t x, int part,
                                              int groups, int lane)
{
    uint32_t b[EIGHTS][4];
#pragma unroll
    for (int e = 0; e < EIGHTS; e++) {
        ptx::load_matrices_transposed(x + e * 1024 + (part * 32 + lane) * 16, b[e]);
    }
    // Lane 8 m + i names row i of matrix m: the tile's row 2 i + m % 2, its features 8 (m / 2)...
    uint32_t row = lane % 8 * 2 + lane / 8 % 2, from = tile + row * ROW_BYTES;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t piece = ((uint32_t)(part * 4 + half * 2 + lane / 16) ^ row % 8) * 16, a[ROW_GROUPS][4];
#pragma unroll
        for (int g = 0; g < ROW_GROUPS; g++) {
            if (WHOLE || g < groups) {
                ptx::load_matrices(from + g * 16 * ROW_BYTES + piece, a[g]);
            }
        }
#pragma unroll
        for (int g = 0; g < ROW_GROUPS; g++) {
#pragma unroll
            for (int e = 0; e < EIGHTS; e++) {
                if (WHOLE || g < groups) {
                    ptx::product_16x8<BF16>(sums.of[g][e], a[g][0], a[g][1], a[g][2], a[g][3],
                                            b[e][2 * half], b[e][2 * half + 1]);
                }
            }
        }
    }
}

template <int EIGHTS, bool BF16, bool WHOLE>
__device__ __forceinline__ void multiply_step(sums_of<EIGHTS> &sums, uint32_t tile, uint32_t x, int groups,
                                              int lane)
{
    multiply_part<EIGHTS, BF16, WHOLE>(sums, tile, x, 0, groups, lane);
    multiply_part<EIGHTS, BF16, WHOLE>(sums, tile, x, 1, groups, lane);
}

template <int EIGHTS, bool BF16, reading READING, prologue PROLOGUE, int STAGES>
__device__ __forceinline__ void add_steps(const gpu_dense_product &p, const stream<STAGES> &weights,
                                          uint32_t laid, uint32_t squares, int groups, int lane,
                                          sums_of<EIGHTS> &sums)
{
    constexpr int AHEAD = READING == ONE ? STAGES : 1; // as far as the ring, of a single token
    column_of_x<EIGHTS, READING, PROLOGUE, BF16> x[AHEAD][2];
    auto load = [&](auto *to, int step) {
        uint32_t column = step < weights.steps ? (uint32_t)(step * STEP_FEATURES + lane) : ~0u;
        to[0].load(p, column);
        to[1].load(p, column == ~0u ? ~0u : column + 32);
    };
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
        load(x[i], weights.first + i * weights.stride);
    }
    float scale = PROLOGUE == NORMED ? norm_scale<BF16, WARPS>(p, squares) : 1.0f;
    int step = weights.first;
    for (uint32_t parity = 0; step < weights.steps; parity ^= 1) {
#pragma unroll
        for (int stage = 0; stage < STAGES; stage++, step += weights.stride) {
            if (step >= weights.steps) {
                break;
            }
            auto *now = x[stage % AHEAD];
            now[0].lay(laid + lane * 16, scale);
            now[1].lay(laid + (lane + 32) * 16, scale);
            __syncwarp();
            load(now, step + AHEAD * weights.stride);
            uint32_t tile = weights.ring + stage * TILE_BYTES;
            ptx::barrier_wait(weights.barriers + stage * 8, parity);
            groups == ROW_GROUPS ? multiply_step<EIGHTS, BF16, true>(sums, tile, laid, groups, lane)
                                 : multiply_step<EIGHTS, BF16, false>(sums, tile, laid, groups, lane);
            __syncwarp();
            if (lane == 0 && step + STAGES * weights.stride < weights.steps) {
                weights.fetch(step + STAGES * weights.stride, stage);
            }
        }
    }
}

template <int EIGHTS, bool BF16, reading READING, prologue PROLOGUE>
__global__ void __launch_bounds__(WARPS * 32, DENSE_BLOCKS_PER_SM)
    dense_few_kernel(const __grid_constant__ task t)
{
    using map = map_of<EIGHTS>;
    extern __shared__ unsigned char memory[];
    const gpu_dense_product &p = t.product;
    uint32_t base = (ptx::shared_address(memory) + SWIZZLED - 1) & ~(SWIZZLED - 1);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int cluster = (int)ptx::cluster_size(), rank = (int)ptx::cluster_rank();
    int row = (int)(blockIdx.x / cluster) * BLOCK_ROWS;
    int groups = (int)min((int64_t)ROW_GROUPS, (p.out - row + 15) / 16);
    stream<map::STAGES> weights = {&t.weights,
                                   base + warp * map::RING_BYTES,
                                   base + map::BARRIERS_AT + warp * map::STAGES * 8,
                                   ptx::evict_first_policy(),
                                   row,
                                   rank * WARPS + warp,
                                   cluster * WARPS,
                                   (int)((p.in + STEP_FEATURES - 1) / STEP_FEATURES)};
    exchange<EIGHTS, WARPS> finish = {base + map::SUMS_AT, base + map::ARRIVED_AT, cluster, rank, warp};
    ptx::launch_next();
    if (lane == 0) {
        weights.start();
    }
    if (threadIdx.x == 0) {
        finish.start();
    }
    bool mine = warp < groups && finish.finishes(warp);
    int first = row + warp * 16 + lane / 4 * 2, second = first + 1;
    two_rows<EIGHTS, READING == ONE> ends(mine && first < p.out ? first : -1,
                                          mine && second < p.out ? second : -1);
    __syncwarp();
    ptx::cluster_has_come();
    if (lane == 0) {
        ask_ahead<WARPS>(p.ahead);
    }
    __syncwarp();
    ptx::stream_order_wait();
    ends.load_terms(p.epilogue, lane);
    sums_of<EIGHTS> sums = {};
    add_steps<EIGHTS, BF16, READING, PROLOGUE>(p, weights, base + map::X_AT + warp * map::X_BYTES,
                                               base + map::SQUARES_AT, groups, lane, sums);
    ptx::cluster_wait(); // all blocks of the cluster have their barriers
    finish.send(sums, groups, lane);
    if (mine) {
        float4 whole[EIGHTS];
        finish.receive(warp, lane, whole);
        ends.finish(p.epilogue, whole, lane);
    }
}

// ---- launching ----

// Boxes are 128 bytes wide, and their neighbours are asked for by other warps: promoted to 256
// bytes each, as tensor::describe has it, what one has fetched may have left the L2 before the
// other comes.
int describe_weights(const gpu_dense_product &p, CUtensorMap *map)
{
    static const tensor::encode_function encode = tensor::find_encode();
    if (encode == nullptr) {
        return cudaErrorNotSupported;
    }
    const cuuint64_t sizes[2] = {(cuuint64_t)p.in, (cuuint64_t)p.out};
    const cuuint64_t row_bytes = (cuuint64_t)p.in * 2;
    const cuuint32_t box[2] = {STEP_FEATURES, BLOCK_ROWS}, steps[2] = {1, 1};
    CUresult failed =
        encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, (void *)p.weight, sizes, &row_bytes, box,
               steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return failed == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <bool BF16> struct launcher {
    template <int EIGHTS, reading READING, prologue PROLOGUE>
    static int run(const gpu_dense_product &p, void *stream)
    {
        using map = map_of<EIGHTS>;
        auto kernel = (const void *)dense_few_kernel<EIGHTS, BF16, READING, PROLOGUE>;
        static std::atomic<uint64_t> prepared;
        static residency known;
        task t = {{}, p};
        launching best = {};
        int64_t blocks = (p.out + BLOCK_ROWS - 1) / BLOCK_ROWS;
        int failed = gpu_prepare(kernel, map::shared(MOST_CLUSTER), p.device, &prepared);
        if (failed == 0) {
            failed = describe_weights(p, &t.weights);
        }
        if (failed != 0) {
            return failed;
        }
        find_cluster<map>(&known, kernel, p.device, blocks,
                          (p.in + STEP_FEATURES - 1) / STEP_FEATURES, &best);
        return launch_cluster(best, blocks, stream, &t);
    }
};

} // namespace

extern "C" int gpu_sm90_dense_few(const gpu_dense_product *product, void *stream)
{
    return product->bf16 ? launch_by_reading<launcher<true>>(*product, stream)
                         : launch_by_reading<launcher<false>>(*product, stream);
}
