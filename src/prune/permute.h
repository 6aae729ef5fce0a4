/* The search for orders of channels in which panels keep more: Zhao et al., "Beyond 2:4" (arXiv
 * 2410.16135), generalised to orders that several weights share.
 *
 * A space is a set of channels whose order is free. It lies on axes (permutation.h): the order of a
 * feed-forward layer's hidden channels is that of the rows of one weight and of the columns of
 * another, and that of a head's values recurs in every query head of its group. */
#ifndef ESP_PRUNE_PERMUTE_H
#define ESP_PRUNE_PERMUTE_H

#include "prune/permutation.h"

/* Channel u lies, for each k < copies, at offset + (u / head * copies + k) * head + u % head. */
typedef struct esp_space_part {
    int axis;
    int64_t offset, head, copies;
} esp_space_part;

#define ESP_SPACE_MAX_PARTS 4

typedef struct esp_space {
    int64_t channels;
    int64_t block; /* channels are exchanged within blocks of so many */
    int64_t unit;  /* so many neighbours move together; divides block */
    esp_space_part parts[ESP_SPACE_MAX_PARTS];
    int part_count;
} esp_space;

static inline int64_t esp_space_place(const esp_space_part *part, int64_t channel, int64_t copy)
{
    return part->offset + (channel / part->head * part->copies + copy) * part->head +
           channel % part->head;
}

/* Channel source_of[u] of a space goes to place u, on all axes that the space lies on. */
ESP_MUST_CHECK esp_status esp_space_reorder(esp_permutation *permutation, const esp_space *space,
                                            const uint32_t *source_of, esp_error *error);

/* A weight that is to be pruned to a pattern of the panel family. */
typedef struct esp_permute_weight {
    float *scores; /* [out][in], finite, not negative; reordered by the search */
    int64_t out, in;
    esp_pattern pattern;
    esp_search search; /* not AUTO */
    int rows, columns; /* axes; -1: that order stays */
} esp_permute_weight;

typedef struct esp_permute_job {
    esp_context *context;
    esp_permute_weight *weights;
    int64_t weight_count;
    const esp_space *spaces;
    int space_count;
    int rounds;                   /* over all spaces */
    esp_permutation *permutation; /* its axes are reordered, its scores filled in */
    esp_progress_fn progress;     /* may be NULL */
    void *user;
    /* The error of a weight's layer, pruned in the orders of `permutation`; NULL: scores decide. */
    esp_status (*error_of)(void *user, int64_t weight, double *layer_error, esp_error *error);
    void *error_user;
} esp_permute_job;

/* Scores above this count as this much. */
#define ESP_PERMUTE_MOST 1e30f

/* Each step is an assignment whose benefit is what is kept for certain, and a pass over a space is
 * taken back unless what the masks keep has grown: kept_after >= kept_before. With error_of it is
 * taken back as well unless the errors of the layers that it touches have fallen together: each
 * weight is judged once at first and once for every pass over a space that touches it. */
ESP_MUST_CHECK esp_status esp_permute(const esp_permute_job *job, esp_error *error);

#endif
