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

#ifndef ESP_KEPT
#define ESP_KEPT 3
#endif
namespace panel
{

__device__ __forceinline__ bool takes_longer(const gpu_epilogue &e)
{
    return (e.bits & ~(unsigned)(ESP_EP_SCALE | ESP_EP_BIAS)) != 0;
}

// ---- one part: 32 tokens, 16 sums of a thread: [eight][row][token] ----

// Rounds four pairs, with what stands at `at` if it is to be added, and stores them there.
__device__ __forceinline__ void put(const gpu_epilogue &e, const float (&v)[8], uint32_t at)
{
    uint32_t words[4];
    if ((e.bits & ESP_EP_RESIDUAL) != 0) {
        ptx::load_matrices(at, words);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 old = epilogue::widen_pair(e.type, words[i]);
            words[i] = epilogue::round_pair(e.type, v[2 * i] + old.x, v[2 * i + 1] + old.y);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            words[i] = epilogue::round_pair(e.type, v[2 * i], v[2 * i + 1]);
        }
    }
    ptx::store_matrices(at, words);
}

// `half`: of the chunk, where two parts share one.
__device__ __forceinline__ void finish_part(const gpu_epilogue &e, float (&v)[16], uint32_t chunk,
                                            int half, int thread)
{
    if ((e.bits & ESP_EP_SWIGLU) != 0) {
        int lane = thread % 32, line = thread / 32 * 8 + lane % 8;
        float y[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int gate = i / 2 * 4 + i % 2;
            y[i] = activate::silu(v[gate]) * v[gate + 2];
        }
        put(e, y, chunk + line * 128 + (((half * 4 + lane / 8) ^ (lane % 8)) << 4));
        return;
    }
    activate::all(e.bits, v);
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
        float y[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            y[i] = v[j * 4 + i];
        }
        put(e, y, chunk + lane_of_chunk(j, thread));
    }
}

// ---- the parts of a tile ----

template <class C> struct finishing {
    using to = departures<C>;
    static constexpr int ALL = to::ALL;
    static constexpr int MOST_KEPT = ESP_KEPT;
    static constexpr int KEPT = C::SHARING == IN_TURNS ? 0 : ALL < MOST_KEPT ? ALL : MOST_KEPT;
    static constexpr int AT_ONCE = ALL - KEPT;
    // There are places for all chunks that are written at once, so that they may wait there.
    static constexpr bool HOLDS = C::SHARING != IN_TURNS && C::CHUNKS >= AT_ONCE;
    static_assert(C::BLOCKS == 1, "the numbers of chunks do not depend on the tile");

    const to &out;
    ledger &book;     // thread 0's
    uint32_t arrived; // barriers of the places: the residual is there
    int thread;
    int first, next; // chunks, numbered through all tiles: the tile's first, the next to be sent
    int part;        // so many are finished; below ALL: the rest is kept
    float kept[KEPT > 0 ? KEPT * 16 : 1];

    static __device__ __forceinline__ int pairs(const gpu_epilogue &e)
    {
        return (e.bits & ESP_EP_SWIGLU) != 0 ? 1 : 0;
    }
    static __device__ __forceinline__ int step_of(const gpu_epilogue &e)
    {
        return 32 << pairs(e);
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
        first = -(ALL >> pairs(e));
        next = 0;
        part = ALL;
        if (thread == 0) {
            book = {};
        }
    }

    __device__ __forceinline__ int written(const gpu_epilogue &e) const
    {
        return first + (part >> pairs(e));
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
            out.send(n, book.row, inside(book.token, (n - first) * step_of(e), book.width));
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
        int coming = first + (ALL >> pairs(e)); // the next tile's first
        int n = book.loaded, end = min(book.limit, book.read + C::CHUNKS);
#pragma unroll 1
        for (; n < end; n++) {
            bool ahead = n >= coming;
            int row = ahead ? book.coming_row : book.row;
            int token = inside(ahead ? book.coming_token : book.token,
                               (n - (ahead ? coming : first)) * step_of(e),
                               ahead ? book.coming_width : book.width);
            ptx::barrier_expect(barrier_of(n), CHUNK_BYTES);
            ptx::tensor_copy(out.place(n), &out.with->residual, token, row / 2, 0, barrier_of(n));
        }
        book.loaded = n;
    }

    // ---- by all ----

    __device__ __forceinline__ void send_all(const gpu_epilogue &e)
    {
        int count = written(e) - next;
        if (count > 0 && thread == 0) {
            send(e, next, count);
        }
        next = written(e);
    }

    // Before the products of a tile that has rows for this warpgroup.
    __device__ __forceinline__ void begin(const gpu_epilogue &e, int row, int token, int width)
    {
        if (thread == 0) {
            book.coming_row = row, book.coming_token = token, book.coming_width = width;
            book.limit += ALL >> pairs(e);
            if (adds(e)) {
                if constexpr (C::SHARING == IN_TURNS) { // the other one's turn: there is time
                    look<0>();
                }
                load_residuals(e);
            }
        }
    }

    // After each step of products: some chunks leave, one group a step, and their places are used
    // for residuals three steps later.
    __device__ __forceinline__ void after_step(const gpu_epilogue &e, int steps)
    {
        int count = HOLDS ? min(written(e) - next, steps < 10 ? 2 : 1) : 0;
        if (thread == 0) {
            if constexpr (HOLDS) {
                send(e, next, count);
                look<3>();
            } else if (adds(e) && book.loaded < book.limit) {
                look<0>();
            }
            if (adds(e)) {
                load_residuals(e);
            }
        }
        next += count;
    }

    // Until chunk n may be written. All before it that are written may have to be sent.
    __device__ __forceinline__ void acquire(const gpu_epilogue &e, int n)
    {
        int before = n - C::CHUNKS; // in the same place
        int count = before + 1 - next;
        if (thread == 0) {
            if (count > 0) {
                send(e, next, count);
            }
        }
        next = max(next, before + 1);
        if (thread == 0) {
            if (book.read <= before) {
                look<HOLDS ? 3 : C::CHUNKS - 1>();
            }
            if (book.read <= before) {
                look<0>();
            }
            if (adds(e)) {
                load_residuals(e);
            }
        }
        if (adds(e)) {
            ptx::barrier_wait(barrier_of(n), n / C::CHUNKS & 1);
        } else {
            ptx::named_barrier(out.barrier, 128);
        }
    }

    // The chunk that was just finished leaves.
    __device__ __forceinline__ void send_at_once(const gpu_epilogue &e)
    {
        out.settle();
        send_all(e);
        if (adds(e) && thread == 0) {
            look<1>();
            load_residuals(e);
        }
    }

    // Scale and bias of part `which`, which must not be known to the compiler: one copy of what
    // follows is enough.
    static __device__ __forceinline__ void take(const float (&sums)[C::N / 2], int which,
                                                const row_terms &terms, float (&v)[16])
    {
#pragma unroll
        for (int i = 0; i < ALL; i++) {
            if (i == which) {
#pragma unroll
                for (int k = 0; k < 16; k++) {
                    v[k] = terms.apply(sums[i * 16 + k], k / 2 % 2);
                }
            }
        }
    }

    // At the end of a tile's products. `last`: no other tile follows, nothing is put off.
    __device__ __forceinline__ void leave(const gpu_epilogue &e, const float (&sums)[C::N / 2],
                                          const row_terms &terms, bool last)
    {
        send_all(e);
        first += ALL >> pairs(e);
        part = 0;
        if (thread == 0) {
            book.row = book.coming_row, book.token = book.coming_token;
            book.width = book.coming_width;
        }
        bool holds = HOLDS && !last;
        int at_once = last ? ALL : AT_ONCE;
        if (holds && !adds(e) && AT_ONCE > 0) {
            acquire(e, first + ((AT_ONCE - 1) >> pairs(e)));
        }
#pragma unroll 1
        while (part < at_once) {
            int n = written(e), half = part & pairs(e);
            if (half == 0 && (!holds || adds(e))) {
                acquire(e, n);
            }
            float v[16];
            take(sums, part, terms, v);
            finish_part(e, v, out.place(n), half, thread);
            part++;
            if (!holds && half == pairs(e)) {
                send_at_once(e);
            }
        }
        if (holds) {
            out.settle();
        }
#pragma unroll
        for (int i = 0; i < KEPT * 16; i++) { // of the last, too: or older ones would live on
            kept[i] = terms.apply(sums[AT_ONCE * 16 + i], i / 2 % 2);
        }
    }

    // Finishes the next part of those kept, if one is left.
    __device__ __forceinline__ void finish_kept(const gpu_epilogue &e)
    {
        if constexpr (KEPT > 0) {
            if (part == ALL) {
                return;
            }
            int n = written(e), half = part & pairs(e);
            if (half == 0) {
                acquire(e, n);
            }
            float v[16];
#pragma unroll
            for (int i = 0; i < 16; i++) {
                v[i] = kept[i];
            }
#pragma unroll
            for (int i = 16; i < KEPT * 16; i++) {
                kept[i - 16] = kept[i];
            }
            finish_part(e, v, out.place(n), half, thread);
            part++;
            if (half != pairs(e)) {
                return;
            }
            if constexpr (HOLDS) { // it leaves after a later step
                out.settle();
            } else {
                send_at_once(e);
            }
        }
    }
};

} // namespace panel

#endif
