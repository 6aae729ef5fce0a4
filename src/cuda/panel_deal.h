/* Private to src/cuda: how the tiles of a product of panels are dealt to the multiprocessors. */
#ifndef ESP_CUDA_PANEL_DEAL_H
#define ESP_CUDA_PANEL_DEAL_H

#include "cuda/gpu.h"
#include "cuda/gpu_clusters.h"

#define PANEL_MOST_SHIFT 2

typedef struct panel_tiling {
    int64_t panels, of_panel; /* row tiles of a panel */
    int64_t tokens;
    int tile_tokens;
    int most_shift; /* a tile's tokens may be halved so often */
    int most_group; /* row tiles whose weights the L2 holds */
    int multiprocessors;
    int most_split; /* multiprocessors that can share out the steps of a tile; a power of two */
    int most_clusters[GPU_CLUSTER_SIZES]; /* that run at a time; 0: as many as there is room for */
    int least_share; /* tokens of a consumer that one of them must finish at least */
    int64_t steps;
    double edge; /* how often as long a step takes where tokens end within the part; 0: 1 */
    /* By tiles of tile_tokens >> shift: of a step, of its end, of adding up what was shared out. */
    double step_clocks[PANEL_MOST_SHIFT + 1], finish_clocks[PANEL_MOST_SHIFT + 1],
        share_clocks[PANEL_MOST_SHIFT + 1];
} panel_tiling;

/* The best deal found, and the clocks that the busiest multiprocessor is predicted to take. */
double panel_deal(const panel_tiling *tiling, gpu_deal *deal);

#endif
