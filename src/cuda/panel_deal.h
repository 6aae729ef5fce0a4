/* Private to src/cuda: how the tiles of a product of panels are dealt to the multiprocessors. */
#ifndef ESP_CUDA_PANEL_DEAL_H
#define ESP_CUDA_PANEL_DEAL_H

#include "cuda/gpu.h"

#define PANEL_MOST_SHIFT 2

typedef struct panel_tiling {
    int64_t panels, of_panel; /* row tiles of a panel */
    int64_t tokens;
    int tile_tokens;
    int most_shift; /* a tile's tokens may be halved so often */
    int most_group; /* row tiles whose weights the L2 holds */
    int multiprocessors;
    double clocks[PANEL_MOST_SHIFT + 1]; /* for a tile of tile_tokens >> shift */
} panel_tiling;

/* The best deal found, and the clocks that the busiest multiprocessor is predicted to take. */
double panel_deal(const panel_tiling *tiling, gpu_deal *deal);

#endif
