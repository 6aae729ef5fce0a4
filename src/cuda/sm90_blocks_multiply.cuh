// The products of sm90_blocks.cuh.
#ifndef ESP_CUDA_SM90_BLOCKS_MULTIPLY_CUH
#define ESP_CUDA_SM90_BLOCKS_MULTIPLY_CUH

#include "cuda/sm90_blocks_finish.cuh"

namespace blocks {

// The weights of one step that a warp multiplies.
struct step_weights {
    uint4 a[4];
    // Bit 4 k + s of `mask`: the half has a fragment there.
    __device__ __forceinline__ void load(uint32_t weights, uint32_t mask, int strip, int lane)
    {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t bit = 1u << (4 * k + strip);
            a[k] = make_uint4(0, 0, 0, 0);
            if ((mask & bit) != 0) {
                uint32_t before = __popc(mask & (bit - 1));
                a[k] = ptx::load_shared_16(weights + before * GPU_FRAGMENT_BYTES + lane * 16);
            }
        }
    }
    // A product in flight still reads its registers; this says so to the compiler.
    __device__ __forceinline__ void keep() const
    {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            asm volatile("" ::"r"(a[k].x), "r"(a[k].y), "r"(a[k].z), "r"(a[k].w));
        }
    }
};

template <class C> struct consumer {
    const shared_map<C> &at;
    int half, warp, lane; // warp of the warpgroup
    departures<C> leaving; // of the tile before
    ring<C::STAGES> place;
    uint64_t x_form;      // a descriptor without its address
    uint32_t x_offset[4]; // of the k-th 16 columns in a stage

    __device__ __forceinline__ void set_unit(int unit)
    {
        // Token-major: rows of `unit` columns, swizzled over as many bytes.
        uint64_t swizzle = !C::BY_TOKEN || unit == 64 ? 1 : unit == 32 ? 2 : 3;
        x_form = C::BY_TOKEN ? ptx::descriptor(0, 16, unit * 16, swizzle)
                             : ptx::descriptor(0, unit * 128, 1024, swizzle);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t piece = k * 16 / unit, inside = k * 16 % unit;
            x_offset[k] = piece * unit * (C::TOKENS * 2) + inside * (C::BY_TOKEN ? 2 : 128);
        }
    }
    __device__ __forceinline__ uint64_t x_descriptor(int k) const
    {
        return x_form | ((at.x(place.stage) + x_offset[k]) & 0x3FFFF) >> 4;
    }

    // Every lane has read from it, so every lane arrives.
    __device__ __forceinline__ void release(int stage)
    {
        ptx::barrier_arrive(at.empty(stage));
    }

    // The 16 columns that COLUMNS has bits for. No branch stands between the products of a step: with one, the
    // compiler makes each a group of its own.
    template <int COLUMNS>
    __device__ __forceinline__ void multiply_columns(float (&sums)[C::TOKENS / 2],
                                                     const step_weights &now)
    {
        ptx::product_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if ((COLUMNS >> k & 1) != 0) {
                ptx::dense_product<C::TOKENS, C::BF16>::template run<C::BY_TOKEN>(sums, now.a[k],
                                                                                  x_descriptor(k));
            }
        }
        ptx::product_commit();
    }
    template <int COLUMNS = 15>
    __device__ __forceinline__ void multiply_these(float (&sums)[C::TOKENS / 2],
                                                   const step_weights &now, uint32_t columns)
    {
        if constexpr (COLUMNS > 0) {
            if (columns == COLUMNS) {
                multiply_columns<COLUMNS>(sums, now);
            } else {
                multiply_these<COLUMNS - 1>(sums, now, columns);
            }
        }
    }
    // The products of the step before, by `before`, are in flight while this one's weights are loaded.
    __device__ __forceinline__ void multiply_step(float (&sums)[C::TOKENS / 2], step_weights &now,
                                                  const step_weights &before, bool first)
    {
        ptx::barrier_wait(at.full(place.stage), place.parity);
        uint32_t present = uniform(ptx::load_shared(at.mask(place.stage)) >> (16 * half) & 0xffff);
        now.load(at.weights(place.stage, half), present, warp, lane);
        ptx::product_wait<0>();
        before.keep();
        if (!first) {
            release(place.stage == 0 ? C::STAGES - 1 : place.stage - 1);
        }
        uint32_t any = present | present >> 2; // bit 4 k: the half has one for the k-th 16 columns
        any = (any | any >> 1) & 0x1111;
        multiply_these(sums, now, (any | any >> 3 | any >> 6 | any >> 9) & 15);
        place.next();
        if constexpr (C::WHOLE) {
            leaving.go_on(lane);
        }
    }

    __device__ __forceinline__ void multiply(float (&sums)[C::TOKENS / 2], int steps)
    {
        step_weights even = {}, odd = {};
        for (int step = 0; step < steps; step += 2) {
            multiply_step(sums, even, odd, step == 0);
            if (step + 1 < steps) {
                multiply_step(sums, odd, even, false);
            }
        }
        ptx::product_wait<0>();
        even.keep();
        odd.keep();
        if (steps > 0) {
            release(place.stage == 0 ? C::STAGES - 1 : place.stage - 1);
        }
    }
};

} // namespace blocks

#endif
