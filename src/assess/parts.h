/* Parts of an evaluation, and the intervals that resamples of them give. */
#ifndef ESP_ASSESS_PARTS_H
#define ESP_ASSESS_PARTS_H

#include "assess/assess.h"

/* "eval.bad_resamples" */
ESP_MUST_CHECK esp_status esp_parts_check(const esp_eval_parts *options, esp_error *error);

/* Shows the parts that have tokens, in order, and finds their intervals. Moves the others out of
 * `list`. "eval.one_part" */
ESP_MUST_CHECK esp_status esp_parts_finish(esp_context *context, const esp_eval_parts *options,
                                           esp_eval_part *list, int64_t count,
                                           esp_eval_intervals *intervals, esp_error *error);

#endif
