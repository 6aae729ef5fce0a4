// What the parts of the panel kernels (sm90_panel.cuh) share: the shape of a kernel, the order of
// tiles, the ring of stages and where everything lies in shared memory.
#ifndef ESP_CUDA_SM90_PANEL_PARTS_CUH
#define ESP_CUDA_SM90_PANEL_PARTS_CUH

#include <type_traits>

#include "cuda/epilogue.cuh"
#include "cuda/launch.cuh"
#include "cuda/sm90_ptx.cuh"

namespace panel
{

enum loading { GATHER, FEATURES, TOKENS, SPREAD };

constexpr int LOADERS = 128, LOADER_WARPS = 4;
constexpr uint32_t STRIP_FLOATS = epilogue::ROWS * epilogue::PITCH;
constexpr int MOST_SHIFT = 2;          // tiles may be halved so often
constexpr uint32_t CHUNK_BYTES = 4096; // 64 rows x 32 tokens (swiglu: 32 x 64) on their way out

// Two consumers of BLOCKS x 64 rows x N tokens. How they share the work:
enum sharing {
    BY_ROWS,   // the blocks of a tile are dealt between them
    BY_TOKENS, // the tokens of a tile are
    IN_TURNS   // each has its own tiles, so that one multiplies while the other's sums leave
};

// What a kernel does for the norms around its product. Each has a kernel of its own, which has few
// ways out: beside all others these cost registers in every way, and spilled residuals, which are
// loaded ahead, are waited for at once.
enum class around {
    NOTHING,
    NORMS, // finishes one: by the engine, by feature, bias, gelu or swiglu
    LEAVES // moments: by the engine, by feature, with a residual
};

// CHUNKS of each consumer may be on their way out. STAGGERED: its sums are two halves of 64 rows x
// 128 tokens (sm90_panel_stagger.cuh). BARE: Y by feature and by the engine, without an epilogue; a
// staggered loop that holds the code of every way out beside this one takes 5 % longer.
template <bool BF16_, int BLOCKS_, int N_, sharing SHARING_, int STAGES_, int CHUNKS_,
          loading LOADING_, bool STAGGERED_ = false, bool BARE_ = false,
          around AROUND_ = around::NOTHING>
struct config {
    static constexpr bool BF16 = BF16_;
    static constexpr int BLOCKS = BLOCKS_, N = N_, STAGES = STAGES_, CHUNKS = CHUNKS_;
    static constexpr sharing SHARING = SHARING_;
    static constexpr loading LOADING = LOADING_;
    static constexpr bool STAGGERED = STAGGERED_, BARE = BARE_;
    static constexpr around AROUND = AROUND_;
    static constexpr bool NORMS = AROUND == around::NORMS, LEAVES = AROUND == around::LEAVES;
    static constexpr int GROUPS = 2, WARPS = 4 * GROUPS, THREADS = 128 * GROUPS + LOADERS;
    static constexpr int READERS = SHARING == IN_TURNS ? 4 : WARPS; // warps that free a stage
    static constexpr int TILE_BLOCKS = SHARING == BY_ROWS ? 2 * BLOCKS : BLOCKS;
    static constexpr int TILE_TOKENS = SHARING == BY_TOKENS ? 2 * N : N;
    static constexpr int SHIFT = N == 256 ? 2 : 1; // halvings down to 64 tokens of a consumer
    static constexpr int SUMS = BLOCKS * N / 2;    // of a thread
    static constexpr int CONSUMER_REGISTERS = SUMS == 128 ? 232 : 208;
    static constexpr int LOADER_REGISTERS = SUMS == 128 ? 40 : 88; // together 64512 of a block
    static constexpr uint32_t X_BYTES = TILE_TOKENS * 128, W_BYTES = TILE_BLOCKS * GPU_STEP_BYTES;
    static constexpr uint32_t W_AT = STAGES * X_BYTES;
    static constexpr uint32_t BARRIERS_AT = W_AT + STAGES * W_BYTES;
    static constexpr uint32_t LEAVING_AT = (BARRIERS_AT + STAGES * 16 + 1023) / 1024 * 1024;
    // Chunks, terms of norms behind them, and strips share the place.
    static constexpr uint32_t STRIP_BYTES = WARPS * STRIP_FLOATS * 4;
    static constexpr uint32_t NORMS_AT = LEAVING_AT + GROUPS * CHUNKS * CHUNK_BYTES;
    static constexpr uint32_t CHUNKS_BYTES = NORMS_AT - LEAVING_AT + GROUPS * N * 8;
    static constexpr uint32_t LEAVING_BYTES =
        CHUNKS_BYTES > STRIP_BYTES ? CHUNKS_BYTES : STRIP_BYTES;
    static constexpr uint32_t SHARED = LEAVING_AT + LEAVING_BYTES + 1024; // 1024: to align
    static_assert(SHARED <= 232448, "more shared memory than a block can have");
};

// How the copy engine sees the operands. X by the width of a tile.
struct maps {
    CUtensorMap weights, x[MOST_SHIFT + 1], y;
};
struct spread_maps; // more of them: sm90_panel_spread.cuh
template <class C> using maps_of = std::conditional_t<C::LOADING == SPREAD, spread_maps, maps>;

// A tile or a part of one: TILE_TOKENS >> shift tokens. It is number `sharer` of the `sharers`
// tiles that need the same tokens of X at about the same time.
struct tile {
    int panel, block, token, shift;
    int sharer, sharers;
};

// The steps of each of its tiles that are this block's.
struct stretch {
    int first, end;
};

__device__ __forceinline__ stretch steps_of(const gpu_product &p)
{
    int rank = (int)blockIdx.x % p.deal.split;
    return {p.weight.steps * rank / p.deal.split, p.weight.steps * (rank + 1) / p.deal.split};
}

// The tiles of this multiprocessor or cluster. Neighbours share tokens, not rows.
template <class C> struct walk {
    const gpu_deal &deal;
    int run = -1, item = 0;

    __device__ __forceinline__ bool next(tile *t)
    {
        bool here = run >= 0;
        if (here) {
            item += deal.run[run].span;
        }
        while (!here || item >= deal.run[run].count) {
            if (++run >= deal.runs) {
                return false;
            }
            item = (int)blockIdx.x / deal.split - deal.run[run].at;
            item += item < 0 ? deal.multiprocessors : 0;
            here = item < deal.run[run].span;
        }
        place(t);
        return true;
    }
    __device__ __forceinline__ void place(tile *t) const
    {
        const gpu_run &mine = deal.run[run];
        int i = mine.from + item, index = mine.first + i % mine.tiles;
        int row = index - deal.rows * deal.tokens, token = deal.tokens; // of the last column
        t->sharer = row, t->sharers = deal.rows;
        if (row < 0) {
            int of_group = deal.group * deal.tokens, first = index / of_group * deal.group;
            int inside = index % of_group;
            t->sharers = min(deal.group, deal.rows - first);
            t->sharer = inside % t->sharers;
            row = first + t->sharer, token = inside / t->sharers;
        }
        t->panel = row / deal.of_panel;
        t->block = row % deal.of_panel * C::TILE_BLOCKS;
        t->shift = mine.shift;
        t->token =
            token * C::TILE_TOKENS + mine.offset + i / mine.tiles * (C::TILE_TOKENS >> mine.shift);
    }
};

// A place in the ring; `parity` flips with each round.
template <int STAGES> struct ring {
    int stage = 0;
    uint32_t parity = 0;
    __device__ __forceinline__ void next()
    {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
    __device__ __forceinline__ void skip(int stages)
    {
        stage += stages;
        parity ^= stage / STAGES & 1;
        stage %= STAGES;
    }
    __device__ __forceinline__ int before() const
    {
        return stage == 0 ? STAGES - 1 : stage - 1;
    }
};

template <class C> struct shared_map {
    uint32_t base;
    __device__ __forceinline__ uint32_t x(int stage) const
    {
        return base + stage * C::X_BYTES;
    }
    __device__ __forceinline__ uint32_t weights(int stage) const
    {
        return base + C::W_AT + stage * C::W_BYTES;
    }
    __device__ __forceinline__ uint32_t full(int stage) const
    {
        return base + C::BARRIERS_AT + stage * 8;
    }
    __device__ __forceinline__ uint32_t empty(int stage) const
    {
        return base + C::BARRIERS_AT + (C::STAGES + stage) * 8;
    }
    __device__ __forceinline__ uint32_t chunks(int group) const
    {
        return base + C::LEAVING_AT + group * C::CHUNKS * CHUNK_BYTES;
    }
    __device__ __forceinline__ uint32_t norms(int group) const
    {
        return base + C::NORMS_AT + group * C::N * 8;
    }
};

// What SPREAD does its own way, in sm90_panel_spread.cuh: the copies of X for a step into `to`; the
// column at a row of a step, which may be past the end; the maps of X.
template <class C>
__device__ __forceinline__ void load_fives(const gpu_product &p, const spread_maps &with,
                                           const tile &t, int step, uint32_t to, uint32_t barrier);
template <class C>
__device__ __forceinline__ int spread_column(const gpu_product &p, int step, int row);
template <class C> int describe_spread(const gpu_product &p, spread_maps *with);

} // namespace panel

#endif
