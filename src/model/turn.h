/* Turning the residual stream of a model: which tensors touch it, and the folder in which it is
 * turned. Which way is the caller's choice. */
#ifndef ESP_MODEL_TURN_H
#define ESP_MODEL_TURN_H

#include <espalier/checkpoint.h>
#include <espalier/turn.h>

#include "tensor/tensor.h"

typedef struct esp_turn esp_turn;

/* What the stream's tensors are. Refusals as esp_turn_checkpoint. checkpoint stays open. */
ESP_MUST_CHECK esp_status esp_turn_open(esp_device *device, const esp_checkpoint *checkpoint,
                                        esp_turn **turn, esp_error *error);
void esp_turn_close(esp_turn *turn);
int64_t esp_turn_channels(const esp_turn *turn);
/* Of a linear layer: its weights, transposed, *rows [channels][out], to be released, and those of
 * the norm before it, norm [channels]. *reads: false where it does not read the stream. */
ESP_MUST_CHECK esp_status esp_turn_reader(const esp_turn *turn, const char *name, bool *reads,
                                          double **rows, int64_t *out, double *norm,
                                          esp_error *error);
/* q: [channels][channels], orthogonal. Fills untied and bytes of the summary. */
ESP_MUST_CHECK esp_status esp_turn_write(const esp_turn *turn, const esp_algebra *algebra,
                                         const double *q, const char *out_dir,
                                         const esp_turn_options *options, esp_turn_summary *summary,
                                         esp_error *error);

#endif
