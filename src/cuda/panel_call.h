/* Private to src/cuda: what the families of panel kernels share around their launches. */
#ifndef ESP_CUDA_PANEL_CALL_H
#define ESP_CUDA_PANEL_CALL_H

#include "cuda/gpu_tiles.h"
#include "cuda/panel_deal.h"
#include "cuda/room.h"

typedef struct panel_variant panel_variant;

/* esp_kernel.variant of a panel kernel. */
struct panel_variant {
    esp_dtype type;
    bool few;    /* up to GPU_FEW_TOKENS, 2:4 or a list */
    bool listed; /* gathers by a list; otherwise 2:4 */
    bool spread; /* V:2:5 as 2:4 over all columns */
    gpu_tile tile;
    int rows, tokens;     /* of a tile */
    int halvings;         /* its tokens may be cut in 2 to the power of this */
    int most_split;       /* multiprocessors that can share out its steps; 0 as 1 */
    double clocks;        /* a multiprocessor needs for a step of a tile, measured */
    double finish_clocks; /* and for leaving it */
    double launch_us;     /* of a launch, predicted; 0: 4 */
    double alone;         /* as often as that a tile takes which shares a multiprocessor with none,
                             where tiles are meant to; 0: they are not */
    double off_line;      /* how often as long where rows begin in the middle of 128 bytes; 0: 1 */
    double part_fixed;    /* what of a tile's time a part takes however narrow; 0: as panels */
    int (*run)(const panel_variant *variant, const cuda_state *state, gpu_tiled *tiled,
               void *stream);
};

/* Rows of the packed blocks of the problem's weight. */
int64_t panel_block_rows(const esp_matmul_problem *problem);
/* Reasons that do not depend on the GPU. NULL: none. */
const char *panel_why_not(const panel_variant *variant, const esp_matmul_problem *problem);
/* X may have to be laid out anew before the product. */
bool panel_moves_x(const panel_variant *variant, const esp_matmul_problem *problem);
/* Fills product->deal. */
void panel_deal_product(const panel_variant *variant, const cuda_state *state,
                        gpu_product *product);
/* Whether the copy engine can store Y, rows being in their order: it knows 16-bit elements only,
 * takes rows of Y that begin aligned, and cuts them at multiples of 16 bytes only. */
bool panel_y_by_engine(const gpu_product *product);
/* esp_kernel.norms of Hopper's tiles: where sums leave by the copy engine in a way that is compiled
 * with a norm. */
bool panel_norms(const esp_kernel *kernel, const esp_matmul_problem *problem,
                 const esp_packed *weight);
/* esp_kernel.moment_parts: where, besides, a residual is added. */
int panel_moment_parts(const esp_kernel *kernel, const esp_matmul_problem *problem,
                       const esp_packed *weight);
/* What memory takes for the weights: `step_bytes` for each step of GPU_BLOCK_ROWS rows. */
double panel_reading_us(const esp_device *device, int64_t panels, int64_t panel_rows, int64_t steps,
                        int64_t step_bytes);
/* Predicted microseconds of a kernel of tiles: clocks of all rounds, plus laying out X where that
 * is needed. */
double panel_tiles_us(const panel_variant *variant, const esp_device *device,
                      const esp_matmul_problem *problem);
/* esp_kernel's; the kernel's variant is a panel_variant. */
size_t panel_workspace_bytes(const esp_kernel *kernel, const esp_device *device,
                             const esp_matmul_problem *problem);
esp_status panel_launch(const esp_matmul_call *call, esp_error *error);

#endif
