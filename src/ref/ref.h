/* The door of src/ref: the reference back end, whose results are what every operation means. Plain
 * scalar C, one thread, sums in double. */
#ifndef ESP_SRC_REF_H
#define ESP_SRC_REF_H

#include "op/op.h"

extern const esp_backend esp_ref_backend;

#endif
