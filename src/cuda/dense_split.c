/* Dense products of some hundred tokens (sm90_dense_split.cuh): how many blocks share out the steps
 * of a tile, and what that takes. A tile has a cluster of its own; the steps of a call are those of
 * panels (panel_call.c). */
#include "cuda/gpu_dense.h"
#include "cuda/panel_call.h"

/* Measured on an H100, microseconds: from launch to launch; a step of a tile of 64 and of 128
 * tokens; adding up, for each block and 64 tokens; what an activation adds. */
#define LAUNCH_US 2.6
#define SHARE_US 0.15

static const int splits[] = {1, 2, 3, 4, 8};

/* Clusters of `split` blocks that run at a time; one of three takes a place for four. */
static int64_t places(const cuda_state *state, int split)
{
    static const int sizes[] = {0, 0, 1, 2, 2, 3, 3, 3, 3};
    int known = state->most_clusters[sizes[split]];
    return known > 0 ? known : state->facts.multiprocessors / split;
}

double dense_split_us(const panel_variant *variant, const cuda_state *state, int64_t out,
                      int64_t in, int64_t tokens, int *split)
{
    int64_t tiles = esp_ceil_div(out, variant->rows) * esp_ceil_div(tokens, variant->tokens);
    int64_t steps = esp_ceil_div(in, GPU_STEP_COLUMNS);
    double best = -1;
    for (int i = 0; i < ESP_COUNT(splits) && splits[i] <= steps; i++) {
        int each = splits[i];
        double rounds = (double)esp_ceil_div(tiles, places(state, each));
        double us = (double)esp_ceil_div(steps, each) * variant->clocks / 1500 +
                    variant->finish_clocks / 1500 +
                    (each > 1 ? SHARE_US * (double)variant->tokens / 64 : 0);
        us = LAUNCH_US + rounds * us;
        if (best < 0 || us < best) {
            best = us;
            *split = each;
        }
    }
    return best;
}
