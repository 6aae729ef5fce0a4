/* How many clusters of blocks a GPU runs at a time. */
#ifndef ESP_CUDA_GPU_CLUSTERS_H
#define ESP_CUDA_GPU_CLUSTERS_H

#ifdef __cplusplus
extern "C" {
#endif

#define GPU_CLUSTER_SIZES 4 /* 1, 2, 4 and 8 blocks */

/* most[i]: clusters of 2^i blocks, of which each wants a multiprocessor to itself. A cluster stays
 * inside one part of the chip, parts differ in their multiprocessors, and chips of one kind in
 * their parts: so there are fewer than multiprocessors have room for. 0: unknown. Of the current
 * device. */
void gpu_most_clusters(int most[GPU_CLUSTER_SIZES]);

#ifdef __cplusplus
}
#endif
#endif
