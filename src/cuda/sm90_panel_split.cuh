// Sums of which each block of a cluster has computed a stretch of steps (sm90_panel.cuh): where
// tiles are too few for all multiprocessors, a cluster shares out the steps of one tile.
//
// Each block lays its sums into its own ring, which nothing fills any more, as they lie in its
// registers. Then each finishes a share of the tile: some tokens of both consumers' rows, or, where
// those would be fewer than leave together, of one's. It adds what all blocks have of it, in their
// order, so that results do not depend on timing.
#ifndef ESP_CUDA_SM90_PANEL_SPLIT_CUH
#define ESP_CUDA_SM90_PANEL_SPLIT_CUH

#include "cuda/sm90_panel_parts.cuh"

namespace panel
{

constexpr int SPLIT_BARRIER = 5; // of both consumers

// All threads of the cluster, twice: when all sums lie there, and when all have been read.
__device__ __forceinline__ void meet_cluster()
{
    __syncwarp();
    ptx::cluster_arrive();
    ptx::cluster_wait();
}

// As chunks have: sm90_panel_chunk.cuh.
__device__ __forceinline__ int least_share(const gpu_product &p)
{
    return (p.epilogue.bits & ESP_EP_SWIGLU) != 0 ? 64 : 32;
}

template <class C> struct split_sums {
    const shared_map<C> &at;
    int blocks, rank;                      // of the cluster
    int group, thread;                     // of the consumer
    int least;                             // tokens that leave together
    static constexpr int QUADS = C::N / 8; // of four sums, of a thread
    static_assert(2 * QUADS * 128 * 16 <= C::BARRIERS_AT || C::SHARING == IN_TURNS,
                  "sums fit into the ring");

    __device__ __forceinline__ uint32_t place(int of_group, int quad) const
    {
        return at.base + ((of_group * QUADS + quad) * 128 + thread) * 16;
    }
    __device__ __forceinline__ void lay_down(const float (&sums)[C::N / 2], int quads)
    {
        ptx::named_barrier(SPLIT_BARRIER, 256); // neither reads the ring any more
#pragma unroll
        for (int q = 0; q < QUADS; q++) {
            if (q < quads) {
                ptx::store_shared_4(place(group, q), &sums[q * 4]);
            }
        }
    }
    // Adds one block's quads from `first` on to the first sums. Eight are under way at a time.
    __device__ __forceinline__ void add_block(float (&sums)[C::N / 2], int first, int quads,
                                              int block)
    {
        constexpr int AT_ONCE = 8;
        uint32_t from = ptx::in_cluster(place(group, first), block);
#pragma unroll
        for (int q = 0; q < QUADS; q += AT_ONCE) {
            if (q < quads) { // a multiple of four
                float more[AT_ONCE][4] = {};
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++) {
                    if (q + i / 4 * 4 < quads) {
                        ptx::load_cluster_4(from + (q + i) * 2048, more[i]);
                    }
                }
#pragma unroll
                for (int i = 0; i < AT_ONCE * 4; i++) {
                    float old = block == 0 ? 0.0f : sums[q * 4 + i];
                    sums[q * 4 + i] = old + more[i / 4][i % 4];
                }
            }
        }
    }
    // Which of `width` tokens from `token` on are finished here; of one's rows: none by the other.
    __device__ __forceinline__ void mine(int *token, int *width) const
    {
        bool both = *width / blocks >= least;
        int sharers = both ? blocks : blocks / 2;
        bool here = both || rank / sharers == group;
        *width = here ? *width / sharers : 0;
        *token += rank % sharers * *width;
    }
    // Sums of `width` tokens become those of this block's share.
    __device__ __forceinline__ void share(float (&sums)[C::N / 2], int width)
    {
        lay_down(sums, width / 8);
        meet_cluster();
        int first = 0, left = width;
        mine(&first, &left);
        for (int block = 0; block < blocks; block++) {
            add_block(sums, first / 8, left / 8, block);
        }
    }
};

} // namespace panel

#endif
