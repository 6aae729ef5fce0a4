/* Which patterns the zeros of a dense weight fit. */
#ifndef ESP_ASSESS_FIT_H
#define ESP_ASSESS_FIT_H

#include <espalier/sparse.h>

#include "assess/assess.h"

#define ESP_FIT_TEXT_MAX 128
#define ESP_QUALIFIES_TEXT_MAX 160

/* Text such as "64:2:8, 2:4": the patterns that the mask's dropped entries fit, the sparsest first.
 * Of V:2:M, a smaller M is named only with taller panels than those named before; then 2:4, or else
 * 4:8. Empty when nothing fits or when fewer than a quarter of the entries are dropped, since then
 * a fit would be an accident of a small shape. */
void esp_fit_patterns(esp_context *context, const esp_mask *mask, char text[ESP_FIT_TEXT_MAX]);

/* Text such as "2:4, 64:2:5 (last group 1), 64:2:8, 128:2:8 (V=64)": what the usual patterns make
 * of this shape, or "none: REASON". */
void esp_fit_qualifies(const esp_weight_info *weight, char text[ESP_QUALIFIES_TEXT_MAX]);

#endif
