// Multiplying in the panel kernels (sm90_panel.cuh): a warpgroup's products over the stages of the
// ring.
#ifndef ESP_CUDA_SM90_PANEL_MULTIPLY_CUH
#define ESP_CUDA_SM90_PANEL_MULTIPLY_CUH

#include "cuda/sm90_panel_leave.cuh"

namespace panel
{

constexpr int TURN_BARRIER = 3; // and 4: "your turn", for either consumer

// How sums leave.
enum way {
    BY_STRIPS,
    BY_ENGINE
};

template <class C, way WAY> struct consumer {
    const shared_map<C> &at;
    int block, token; // of the tile or part: its first of each
    int thread;       // of the warpgroup
    departures<C> &leaving;
    ring<C::STAGES> place;

    __device__ __forceinline__ uint32_t weights(int i) const
    {
        return at.weights(place.stage) + (block + i) * GPU_STEP_BYTES;
    }

    template <int N, int PART>
    __device__ __forceinline__ void multiply_part(float (&sums)[C::BLOCKS][C::N / 2],
                                                  const uint32_t (&positions)[C::BLOCKS],
                                                  bool accumulate)
    {
        constexpr bool by_token = C::LOADING == TOKENS;
        uint32_t x = at.x(place.stage) + token * 128 + PART * (by_token ? 64 : 4096);
        uint64_t b = ptx::descriptor(x, by_token ? 16 : 8192, 1024, 1);
#pragma unroll
        for (int i = 0; i < C::BLOCKS; i++) {
            uint64_t a = ptx::descriptor(weights(i) + PART * 2048, 128, 256, 0);
            ptx::sparse_product<N, C::BF16>::template run<PART, by_token>(sums[i], a, b,
                                                                          positions[i], accumulate);
        }
    }

    __device__ __forceinline__ void release(int stage)
    {
        __syncwarp(); // all 32 have read their positions
        if (thread % 32 == 0) {
            ptx::barrier_arrive(at.empty(stage));
        }
    }

    static __device__ __forceinline__ void keep(const uint32_t (&positions)[C::BLOCKS])
    {
#pragma unroll
        for (int i = 0; i < C::BLOCKS; i++) {
            asm volatile("" ::"r"(positions[i]));
        }
    }

    // One step. The product that is in flight still reads its positions from `others`, so they must
    // not be overwritten before the wait.
    template <int N>
    __device__ __forceinline__ void
    multiply_step(float (&sums)[C::BLOCKS][C::N / 2], uint32_t (&positions)[C::BLOCKS],
                  const uint32_t (&others)[C::BLOCKS], bool first)
    {
        ptx::barrier_wait(at.full(place.stage), place.parity);
        if constexpr (C::LOADING == GATHER) {
            ptx::async_fence(); // cp.async wrote X
        }
#pragma unroll
        for (int i = 0; i < C::BLOCKS; i++) {
            positions[i] = ptx::load_shared(weights(i) + 4096 + thread * 4);
        }
        ptx::product_fence();
        multiply_part<N, 0>(sums, positions, !first);
        multiply_part<N, 1>(sums, positions, true);
        ptx::product_commit();
        ptx::product_wait<1>();
        keep(others);
        if (!first) {
            release(place.before());
        }
        place.next();
        if constexpr (WAY == BY_ENGINE) {
            leaving.after_step(thread);
        }
    }

    // Stages are told apart by one bit, so in turns nobody may look at them before the other is
    // through. `meanwhile` is called when the last product has been given out.
    template <int N, class Call>
    __device__ __forceinline__ void multiply(float (&sums)[C::BLOCKS][C::N / 2], int steps,
                                             int turn, bool other_follows, const Call &meanwhile)
    {
        if constexpr (C::SHARING == IN_TURNS) {
            ptx::named_barrier(TURN_BARRIER + turn, 256);
        }
        uint32_t even[C::BLOCKS] = {}, odd[C::BLOCKS] = {};
        for (int step = 0; step < steps; step += 2) {
            multiply_step<N>(sums, even, odd, step == 0);
            if (step + 1 < steps) {
                multiply_step<N>(sums, odd, even, false);
            }
        }
        if (other_follows) {
            ptx::named_barrier_arrive(TURN_BARRIER + 1 - turn, 256);
        }
        meanwhile();
        ptx::product_wait<0>();
        keep(even);
        keep(odd);
        release(place.before());
    }

    template <class Call>
    __device__ __forceinline__ void multiply_tile(float (&sums)[C::BLOCKS][C::N / 2], int shift,
                                                  int steps, int turn, bool other_follows,
                                                  const Call &meanwhile)
    {
        if (shift == 0) {
            multiply<C::N>(sums, steps, turn, other_follows, meanwhile);
        } else if (C::SHIFT == 1 || shift == 1) {
            multiply<C::N / 2>(sums, steps, turn, other_follows, meanwhile);
        } else if constexpr (C::SHIFT == 2) {
            multiply<C::N / 4>(sums, steps, turn, other_follows, meanwhile);
        }
    }
};

} // namespace panel

#endif
