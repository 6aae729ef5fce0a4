// Y = epilogue(W X) for dense W and some hundred tokens on Hopper, X and Y with tokens side by
// side. Reference: src/ref/matmul.c.
//
// Idea. There, products are latency: a chip's worth of the tiles of sm90_dense.cuh does not come
// together, each block has few steps, and the next product waits for the last of them. So tiles are
// 128 rows x 64 or 128 tokens, and a cluster shares out the steps of one. Blocks are small enough
// for two on a multiprocessor: those of the next launch come while these still work, ask for their
// weights, and only X is left to be loaded when the stream's order lets them.
//
// Who does what. One warp asks the copy engine for boxes of W and X, 64 columns a stage; two
// warpgroups multiply 64 rows each. Then each warp sends its sums, as they lie in its registers, to
// the block of the cluster that finishes its sixteen rows; there all threads add up what has come,
// in the order of the blocks, so that results do not depend on timing, and store eight tokens of a
// pair of rows each.
//
// Rows 2 i and 2 i + 1 come into one thread as in sm90_dense.cuh: the engine deals them.
//
// Shared memory, bytes: STAGES x 128 N of X | STAGES x 16384 of W | barriers. What has been sent
// lies where the ring was, once all blocks of the cluster have said that they need theirs no more:
// [block][16 rows][8 tokens][32 lanes][16], each 512 bytes 16 further than the ones before, or
// those who read them would meet in the same banks.
//
// Tails. As sm90_dense.cuh; X that the engine cannot take is left to it. Y that does not take
// 16-byte stores, f32 Y and the last tokens leave one number at a time.
//
// Limits: docs/kernels-gpu.md. In short: the way from launch to launch, 3 us, and X through the L2.
#ifndef ESP_CUDA_SM90_DENSE_SPLIT_CUH
#define ESP_CUDA_SM90_DENSE_SPLIT_CUH

#include "cuda/sm90_dense.cuh"
#include "cuda/sm90_few.cuh"

namespace ptx
{

// At a barrier of another block of the cluster. It orders nothing but what it counts.
__device__ __forceinline__ void barrier_arrive_at(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier)
                 : "memory");
}

} // namespace ptx

namespace dense_split
{

constexpr int BANDS = 8;             // of 16 rows, a tile's; one is one warp's
constexpr uint32_t PIECE = 512 + 16; // of a warp's sums of eight tokens, with its distance

struct maps {
    CUtensorMap weights, x;
};

// APART: sums that are sent have a place of their own, not the ring's.
template <bool BF16_, int N_, int STAGES_, bool APART_> struct config {
    static constexpr bool BF16 = BF16_, APART = APART_;
    static constexpr int N = N_, STAGES = STAGES_;
    static constexpr int CONSUMERS = 32 * BANDS, THREADS = CONSUMERS + 32;
    static constexpr uint32_t X_BYTES = N * 128, W_BYTES = 128 * 128;
    static constexpr uint32_t W_AT = STAGES * X_BYTES, RING_BYTES = W_AT + STAGES * W_BYTES;
    static constexpr int EIGHTS = N / 8; // of tokens
    static constexpr uint32_t BAND_BYTES = EIGHTS * PIECE;
    static constexpr uint32_t SUMS_AT = APART ? RING_BYTES : 0;
    static constexpr uint32_t SUMS_BYTES = 9 * BAND_BYTES; // of up to four blocks, or eight
    static constexpr uint32_t BARRIERS_AT = (RING_BYTES + (APART ? SUMS_BYTES : 0) + 7) / 8 * 8;
    static constexpr uint32_t READY_AT = BARRIERS_AT + STAGES * 16, ARRIVED_AT = READY_AT + 8;
    static constexpr uint32_t SHARED = ARRIVED_AT + 8 + 1024; // 1024: to align
    static constexpr int BLOCKS = SHARED <= 115712 ? 2 : 1;   // of a multiprocessor
    static_assert(SHARED <= 232448, "more shared memory than a block can have");

    __device__ static __forceinline__ uint32_t x(uint32_t base, int stage)
    {
        return base + stage * X_BYTES;
    }
    __device__ static __forceinline__ uint32_t weights(uint32_t base, int stage)
    {
        return base + W_AT + stage * W_BYTES;
    }
    __device__ static __forceinline__ uint32_t full(uint32_t base, int stage)
    {
        return base + BARRIERS_AT + stage * 8;
    }
    __device__ static __forceinline__ uint32_t empty(uint32_t base, int stage)
    {
        return base + BARRIERS_AT + (STAGES + stage) * 8;
    }
};

// What this block has to do: steps of a tile.
struct task {
    int row, token, rank, split;
    panel::stretch steps;

    // Neighbours share tokens.
    template <class C> static __device__ __forceinline__ task of(const gpu_product &p)
    {
        task made;
        int tiles = (int)((p.weight.out + 127) / 128), tile = (int)blockIdx.x / p.deal.split;
        made.row = tile % tiles * 128, made.token = tile / tiles * C::N;
        made.split = p.deal.split, made.rank = (int)blockIdx.x % p.deal.split;
        made.steps = panel::steps_of(p);
        return made;
    }
};

// ---- loading ----

// By one thread.
template <class C> struct loader {
    const gpu_product &p;
    const maps &with;
    const task &mine;
    uint32_t base;
    int boxes; // of 64 tokens

    __device__ __forceinline__ loader(const gpu_product &p_, const maps &with_, const task &mine_,
                                      uint32_t base_)
        : p(p_), with(with_), mine(mine_), base(base_)
    {
        boxes = min(C::N / 64, (p.tokens - mine.token + 63) / 64);
    }
    __device__ __forceinline__ void ask_weights(int step, int stage) const
    {
        ptx::barrier_expect(C::full(base, stage), C::W_BYTES + boxes * 8192);
        ptx::tensor_copy(C::weights(base, stage), &with.weights, step * GPU_STEP_COLUMNS, 0, 0,
                         mine.row / 16, C::full(base, stage));
    }
    __device__ __forceinline__ void ask_x(int step, int stage) const
    {
        for (int i = 0; i < boxes; i++) {
            ptx::tensor_copy(C::x(base, stage) + i * 8192, &with.x, mine.token + i * 64,
                             step * GPU_STEP_COLUMNS, C::full(base, stage));
        }
    }
    // Before the launches before this one are done: nobody writes weights.
    __device__ __forceinline__ void begin() const
    {
        int steps = mine.steps.end - mine.steps.first;
        for (int i = 0; i < min(C::STAGES, steps); i++) {
            ask_weights(mine.steps.first + i, i);
        }
    }
    __device__ __forceinline__ void load() const
    {
        int early = mine.steps.first + C::STAGES;
        panel::ring<C::STAGES> place;
        for (int step = mine.steps.first; step < mine.steps.end; step++) {
            if (step >= early) {
                ptx::barrier_wait(C::empty(base, place.stage), place.parity ^ 1);
                ask_weights(step, place.stage);
            }
            ask_x(step, place.stage);
            place.next();
        }
    }
};

// ---- multiplying ----

template <class C>
__device__ __forceinline__ void multiply(float (&sums)[C::N / 2], uint32_t base, int steps,
                                         int warp, int lane)
{
    panel::ring<C::STAGES> place;
    int step = 0;
    do {
        ptx::barrier_wait(C::full(base, place.stage), place.parity);
        uint64_t a = ptx::descriptor(C::weights(base, place.stage) + warp / 4 * 8192, 16, 1024, 1);
        uint64_t b = ptx::descriptor(C::x(base, place.stage), 8192, 1024, 1);
        ptx::product_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) { // of 16 columns: 32 bytes of a row of W, 16 rows of X
            ptx::whole_product<C::N, C::BF16>::run(sums, a + k * (32 >> 4), b + k * (2048 >> 4),
                                                   step > 0 || k > 0);
        }
        ptx::product_commit();
        ptx::product_wait<1>();
        if (step > 0 && lane == 0) {
            ptx::barrier_arrive(C::empty(base, place.before()));
        }
        place.next();
    } while (++step < steps);
    ptx::product_wait<0>();
    ptx::sums_arrive(sums);
}

// ---- sums of a cluster ----

// The value is known from here on, and not worked out again where it is used: after the products
// every instruction is time.
template <class T> __device__ __forceinline__ void work_out_now(T &v)
{
    if constexpr (sizeof(T) == 8) {
        asm volatile("" : "+l"(v));
    } else {
        asm volatile("" : "+r"(v));
    }
}

// A band is finished by block band * split / BANDS.
template <class C> struct exchange {
    uint32_t base;
    int rank, split;
    int first, bands;     // that are finished here
    uint32_t of_sender;   // from what one has sent to what the next has
    bool keeps;           // this warp's band is finished here
    uint32_t to, barrier; // where its sums go, and the barrier there

    __device__ __forceinline__ int first_band(int block) const
    {
        return (block * BANDS + split - 1) / split;
    }
    __device__ __forceinline__ exchange(uint32_t base_, const task &mine, int warp, int lane)
        : base(base_), rank(mine.rank), split(mine.split)
    {
        first = first_band(rank), bands = first_band(rank + 1) - first;
        of_sender = (BANDS + split - 1) / split * C::BAND_BYTES;
        int owner = warp * split / BANDS;
        keeps = owner == rank;
        to = base + C::SUMS_AT + rank * of_sender + (warp - first_band(owner)) * C::BAND_BYTES +
             lane * 16;
        barrier = base + C::ARRIVED_AT;
        if (!keeps) {
            to = ptx::in_cluster(to, owner);
            barrier = ptx::in_cluster(barrier, owner);
        }
        work_out_now(first), work_out_now(bands), work_out_now(of_sender);
        work_out_now(to), work_out_now(barrier);
    }
    // By one thread, before anything else.
    static __device__ __forceinline__ void start(uint32_t base, const task &mine)
    {
        int first = (mine.rank * BANDS + mine.split - 1) / mine.split;
        int end = ((mine.rank + 1) * BANDS + mine.split - 1) / mine.split;
        ptx::barrier_init(base + C::READY_AT, BANDS * mine.split);
        ptx::barrier_init(base + C::ARRIVED_AT, 1);
        ptx::barrier_init_fence();
        ptx::barrier_expect(base + C::ARRIVED_AT,
                            (mine.split - 1) * (end - first) * C::EIGHTS * 512);
    }
    // Until nobody reads the ring any more that sums are sent to.
    __device__ __forceinline__ void meet(int lane) const
    {
        if (split == 1) {
            ptx::named_barrier(1, C::CONSUMERS);
        } else {
            if (lane < split) {
                ptx::barrier_arrive_at(ptx::in_cluster(base + C::READY_AT, lane));
            }
            ptx::barrier_wait(base + C::READY_AT, 0);
        }
    }
    // By all consumers; their products are done.
    __device__ __forceinline__ void send(const float (&sums)[C::N / 2], int lane) const
    {
        if (!C::APART) {
            meet(lane);
        }
        if (keeps) {
#pragma unroll
            for (int i = 0; i < C::EIGHTS; i++) {
                ptx::store_shared_4(to + i * PIECE, &sums[i * 4]);
            }
        } else {
#pragma unroll
            for (int i = 0; i < C::EIGHTS; i++) {
                const float four[4] = {sums[i * 4], sums[i * 4 + 1], sums[i * 4 + 2],
                                       sums[i * 4 + 3]};
                ptx::send_16(to + i * PIECE, four, barrier);
            }
        }
        ptx::named_barrier(1, C::CONSUMERS); // what was kept is there
    }
    __device__ __forceinline__ void wait() const
    {
        if (split > 1) {
            ptx::barrier_wait(base + C::ARRIVED_AT, 0);
        }
    }
};

} // namespace dense_split

#endif
