/* Every kernel of the GPU back end, one line a record. */
#include "cuda/room.h"

#define SIX(list, i)                                                                               \
    &(list)[i], &(list)[i + 1], &(list)[i + 2], &(list)[i + 3], &(list)[i + 4], &(list)[i + 5]
#define FOUR(list, i) &(list)[i], &(list)[i + 1], &(list)[i + 2], &(list)[i + 3]

const esp_kernel *const esp_cuda_kernels[] = {FOUR(cuda_panel_kernels, 0),
                                              FOUR(cuda_panel_kernels, 4),
                                              FOUR(cuda_panel_kernels, 8),
                                              FOUR(cuda_panel_kernels, 12),
                                              FOUR(cuda_panel_kernels, 16),
                                              SIX(cuda_sm80_panel_kernels, 0),
                                              SIX(cuda_sm80_panel_kernels, 6),
                                              FOUR(cuda_sm80_panel_kernels, 12),
                                              SIX(cuda_block_kernels, 0),
                                              FOUR(cuda_block_kernels, 6),
                                              &cuda_dense_kernels[0],
                                              &cuda_dense_kernels[1],
                                              &cuda_dense_kernels[2],
                                              FOUR(cuda_dense_few_kernels, 0),
                                              FOUR(cuda_dense_tile_kernels, 0),
                                              FOUR(cuda_dense_split_kernels, 0),
                                              NULL};
_Static_assert(ESP_COUNT(esp_cuda_kernels) == CUDA_PANEL_KERNELS + CUDA_SM80_PANEL_KERNELS +
                                                  CUDA_BLOCK_KERNELS + CUDA_DENSE_KERNELS +
                                                  CUDA_DENSE_FEW_KERNELS + CUDA_DENSE_TILE_KERNELS +
                                                  CUDA_DENSE_SPLIT_KERNELS + 1,
               "a kernel is not listed");
