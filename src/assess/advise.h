/* Advice inside: the layers, what holding each in each way takes and loses. */
#ifndef ESP_ASSESS_ADVISE_H
#define ESP_ASSESS_ADVISE_H

#include <espalier/advise.h>

#include "assess/mix.h"
#include "op/op.h"

#define ESP_ADVISE_MAX_WAYS 64

struct esp_advice {
    esp_context *context;
    esp_device *device;
    const esp_checkpoint *checkpoint;
    const esp_advise_options *options; /* valid while it is made */
    int ways;                          /* dense first */
    int token_count;
    esp_advised_layer *layers;
    esp_advised_way *table; /* [layers][ways] */
    char *names;            /* of all layers, behind one another */
    int64_t count;
    double done, total; /* progress */
    esp_advised_whole whole[ESP_ADVISE_MAX_TOKENS];
    esp_mix mix;          /* by time; its table is `costs` */
    esp_mix_way *costs;   /* [layers][ways] */
    int *scratch;         /* [layers] */
    uint64_t model_bytes; /* of all tensors, dense */
    esp_advised_point chosen;
    esp_advised_uniform uniform[ESP_ADVISE_MAX_WAYS]; /* [ways], dense first */
};

/* advise_measure.c: fills us, gain, kernels, possible and why_not of every layer's ways. */
ESP_MUST_CHECK esp_status esp_advice_measure(esp_advice *advice, esp_error *error);
/* advise_whole.c: fills whole. What cannot be timed says why there. */
ESP_MUST_CHECK esp_status esp_advice_time_whole(esp_advice *advice, esp_error *error);
/* advise_calibrated.c: errors of the layers that options->calibration reaches. */
ESP_MUST_CHECK esp_status esp_advice_calibrate(esp_advice *advice, esp_error *error);
/* advise_choose.c: the mix for the wish, and the frontier. */
ESP_MUST_CHECK esp_status esp_advice_choose(esp_advice *advice, esp_error *error);
/* Of ways [layers]. */
esp_advised_point esp_advice_point_of(const esp_advice *advice, const int *chosen);
/* advise_sift.c: fills uniform. */
void esp_advice_sift(esp_advice *advice);
/* Layers of the same ways but for their losses. */
bool esp_advice_same_shape(const esp_advice *advice, int64_t a, int64_t b);
/* "cancelled" when the caller says so; one more step is done. */
ESP_MUST_CHECK esp_status esp_advice_step(esp_advice *advice, const char *what, esp_error *error);

#endif
