// Products of the panel kernels whose consumers' sums are two halves, one two steps behind the
// other (sm90_panel.cuh): where tiles have few steps, what lies between them counts.
//
// Idea. A half is 64 rows x 128 tokens. It leaves in two parts, between products of the other: half
// 0 at the tile's last two steps, half 1 at the next tile's first two. So sums leave in small
// pieces, beside loads and products of the other consumer:
//
//   products   0.0 | 0.1 | 0.2 1.0 | 0.3 1.1 | ... | 0.n 1.n-2 | 1.n-1 | 1.n  | 0.0  | 0.1 | ...
//   leaves                                           half 0:      a part, a part
//                                                    half 1:                    a part, a part
//
// Halves are blocks of rows, so that X that was gathered once serves four blocks instead of two.
//
// A part of a tile has fewer tokens in shared memory than are multiplied; what stands there besides
// has sums that go nowhere.
#ifndef ESP_CUDA_SM90_PANEL_STAGGER_CUH
#define ESP_CUDA_SM90_PANEL_STAGGER_CUH

#include "cuda/sm90_dense_ptx.cuh" // sums_arrive
#include "cuda/sm90_panel_ahead.cuh"
#include "cuda/sm90_panel_half.cuh"

namespace panel
{

constexpr int BEHIND = 2; // steps

template <class C, way WAY> struct staggered {
    static constexpr bool ADDS = WAY == BY_ENGINE && !C::BARE; // terms or a residual
    static_assert(C::BLOCKS == 2 && C::N == HALF_TOKENS, "a half is a block of rows");
    const shared_map<C> &at;
    half_departures<C> leaving;
    int group, thread;
    ring<C::STAGES> ahead, behind; // of half 0, of half 1
    int held = -1;                 // the stage that a product in flight may still read
    uint32_t final[BEHIND] = {};   // positions of a tile's last products; one runs on into the next

    // Two products of 32 columns. `positions` is read while they run.
    template <int HALF>
    __device__ __forceinline__ void multiply(float (&sums)[HALF_SUMS], uint32_t &positions,
                                             int stage, bool first) const
    {
        uint32_t w = at.weights(stage) + (group * 2 + HALF) * GPU_STEP_BYTES, x = at.x(stage);
        positions = ptx::load_shared(w + 4096 + thread * 4);
        uint64_t a = ptx::descriptor(w, 128, 256, 0), b = ptx::descriptor(x, 8192, 1024, 1);
        ptx::product_fence();
        using product = ptx::sparse_product<HALF_TOKENS, C::BF16>;
        product::template run<0, 0>(sums, a, b, positions, !first);
        product::template run<1, 0>(sums, a + (2048 >> 4), b + (4096 >> 4), positions, true);
    }
    __device__ __forceinline__ void multiply_0(float (&sums)[HALF_SUMS], uint32_t &positions,
                                               bool first)
    {
        ptx::barrier_wait(at.full(ahead.stage), ahead.parity);
        if constexpr (C::LOADING == GATHER) {
            ptx::async_fence(); // cp.async wrote X
        }
        multiply<0>(sums, positions, ahead.stage, first);
        ahead.next();
    }
    // All products but those given out last are done; behind a branch ptxas 13.0 waits for those,
    // too (docs). By strips, where sums are read in loops, all are.
    __device__ __forceinline__ void settle() const
    {
        ptx::product_commit();
        ptx::product_wait<WAY == BY_ENGINE ? 1 : 0>();
    }
    __device__ __forceinline__ void release()
    {
        if (held >= 0) {
            __syncwarp(); // all 32 have read their positions
            if (thread % 32 == 0) {
                ptx::barrier_arrive(at.empty(held));
            }
            held = -1;
        }
    }
    __device__ __forceinline__ void hold_next()
    {
        held = behind.stage;
        behind.next();
    }
    static __device__ __forceinline__ void keep(uint32_t positions)
    {
        asm volatile("" ::"r"(positions));
    }

    // `last`: half 1 of the tile before, which is still multiplied. `meanwhile` is called when the
    // last product of half 0 has been given out.
    template <class Call>
    __device__ __forceinline__ void
    multiply_tile(float (&sums_0)[HALF_SUMS], float (&sums_1)[HALF_SUMS], int steps,
                  const half_tile &last, const half_tile &coming, const Call &meanwhile)
    {
        uint32_t first[BEHIND] = {}, of_0[2] = {}, of_1[2] = {};
        if (ADDS) {
            leaving.load_terms(last, at.norms(group));
        }
#pragma unroll
        for (int k = 0; k < BEHIND; k++) {
            if (k == 0 || k < steps) { // no branch before the first: it runs beside sums_1
                multiply_0(sums_0, first[k], k == 0);
            }
            settle();
            if (k == 0) {
                keep(final[BEHIND - 1]);
                ptx::sums_arrive(sums_1);
                release();
            }
            leaving.template leave_part<WAY>(sums_1, last, k);
        }
        for (int step = BEHIND; step < steps; step += 2) {
#pragma unroll
            for (int k = 0; k < 2; k++) {
                if (step + k < steps) {
                    multiply_0(sums_0, of_0[k], false);
                    multiply<1>(sums_1, of_1[k], behind.stage, step + k == BEHIND);
                    settle();
                    keep(of_0[k ^ 1]), keep(of_1[k ^ 1]);
                    release();
                    hold_next();
                }
            }
            if constexpr (C::NORMS) {
                leaving.norm.step(leaving.tiled.normed);
            }
        }
        meanwhile();
        if (ADDS) {
            if constexpr (C::NORMS) {
                leaving.norm.finish(leaving.tiled.normed, at.norms(group), thread);
            }
            leaving.load_terms(coming, at.norms(group));
        }
#pragma unroll
        for (int k = 0; k < BEHIND; k++) {
            int step = steps - BEHIND + k;
            if (step >= 0) {
                multiply<1>(sums_1, final[k], behind.stage, step == 0);
            }
            settle();
            release();
            if (step >= 0) {
                hold_next();
            }
            if (k == 0) {
                ptx::sums_arrive(sums_0);
                keep(first[0]), keep(first[1]);
                keep(of_0[0]), keep(of_0[1]), keep(of_1[0]), keep(of_1[1]);
            }
            leaving.template leave_part<WAY>(sums_0, coming, k);
        }
        keep(final[0]);
    }
};

// The halves of a tile that are this consumer's.
template <class C>
__device__ __forceinline__ void find_halves(const gpu_product &p, const tile &t, int group,
                                            half_tile (&halves)[2])
{
    int width = C::TILE_TOKENS >> t.shift;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int block = t.block + group * 2 + i;
        halves[i] = {t.panel, block, t.token, block < p.weight.blocks ? width : 0};
    }
}

template <class C, way WAY>
__device__ __forceinline__ void consume_staggered(const gpu_tiled &tiled, const maps &with,
                                                  const shared_map<C> &at, unsigned char *memory,
                                                  int group, int thread)
{
    const gpu_product &p = tiled.product;
    float *strip = (float *)(memory + C::LEAVING_AT) + (group * 4 + thread / 32) * STRIP_FLOATS;
    half_departures<C> leaving = {with, tiled, p, at.chunks(group), strip, group, thread};
    staggered<C, WAY> self = {at, leaving, group, thread};
    float sums[2][HALF_SUMS] = {};
    walk<C> tiles = {p.deal};
    tile t;
    bool there = tiles.next(&t);
    const x_ahead<C> ahead = {p, group * 128 + thread};
    if (there) {
        ahead.ask(t);
    }
    half_tile last = {}, halves[2];
    ptx::stream_order_wait();
    while (there) {
        find_halves<C>(p, t, group, halves);
        if (self.ADDS) {
            self.leaving.ask(halves[0]);
            self.leaving.ask(halves[1]);
        }
        if constexpr (C::NORMS) {
            self.leaving.norm.begin(tiled.normed, t.token, C::N >> t.shift, p.tokens, thread);
        }
        self.multiply_tile(sums[0], sums[1], p.weight.steps, last, halves[0],
                           [&] { there = tiles.next(&t); });
        last = halves[1];
    }
    if (self.ADDS) {
        self.leaving.load_terms(last, at.norms(group));
    }
    ptx::product_wait<0>();
    ptx::sums_arrive(sums[1]);
#pragma unroll
    for (int k = 0; k < HALF_TOKENS / PART_TOKENS; k++) {
        self.leaving.template leave_part<WAY>(sums[1], last, k);
    }
    if (thread == 0) {
        ptx::bulk_wait_all();
    }
}

} // namespace panel

#endif
