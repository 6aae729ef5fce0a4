// Y = epilogue(W X) for block-sparse W and up to 16 tokens, on Hopper. Reference: src/ref/matmul.c.
//
// Idea. That of sm90_few.cu: a stream of weights. The fragments of half a band (64 rows) lie side by side and
// are cut into pieces of eight, 4096 bytes, whatever blocks they belong to; a cluster's warps take them in turn.
// Rows differ in their blocks, so where there is much to do a cluster takes two halves, a long one and a short
// one, and deals its warps to them by their lengths. Eight words a piece say where its fragments belong
// (`gpu_block_run`, `places`), so that from the start of a block to its first copies there is one load.
//
// Launches overlap: blocks start while those of the launch before leave, fill their rings, and wait for it
// (`stream_order_wait`) before they touch X or Y.
//
// Who does what. Fragments lie as a warp's registers hold the left operand of mma, tokens are its 8 columns. A
// lane fetches up to four columns of X a piece, one piece ahead (a single token: as far as the ring reaches), and
// lays them down for ldmatrix. Sums meet as sm90_few.cuh says: the same order always.
//
// Shared memory, bytes: WARPS x STAGES x 4096 of weights | WARPS x 2048 (4096 above 8 tokens) of X | barriers |
// received sums, 512 (1024) a sender and 16 rows.
//
// Tails: columns of X and tokens past the end are zeros and not read; a row sees X of its own blocks only.
//
// Limit: memory bandwidth; where nothing overlaps, the time to start, to fill the ring and to add up.
#include "cuda/gpu_blocks.h"
#include "cuda/mma_ptx.cuh"
#include "cuda/sm90_few.cuh"

namespace {

using namespace streamed;

constexpr uint32_t PIECE_BYTES = GPU_PIECE_FRAGMENTS * GPU_FRAGMENT_BYTES;
constexpr int PLACE_COLUMNS = 16, LANE_COLUMNS = GPU_PIECE_FRAGMENTS * PLACE_COLUMNS / 32;
constexpr uint32_t PLACE_BYTES = PLACE_COLUMNS * 16; // of X, for eight tokens
constexpr uint32_t EIGHT_BYTES = GPU_PIECE_FRAGMENTS * PLACE_BYTES;

// EIGHTS: of tokens, 1 or 2.
template <int EIGHTS, int STAGES> struct map_of {
    static constexpr uint32_t RING_BYTES = STAGES * PIECE_BYTES; // of a warp
    static constexpr uint32_t X_BYTES = EIGHTS * EIGHT_BYTES;    // of one piece
    static constexpr uint32_t X_AT = WARPS * RING_BYTES;
    static constexpr uint32_t BARRIERS_AT = X_AT + WARPS * X_BYTES;
    static constexpr uint32_t ARRIVED_AT = BARRIERS_AT + WARPS * STAGES * 8; // one a strip and half
    static constexpr uint32_t SUMS_AT = (ARRIVED_AT + 2 * ROW_GROUPS * 8 + 127) / 128 * 128;

    static constexpr uint32_t shared(int cluster)
    {
        int owned = (ROW_GROUPS + cluster - 1) / cluster;
        return SUMS_AT + owned * cluster * WARPS * EIGHTS * 512 + 128; // 128: to align
    }
};

// Pieces first, first + stride... of half a band, through the ring of one warp.
template <int STAGES> struct stream {
    const char *fragments;
    const uint32_t *words; // eight a piece
    uint32_t ring, barriers;
    uint64_t policy;
    int first, stride;
    int count, pieces; // of all fragments, of all pieces

    __device__ __forceinline__ int fragments_of(int piece) const
    {
        return min(GPU_PIECE_FRAGMENTS, count - piece * GPU_PIECE_FRAGMENTS);
    }
    __device__ __forceinline__ void fetch(int piece, int stage) const // by one lane
    {
        uint32_t bytes = fragments_of(piece) * GPU_FRAGMENT_BYTES, barrier = barriers + stage * 8;
        ptx::barrier_expect(barrier, bytes);
        ptx::bulk_copy_once(ring + stage * PIECE_BYTES, fragments + (int64_t)piece * PIECE_BYTES,
                            bytes, barrier, policy);
    }
    __device__ __forceinline__ void make_barriers() const // by one lane
    {
        for (int i = 0; i < STAGES; i++) {
            ptx::barrier_init(barriers + i * 8, 1);
        }
        ptx::barrier_init_fence();
    }
    __device__ __forceinline__ void begin(const gpu_blocks &w, const gpu_block_run &run, int lane)
    {
        fragments = (const char *)w.fragments + (int64_t)run.first * GPU_FRAGMENT_BYTES;
        words = w.places + (int64_t)run.piece * GPU_PIECE_FRAGMENTS;
        count = run.fragments;
        pieces = (count + GPU_PIECE_FRAGMENTS - 1) / GPU_PIECE_FRAGMENTS;
        for (int i = 0; lane == 0 && i < STAGES && first + i * stride < pieces; i++) {
            fetch(first + i * stride, i);
        }
    }
    // Lane i < 8 has the piece's i-th word.
    __device__ __forceinline__ uint32_t places(int piece, int lane) const
    {
        bool there = piece < pieces && lane < GPU_PIECE_FRAGMENTS;
        return there ? __ldg(words + (int64_t)piece * GPU_PIECE_FRAGMENTS + lane) : UINT32_MAX;
    }
};

// X of one piece: a lane has column lane % 16 of every other place.
template <int EIGHTS, reading READING> struct piece_of_x {
    column_of_x<EIGHTS, READING> column[LANE_COLUMNS];

    static __device__ __forceinline__ int places(uint32_t words)
    {
        return __popc(__ballot_sync(~0u, words >> 5 != GPU_NO_PLACE));
    }
    __device__ __forceinline__ void load(const gpu_block_product &p, uint32_t words, int lane)
    {
        int count = places(words);
#pragma unroll
        for (int i = 0; i < LANE_COLUMNS; i++) {
            if (2 * i < count) {
                uint32_t word = __shfl_sync(~0u, words, 2 * i + lane / 16);
                column[i].load(p, GPU_PLACE_COLUMN(word) + lane % 16);
            }
        }
    }
    __device__ __forceinline__ void lay(uint32_t words, uint32_t to, int lane) const
    {
        int count = places(words);
#pragma unroll
        for (int i = 0; i < LANE_COLUMNS; i++) {
            if (2 * i < count) {
                column[i].template lay<EIGHT_BYTES>(to + i * 2 * PLACE_BYTES + lane * 16);
            }
        }
    }
};

// One fragment into the sums of its strip.
template <int EIGHTS, bool BF16>
__device__ __forceinline__ void multiply_fragment(sums_of<EIGHTS> &sums, int strip, uint32_t at,
                                                  const uint32_t (&b)[EIGHTS][2], int lane)
{
    uint4 a = ptx::load_shared_16(at + lane * 16);
#pragma unroll
    for (int g = 0; g < ROW_GROUPS; g++) {
        if (g == strip) {
#pragma unroll
            for (int e = 0; e < EIGHTS; e++) {
                mma::product_16x8<BF16>(sums.of[g][e], a, b[e][0], b[e][1]);
            }
        }
    }
}

// Two fragments share the loads of X: of eight tokens each a whole ldmatrix, else one for both.
template <int EIGHTS, bool BF16>
__device__ __forceinline__ void multiply_piece(sums_of<EIGHTS> &sums, uint32_t weights, uint32_t x,
                                               uint32_t words, int fragments, int lane)
{
#pragma unroll
    for (int f = 0; f < GPU_PIECE_FRAGMENTS; f += 2) {
        if (f >= fragments) {
            break;
        }
        uint32_t word[2] = {__shfl_sync(~0u, words, f), __shfl_sync(~0u, words, f + 1)};
        uint32_t b[2][EIGHTS][2];
        if constexpr (EIGHTS == 1) {
            uint32_t four[4], slot = GPU_PLACE_SLOT(lane < 16 ? word[0] : word[1]);
            ptx::load_matrices_transposed(x + slot * PLACE_BYTES + lane % 16 * 16, four);
            b[0][0][0] = four[0], b[0][0][1] = four[1], b[1][0][0] = four[2], b[1][0][1] = four[3];
        } else {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint32_t four[4], from = x + GPU_PLACE_SLOT(word[i]) * PLACE_BYTES;
                ptx::load_matrices_transposed(from + lane / 16 * EIGHT_BYTES + lane % 16 * 16, four);
                b[i][0][0] = four[0], b[i][0][1] = four[1], b[i][1][0] = four[2], b[i][1][1] = four[3];
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (f + i < fragments) {
                multiply_fragment<EIGHTS, BF16>(sums, GPU_PLACE_STRIP(word[i]),
                                                weights + (f + i) * GPU_FRAGMENT_BYTES, b[i], lane);
            }
        }
    }
}

// Words of the first pieces, which are loaded before X may be read, and of the one after them.
template <int AHEAD> struct first_places {
    uint32_t of[AHEAD + 1];

    template <int STAGES> __device__ __forceinline__ void load(const stream<STAGES> &weights, int lane)
    {
#pragma unroll
        for (int i = 0; i <= AHEAD; i++) {
            of[i] = weights.places(weights.first + i * weights.stride, lane);
        }
    }
};

template <int EIGHTS, bool BF16, reading READING, int AHEAD, int STAGES>
__device__ __forceinline__ void add_pieces(const gpu_block_product &p, const stream<STAGES> &weights,
                                           const first_places<AHEAD> &places, uint32_t laid, int lane,
                                           sums_of<EIGHTS> &sums)
{
    static_assert(AHEAD == 1 || AHEAD == STAGES, "X is found by the stage");
    piece_of_x<EIGHTS, READING> x[AHEAD];
    uint32_t words[AHEAD], coming = places.of[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
        words[i] = places.of[i];
        x[i].load(p, words[i], lane);
    }
    int piece = weights.first;
    for (uint32_t parity = 0; piece < weights.pieces; parity ^= 1) {
#pragma unroll
        for (int stage = 0; stage < STAGES; stage++, piece += weights.stride) {
            if (piece >= weights.pieces) {
                break;
            }
            uint32_t now = words[stage % AHEAD];
            x[stage % AHEAD].lay(now, laid, lane);
            __syncwarp();
            words[stage % AHEAD] = coming;
            x[stage % AHEAD].load(p, coming, lane);
            coming = weights.places(piece + (AHEAD + 1) * weights.stride, lane);
            ptx::barrier_wait(weights.barriers + stage * 8, parity);
            multiply_piece<EIGHTS, BF16>(sums, weights.ring + stage * PIECE_BYTES, laid, now,
                                         weights.fragments_of(piece), lane);
            __syncwarp();
            if (lane == 0 && piece + STAGES * weights.stride < weights.pieces) {
                weights.fetch(piece + STAGES * weights.stride, stage);
            }
        }
    }
}

struct few_product {
    gpu_block_product of;
    bool paired;
};

// How a cluster of so many warps is dealt to the two halves of a pair: `first` to the first, so that the most
// pieces that any has are as few as can be.
struct dealing {
    int first, warps;

    // A lane tries one way.
    __device__ __forceinline__ void deal(const gpu_block_run &a, const gpu_block_run &b, int lane)
    {
        int to_a = min(lane + 1, warps - 1), to_b = warps - to_a;
        unsigned most = max(turns(a, to_a), turns(b, to_b));
        first = (int)(__reduce_min_sync(~0u, most << 5 | to_a) & 31);
    }
    static __device__ __forceinline__ unsigned turns(const gpu_block_run &run, int to)
    {
        unsigned pieces = (unsigned)(run.fragments + GPU_PIECE_FRAGMENTS - 1) / GPU_PIECE_FRAGMENTS;
        return (pieces + to - 1) / to;
    }
};

// As `exchange`, for two halves: a warp sends sums of one of them. Strip g of both is finished in block
// g % cluster.
template <int EIGHTS> struct pair_exchange {
    exchange<EIGHTS, WARPS> of;
    dealing dealt;

    __device__ __forceinline__ uint32_t arrived(int half) const
    {
        return of.arrived + half * ROW_GROUPS * 8;
    }
    __device__ __forceinline__ void start() const // by one thread
    {
        for (int i = 0; i < 2 * ROW_GROUPS; i++) {
            ptx::barrier_init(of.arrived + i * 8, 1);
        }
        ptx::barrier_init_fence();
        for (int i = 0; i < 2 * ROW_GROUPS; i++) {
            int senders = i < ROW_GROUPS ? dealt.first : dealt.warps - dealt.first;
            ptx::barrier_expect(of.arrived + i * 8, senders * EIGHTS * 512);
        }
    }
    __device__ __forceinline__ void send(const sums_of<EIGHTS> &mine, int half, int lane) const
    {
        exchange<EIGHTS, WARPS> to = of;
        to.arrived = arrived(half);
        to.send(mine, ROW_GROUPS, lane);
    }
    // In the order of the senders; by the warp that finishes the strip.
    __device__ __forceinline__ void receive(int half, int strip, int lane, float4 (&sums)[EIGHTS]) const
    {
        int first = half == 0 ? 0 : dealt.first, end = half == 0 ? dealt.first : dealt.warps;
        of.wait(arrived(half) + strip * 8);
#pragma unroll
        for (int e = 0; e < EIGHTS; e++) {
            float4 sum = ptx::load_shared_4(of.place(strip, first) + e * 512 + lane * 16);
#pragma unroll 4
            for (int s = first + 1; s < end; s++) {
                float4 more = ptx::load_shared_4(of.place(strip, s) + e * 512 + lane * 16);
                sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
            }
            sums[e] = sum;
        }
    }
};

template <int EIGHTS, bool BF16, reading READING, int STAGES>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS_PER_SM)
    few_kernel(const __grid_constant__ few_product product)
{
    const gpu_block_product &p = product.of;
    using map = map_of<EIGHTS, STAGES>;
    extern __shared__ unsigned char memory[];
    uint32_t base = (ptx::shared_address(memory) + 127) & ~127u;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int cluster = (int)ptx::cluster_size(), rank = (int)ptx::cluster_rank();
    int place = blockIdx.x / cluster, number = rank * WARPS + warp;
    gpu_block_run runs[2] = {p.weight.runs[product.paired ? 2 * place : place], {}};
    if (product.paired) {
        runs[1] = p.weight.runs[2 * place + 1];
    }
    pair_exchange<EIGHTS> finish = {
        {base + map::SUMS_AT, base + map::ARRIVED_AT, cluster, rank, warp},
        {cluster * WARPS, cluster * WARPS}};
    ptx::launch_next();
    stream<STAGES> weights;
    weights.ring = base + warp * map::RING_BYTES;
    weights.barriers = base + map::BARRIERS_AT + warp * STAGES * 8;
    weights.policy = ptx::evict_first_policy();
    if (lane == 0) {
        weights.make_barriers();
    }
    __syncwarp(); // before the first of them is used
    if (product.paired) {
        finish.dealt.deal(runs[0], runs[1], lane);
    }
    int first = finish.dealt.first, half = number < first ? 0 : 1;
    weights.first = half == 0 ? number : number - first;
    weights.stride = half == 0 ? first : finish.dealt.warps - first;
    weights.begin(p.weight, half == 0 ? runs[0] : runs[1], lane);
    if (threadIdx.x == 0) {
        finish.start();
    }
    constexpr int AHEAD = READING == ONE ? STAGES : 1;
    first_places<AHEAD> places;
    places.load(weights, lane);
    int halves = product.paired ? 2 : 1; // the strip to be finished, and which half's
    int strip = rank + warp / halves * cluster, of = warp % halves;
    two_rows<EIGHTS> ends(-1, -1);
    if (strip < ROW_GROUPS) {
        int64_t at = (int64_t)(of == 0 ? runs[0] : runs[1]).half * GPU_HALF_ROWS + strip * GPU_STRIP_ROWS;
        int2 two = *(const int2 *)(p.weight.rows + at + lane / 4 * 2);
        ends.row[0] = two.x, ends.row[1] = two.y;
    }
    __syncwarp();
    ptx::cluster_arrive();
    ptx::stream_order_wait();
    ends.load_terms(p.epilogue, lane);
    sums_of<EIGHTS> sums = {};
    add_pieces<EIGHTS, BF16, READING>(p, weights, places, base + map::X_AT + warp * map::X_BYTES, lane,
                                      sums);
    ptx::cluster_wait(); // all blocks of the cluster have their barriers
    finish.send(sums, half, lane);
    if (strip < ROW_GROUPS) {
        float4 whole[EIGHTS];
        finish.receive(of, strip, lane, whole);
        ends.finish(p.epilogue, whole, lane);
    }
}

// ---- launching ----

template <int EIGHTS, bool BF16, reading READING> int launch_as(const gpu_block_product &p, void *stream)
{
    constexpr int STAGES = EIGHTS == 1 ? 3 : 2; // more would leave room for two blocks a multiprocessor
    using map = map_of<EIGHTS, STAGES>;
    static std::atomic<uint64_t> prepared;
    static residency known;
    auto kernel = (const void *)few_kernel<EIGHTS, BF16, READING, STAGES>;
    int failed = gpu_prepare(kernel, map::shared(MOST_CLUSTER), p.device, &prepared);
    if (failed != 0) {
        return failed;
    }
    // Larger clusters find room later. Read on one H100: pairs are worth that where a warp has more than four
    // pieces, or 16 tokens.
    int64_t halves = 2 * (int64_t)p.weight.bands, pieces = p.weight.pieces;
    launching single = {}, paired = {};
    find_cluster<map>(&known, kernel, p.device, halves, (pieces + halves - 1) / halves, &single);
    bool many = pieces > 4 * WARPS * single.cluster * halves || EIGHTS == 2;
    if (many) { // a block alone has too few warps to finish two halves
        find_cluster<map>(&known, kernel, p.device, halves / 2, (2 * pieces + halves - 1) / halves, &paired, 2);
    }
    few_product product = {p, many};
    return launch_cluster(many ? paired : single, many ? halves / 2 : halves, stream, &product);
}

template <bool BF16> int launch(const gpu_block_product &p, void *stream)
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

extern "C" int gpu_sm90_blocks_few(const gpu_block_product *product, void *stream)
{
    return product->bf16 ? launch<true>(*product, stream) : launch<false>(*product, stream);
}
