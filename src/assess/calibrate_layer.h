/* One linear layer at work: what calibrate_layer.c and calibrate_mask.c share. */
#ifndef ESP_ASSESS_CALIBRATE_LAYER_H
#define ESP_ASSESS_CALIBRATE_LAYER_H

#include "assess/calibrate.h"

typedef struct esp_layer_job {
    esp_calibration *calibration;
    const esp_pattern *pattern;   /* of a pruning */
    const esp_unit_choice *units; /* of what a layer is to do without */
    int64_t out, in;
    double *weights; /* [out][in]: as they were */
    double *goal;    /* T H */
    double *target;  /* T */
    double *result;
    float *scores;
    esp_layer_inputs inputs;
} esp_layer_job;

/* to = from, of the layer's shape. */
void esp_layer_copy(const esp_layer_job *job, double *to, const double *from);
/* The mask by the calibration's method, and in the result the weights that it goes with: those that
 * were, or with updates; what the mask drops may still be there. */
ESP_MUST_CHECK esp_status esp_layer_choose(const esp_layer_job *job, esp_mask **mask,
                                           esp_error *error);

#endif
