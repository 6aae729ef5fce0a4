/* New orders of channels and the tensors that they touch: what a search for a permutation returns
 * and what rewrites a checkpoint. Axes are channel orders by name; a binding says that a dimension
 * of a tensor is laid out along one. */
#ifndef ESP_PRUNE_PERMUTATION_H
#define ESP_PRUNE_PERMUTATION_H

#include "prune/prune.h"

typedef struct esp_axis {
    char name[48]; /* "residual", "layers.3.hidden"... */
    int64_t count;
    uint32_t *order; /* [count]: order[i] is the old place of the channel that is now at i */
} esp_axis;

typedef struct esp_axis_binding {
    char *tensor;
    int dimension, axis;
} esp_axis_binding;

struct esp_permutation {
    esp_context *context;
    esp_axis *axes;
    int axis_count, axis_capacity;
    esp_axis_binding *bindings;
    int64_t binding_count, binding_capacity;
    const char *score;                   /* by which it was judged; static text */
    double all, kept_before, kept_after; /* summed scores of the layers that it was made for */
    int64_t judged;                      /* layers whose errors were looked at */
    double error_before, error_after;    /* summed over them */
};

ESP_MUST_CHECK esp_status esp_permutation_create(esp_context *context,
                                                 esp_permutation **permutation, esp_error *error);
/* A new axis in the old order. */
ESP_MUST_CHECK esp_status esp_permutation_add_axis(esp_permutation *permutation, const char *name,
                                                   int64_t count, int *axis, esp_error *error);
ESP_MUST_CHECK esp_status esp_permutation_bind(esp_permutation *permutation, const char *tensor,
                                               int dimension, int axis, esp_error *error);
/* The axis of a tensor's dimension; -1: stays put. */
int esp_permutation_axis(const esp_permutation *permutation, const char *tensor, int dimension);
bool esp_axis_is_moved(const esp_axis *axis);
/* Every order is a bijection: "permutation.not_bijection". */
ESP_MUST_CHECK esp_status esp_permutation_check(const esp_permutation *permutation,
                                                esp_error *error);
/* Brings a tensor of that name into the new order; others stay as they are. Its type may be any of
 * whole bytes. "permutation.wrong_shape" */
ESP_MUST_CHECK esp_status esp_permutation_apply(const esp_permutation *permutation,
                                                const char *name, esp_tensor *tensor,
                                                esp_error *error);
/* Brings it back into the old one. */
ESP_MUST_CHECK esp_status esp_permutation_undo(const esp_permutation *permutation, const char *name,
                                               esp_tensor *tensor, esp_error *error);
/* Numbers [outer][count of the axis][inner] into the new order; axis -1: they stay. */
ESP_MUST_CHECK esp_status esp_permutation_apply_to(const esp_permutation *permutation, int axis,
                                                   int64_t outer, int64_t inner, double *items,
                                                   esp_error *error);
/* What a folder remembers of it, as a JSON object. */
void esp_permutation_print(const esp_permutation *permutation, esp_buffer *text);

#endif
