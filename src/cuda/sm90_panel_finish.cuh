// Activations and residuals of the panel kernels (sm90_panel.cuh), on the way of
// sm90_panel_leave.cuh.
//
// Idea. An activation costs about ten instructions a sum, 5000 clocks a multiprocessor for a tile
// of 128 x 256: as much as seven steps of products. At a tile's end, where the tensor cores wait,
// only scale and bias are applied to all sums; those of the last KEPT parts of 32 tokens are set
// aside in registers that the products do not need and finished one part in each second step of the
// next tile. (The ring fills meanwhile, so part of the rest costs nothing either.)
//
// A residual is loaded by the copy engine into the place that its chunk will have, as soon as the
// chunk that was there before has left: mostly long before the sums are ready. It is added in f32
// to what a thread has of the chunk, and the result stored over it.
//
// Swiglu joins the two rows of a thread: a chunk is then 32 rows x 64 tokens, of two parts.
//
// Invariants. Chunks are written, sent and loaded in the order of their numbers. Thread 0 alone
// speaks to the engine. Chunk n may be written, or its residual loaded, when n - CHUNKS was read.
#ifndef ESP_CUDA_SM90_PANEL_FINISH_CUH
#define ESP_CUDA_SM90_PANEL_FINISH_CUH

#include "cuda/sm90_activate.cuh"
#include "cuda/sm90_panel_leave.cuh"

namespace panel
{

__device__ __forceinline__ bool takes_longer(const gpu_epilogue &e)
{
    return (e.bits & ~(unsigned)(ESP_EP_SCALE | ESP_EP_BIAS)) != 0;
}

// What is done to a sum, known to the compiler: a branch costs as much as an activation.
enum activity {
    FLOOR, // relu or nothing
    GELU,
    GATE, // silu or gelu_tanh
    PAIRS // swiglu
};

// ---- one part: 32 tokens, 16 sums of a thread: [eight][row][token] ----

// Rounds four pairs, with what stands at `at` if it is to be added, and stores them there.
template <bool BF16> __device__ __forceinline__ void put(const float *v, bool add, uint32_t at)
{
    constexpr gpu_type TYPE = BF16 ? GPU_BF16 : GPU_F16;
    uint32_t words[4];
    if (add) {
        ptx::load_matrices(at, words);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 old = epilogue::widen_pair(TYPE, words[i]);
            words[i] = epilogue::round_pair(TYPE, v[2 * i] + old.x, v[2 * i + 1] + old.y);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            words[i] = epilogue::round_pair(TYPE, v[2 * i], v[2 * i + 1]);
        }
    }
    ptx::store_matrices(at, words);
}

// As lane_of_chunk, of the first 32 tokens of a chunk of 32 rows x 64 tokens.
__device__ __forceinline__ uint32_t lane_of_pairs(int thread)
{
    int lane = thread % 32, line = thread / 32 * 8 + lane % 8;
    return line * 128 + ((lane / 8 ^ lane % 8) << 4);
}

// `at`: a chunk's place and what the functions above say of it. Swiglu: `half` of the chunk.
template <activity WHAT, bool BF16>
__device__ __forceinline__ void finish_part(const gpu_epilogue &e, const float *sums, uint32_t at,
                                            int half)
{
    bool add = (e.bits & ESP_EP_RESIDUAL) != 0;
    float y[8];
    if constexpr (WHAT == PAIRS) {
        const activate::gate silu = activate::gate::of(false);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int gate = i / 2 * 4 + i % 2;
            y[i] = silu.apply(sums[gate]) * sums[gate + 2];
        }
        put<BF16>(y, add, at ^ (uint32_t)half * 64);
        return;
    }
    const activate::gate gate = activate::gate::of((e.bits & ESP_EP_GELU_TANH) != 0);
    float floor = (e.bits & ESP_EP_RELU) != 0 ? 0.0f : -INFINITY;
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float v = sums[j * 4 + i];
            y[i] = WHAT == GELU   ? activate::gelu(v)
                   : WHAT == GATE ? gate.apply(v)
                                  : activate::at_least(v, floor);
        }
        put<BF16>(y, add, at ^ (uint32_t)j * 16); // the swizzle is an exclusive or as well
    }
}

// ---- the parts of a tile, two by two ----

template <class C> struct finishing {
    using to = departures<C>;
    static constexpr int ALL = to::ALL / 2; // twos of parts
    static constexpr int KEPT = C::SHARING == IN_TURNS ? 0 : 1, AT_ONCE = ALL - KEPT;
    // There are places for all chunks that are written at once, so that they may wait there.
    static constexpr bool HOLDS = C::SHARING != IN_TURNS && C::CHUNKS >= 2 * AT_ONCE;
    static_assert(C::BLOCKS == 1, "the numbers of chunks do not depend on the tile");

    const to &out;
    ledger &book;     // thread 0's
    uint32_t arrived; // barriers of the places: the residual is there
    int thread;
    int first, next;  // chunks, numbered through all tiles: the tile's first, the next to be sent
    int done;         // twos of parts that are finished; below ALL: the last one is kept
    uint32_t lane_at; // in a chunk
    float kept[32];

    // Chunks of two parts.
    static __device__ __forceinline__ int chunks_of_two(const gpu_epilogue &e)
    {
        return (e.bits & ESP_EP_SWIGLU) != 0 ? 1 : 2;
    }
    static __device__ __forceinline__ int chunks_of_tile(const gpu_epilogue &e)
    {
        return ALL * chunks_of_two(e);
    }
    static __device__ __forceinline__ bool adds(const gpu_epilogue &e)
    {
        return (e.bits & ESP_EP_RESIDUAL) != 0;
    }
    __device__ __forceinline__ uint32_t barrier_of(int chunk) const
    {
        return arrived + chunk % C::CHUNKS * 8;
    }

    // Before the first tile.
    __device__ __forceinline__ void prepare(const gpu_epilogue &e)
    {
        first = -chunks_of_tile(e);
        next = 0;
        done = ALL;
        lane_at = (e.bits & ESP_EP_SWIGLU) != 0 ? lane_of_pairs(thread) : lane_of_chunk(0, thread);
        if (thread == 0) {
            book = {};
        }
    }

    __device__ __forceinline__ int written(const gpu_epilogue &e) const
    {
        return first + done * chunks_of_two(e);
    }

    // ---- by thread 0 ----

    // Where a chunk of a tile is. A part of a tile has chunks past its width like any other tile,
    // at a place where there is no memory: the engine reads zeros and writes nothing.
    static __device__ __forceinline__ int inside(int token, int offset, int width)
    {
        return offset < width ? token + offset : 1 << 30;
    }

    __device__ __forceinline__ void send(const gpu_epilogue &e, int from, int count)
    {
#pragma unroll 1
        for (int n = from; n < from + count; n++) {
            int offset = (n - first) * (64 / chunks_of_two(e));
            out.send(n, book.row, inside(book.token, offset, book.width));
        }
        ptx::bulk_commit();
        book.recent = book.recent << 4 | (unsigned)count;
    }

    // What was sent in all but the last GROUPS groups has been read. Not to be asked of the last
    // ones while products run: stores queue behind the loads of the ring.
    template <int GROUPS> __device__ __forceinline__ void look()
    {
        static_assert(GROUPS <= 4, "as `recent` has");
        ptx::bulk_wait_read<GROUPS>();
        int pending = 0;
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
            pending += book.recent >> 4 * i & 15;
        }
        book.read = max(book.read, next - pending);
    }

    // As many as there are places for.
    __device__ __forceinline__ void load_residuals(const gpu_epilogue &e)
    {
        int coming = first + chunks_of_tile(e); // the next tile's first
        int n = book.loaded, end = min(book.limit, book.read + C::CHUNKS);
#pragma unroll 1
        for (; n < end; n++) {
            bool ahead = n >= coming;
            int row = ahead ? book.coming_row : book.row;
            int token = inside(ahead ? book.coming_token : book.token,
                               (n - (ahead ? coming : first)) * (64 / chunks_of_two(e)),
                               ahead ? book.coming_width : book.width);
            ptx::barrier_expect(barrier_of(n), CHUNK_BYTES);
            ptx::tensor_copy(out.place(n), &out.with->residual, token, row / 2, 0, barrier_of(n));
        }
        book.loaded = n;
    }

    // ---- by all ----

    // After the last tile.
    __device__ __forceinline__ void finish(const gpu_epilogue &e)
    {
        if (next < written(e) && thread == 0) {
            send(e, next, written(e) - next);
        }
    }

    // Before the products of a tile that has rows for this warpgroup.
    __device__ __forceinline__ void begin(const gpu_epilogue &e, int row, int token, int width)
    {
        if (thread == 0) {
            book.coming_row = row, book.coming_token = token, book.coming_width = width;
            book.limit += chunks_of_tile(e);
            if (adds(e)) {
                if constexpr (C::SHARING == IN_TURNS) { // the other one's turn: there is time
                    look<0>();
                }
                load_residuals(e);
            }
        }
    }

    // After each step of products: a chunk leaves, or two where there are few steps, and residuals
    // take the places of those that left three steps ago. Nothing is said to the engine in vain: an
    // empty group a step took it a fifth of its time.
    __device__ __forceinline__ void after_step(const gpu_epilogue &e, int steps)
    {
        int count = HOLDS ? min(written(e) - next, steps < 10 ? 2 : 1) : 0;
        if (count > 0 && thread == 0) {
            send(e, next, count);
        }
        next += count;
        if (adds(e) && thread == 0) {
            book.idle = count > 0 ? 0 : book.idle + 1;
            if (count > 0) {
                look<3>();
                load_residuals(e);
            } else if (book.loaded < book.limit && (!HOLDS || book.idle == 3)) {
                look<0>();
                load_residuals(e);
            }
        }
    }

    // Until chunk n may be written.
    __device__ __forceinline__ void acquire(const gpu_epilogue &e, int n)
    {
        int before = n - C::CHUNKS; // in the same place
        if (next <= before) {       // a tile of few steps
            if (thread == 0) {
                send(e, next, before + 1 - next);
            }
            next = before + 1;
        }
        if (thread == 0) {
            if (book.read <= before) {
                look<HOLDS ? 3 : C::CHUNKS - 1>();
            }
            if (HOLDS && book.read <= before) {
                look<1>();
            }
            if (book.read <= before) {
                look<0>();
            }
            if (adds(e) && book.loaded <= n) {
                load_residuals(e);
            }
        }
        __syncwarp();
        if (adds(e)) {
            ptx::barrier_wait(barrier_of(n), n / C::CHUNKS & 1);
        } else {
            ptx::named_barrier(out.barrier, 128);
        }
    }

    // Two parts; chunks may wait where they stand (`hold`) or leave at once.
    template <activity WHAT>
    __device__ __forceinline__ void finish_two(const gpu_epilogue &e, const float (&sums)[32],
                                               bool hold)
    {
        int n = written(e);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            bool begins = WHAT != PAIRS || half == 0, ends = WHAT != PAIRS || half == 1;
            if (begins && (!hold || adds(e))) {
                acquire(e, n);
            }
            finish_part<WHAT, C::BF16>(e, sums + half * 16, out.place(n) + lane_at, half);
            n += ends;
            if (ends && !hold) {
                out.settle();
                if (thread == 0) {
                    send(e, n - 1, 1);
                }
                next = n;
                if (adds(e) && thread == 0) {
                    look<1>();
                    load_residuals(e);
                }
                __syncwarp();
            }
        }
        done++;
    }

    // Scale and bias of two parts that the compiler must not know: one copy of what follows is
    // enough.
    static __device__ __forceinline__ void take(const float (&sums)[C::N / 2], int which,
                                                const row_terms &terms, float (&v)[32])
    {
#pragma unroll
        for (int i = 0; i < ALL; i++) {
            if (i == which) {
#pragma unroll
                for (int k = 0; k < 32; k++) {
                    v[k] = terms.apply(sums[i * 32 + k], k / 2 % 2);
                }
            }
        }
    }

    template <activity WHAT>
    __device__ __forceinline__ void leave_as(const gpu_epilogue &e, const float (&sums)[C::N / 2],
                                             const row_terms &terms, bool hold, int end)
    {
#pragma unroll 1
        while (done < end) {
            float v[32];
            take(sums, done, terms, v);
            finish_two<WHAT>(e, v, hold);
        }
    }

    // At the end of a tile's products. `last`: no other tile follows, nothing is put off.
    __device__ __forceinline__ void leave(const gpu_epilogue &e, const float (&sums)[C::N / 2],
                                          const row_terms &terms, bool last)
    {
        if (next < written(e)) { // a tile of few steps
            if (thread == 0) {
                send(e, next, written(e) - next);
            }
            next = written(e);
        }
        first += chunks_of_tile(e);
        done = 0;
        if (thread == 0) {
            book.row = book.coming_row, book.token = book.coming_token;
            book.width = book.coming_width;
        }
        bool hold = HOLDS && !last;
        int end = last ? ALL : AT_ONCE;
        if (hold && !adds(e)) {
            acquire(e, first + AT_ONCE * chunks_of_two(e) - 1);
        }
        if ((e.bits & ESP_EP_GELU) != 0) {
            leave_as<GELU>(e, sums, terms, hold, end);
        } else if ((e.bits & ESP_EP_SWIGLU) != 0) {
            leave_as<PAIRS>(e, sums, terms, hold, end);
        } else if ((e.bits & (ESP_EP_SILU | ESP_EP_GELU_TANH)) != 0) {
            leave_as<GATE>(e, sums, terms, hold, end);
        } else {
            leave_as<FLOOR>(e, sums, terms, hold, end);
        }
        if (hold) {
            out.settle();
        }
#pragma unroll
        for (int i = 0; i < 32; i++) { // of the last, too: or older ones would live on
            kept[i] = terms.apply(sums[(ALL - 1) * 32 + i], i / 2 % 2);
        }
    }

    // Finishes what was kept, if something was.
    __device__ __forceinline__ void finish_kept(const gpu_epilogue &e)
    {
        if (done == ALL) {
            return;
        }
        if (HOLDS && !adds(e)) {
            acquire(e, first + chunks_of_tile(e) - 1);
        }
        if ((e.bits & ESP_EP_GELU) != 0) {
            finish_two<GELU>(e, kept, HOLDS);
        } else if ((e.bits & ESP_EP_SWIGLU) != 0) {
            finish_two<PAIRS>(e, kept, HOLDS);
        } else if ((e.bits & (ESP_EP_SILU | ESP_EP_GELU_TANH)) != 0) {
            finish_two<GATE>(e, kept, HOLDS);
        } else {
            finish_two<FLOOR>(e, kept, HOLDS);
        }
        if (HOLDS) { // it leaves after later steps
            out.settle();
        }
    }
};

} // namespace panel

#endif
