/* Removing channels of a model: which there are, and the folder without them. Which of them go is
 * the caller's choice. */
#ifndef ESP_MODEL_SHRINK_H
#define ESP_MODEL_SHRINK_H

#include <espalier/checkpoint.h>
#include <espalier/shrink.h>

#include "tensor/tensor.h"

/* Channels of one layer that are alike: `units` of `width` neighbours each. */
typedef struct esp_shrink_part {
    int64_t layer;
    int64_t consumer; /* the tensor whose columns they are */
    int64_t units, width, kept;
} esp_shrink_part;

/* kept: [part->kept], ascending. values: the consumer's weights, to be changed at will. loss: as of
 * the summary. Asked for each layer's heads, then its hidden features. */
typedef esp_status (*esp_shrink_choose_fn)(void *user, const esp_shrink_part *part,
                                           esp_tensor *values, uint32_t *kept, double *loss,
                                           esp_error *error);

typedef struct esp_shrink_job {
    esp_device *device;
    const esp_checkpoint *checkpoint;
    const esp_shrink_options *options;
    esp_shrink_choose_fn choose; /* NULL: by squares */
    void *user;
} esp_shrink_job;

ESP_MUST_CHECK esp_status esp_shrink_run(const esp_shrink_job *job, const char *out_dir,
                                         esp_shrink_summary *summary, esp_error *error);

#endif
